"""What happens on a click: plain functions from what the visitor set to what the page shows.

Nothing here knows Gradio. Each function returns a `Page`, in which None leaves a part as it is;
a mistake of the visitor becomes a message on the page, never an exception.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from litelvlm.errors import InputError
from litelvlm.question import SELECTION_OPTIONS, Question
from litelvlm.ui import beside, costs, curve, handout, panels, patch_map
from litelvlm.ui.desk import Desk
from litelvlm.ui.examples import Example
from litelvlm.ui.limits import check_phrases, picture_key, read_picture
from litelvlm.ui.pictures import esc, photo_style
from litelvlm.ui.work import RIVALS, Answer, Sweep

log = logging.getLogger(__name__)

EMPTY = {
    "masks": "Choose a picture, type what to look for, press Find. Or click an example: this tab "
    "then shows the answer with few image tokens against the answer with all of them.",
    "tokens": "Which of the picture’s patches the language model gets to see, and why.",
    "similarity": "How much each patch is like the phrase for CLIP, and whether that is reversed.",
    "cost": "Where the time goes, with and without pruning.",
    "beside": "What other methods keep of the picture at this budget, what they answer with it, "
    "and how long it takes them.",
    "curve": "How the answer and its cost change with the budget: a minute of work for the "
    "computer at most, drawn as it goes.",
    "downloads": "Masks, records and the figure of the answer on screen.",
}
CHEAP_BYTES = 1e9  # weights up to which costs are measured unasked
NO_SNIPPET = "# After an answer: the lines that reproduce it.\n"
FAILED = "This run failed on our side. Try again, or another picture or phrase."
# Style elements over the answer on screen: one to another question, one about another picture.
STALE = "<style>#lv-tabs .tabitem{opacity:.45;filter:grayscale(.6)}</style>"
GONE = "<style>#lv-tabs .tabitem,#lv-phrase,#lv-link{display:none!important}</style>"


@dataclass(frozen=True)
class Page:
    """New content of the page's parts; None leaves a part as it is.

    Attributes:
        session: the visitor's state.
        photo: style element with the photo.
        status: the line under the button.
        stale: what dims or hides the tabs while they answer another question.
        failed: whether the last run ended in a message instead of an answer.
        masks, tokens, similarity, cost, beside, curve, downloads: HTML of the tabs.
        figure: HTML of the link to the methods side by side as a figure.
        snippet, command, client: text that reproduces the answer, in Python, on the command line
            and through this server.
        link: HTML of the link to the result.
        phrases: the phrases to choose from; empty hides the choice.
    """

    session: Answer | None = None
    photo: str | None = None
    status: str | None = None
    stale: str | None = None
    failed: bool | None = None
    masks: str | None = None
    tokens: str | None = None
    similarity: str | None = None
    cost: str | None = None
    beside: str | None = None
    figure: str | None = None
    curve: str | None = None
    downloads: str | None = None
    snippet: str | None = None
    command: str | None = None
    client: str | None = None
    link: str | None = None
    phrases: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Controls:
    """What the visitor set, as it arrives: nothing is checked yet.

    `tab` is the one he looks at, `address` is where his browser found the page.
    """

    model: Any = None
    picture: Any = None
    phrases: Any = ""
    budget: Any = None
    method: Any = "litelvlm"
    split: Any = None
    order: Any = None
    positions: Any = None
    context: Any = None
    text: Any = None
    mode: Any = "forced"
    tab: Any = "masks"
    address: str = "http://127.0.0.1:7860/"


def check(desk: Desk, given: Controls) -> Question:
    """A visitor's question, checked before any model runs. Raises `InputError`."""
    family = desk.models.get(given.model or None).family
    options = {name: getattr(given, name) for name in (*SELECTION_OPTIONS, "mode", "method")}
    question = Question(
        check_phrases(given.phrases),
        given.budget,
        **{name: value for name, value in options.items() if value not in (None, "")},
    )
    question = family.capabilities.ask(question)
    asked = question.settle(family.tokens_total, family.defaults)
    return replace(question, budget=asked.budget)


def ground(desk: Desk, session: Answer | None, given: Controls, index: Any = 0) -> Page:
    """Answer the question and fill every tab."""
    start = time.perf_counter()
    try:
        picture = read_picture(given.picture, session.picture if session else None)
        ask = check(desk, given)
        model = given.model or desk.models.names[0]
        answer = desk.answer(model, picture, ask, session)
    except InputError as error:
        return failure(desk, str(error), session, given)
    except Exception:
        log.exception("a run failed")
        return failure(desk, FAILED, session, given)
    answer = replace(answer, seconds=time.perf_counter() - start)
    return _filled(desk, answer, session, index, given)


def opening(desk: Desk, given: Controls) -> Page | None:
    """The answer a visitor finds when the page opens; None where nothing can be kept for him."""
    if not desk.holds or desk.models.fault() is not None:
        return None
    page = ground(desk, None, given)
    if page.session is None:
        return None
    answer = replace(page.session, seconds=None)
    return replace(page, session=answer, status=panels.status(answer))


