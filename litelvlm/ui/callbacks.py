"""What happens on a click: plain functions from what the visitor set to what the page shows.

Nothing here knows Gradio. Each function returns a `Page`, in which None leaves a part as it is;
a mistake of the visitor becomes a message on the page, never an exception.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from litelvlm.errors import InputError
from litelvlm.question import SELECTION_OPTIONS, Question
from litelvlm.ui import costs, handout, panels, patch_map
from litelvlm.ui.desk import Desk
from litelvlm.ui.examples import Example
from litelvlm.ui.limits import check_phrases, read_picture, take_picture
from litelvlm.ui.pictures import esc, photo_style
from litelvlm.ui.work import Answer

log = logging.getLogger(__name__)

EMPTY = {
    "masks": "Choose a picture, type what to look for, press Find. Or click an example: this tab "
    "then shows the answer with few image tokens against the answer with all of them.",
    "tokens": "Which of the picture’s patches the language model gets to see, and why.",
    "similarity": "How much each patch is like the phrase for CLIP, and whether that is reversed.",
    "cost": "Where the time goes, with and without pruning.",
    "curve": "How the answer and its cost change with the budget: a minute of work for the "
    "computer at most, drawn as it goes.",
    "downloads": "Masks, records and the figure of the answer on screen.",
}
CHEAP_BYTES = 1e9  # weights up to which costs are measured unasked
NO_SNIPPET = "# After an answer: the lines that reproduce it.\n"
FAILED = "This run failed on our side. Try again, or another picture or phrase."
STALE = "<style>#lv-tabs .tabitem{opacity:.45;filter:grayscale(.6)}</style>"


@dataclass(frozen=True)
class Page:
    """New content of the page's parts; None leaves a part as it is.

    Attributes:
        session: the visitor's state.
        photo: style element with the photo.
        status: the line under the button.
        stale: style element that dims the tabs while they answer another question.
        masks, tokens, similarity, cost, curve, downloads: HTML of the tabs.
        snippet, command, client: text that reproduces the answer, in Python, on the command line
            and through this server.
        link: HTML of the link to the result.
        phrases: the phrases to choose from; empty hides the choice.
    """

    session: Answer | None = None
    photo: str | None = None
    status: str | None = None
    stale: str | None = None
    masks: str | None = None
    tokens: str | None = None
    similarity: str | None = None
    cost: str | None = None
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

    `address` is where his browser found the page.
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
        return failure(str(error), session)
    except Exception:
        log.exception("a run failed")
        return failure(FAILED, session)
    return _filled(desk, answer, session, start, index, given.address)


def opening(desk: Desk, given: Controls) -> Page | None:
    """The answer a visitor finds when the page opens; None where nothing can be kept for him."""
    if not desk.holds or desk.models.fault() is not None:
        return None
    page = ground(desk, None, given)
    if page.session is None:
        return None
    return replace(page, status=panels.status(page.session, None, page.session.similarity.shape[1]))


def ground_example(
    desk: Desk,
    session: Answer | None,
    given: Controls,
    example: Example,
    phrases: tuple[str, ...] = (),
) -> Page:
    """As `ground`, for one of the example pictures; its own phrases where none are given."""
    start = time.perf_counter()
    try:
        model = given.model or desk.models.names[0]
        if example.model in desk.models.names:
            model = example.model
        ask = check(desk, replace(given, model=model, phrases=list(phrases or example.phrases)))
        picture = take_picture(example.pixels())
        answer = desk.answer(model, picture, ask, session)
    except InputError as error:
        return failure(str(error), session)
    except Exception:
        log.exception("an example failed")
        return failure("This example failed on our side.", session)
    return _filled(desk, answer, session, start, 0, given.address)


def client(desk: Desk, answer: Answer, address: str) -> str:
    """The lines that ask this page, found at `address`, through its endpoints."""
    return handout.client(answer, address, desk.settings.auth is not None)


def _filled(
    desk: Desk, answer: Answer, before: Answer | None, start: float, index: Any, address: str
) -> Page:
    number = _index(answer, index)
    phrases = answer.ask.phrases
    same_photo = before is not None and before.picture.key == answer.picture.key
    setup = desk.settings.device, desk.settings.dtype
    page = Page(
        session=answer,
        stale="",
        photo=None if same_photo else photo_style(answer.picture.image),
        masks=panels.answers(answer),
        tokens=panels.tokens(answer, number),
        similarity=panels.similarity(answer, number),
        cost=costs.cost(answer),
        curve=panels.empty(EMPTY["curve"]),
        downloads=panels.empty(EMPTY["downloads"]),
        snippet=handout.snippet(answer, *setup),
        command=handout.command(answer, *setup),
        client=client(desk, answer, address),
        link=handout.link(answer),
        phrases=phrases if len(phrases) > 1 else (),
    )
    total = answer.pruned.costs.tokens_total
    return replace(page, status=panels.status(answer, time.perf_counter() - start, total))


def failure(message: str, session: Answer | None = None) -> Page:
    """The page after a mistake: the message; an earlier answer stays, marked as such.

    The encoded picture of an earlier answer stays in the session, for the next try.
    """
    return Page(
        session=replace(session, current=False) if session else None,
        status=panels.notice("error", esc(message)) + (earlier(session) if session else ""),
        stale=STALE if session else None,
    )


def changed(session: Answer | None) -> Page:
    """The page after a setting was changed that does not run at once."""
    if session is None:
        return Page()
    text = panels.notice("info", "Settings changed: press Find", "") + earlier(session)
    return Page(session=replace(session, current=False), status=text, stale=STALE)


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
    if session is None or not session.current:
        return Page()
    number = _index(session, index)
    return Page(
        tokens=panels.tokens(session, number), similarity=panels.similarity(session, number)
    )


@dataclass(frozen=True)
class Asked:
    """What the address of the page asks for; every part may be missing or wrong."""

    example: Example | None = None
    picture: str = ""
    phrases: tuple[str, ...] = ()
    budget: int | None = None
    method: str = ""
    model: str = ""

    @staticmethod
    def read(query: dict[str, str], shown: tuple[Example, ...]) -> Asked:
        """From the query of a link that `handout.link` made."""
        named = {example.path.name: example for example in shown}
        picture = query.get("picture", "")[:64]
        phrases = tuple(query.get("phrases", "").splitlines())
        budget = query.get("budget", "")
        return Asked(
            named.get(query.get("example", "")),
            picture,
            phrases,
            int(budget) if budget.isdecimal() and len(budget) < 6 else None,
            query.get("method", ""),
            query.get("model", ""),
        )


def upload_asked(asked: Asked) -> Page:
    """What a link to an answer about somebody's own picture shows."""
    text = (
        f"This link belongs to a picture of somebody’s own, with the mark {esc(asked.picture)}. "
        "Upload the same picture and press Find; the phrases are filled in."
    )
    return Page(status=panels.notice("info", "Upload the picture of this link", text))


