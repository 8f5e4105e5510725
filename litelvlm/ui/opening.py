"""The first screen: an example already answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr

from litelvlm.ui import callbacks, panels
from litelvlm.ui.callbacks import EMPTY, Controls, Page
from litelvlm.ui.desk import Desk
from litelvlm.ui.examples import Example
from litelvlm.ui.inputs import first_budget


def opening(desk: Desk, shown: tuple[Example, ...]) -> tuple[Controls, Page | None]:
    """What the page opens with: the first example, answered before anyone asks."""
    nothing = Controls(desk.models.names[0], budget=first_budget(desk.tokens()))
    if not shown:
        return nothing, None
    given = callbacks.about_example(desk, nothing, shown[0])
    given = replace(given, budget=first_budget(desk.tokens(given.model)))
    page = callbacks.opening(desk, given)
    return (given, page) if page else (nothing, None)


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
