"""The page: which components there are, and which callback each is tied to. No logic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import gradio as gr

from litelvlm.errors import InputError
from litelvlm.images import read_image
from litelvlm.ui import about, api, callbacks, clip_tab, handout, opening
from litelvlm.ui.callbacks import NO_SNIPPET, Controls, Page
from litelvlm.ui.components import Choice
from litelvlm.ui.desk import Desk
from litelvlm.ui.examples import Example, examples
from litelvlm.ui.inputs import (
    Inputs,
    asking,
    budget_marks,
    build_inputs,
    example_strip,
    first_budget,
    html_part,
    small_button,
)
from litelvlm.ui.limits import preview
from litelvlm.ui.rivals import build_rivals, tie_rivals
from litelvlm.ui.work import LEAST

# Runs of a model take turns; redrawing does not wait for them.
RUN: dict[str, Any] = {
    "api_visibility": "private",
    "concurrency_id": "model",
    "concurrency_limit": 1,
    "show_progress": "minimal",
}
DRAW: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}


@dataclass(frozen=True)
class _Outputs:
    """What the page shows, in the order of `Page`."""

    session: gr.State
    photo: gr.HTML
    status: gr.HTML
    stale: gr.HTML
    failed: gr.State
    masks: gr.HTML
    tokens: gr.HTML
    similarity: gr.HTML
    cost: gr.HTML
    beside: gr.HTML
    figure: gr.HTML
    curve: gr.HTML
    downloads: gr.HTML
    snippet: gr.Code
    command: gr.Code
    client: gr.Code
    link: gr.HTML
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
    seconds = int(60 * settings.keep_minutes)
    shown = examples()
    given, opened = opening.opening(desk, shown)
    with gr.Blocks(
        title="LiteLVLM",
        analytics_enabled=False,
        delete_cache=(max(1, min(60, seconds // 4)), max(1, seconds)),
    ) as blocks:
        session = gr.State(None, time_to_live=3600)
        photo = html_part(opening.part(opened, "photo"), also=["lv-hidden"])
        played = gr.State("")
        table = html_part("", elem_id="lv-play", also=["lv-hidden"])
        failed = gr.State(False)
        html_part(about.HEAD)
        model_line = html_part(about.model_line(desk, given.model), elem_id="lv-model")
        picked = example_strip(shown)
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=300, elem_classes="lv-left"):
                inputs, run, status = build_inputs(desk, given, opening.part(opened, "status"))
                with gr.Accordion("The model: its card, results and words", open=False):
                    card = gr.Markdown(about.card(desk, given.model), elem_id="lv-card")
            with gr.Column(scale=7, min_width=320, elem_classes="lv-right"):
                inputs.budget.render()
                marks = html_part(budget_marks(desk.tokens(given.model)))
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
                with gr.Tabs(elem_id="lv-tabs") as tabs:
                    with gr.Tab(_ANSWERS[desk.masks(given.model)], id="masks") as answer_tab:
                        masks = html_part(opening.part(opened, "masks"), elem_id="lv-masks")
                    with gr.Tab("Tokens", id="tokens"):
                        tokens = html_part(opening.part(opened, "tokens"), elem_id="lv-tokens")
                        with gr.Row(elem_classes="lv-acts"):
                            film = small_button("Save as GIF", "lv-film")
                        film_link = html_part("", elem_id="lv-film-link")
                    with gr.Tab("Similarity", id="similarity"):
                        similarity = html_part(opening.part(opened, "similarity"), elem_id="lv-sim")
                    with gr.Tab("Cost", id="cost") as cost_tab:
                        again = small_button("Measure again", "lv-measure")
                        cost = html_part(opening.part(opened, "cost"), elem_id="lv-cost")
                    made = build_rivals(opened)
                    with gr.Tab("Clip", id="clip", visible=desk.clips(given.model)) as film_tab:
                        clip_tab.build(desk, inputs.model, RUN)
                    with gr.Tab("Use it", id="use"):
                        codes: tuple[tuple[str, Any, str], ...] = (
                            ("snippet", "python", "Python"),
                            ("command", "shell", "Command line"),
                            ("client", "python", "Through this server (gradio_client)"),
                        )
                        snippet, command, client = (
                            gr.Code(
                                (opened and getattr(opened, name)) or NO_SNIPPET,
                                language=language,
                                label=label,
                                interactive=False,
                                elem_id=f"lv-{name}",
                            )
                            for name, language, label in codes
                        )
                        prepare = small_button("Prepare downloads", "lv-prepare")
                        downloads = html_part(
                            opening.part(opened, "downloads"), elem_id="lv-downloads"
                        )
                stale = html_part("", elem_id="lv-stale")
                link = html_part(opening.part(opened, "link"), elem_id="lv-link")
        html_part(about.foot(settings.keep_minutes), elem_id="lv-foot")

        outputs = _Outputs(
            session, photo, status, stale, failed, masks, tokens, similarity, cost,
            made.beside, made.figure, made.curve, downloads, snippet, command, client, link, phrase,
        )  # fmt: skip
        again_hidden = gr.Button("Run again", elem_id="lv-rerun", elem_classes="lv-hidden")
        everything = [session, phrase, *inputs.all()]
        now = [session, *inputs.all()]
        of_model = [model_line, card, marks, answer_tab, film_tab]
        set_by_link = [tabs, *of_model, *inputs.all()]
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
                [*of_model, *inputs.all(), *outputs.all()],
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
        asked.append(
            blocks.load(
                _open(desk, shown, inputs, set_by_link, given, opened),
                None,
                [*set_by_link, *outputs.all()],
                **{**RUN, "show_progress": "hidden"},
            )
        )
        # The table of all budgets follows the answer, so that nobody waits for it.
        for event in (*asked, redrawn):
            event.then(opening.play(desk), [session, phrase, played], [table, played], **DRAW)
        film.click(
            lambda state, index, *values: callbacks.animation(
                desk, state, Controls(*values), index
            ),
            everything,
            [film_link],
            **{**DRAW, "show_progress": "minimal"},
        )
        again.click(
            lambda state, *values: _updates(callbacks.measure(desk, state, Controls(*values))),
            now,
            outputs.all(),
            show_progress_on=[cost],
            **RUN,
        )
        tie_rivals(desk, made, phrase, now, RUN, DRAW)
        prepare.click(
            lambda state, *values: _updates(
                callbacks.prepare_downloads(desk, state, Controls(*values))
            ),
            now,
            outputs.all(),
            **{**DRAW, "show_progress": "minimal"},
            show_progress_on=[downloads],
        )
        remodelled = inputs.model.input(
            lambda name, budget: _choose_model(desk, name, budget),
            [inputs.model, inputs.budget],
            [*of_model, inputs.budget, inputs.phrases],
            **RUN,
        )
        # Whatever does not run at once is held against the answer on screen; so is an answer that
        # comes after the next question was typed.
        waiting: list[Any] = [inputs.phrases.change]  # its `input` misses what is pasted
        waiting += [late.input for late in inputs.late()]
        shown_upright = inputs.picture.input(_upright, [inputs.picture], [inputs.picture], **DRAW)
        for follow in (*waiting, remodelled.then, shown_upright.then):
            follow(_changed(desk), now, [status, stale], **DRAW)
        for event in asked:
            event.then(_changed(desk, after=True), [failed, *now], [status, stale], **DRAW)
        cost_tab.select(
            lambda state, *values: _updates(callbacks.count(desk, state, Controls(*values))),
            now,
            outputs.all(),
            **{**RUN, "show_progress": "hidden"},
        )
        for one in tabs.children:
            one.select(partial(_choose_tab, one.id), [session], [inputs.tab, link], **DRAW)
        api.register(desk, inputs)
    return blocks


# ------------------------------------------------------------------------------- callbacks, tied
def _address(request: gr.Request) -> str:
    """Where the visitor's browser says it found the page."""
    place = str(request.headers.get("referer", "")).partition("?")[0].partition("#")[0]
    return place or Controls().address


