"""The tab for clips: there where a model takes them. A clip, phrases, a budget; masks that play."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from litelvlm.clips import read_clip, write_clip
from litelvlm.errors import InputError
from litelvlm.result import GroundingResults
from litelvlm.ui import panels
from litelvlm.ui.components import Budget
from litelvlm.ui.desk import Desk
from litelvlm.ui.inputs import html_part
from litelvlm.ui.limits import check_phrases, fit
from litelvlm.ui.pictures import data_url, esc, png
from litelvlm.viz import compose, mask_layer, token_layer

log = logging.getLogger(__name__)
SHOWN = 640  # longest side of what plays, pixels
USUAL = 64  # tokens of a key frame, where the slider stands
NOTHING = (
    "Choose a short clip, name what to follow, press Follow. The language model sees the first "
    "frames with the budget's tokens each; the masks go on from there."
)


class ClipFile(gr.Video):
    """A clip input that hands over the path of the upload without opening it."""

    is_template = True

    def preprocess(self, payload: Any) -> str | None:
        """The path of the upload, None without one."""
        return None if payload is None or not payload.path else str(payload.path)


def build(desk: Desk, model: gr.Dropdown, run: dict[str, Any]) -> None:
    """The tab's content.

    Args:
        desk: answers.
        model: which model is asked.
        run: how an event runs a model.
    """
    clip = ClipFile(label="Clip", sources=["upload"], height=190, elem_id="lv-clip")
    phrases = gr.Textbox(
        label="What to follow", placeholder="the dog", lines=1, max_lines=6, elem_id="lv-clip-what"
    )
    budget = Budget(
        minimum=1,
        maximum=2048,  # patches of a large frame; each model says how many it has
        value=USUAL,
        step=1,
        label="Tokens of each key frame",
        elem_id="lv-clip-budget",
        buttons=[],
    )
    go = gr.Button("Follow", variant="primary", elem_id="lv-follow")
    shown = html_part(panels.empty(NOTHING), elem_id="lv-clip-shown")

    def follow(name: Any, path: Any, text: Any, tokens: Any) -> str:
        return answer(desk, name, path, text, tokens)

    go.click(follow, [model, clip, phrases, budget], [shown], show_progress_on=[shown], **run)


def answer(desk: Desk, name: Any, path: Any, text: Any, tokens: Any) -> str:
    """What the tab shows for a clip: masks that play and the key frames' tokens, or a mistake."""
    try:
        if not path:
            raise InputError("Choose a clip first.")
        asked = check_phrases(text)
        try:
            clip = read_clip(path)
        except InputError as fault:  # without the server's own path
            told = str(fault).removeprefix(f"{str(path)[-80:]}: ")
            raise InputError(f"This file: {told}.") from None
        return _shown(desk.follow(str(name), clip.frames, asked, tokens), clip.fps)
    except InputError as fault:
        return panels.notice("error", "That did not work", esc(fault))
    except Exception:
        log.exception("a clip failed")
        return panels.notice("error", "That did not work", "This run failed on our side.")


def _shown(results: GroundingResults, fps: float) -> str:
    items, costs = list(results), results.costs
    frames = items[0].frames
    layers = (mask_layer([item.masks[time] for item in items]) for time in range(len(frames)))
    pairs = zip(frames, layers, strict=True)
    played = (fit(compose(frame, layer), SHOWN) for frame, layer in pairs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "masks.mp4"
        write_clip(path, played, fps)
        film = data_url(path.read_bytes(), "video/mp4")
    lines = [f'<video src="{film}" controls autoplay loop muted playsinline></video>']
    for item in items:
        there = int(item.masks.any((1, 2)).sum())
        lines.append(f"<p>{esc(item.phrase)}: in {there} of {len(frames)} frames.</p>")
        lines += [_key(frames[time], tokens) for time, tokens in enumerate(item.token_maps)]
    kept = f"{costs.tokens_kept} of {costs.tokens_total} image tokens of the key frames"
    lines.append(f"<p>{kept} in the language model; {costs.total_ms / 1000:.1f} s in all.</p>")
    return f'<div class="lv-film">{"".join(lines)}</div>'


def _key(frame: np.ndarray, tokens: Any) -> str:
    seen = fit(compose(frame, token_layer(tokens)), 240)
    return f'<img src="{data_url(png(seen))}" alt="Kept tokens of a key frame" width="18%">'
