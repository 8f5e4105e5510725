"""The page: which components there are, and which callback each is tied to. No logic."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import gradio as gr

from litelvlm.config import CONTEXTS, POSITIONS, TEXTS
from litelvlm.families.table import PRESETS
from litelvlm.methods import METHODS
from litelvlm.pruning import ORDERS, SPLITS
from litelvlm.ui import api, callbacks, opening, panels
from litelvlm.ui.callbacks import NO_SNIPPET, Controls, Page
from litelvlm.ui.components import Budget, Choice, Picture
from litelvlm.ui.desk import Desk
from litelvlm.ui.examples import Example, examples
from litelvlm.ui.limits import MAX_PHRASES
from litelvlm.ui.pictures import esc
from litelvlm.ui.work import LEAST

# Runs of a model take turns; redrawing does not wait for them.
RUN: dict[str, Any] = {
    "api_visibility": "private",
    "concurrency_id": "model",
    "concurrency_limit": 1,
    "show_progress": "minimal",
}
DRAW: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
SLOW_BYTES = 2e9  # weights beyond which a CPU is no pleasure
_DEFAULT = ("model’s default", "")


def _html(value: str = "", **more: Any) -> gr.HTML:
    return gr.HTML(value, elem_classes=["lv-html", *more.pop("also", [])], js_on_load=None, **more)


def _small(text: str, name: str) -> gr.Button:
    return gr.Button(text, size="sm", elem_id=name, elem_classes="lv-act", min_width=120, scale=0)


@dataclass(frozen=True)
class _Inputs:
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

    def all(self) -> list[Any]:
        """The components in order."""
        return [getattr(self, field.name) for field in fields(self)]


@dataclass(frozen=True)
class _Outputs:
    """What the page shows, in the order of `Page`."""

    session: gr.State
    photo: gr.HTML
    status: gr.HTML
    masks: gr.HTML
    tokens: gr.HTML
    similarity: gr.HTML
    cost: gr.HTML
    curve: gr.HTML
    downloads: gr.HTML
    snippet: gr.Code
    phrases: Choice

    def all(self) -> list[Any]:
        """The components in order."""
        return [getattr(self, field.name) for field in fields(self)]


def _updates(page: Page, keep_choice: bool = False) -> tuple[Any, ...]:
    """A `Page` as Gradio wants it: one update a component."""
    values: list[Any] = []
    for field in fields(page):
        value = getattr(page, field.name)
        if field.name == "phrases" and value is not None and not keep_choice:
            choices = [(text, number) for number, text in enumerate(value)]
            first = 0 if choices else None
            values.append(gr.update(choices=choices, value=first, visible=bool(choices)))
        elif value is None or field.name == "phrases":
            values.append(gr.skip())
        else:
            values.append(value)
    return tuple(values)


def build(desk: Desk) -> gr.Blocks:
    """The whole page, ready to be launched."""
    settings = desk.settings
    total = desk.tokens()
    seconds = int(60 * settings.keep_minutes)
    shown = examples()
    opened = opening.opening(desk, shown, total)
    with gr.Blocks(
        title="LiteLVLM",
        analytics_enabled=False,
        delete_cache=(max(1, min(60, seconds // 4)), max(1, seconds)),
    ) as blocks:
        session = gr.State(None, time_to_live=3600)
        photo = _html(opening.part(opened, "photo"), also=["lv-hidden"])
        played = gr.State("")
        table = _html("", elem_id="lv-play", also=["lv-hidden"])
        _html(HEAD)
        about = _html(model_line(desk, settings.models[0]), elem_id="lv-model")
        picked = opening.strip(shown)
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=300, elem_classes="lv-left"):
                inputs, run, status = _inputs(
                    desk, total, shown[0] if opened else None, opening.part(opened, "status")
                )
                _vocabulary(desk)
            with gr.Column(scale=7, min_width=320, elem_classes="lv-right"):
                inputs.budget.render()
                marks = _html(opening.marks(total))
                several = opened.phrases or () if opened else ()
                phrase = Choice(
                    [(text, number) for number, text in enumerate(several)],
                    value=0 if several else None,
                    label="Phrase shown in Tokens and Similarity",
                    show_label=False,
                    container=False,
                    visible=bool(several),
                    elem_id="lv-phrase",
                )
                with gr.Tabs(elem_id="lv-tabs"):
                    with gr.Tab("Masks", id="masks"):
                        masks = _html(opening.part(opened, "masks"), elem_id="lv-masks")
                    with gr.Tab("Tokens", id="tokens"):
                        tokens = _html(opening.part(opened, "tokens"), elem_id="lv-tokens")
                        with gr.Row(elem_classes="lv-acts"):
                            film = _small("Save as GIF", "lv-film")
                        film_link = _html("", elem_id="lv-film-link")
                    with gr.Tab("Similarity", id="similarity"):
                        similarity = _html(opening.part(opened, "similarity"), elem_id="lv-sim")
                    with gr.Tab("Cost", id="cost"):
                        again = _small("Measure again", "lv-measure")
                        cost = _html(opening.part(opened, "cost"), elem_id="lv-cost")
                    with gr.Tab("Budget curve", id="curve"):
                        with gr.Row(elem_classes="lv-acts"):
                            draw = _small("Draw the curve", "lv-sweep")
                            stop = _small("Cancel", "lv-cancel")
                        curve = _html(opening.part(opened, "curve"), elem_id="lv-curve")
                    with gr.Tab("Use it", id="use"):
                        snippet = gr.Code(
                            (opened and opened.snippet) or NO_SNIPPET,
                            language="python",
                            label="Reproduces this result",
                            interactive=False,
                            elem_id="lv-snippet",
                        )
                        prepare = _small("Prepare downloads", "lv-prepare")
                        downloads = _html(opening.part(opened, "downloads"), elem_id="lv-downloads")
        _html(FOOT.format(minutes=f"{settings.keep_minutes:.0f}"))

        outputs = _Outputs(
            session, photo, status, masks, tokens, similarity, cost, curve, downloads, snippet,
            phrase,
        )  # fmt: skip
        again_hidden = gr.Button("Run again", elem_id="lv-rerun", elem_classes="lv-hidden")
        everything = [session, phrase, *inputs.all()]
        find = _find(desk)
        asked = [
            run.click(find, everything, outputs.all(), show_progress_on=[status], **RUN),
            inputs.phrases.submit(
                find, everything, outputs.all(), show_progress_on=[status], **RUN
            ),
        ]
        for moved in (again_hidden.click, inputs.method.input):
            again_asked = moved(
                _find(desk, quiet=True),
                everything,
                outputs.all(),
                trigger_mode="always_last",
                **{**RUN, "show_progress": "hidden"},
            )
            asked.append(again_asked)
        if picked is not None:
            chosen = picked.click(
                _pick(desk, shown),
                everything,
                [inputs.picture, inputs.phrases, *outputs.all()],
                show_progress_on=[status],
                **RUN,
            )
            asked.append(chosen)
        redrawn = phrase.input(
            lambda state, index: _updates(callbacks.choose_phrase(state, index)),
            [session, phrase],
            outputs.all(),
            **DRAW,
        )
        if opened is not None:
            asked.append(blocks.load(lambda: opened.session, None, [session], **DRAW))
        # The table of all budgets follows the answer, so that nobody waits for it.
        for event in (*asked, redrawn):
            event.then(opening.play(desk), [session, phrase, played], [table, played], **DRAW)
        film.click(
            lambda state, index: callbacks.animation(desk, state, index),
            [session, phrase],
            [film_link],
            **{**DRAW, "show_progress": "minimal"},
        )
        again.click(
            lambda state: _updates(callbacks.measure(desk, state)),
            [session],
            outputs.all(),
            show_progress_on=[cost],
            **RUN,
        )
        drawing = draw.click(
            _stream(partial(callbacks.sweep, desk)),
            [session],
            [curve],
            **{**RUN, "show_progress": "hidden"},
        )
        # The notice comes a moment after: a last picture may still be on its way to the page, and
        # would stand there for good.
        stop.click(None, None, None, cancels=[drawing], **DRAW).then(
            _cancelled, None, [curve], **DRAW
        )
        prepare.click(
            lambda state: _updates(callbacks.prepare_downloads(state)),
            [session],
            outputs.all(),
            **{**DRAW, "show_progress": "minimal"},
            show_progress_on=[downloads],
        )
        inputs.model.input(
            lambda name: _choose_model(desk, name),
            [inputs.model],
            [about, inputs.budget, marks],
            **RUN,
        )
        api.register(desk)
    return blocks


def _inputs(
    desk: Desk, total: int, first: Example | None, opened_status: str
) -> tuple[_Inputs, gr.Button, gr.HTML]:
    """The left column: inputs, the button, the status line; the slider is placed by the caller."""
    names = list(desk.models.names)
    fault = desk.models.fault()
    picture = Picture(
        str(first.path) if first else None,
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
        "\n".join(first.phrases) if first else None,
        label="What to look for",
        placeholder="the red apple\nthe cat on the left",
        info=f"One phrase a line, at most {MAX_PHRASES}. Shift + Enter runs.",
        lines=2,
        max_lines=6,
        elem_id="lv-phrases",
    )
    run = gr.Button("Find", variant="primary", interactive=fault is None, elem_id="lv-run")
    status = _html(
        panels.notice("error", "The model cannot be loaded", esc(fault))
        if fault
        else opened_status,
        elem_id="lv-state",
    )
    budget = Budget(
        minimum=min(LEAST, total),
        maximum=total,
        value=opening.first_budget(total),
        step=1,
        label="Token budget",
        info=f"Image tokens that enter the language model; {total} is all of them.",
        elem_id="lv-budget",
        buttons=[],
        render=False,
    )
    with gr.Row():
        method = gr.Dropdown(
            [(rule.title, name) for name, rule in METHODS.items()],
            value="litelvlm",
            label="Method",
            min_width=130,
            elem_id="lv-method",
        )
        model = gr.Dropdown(names, value=names[0], label="Model", min_width=110, elem_id="lv-pick")
    with gr.Accordion("Advanced", open=False, elem_id="lv-advanced"):
        shares = [("half", "0.5"), ("a quarter", "0.25"), ("three quarters", "0.75")]
        split = gr.Dropdown(
            [_DEFAULT, *((name, name) for name in SPLITS), *shares],
            value="",
            label="Split",
            info="Share of the budget that goes to low similarity; the rest is context.",
        )
        order = _option("Order", "In which order the kept tokens enter.", ORDERS)
        positions = _option("Positions", "Renumbered, or as in the unpruned prompt.", POSITIONS)
        context = _option("Context score", "As released, or attention of each head.", CONTEXTS)
        text = _option("CLIP reads", "The phrase, a question, or several templates.", TEXTS)
        mode = gr.Radio(
            [("answer template given", "forced"), ("model writes its answer", "generate")],
            value="forced",
            label="Answer",
        )
    made = _Inputs(
        model, picture, phrases, budget, method, split, order, positions, context, text, mode
    )
    return made, run, status


def _option(label: str, info: str, names: tuple[str, ...]) -> gr.Dropdown:
    return gr.Dropdown(
        [_DEFAULT, *((name, name) for name in names)], value="", label=label, info=info
    )


# ------------------------------------------------------------------------------- callbacks, tied
def _find(desk: Desk, quiet: bool = False) -> Callable[..., tuple[Any, ...]]:
    def find(state: Any, index: Any, *values: Any) -> tuple[Any, ...]:
        given = Controls(*values)
        if quiet and state is None and not (given.picture and given.phrases):
            return _updates(Page())  # the slider was moved before there was anything to run
        page = callbacks.ground(desk, state, given, index if quiet else 0)
        same = quiet and state is not None and page.phrases is not None and page.session is not None
        keep = bool(same and state.ask.phrases == page.session.ask.phrases)  # type: ignore[union-attr]
        return _updates(page, keep_choice=keep)

    return find


def _pick(desk: Desk, shown: tuple[Example, ...]) -> Callable[..., tuple[Any, ...]]:
    def pick(event: gr.EventData, state: Any, index: Any, *values: Any) -> tuple[Any, ...]:
        number = (event._data or {}).get("index")
        if not isinstance(number, int) or not 0 <= number < len(shown):
            raise gr.Error("There is no such example.", print_exception=False)
        example = shown[number]
        page = callbacks.ground_example(desk, state, Controls(*values), example)
        return (example.pixels(), "\n".join(example.phrases), *_updates(page))

    return pick


def _cancelled() -> str:
    """The notice in place of a curve that was stopped, once what was under way has arrived."""
    time.sleep(0.5)
    return panels.notice("info", "Cancelled", "Draw the curve again at any time.")


def _stream(work: Callable[..., Iterator[Page]]) -> Callable[..., Iterator[str]]:
    def stream(state: Any) -> Iterator[str]:
        for page in work(state):
            if page.curve is not None:
                yield page.curve

    return stream


def _choose_model(desk: Desk, name: Any) -> tuple[str, Any, str]:
    total = desk.tokens(str(name))
    slider = gr.update(maximum=total, minimum=min(LEAST, total), value=opening.first_budget(total))
    return model_line(desk, str(name)), slider, opening.marks(total)


# ------------------------------------------------------------------------------------------- texts
HEAD = (
    '<div class="lv-head"><h1>LiteLVLM</h1><p>A vision-language model looks at a picture through '
    "hundreds of image tokens. LiteLVLM drops most before the language model, without "
    "any training. See which ones, why, and what it costs and saves, beside the same model with "
    "all of its tokens.</p></div>"
)
FOOT = (
    '<div class="lv-foot">Uploads are used for your answer only: they stay on this server for at '
    "most {minutes} minutes, are never logged and never passed on. Method: Lee &amp; Choi, "
    "“LiteLVLM”, ICML 2026, arXiv 2605.13178.</div>"
)


def model_line(desk: Desk, name: str) -> str:
    """Which model answers, and what it can and cannot understand."""
    try:
        pipe = desk.models.get(name)
    except Exception as error:
        text = str(error) if isinstance(error, ValueError) else "It failed to load."
        return panels.notice("error", f"Model {esc(name)} is not available", esc(text))
    preset = PRESETS.get(pipe.name)
    note = f": {esc(preset.note)}" if preset else ""
    known = (
        "It understands phrases in plain English."
        if (words := pipe.family.vocabulary) is None
        else f"It knows {len(words)} English words and nothing else; words it does not "
        "know are named under your answer."
    )
    if preset and preset.random_only:
        known = ""
    where = "CPU" if pipe.device.type == "cpu" else str(pipe.device)
    name = f"<b>{esc(pipe.name)}</b>"
    line = f'<p class="lv-model">Answers come from {name}{note}. {known} On {where}.</p>'
    if pipe.device.type == "cpu" and pipe.weight_bytes > SLOW_BYTES:
        text = "This model is large and there is no GPU: an answer takes minutes."
        line += panels.notice("warn", "Running on the CPU", text)
    return line


def _vocabulary(desk: Desk) -> None:
    """The words a model with a closed vocabulary knows, folded."""
    try:
        words = desk.models.get().family.vocabulary
    except Exception:
        return
    if words:
        with gr.Accordion("Words it knows", open=False):
            _html(f'<div class="lv-words">{esc(", ".join(sorted(words)))}</div>')
