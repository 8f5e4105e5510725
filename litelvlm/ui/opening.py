"""The first screen: an example already answered, the strip of examples, the common budgets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import gradio as gr

from litelvlm.ui import callbacks, panels
from litelvlm.ui.callbacks import EMPTY, Controls, Page
from litelvlm.ui.desk import Desk
from litelvlm.ui.examples import Example
from litelvlm.ui.limits import fit
from litelvlm.ui.pictures import data_url, esc
from litelvlm.ui.work import budgets


def strip(shown: tuple[Example, ...]) -> gr.HTML | None:
    """The strip of example pictures; a click hands over the example's number."""
    if not shown:
        return None
    return gr.HTML(
        _thumbnails(shown),
        elem_classes=["lv-html"],
        elem_id="lv-examples",
        js_on_load="element.addEventListener('click', (event) => {"
        "const b = event.target.closest('[data-lv-example]');"
        "if (b) trigger('click', {index: Number(b.dataset.lvExample)});});",
    )


def _thumbnails(shown: tuple[Example, ...]) -> str:
    buttons = []
    for number, example in enumerate(shown):
        small = fit(example.pixels(), 240)
        done, data = cv2.imencode(
            ".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 82]
        )
        url = data_url(data.tobytes(), "image/jpeg") if done else ""
        words = ", ".join(example.phrases)
        buttons.append(
            f'<button type="button" data-lv-example="{number}" title="Run: {esc(words)}">'
            f'<img src="{url}" alt="{esc(example.note or "Example picture")}"/>'
            f"<span>{esc(words)}</span></button>"
        )
    return f'<div class="lv-examples">{"".join(buttons)}</div>'


def marks(total: int) -> str:
    """The common budgets as buttons."""
    buttons = "".join(
        f'<button type="button" data-lv-budget="{mark}">{mark}</button>' for mark in budgets(total)
    )
    return f'<div class="lv-marks" role="group" aria-label="Common budgets">{buttons}</div>'


def first_budget(total: int) -> int:
    """The budget of the slider when the page opens."""
    return 192 if total >= 288 else max(1, total // 3)


def opening(desk: Desk, shown: tuple[Example, ...], total: int) -> Page | None:
    """The first example, answered before anyone asks."""
    if not shown:
        return None
    first = shown[0]
    model = first.model if first.model in desk.models.names else desk.models.names[0]
    given = Controls(model, str(first.path), "\n".join(first.phrases), first_budget(total))
    return callbacks.opening(desk, given)


def part(opened: Page | None, name: str) -> str:
    """What a part shows when the page opens."""
    if opened is not None and getattr(opened, name) is not None:
        return str(getattr(opened, name))
    return panels.empty(EMPTY[name]) if name in EMPTY else ""


def play(desk: Desk) -> Callable[..., tuple[Any, Any]]:
    """The callback that hands the browser the selections at every budget."""

    def run(state: Any, index: Any, shown: Any) -> tuple[Any, Any]:
        found = callbacks.play(desk, state, index, shown)
        return (gr.skip(), gr.skip()) if found is None else found

    return run