def _find(desk: Desk, quiet: bool = False) -> Callable[..., tuple[Any, ...]]:
    def find(request: gr.Request, state: Any, index: Any, *values: Any) -> tuple[Any, ...]:
        given = replace(Controls(*values), address=_address(request))
        if quiet and not (given.picture and given.phrases):
            return _updates(Page())  # the slider was moved when there was nothing to run
        page = callbacks.ground(desk, state, given, index if quiet else 0)
        same = quiet and state is not None and page.phrases is not None and page.session is not None
        keep = bool(same and state.ask.phrases == page.session.ask.phrases)  # type: ignore[union-attr]
        return _updates(page, keep_choice=keep)

    return find


def _pick(desk: Desk, shown: tuple[Example, ...]) -> Callable[..., tuple[Any, ...]]:
    def pick(
        event: gr.EventData, request: gr.Request, state: Any, index: Any, *values: Any
    ) -> tuple[Any, ...]:
        number = (event._data or {}).get("index")
        if not isinstance(number, int) or not 0 <= number < len(shown):
            raise gr.Error("There is no such example.", print_exception=False)
        given = replace(Controls(*values), address=_address(request))
        given = callbacks.about_example(desk, given, shown[number])
        given, shows = _set(desk, given)
        return (*shows, *_updates(callbacks.ground(desk, state, given)))

    return pick


