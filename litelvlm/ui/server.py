"""Build the demo and serve it."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from litelvlm.ui import about, api, curve, page, patch_map, style, tools
from litelvlm.ui.desk import Desk
from litelvlm.ui.guard import RequestGuard
from litelvlm.ui.limits import harden_pillow
from litelvlm.ui.settings import Settings

log = logging.getLogger(__name__)
BODY_BYTES = 1_000_000  # of any request that is not an upload


def build(settings: Settings, load: Any = None) -> gr.Blocks:
    """The page with its queue, not yet served. A model that cannot be loaded becomes a notice.

    Args:
        settings: see there.
        load: turns a model's name into a pipeline; None for `litelvlm.load`.
    """
    desk = Desk(settings, load)
    seconds = desk.warm_up()
    if seconds is not None:
        log.info("warmed up in %.1f s", seconds)
    blocks = page.build(desk)
    return blocks.queue(max_size=settings.queue_size, default_concurrency_limit=1)


def private_folder() -> Path:
    """A folder for uploads that no other user of this computer has. Raises `OSError`."""
    owner = os.getuid() if hasattr(os, "getuid") else "own"
    folder = Path(tempfile.gettempdir()) / f"litelvlm-{owner}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            if owner in ("own", folder.lstat().st_uid):
                return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="litelvlm-"))  # the name is another user's, or a file's


def launch(settings: Settings, load: Any = None, block: bool = True) -> gr.Blocks:
    """Serve the demo.

    Args:
        settings: see there.
        load: as for `build`.
        block: wait until the server is stopped.
    """
    if not os.environ.get("GRADIO_TEMP_DIR"):
        # Gradio's own folder is shared by all users of the computer and belongs to the first.
        os.environ["GRADIO_TEMP_DIR"] = str(private_folder())
    blocks = build(settings, load)
    harden_pillow()
    on_spaces = bool(os.environ.get("SPACE_ID"))
    upload = int(settings.upload_mb * 1e6)
    guard = Middleware(
        RequestGuard,
        body_bytes=BODY_BYTES,
        upload_bytes=upload + 10_000,  # the form around the file
        window_bytes=int(settings.disk_mb * 1e6),
        window_s=60 * settings.keep_minutes,
        same_site=not on_spaces,  # a Space is meant to be embedded and called from elsewhere
    )
    blocks.launch(
        server_name="0.0.0.0" if on_spaces else settings.host,
        server_port=settings.port,
        auth=settings.auth,
        max_file_size=upload,
        app_kwargs={"middleware": [guard]},
        state_session_capacity=settings.sessions,
        root_path=settings.root_path,
        inbrowser=settings.open_browser,
        mcp_server=settings.mcp,
        footer_links=["api"],
        run_history=False,
        share=False,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        max_threads=8,
        theme=style.theme(),
        css=style.CSS + patch_map.CSS + curve.CSS,
        head=f"{about.head_tags()}<script>{style.SCRIPT}{patch_map.SCRIPT}{curve.SCRIPT}</script>",
        prevent_thread_lock=True,
    )
    if settings.mcp:
        tools.answer_calls(blocks, api.INPUTS)
    if block:
        blocks.block_thread()
    return blocks
