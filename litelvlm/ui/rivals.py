"""Two tabs that set methods against each other: side by side at one budget, and over budgets."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from litelvlm.ui import callbacks, opening
from litelvlm.ui.beside import MOST
from litelvlm.ui.callbacks import Controls, Page
from litelvlm.ui.desk import Desk
from litelvlm.ui.inputs import html_part, method_choices, small_button
from litelvlm.ui.work import RIVALS


@dataclass(frozen=True)
class Rivals:
    """The parts of both tabs, and what they show as records."""

    methods: gr.Dropdown
    compare: gr.Button
    beside: gr.HTML
    figure: gr.HTML
    compared: gr.State
    ticked: gr.CheckboxGroup
    draw: gr.Button
    stop: gr.Button
    curve: gr.HTML
    swept: gr.State


def build_rivals(opened: Page | None) -> Rivals:
    """Both tabs; call it among the page's."""
    names = method_choices()
    with gr.Tab("Methods", id="methods"):
        methods = gr.Dropdown(
            names,
            value=["litelvlm", *RIVALS],
            multiselect=True,
            max_choices=MOST,
            label=f"Methods to compare, 2 to {MOST}",
            elem_id="lv-rivals",
        )
        compare = small_button("Compare", "lv-compare-methods")
        beside = html_part(opening.part(opened, "beside"), elem_id="lv-beside")
        figure = html_part("", elem_id="lv-beside-figure")
        compared = gr.State(None)
    with gr.Tab("Budget curve", id="curve"):
        with gr.Accordion("Methods in the curve", open=False, elem_id="lv-curve-methods"):
            ticked = gr.CheckboxGroup(
                [pair for pair in names if pair[1] != "litelvlm"],
                value=list(RIVALS),
                label="Beside LiteLVLM and the method of the answer, which are always drawn",
                elem_id="lv-ticked",
            )
        with gr.Row(elem_classes="lv-acts"):
            draw = small_button("Draw the curve", "lv-sweep")
            stop = small_button("Cancel", "lv-cancel")
        curve = html_part(opening.part(opened, "curve"), elem_id="lv-curve")
        swept = gr.State(None)
    return Rivals(methods, compare, beside, figure, compared, ticked, draw, stop, curve, swept)


def tie_rivals(
    desk: Desk,
    made: Rivals,
    phrase: Any,
    now: Sequence[Any],
    run: dict[str, Any],
    draw: dict[str, Any],
) -> None:
    """Tie both tabs to their callbacks.

    Args:
        desk: answers.
        made: the tabs.
        phrase: which of the phrases is shown.
        now: the visitor's answer, and what is set.
        run, draw: options of events that run a model, and of those that only draw.
    """
    session = now[0]

    # Gradio reserves a function's name among the endpoints, even of a private event: so none here
    # is called like one of those.
    def side_by_side(index: Any, names: Any, state: Any, *values: Any) -> tuple[Any, ...]:
        return callbacks.compare(desk, state, Controls(*values), index, names)

    def redraw(state: Any, found: Any, index: Any) -> Any:
        shown = callbacks.choose_beside(state, found, index)
        return gr.skip() if shown is None else shown

    def curve(names: Any, state: Any, *values: Any) -> Iterator[tuple[Any, Any]]:
        for swept, shown in callbacks.sweep(desk, state, Controls(*values), names):
            yield gr.skip() if swept is None else swept, shown

    def cancelled(state: Any, swept: Any) -> Any:
        time.sleep(0.5)
        return callbacks.cancelled(state, swept)

    made.compare.click(
        side_by_side,
        [phrase, made.methods, *now],
        [made.compared, made.beside, made.figure],
        show_progress_on=[made.beside],
        **run,
    )
    phrase.input(redraw, [session, made.compared, phrase], [made.beside], **draw)
    drawing = made.draw.click(
        curve,
        [made.ticked, *now],
        [made.swept, made.curve],
        **{**run, "show_progress": "hidden"},
    )
    # The curve so far comes a moment after: a last picture may still be on its way to the page,
    # and would stand there for good.
    made.stop.click(None, None, None, cancels=[drawing], **draw).then(
        cancelled, [session, made.swept], [made.curve], **draw
    )