def about_example(desk: Desk, given: Controls, example: Example) -> Controls:
    """What the visitor set, about an example: with its own phrases and model."""
    model = example.model if example.model in desk.models.names else given.model
    text = "\n".join(example.phrases)
    return replace(given, model=model, picture=str(example.path), phrases=text)


def client(desk: Desk, answer: Answer, address: str) -> str:
    """The lines that ask this page, found at `address`, through its endpoints."""
    return handout.client(answer, address, desk.settings.auth is not None)


def _filled(desk: Desk, answer: Answer, before: Answer | None, index: Any, given: Controls) -> Page:
    number = _index(answer, index)
    phrases = answer.ask.phrases
    same_photo = before is not None and before.picture.key == answer.picture.key
    # What sets methods against each other outlives a move of the budget, not the question.
    same_topic = before is not None and before.topic == answer.topic
    setup = desk.settings.device, desk.settings.dtype
    return Page(
        session=answer,
        status=panels.status(answer),
        stale="",
        failed=False,
        photo=None if same_photo else photo_style(answer.picture.image),
        masks=panels.answers(answer),
        tokens=panels.tokens(answer, number),
        similarity=panels.similarity(answer, number),
        cost=costs.cost(answer),
        beside=None if same_topic else panels.empty(EMPTY["beside"]),
        figure=None if same_topic else "",
        curve=None if same_topic else panels.empty(EMPTY["curve"]),
        downloads=panels.empty(EMPTY["downloads"]),
        snippet=handout.snippet(answer, *setup),
        command=handout.command(answer, *setup),
        client=client(desk, answer, given.address),
        link=handout.link(answer, given.tab),
        phrases=phrases if len(phrases) > 1 else (),
    )


def difference(desk: Desk, session: Answer, given: Controls) -> str | None:
    """What was changed since the answer on screen: "picture", "question" or nothing."""
    try:
        if not given.picture or picture_key(str(given.picture)) != session.picture.key:
            return "picture"
    except InputError:
        return "picture"
    model = given.model or desk.models.names[0]
    if model != session.model:
        return "question"
    family = desk.models.get(model).family
    asked = session.ask.settle(family.tokens_total, family.defaults)
    try:
        now = check(desk, given).settle(family.tokens_total, family.defaults)
    except InputError:
        return "question"
    return None if now == asked else "question"


def changed(desk: Desk, session: Answer | None, given: Controls) -> Page:
    """The page after a setting was changed that does not run at once, or changed back."""
    try:
        if given.picture:
            picture_key(str(given.picture))
    except InputError as error:
        return Page(status=panels.notice("error", esc(error)), stale=_gone())
    if session is None:
        return Page()
    what = difference(desk, session, given)
    if what is None:
        return Page(status=panels.status(session), stale="")
    if what == "question":
        text = panels.notice("info", "Settings changed: press Find to run again")
        return Page(status=text + earlier(session), stale=STALE)
    text = "Another picture: press Find" if given.picture else "Choose a picture first"
    return Page(status=panels.notice("info", text), stale=_gone())


def failure(desk: Desk, message: str, session: Answer | None, given: Controls) -> Page:
    """The page after a mistake: the message; an answer about the same picture stays, marked."""
    text = panels.notice("error", esc(message))
    if session is None:
        return Page(status=text, failed=True)
    if difference(desk, session, given) == "picture":
        return Page(status=text, stale=_gone(), failed=True)
    return Page(status=text + earlier(session), stale=STALE, failed=True)


def _gone() -> str:
    return GONE + panels.empty("An answer goes with its picture. Press Find for the next one.")


def earlier(session: Answer) -> str:
    """Which question the answer on screen belongs to."""
    names = ", ".join(f"“{esc(phrase)}”" for phrase in session.ask.phrases)
    kept = session.pruned.costs.tokens_kept
    return (
        f'<div class="lv-note">On screen: the earlier answer to {names} with {kept} tokens, '
        f"by {esc(session.model)}.</div>"
    )


def choose_phrase(session: Answer | None, index: Any) -> Page:
    """Redraw the tabs that show one phrase; no model runs."""
    if session is None:
        return Page()
    number = _index(session, index)
    return Page(
        tokens=panels.tokens(session, number), similarity=panels.similarity(session, number)
    )


# What a link may carry besides the picture.
_LINKED = ("model", "phrases", "method", *SELECTION_OPTIONS, "mode", "tab")


