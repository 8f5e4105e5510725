"""The inputs of the page: picture, phrases, budget, method and model, and the example strip."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import cv2
import gradio as gr

from litelvlm.config import CONTEXTS, POSITIONS, TEXTS
from litelvlm.methods import METHODS
from litelvlm.pruning import ORDERS, SPLITS
from litelvlm.ui import about, panels
from litelvlm.ui.callbacks import Controls
from litelvlm.ui.components import Budget, Picture
from litelvlm.ui.desk import Desk
from litelvlm.ui.examples import Example
from litelvlm.ui.limits import MAX_PHRASES, fit
from litelvlm.ui.pictures import data_url, esc
from litelvlm.ui.work import LEAST, budgets

_DEFAULT = ("model’s default", "")


def html_part(value: str = "", **more: Any) -> gr.HTML:
    """A part of the page that is filled with HTML; `also` names further classes."""
    return gr.HTML(value, elem_classes=["lv-html", *more.pop("also", [])], js_on_load=None, **more)


def small_button(text: str, name: str) -> gr.Button:
    """A button beside a result."""
    return gr.Button(text, size="sm", elem_id=name, elem_classes="lv-act", min_width=120, scale=0)


@dataclass(frozen=True)
class Inputs:
    """What a visitor sets, in the order of `Controls`."""

    model: gr.Dropdown
    picture: Picture
    phrases: gr.Textbox
    budget: Budget
    method: gr.Dropdown
    split: gr.Dropdown
    order: gr.Dropdown
    positions: gr.Dropdown
    context: gr.Dropdown
    text: gr.Dropdown
    mode: gr.Radio
    tab: gr.State

    def all(self) -> list[Any]:
        """The components in order."""
        return [getattr(self, field.name) for field in fields(self)]

    def offered(self, given: Controls) -> Controls:
        """The same, without choices that are not on offer."""
        values = {}
        for field in fields(self):
            choices = getattr(getattr(self, field.name), "choices", None)
            value = getattr(given, field.name)
            if choices and value not in (None, *(choice for _, choice in choices)):
                values[field.name] = getattr(Controls(), field.name)
        return replace(given, **values)

    def late(self) -> list[Any]:
        """The settings that wait for Find."""
        return [self.split, self.order, self.positions, self.context, self.text, self.mode]


def asking(masks: bool) -> dict[str, Any]:
    """What the box of the phrases says, for a model with masks or one with answers in text."""
    more = f"a line, at most {MAX_PHRASES}. Shift + Enter runs."
    if masks:
        told = ("What to look for", "the red apple\nthe cat on the left", f"One phrase {more}")
    else:
        told = ("What to ask", "what is on the table?\nis there a cat?", f"One question {more}")
    return dict(zip(("label", "placeholder", "info"), told, strict=True))


def build_inputs(
    desk: Desk, given: Controls, opened_status: str
) -> tuple[Inputs, gr.Button, gr.HTML]:
    """The left column: inputs, the button, the status line; the slider is placed by the caller."""
    total = desk.tokens(given.model)
    fault = desk.models.fault()
    picture = Picture(
        given.picture,
        type="filepath",
        image_mode=None,
        format="png",
        sources=["upload", "clipboard", "webcam"],
        label="Picture",
        height=190,
        elem_id="lv-picture",
        buttons=[],
    )
    phrases = gr.Textbox(
        given.phrases,
        **asking(desk.masks(given.model)),
        lines=2,
        max_lines=6,
        elem_id="lv-phrases",
    )
    run = gr.Button("Find", variant="primary", interactive=fault is None, elem_id="lv-run")
    status = html_part(
        panels.notice("error", "The model cannot be loaded", esc(fault))
        if fault
        else opened_status,
        elem_id="lv-state",
    )
    budget = Budget(
        minimum=min(LEAST, total),
        maximum=total,
        value=given.budget,
        step=1,
        label="Token budget",
        info=f"Image tokens that enter the language model; {total} is all of them.",
        elem_id="lv-budget",
        buttons=[],
        render=False,
    )
    method = gr.Dropdown(
        method_choices(),
        value="litelvlm",
        label="Method",
        info="Chooses before or inside the language model, or is a control.",
        min_width=130,
        elem_id="lv-method",
    )
    model = gr.Dropdown(
        about.choices(desk.models.names),
        value=given.model,
        label="Model",
        info="Its size, and what it is good for.",
        min_width=110,
        elem_id="lv-pick",
    )
    with gr.Accordion("Advanced", open=False, elem_id="lv-advanced"):
        shares = [("half", "0.5"), ("a quarter", "0.25"), ("three quarters", "0.75")]
        split = gr.Dropdown(
            [_DEFAULT, *((name, name) for name in SPLITS), *shares],
            value="",
            label="Split",
            info="Share of the budget that goes to low similarity; the rest is context.",
        )
        order = _option(
            "Order", "How the kept tokens enter: row by row (raster), or context first.", ORDERS
        )
        positions = _option(
            "Positions",
            "Where the model takes the kept tokens to stand: closed up (compact), or each at its "
            "place among all tokens (original).",
            POSITIONS,
        )
        context = _option(
            "Context score",
            "What makes a patch stand out whatever the phrase: its value in CLIP’s last block "
            "(released), or the attention it gets there.",
            CONTEXTS,
        )
        text = _option("CLIP reads", "The phrase, a question, or several templates.", TEXTS)
        mode = gr.Radio(
            [("only the mask is asked for", "forced"), ("model writes its answer", "generate")],
            value="forced",
            label="Answer",
            info="The first puts the sentence of the answer into the prompt, as the paper’s "
            "evaluation does, so that one pass is enough.",
        )
    made = Inputs(
        model, picture, phrases, budget, method, split, order, positions, context, text, mode,
        gr.State(given.tab),
    )  # fmt: skip
    return made, run, status


def example_strip(shown: tuple[Example, ...]) -> gr.HTML | None:
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


def method_choices() -> list[tuple[str, str]]:
    """(title, name) of every method: those before the language model, inside it, and controls."""

    def group(name: str) -> str:
        control = METHODS[name].source.startswith("control")
        return "control" if control else METHODS[name].where

    order = ("before", "inside", "control")
    names = sorted(METHODS, key=lambda name: order.index(group(name)))
    return [(f"{METHODS[name].title} · {group(name)}", name) for name in names]


def _option(label: str, info: str, names: tuple[str, ...]) -> gr.Dropdown:
    return gr.Dropdown(
        [_DEFAULT, *((name, name) for name in names)], value="", label=label, info=info
    )


def budget_marks(total: int) -> str:
    """Buttons of common budgets for a model of `total` tokens."""
    buttons = "".join(
        f'<button type="button" data-lv-budget="{mark}">{mark}</button>' for mark in budgets(total)
    )
    return f'<div class="lv-marks" role="group" aria-label="Common budgets">{buttons}</div>'


def first_budget(total: int) -> int:
    """The budget that the page opens with."""
    return 192 if total >= 288 else max(1, total // 3)


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