def count(desk: Desk, session: Answer | None) -> Page:
    """Fill in work and memory when the costs are looked at, where a run takes no time."""
    if session is None or not session.current or session.measured is not None:
        return Page()
    if session.pruned.costs.weight_bytes > CHEAP_BYTES:
        return Page()
    return measure(desk, session)


def measure(desk: Desk, session: Answer | None) -> Page:
    """Measure the cost again, with warm-up and repeats."""
    if session is None or not session.current:
        return Page(cost=panels.notice("warn", "Nothing to measure yet", "Find something first."))
    try:
        answer = desk.measure(session)
    except InputError as error:
        return Page(cost=panels.notice("error", esc(error)))
    return Page(session=answer, cost=costs.cost(answer))


def sweep(desk: Desk, session: Answer | None) -> Iterator[Page]:
    """Draw the budget curve as it grows."""
    if session is None or not session.current:
        yield Page(curve=panels.notice("warn", "No curve yet", "Find something first."))
        return
    total = session.pruned.costs.tokens_total
    try:
        for state in desk.sweep(session):
            yield Page(curve=costs.curve(state, total))
    except InputError as error:
        yield Page(curve=panels.notice("error", esc(error)))


def play(desk: Desk, session: Answer | None, index: Any, shown: str) -> tuple[str, str] | None:
    """Every budget of the phrase on screen for the browser, and its key; None if `shown` is it."""
    if session is None or not session.current:
        return None
    number = _index(session, index)
    key = patch_map.key(session, number)
    if key == shown:
        return None
    played = desk.play(session, number)
    return (patch_map.payload(played, session, number) if played else ""), key


def animation(desk: Desk, session: Answer | None, index: Any) -> str:
    """A link that holds the token map over the budgets as GIF."""
    if session is None or not session.current:
        return panels.notice("warn", "Nothing to save yet", "Find something first.")
    played = desk.play(session, _index(session, index))
    if played is None:
        text = "This method does not choose before the language model."
        return panels.notice("info", "No animation", text)
    return handout.animation(patch_map.gif(played, session))


def prepare_downloads(session: Answer | None) -> Page:
    """Masks, records and figure as links that hold their file."""
    if session is None or not session.current:
        return Page(downloads=panels.notice("warn", "Nothing to save yet", "Find something first."))
    return Page(downloads=handout.downloads(session, figures=True))


def _index(answer: Answer, index: Any) -> int:
    last = len(answer.ask.phrases) - 1
    return index if isinstance(index, int) and 0 <= index <= last else 0