@dataclass(frozen=True)
class Asked:
    """What the address of the page asks for; its values may be wrong.

    Attributes:
        example: to be shown.
        mark: of an upload, in place of an example.
        given: the settings.
    """

    example: Example
    mark: str
    given: Controls

    @staticmethod
    def read(query: dict[str, str], shown: tuple[Example, ...], usual: Controls) -> Asked | None:
        """From the query of a link that `handout.link` made; None where it asks for nothing.

        Args:
            query: name -> value.
            shown: the examples there are.
            usual: what stands where the link says nothing.
        """
        told: dict[str, Any] = {name: query[name] for name in _LINKED if name in query}
        budget = query.get("budget", "")
        if budget.isdecimal() and len(budget) < 6:
            told["budget"] = int(budget)
        mark = query.get("picture", "")[:64]
        if not shown or not (told or mark or "example" in query):
            return None
        named = {example.path.name: example for example in shown}
        example = named.get(query.get("example", ""), shown[0])
        nothing = {"picture": None, "phrases": "", "model": None}
        return Asked(example, mark, replace(usual, **{**nothing, **told}))


def upload_asked(asked: Asked) -> Page:
    """What a link to an answer about somebody's own picture shows."""
    text = (
        f"This link belongs to a picture of somebody’s own, with the mark {esc(asked.mark)}. "
        "Upload the same picture and press Find; all else is filled in."
    )
    box = panels.notice("info", "Upload the picture of this link", text)
    return Page(status=box, stale=_gone(), failed=True)


def count(desk: Desk, session: Answer | None, given: Controls) -> Page:
    """Fill in work and memory when the costs are looked at, where a run takes no time."""
    if session is None or difference(desk, session, given) or session.measured is not None:
        return Page()
    if session.pruned.costs.weight_bytes > CHEAP_BYTES:
        return Page()
    return measure(desk, session, given)


def measure(desk: Desk, session: Answer | None, given: Controls) -> Page:
    """Measure the cost again, with warm-up and repeats."""
    if session is None or difference(desk, session, given):
        return Page(cost=panels.notice("warn", "Nothing to measure yet", "Find something first."))
    try:
        answer = desk.measure(session)
    except InputError as error:
        return Page(cost=panels.notice("error", esc(error)))
    return Page(session=answer, cost=costs.cost(answer))


def compare(
    desk: Desk, session: Answer | None, given: Controls, index: Any, methods: Sequence[str]
) -> tuple[beside.Beside | None, str, str]:
    """Methods side by side: the record, the tab, and the link to the figure."""
    if session is None or difference(desk, session, given):
        return None, panels.notice("warn", "Nothing to compare yet", "Find something first."), ""
    try:
        found = desk.beside(session, methods)
    except InputError as error:
        return None, panels.notice("error", esc(error)), ""
    figure = handout.figure_links(beside.figure(found, session), "methods")
    return found, beside.html(found, session, _index(session, index)), figure


def choose_beside(session: Answer | None, found: beside.Beside | None, index: Any) -> str | None:
    """The methods side by side for another phrase; None where there is nothing to redraw."""
    if session is None or found is None or found.topic != session.topic:
        return None
    return beside.html(found, session, _index(session, index))


def sweep(
    desk: Desk, session: Answer | None, given: Controls, methods: Sequence[str] = RIVALS
) -> Iterator[tuple[Sweep | None, str]]:
    """The budget curve as it grows, as a record and as the tab shows it."""
    if session is None or difference(desk, session, given):
        yield None, panels.notice("warn", "No curve yet", "Find something first.")
        return
    total = session.pruned.costs.tokens_total
    try:
        for state in desk.sweep(session, methods):
            yield state, curve.html(state, total)
    except InputError as error:
        yield None, panels.notice("error", esc(error))


def cancelled(session: Answer | None, swept: Sweep | None) -> str:
    """The tab after the curve was cancelled: the points there are."""
    if session is None or swept is None or swept.topic != session.topic:
        return panels.notice("info", "Cancelled", "Draw the curve again at any time.")
    total = session.pruned.costs.tokens_total
    return curve.html(swept, total, cancelled=swept.done < swept.total)


def play(desk: Desk, session: Answer | None, index: Any, shown: str) -> tuple[str, str] | None:
    """Every budget of the phrase on screen for the browser, and its key; None if `shown` is it."""
    if session is None:
        return None
    number = _index(session, index)
    key = patch_map.key(session, number)
    if key == shown:
        return None
    played = desk.play(session, number)
    return (patch_map.payload(played, session, number) if played else ""), key


def animation(desk: Desk, session: Answer | None, given: Controls, index: Any) -> str:
    """A link that holds the token map over the budgets as GIF."""
    if session is None or difference(desk, session, given):
        return panels.notice("warn", "Nothing to save yet", "Find something first.")
    played = desk.play(session, _index(session, index))
    if played is None:
        text = "This method does not choose before the language model."
        return panels.notice("info", "No animation", text)
    return handout.animation(patch_map.gif(played, session))


def prepare_downloads(desk: Desk, session: Answer | None, given: Controls) -> Page:
    """Masks, records and figure as links that hold their file."""
    if session is None or difference(desk, session, given):
        return Page(downloads=panels.notice("warn", "Nothing to save yet", "Find something first."))
    return Page(downloads=handout.downloads(session, figures=True))


def _index(answer: Answer, index: Any) -> int:
    last = len(answer.ask.phrases) - 1
    return index if isinstance(index, int) and 0 <= index <= last else 0
