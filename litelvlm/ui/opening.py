"""The first screen: an example already answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from litelvlm.ui import callbacks, panels
from litelvlm.ui.callbacks import EMPTY, Controls, Page
from litelvlm.ui.desk import Desk
from litelvlm.ui.examples import Example
from litelvlm.ui.inputs import first_budget


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