def _open(
    desk: Desk,
    shown: tuple[Example, ...],
    inputs: Inputs,
    sets: list[Any],
    first: Controls,
    ready: Page | None,
) -> Callable[..., tuple[Any, ...]]:
    """What a visitor finds: what stands there already, or the answer that the address asks for."""

    def opened(request: gr.Request) -> tuple[Any, ...]:
        asked = callbacks.Asked.read(dict(request.query_params), shown, first)
        if asked is None:
            page = Page()
            if ready is not None and ready.session is not None:
                lines = callbacks.client(desk, ready.session, _address(request))
                page = Page(session=ready.session, client=lines)
            return (*(gr.skip() for _ in sets), *_updates(page, True))
        tab = (
            asked.given.tab
            if asked.given.tab in [one.id for one in sets[0].children]
            else first.tab
        )
        given = inputs.offered(replace(asked.given, tab=tab, address=_address(request)))
        if not asked.mark:
            own = callbacks.about_example(desk, given, asked.example)
            phrases, model = given.phrases or own.phrases, given.model or own.model
            given = replace(own, phrases=phrases, model=model)
        given, shows = _set(desk, given)
        page = callbacks.upload_asked(asked) if asked.mark else callbacks.ground(desk, None, given)
        return (gr.Tabs(selected=given.tab), *shows, *_updates(page))

    return opened


def _upright(path: Any) -> Any:
    """An upload as the model sees it, where a browser would show it otherwise."""
    try:
        pixels = preview(str(path)) if path else None
    except InputError:
        pixels = None  # what follows tells why
    return gr.skip() if pixels is None else pixels


def _changed(desk: Desk, after: bool = False) -> Callable[..., tuple[Any, Any]]:
    """The callback that holds the settings against the answer on screen; `after` a run, too."""

    def changed(*given: Any) -> tuple[Any, Any]:
        failed, state, *values = given if after else (False, *given)
        page = Page() if failed else callbacks.changed(desk, state, Controls(*values))
        if after and page.stale == "":  # nothing was changed meanwhile
            page = Page()
        status, stale = (gr.skip() if part is None else part for part in (page.status, page.stale))
        return status, stale

    return changed


def _choose_model(desk: Desk, name: Any, budget: Any) -> tuple[Any, ...]:
    """What depends on the model: its line and card, the marks, the tabs, the slider, the box."""
    total, masks = desk.tokens(str(name)), desk.masks(str(name))
    fits = isinstance(budget, (int, float)) and budget <= total
    value = budget if fits else first_budget(total)
    slider = gr.update(maximum=total, minimum=min(LEAST, total), value=value)
    tab, box = gr.update(label=_ANSWERS[masks]), gr.update(**asking(masks))
    told = about.model_line(desk, str(name)), about.card(desk, str(name))
    clips = gr.update(visible=desk.clips(str(name)))
    return *told, budget_marks(total), tab, clips, slider, box


_ANSWERS = {True: "Masks", False: "Answers"}  # the tab, by whether there are masks


def _set(desk: Desk, given: Controls) -> tuple[Controls, tuple[Any, ...]]:
    """What the inputs and the parts that depend on the model have to show, and what that asks."""
    model = given.model or desk.models.names[0]
    *of_model, slider, box = _choose_model(desk, model, given.budget)
    given = replace(given, model=model, budget=slider["value"])
    shows = {field.name: getattr(given, field.name) for field in fields(Inputs)}
    shows = {name: "" if value is None else value for name, value in shows.items()}
    shows["picture"] = read_image(given.picture) if given.picture else None
    shows |= {"budget": slider, "phrases": box | {"value": given.phrases}}
    return given, (*of_model, *shows.values())


def _choose_tab(name: str, state: Any) -> tuple[str, Any]:
    return name, gr.skip() if state is None else handout.link(state, name)
