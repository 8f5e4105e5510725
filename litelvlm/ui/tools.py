"""The endpoints as tools over MCP: pictures as pictures, mistakes as one sentence.

Gradio serves the protocol and lists the tools. A call is answered here, through the same queue as
every other visitor's: Gradio itself folds the outputs of a queued call into one text, and tells
faults in an input in the words of its libraries.
"""

from __future__ import annotations

import base64
import functools
import json
import logging
from pathlib import Path
from typing import Any

import gradio as gr
from anyio import to_thread
from gradio.processing_utils import async_ssrf_protected_download, save_base64_to_cache
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from litelvlm.errors import InputError
from litelvlm.ui.callbacks import FAILED

log = logging.getLogger(__name__)


def answer_calls(blocks: gr.Blocks, inputs: dict[str, tuple[str, ...]]) -> None:
    """Answer the calls of tools of a page that was launched with them.

    Args:
        blocks: the page.
        inputs: endpoint -> names of its inputs.
    """
    made = blocks.mcp_server_obj
    assert made is not None
    types = made.types

    @functools.cache
    def client() -> Client:
        return Client(
            str(blocks.local_url), download_files=False, verbose=False, analytics_enabled=False
        )

    def run(endpoint: str, given: dict[str, Any], headers: dict[str, str]) -> tuple[Any, ...]:
        return client().submit(**given, api_name=endpoint, headers=headers).result()

    @made.mcp_server.call_tool(validate_input=False)  # the endpoint checks, in words
    async def call(name: str, arguments: dict[str, Any]) -> list[Any]:
        endpoint = made.tool_to_endpoint.get(name)
        if endpoint is None:
            raise InputError(f"no tool {name!r}; there are {', '.join(made.tool_to_endpoint)}")
        known = inputs[endpoint.strip("/")]
        if unknown := sorted(set(arguments) - set(known)):
            raise InputError(f"{name} has no input {unknown[0]!r}; it takes {', '.join(known)}")
        picture = await _picture(arguments.get("image"), blocks.GRADIO_CACHE)
        given = {"phrases": None, **arguments, "image": picture and handle_file(picture)}
        request = made.mcp_server.request_context.request
        sent = {} if request is None else request.headers
        headers = {key: value for key, value in sent.items() if key == "x-ip-token"}
        try:
            picture, record = await to_thread.run_sync(run, endpoint, given, headers)
        except AppError as error:
            raise InputError(error.message) from None
        except Exception:
            log.exception("a tool failed")
            raise InputError(FAILED) from None
        content = base64.b64encode(Path(picture["path"]).read_bytes()).decode("ascii")
        return [
            types.ImageContent(type="image", data=content, mimeType="image/png"),
            types.TextContent(type="text", text=json.dumps(record, ensure_ascii=False)),
        ]


async def _picture(given: Any, folder: str) -> str | None:
    """The file of a picture given by its address or as a data: URL, or `InputError`."""
    if given is None:
        return None
    try:
        if given.startswith("data:"):
            return save_base64_to_cache(given, folder)
        if not given.startswith(("http://", "https://")):
            raise ValueError("no address")
        return await async_ssrf_protected_download(given, folder)
    except Exception as error:  # whatever the address and its host may bring about
        log.info("no picture: %s", type(error).__name__)
        raise InputError(
            "image must be a data: URL, or an http or https address from which anyone may fetch "
            f"it, got {str(given)[:40]!r}"
        ) from None
