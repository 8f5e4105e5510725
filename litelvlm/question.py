"""What can be asked, said once: every option of a request, its values, and what a mistake is told.

    Question(("the red apple",), budget=192, split=0.25)        # checked when it is made
    asked = question.settle(scene.count, family.defaults)       # nothing left open

Python, the command line, the page, its endpoints and the evaluation all make a `Question`; an
option that is None is the model's own choice, filled in by `settle`.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from litelvlm.config import CONTEXTS, MODES, POSITIONS, TEXTS, SelectionConfig
from litelvlm.errors import InputError
from litelvlm.geometry import VIEWS
from litelvlm.methods import Method, SelectionOptions, get_method
from litelvlm.models.prompt import plain
from litelvlm.profiling import PROFILES
from litelvlm.pruning import ORDERS, SPLITS

MAX_PHRASE = 1000  # characters
MAX_PHRASES = 64
MAX_SEED = 2**63 - 1
ANSWER_TOKENS = 128  # most of an answer in text, where nothing else is asked for

# Option -> the values it may have; `split` may also be a fraction in 0..1.
CHOICES: dict[str, tuple[str, ...]] = {
    "split": SPLITS,
    "order": ORDERS,
    "positions": POSITIONS,
    "context": CONTEXTS,
    "text": TEXTS,
    "mode": MODES,
    "view": VIEWS,
    "profile": PROFILES,
}
# Those that shape the selection and that a model has a default for.
SELECTION_OPTIONS = ("split", "order", "positions", "context", "text")


@dataclass(frozen=True)
class Question:
    """One request: what to find, and how.

    Attributes:
        phrases: one or several; each gets its own tokens, prompt and answer.
        budget: image tokens that enter the language model, 1..N; None or N: unpruned.
        method: name of a selection method.
        split: "paper", "released" or a fraction in 0..1 of tokens kept for low similarity.
        order: "raster" or "released", of the kept tokens.
        positions: "compact" (0, 1, 2, ... over what is kept) or "original" (those of the unpruned
            prompt).
        context: "released" (in effect the norm of the values) or "attention" (per head).
        text: what the text tower reads: "phrase", "question" or "templates" (averaged).
        mode: "forced" puts the answer template into the prompt (one prefill), or confines what a
            model writes to an outline; "generate" lets the model write its answer: without [SEG]
            nothing is found, several are united.
        joint: all phrases in one prompt that shares one selection. Forced mode only.
        seed: of methods that draw at random.
        max_new_tokens: bound on the answer in generate mode.
        view: what the image tower sees of a picture that is not square, of `geometry.VIEWS`.
        profile: "time", or "full" to measure FLOPs and memory too, at twice the time.
        wording: (question with the blank {phrase}, answer) in place of the model's own.
        share: phrases that keep the same tokens run the prompt up to there once (forced mode). The
            answers stay; the cost is then that of all together, not the sum of each by itself.

    Raises:
        InputError: naming the option, what was given and what is expected.
    """

    phrases: tuple[str, ...]
    budget: int | None = None
    method: str = "litelvlm"
    split: str | float | None = None
    order: str | None = None
    positions: str | None = None
    context: str | None = None
    text: str | None = None
    mode: str = "forced"
    joint: bool = False
    seed: int = 0
    max_new_tokens: int = 32
    view: str | None = None
    profile: str = "time"
    wording: tuple[str, str] | None = None
    share: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "phrases", read_phrases(self.phrases))
        for name in CHOICES:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, check_choice(name, value))
        get_method(self.method)
        object.__setattr__(self, "seed", check_seed(self.seed))
        if self.joint and self.mode == "generate":
            raise InputError("joint=True needs mode='forced': only the last turn could be written")

    @property
    def rule(self) -> Method:
        """The selection method."""
        return get_method(self.method)

    @property
    def options(self) -> SelectionOptions:
        """What a selection rule reads; only of a settled question."""
        assert self.split is not None
        assert self.order is not None
        assert self.context is not None
        return SelectionOptions(self.split, self.order, self.context, self.seed)

    def settle(self, count: int, defaults: SelectionConfig) -> Question:
        """The same question about a picture of N = `count` tokens, with nothing left open.

        Raises:
            InputError: a budget outside 1..N, below the phrases that share it, or a method that
                does not work in this mode.
        """
        budget = count if self.budget is None else check_budget(self.budget, count)
        if self.joint and budget < len(self.phrases):
            raise InputError(f"budget {budget} is below the number of phrases, {len(self.phrases)}")
        own = {name: getattr(defaults, name) for name in SELECTION_OPTIONS}
        own["positions"] = self.rule.positions or own["positions"]
        given = {name: getattr(self, name) for name in SELECTION_OPTIONS}
        if self.rule.where == "inside" and budget < count:
            given["positions"] = None  # such a method numbers by its own rule
        chosen = {name: own[name] if given[name] is None else given[name] for name in own}
        return replace(self, budget=budget, **chosen)

    def chosen(self) -> dict[str, Any]:
        """The options that were not left as they are: keyword arguments that ask the same."""
        return {
            field.name: value
            for field in fields(self)
            if field.name not in ("phrases", "budget")
            and (value := getattr(self, field.name)) != field.default
        }

    def settings(self, count: int, view: str) -> dict[str, Any]:
        """A settled question without its phrases, as plain data.

        Args:
            count: N of the picture; a budget of N means that no method ran.
            view: what the image tower saw of it.
        """
        method = "none" if self.budget == count else self.method
        names = ("budget", *SELECTION_OPTIONS, "mode", "joint", "seed")
        return {"method": method, **{n: getattr(self, n) for n in names}, "view": view}


def check_choice(name: str, value: Any) -> Any:
    """The value of one of `CHOICES`, or `InputError` listing those there are.

    A `split` may be a fraction, also as text.
    """
    if name == "split" and not isinstance(value, bool):
        try:
            share = float(value)
        except (TypeError, ValueError):
            share = -1.0
        if 0 <= share <= 1:
            return share
    if value not in CHOICES[name]:
        known = ", ".join(CHOICES[name]) + (" or a share in 0..1" if name == "split" else "")
        raise InputError(f"{name} must be one of {known}, got {str(value)[:40]!r}")
    return value


def read_phrases(given: Any, most: int = MAX_PHRASES, letters: int = MAX_PHRASE) -> tuple[str, ...]:
    """Usable phrases from a text or a sequence of texts, or `InputError` naming the fault.

    Args:
        given: one phrase, or several.
        most: largest number of phrases.
        letters: longest phrase, characters.
    """
    phrases = (given,) if isinstance(given, str) else given
    if not isinstance(phrases, Sequence) or not all(isinstance(text, str) for text in phrases):
        raise InputError(f"phrases must be text or a list of texts, got {str(given)[:60]!r}")
    if not 1 <= len(phrases) <= most:
        raise InputError(f"give 1 to {most} phrases, got {len(phrases)}")
    for phrase in phrases:
        if len(phrase) > letters:
            raise InputError(f"a phrase has {len(phrase)} characters, at most {letters}")
        if not plain(phrase):
            raise InputError(f"a phrase has no word: {phrase[:40]!r}")
    return tuple(phrases)


def check_budget(budget: Any, count: int) -> int:
    """A budget in 1..`count` as an int, or `InputError` naming what was given."""
    if isinstance(budget, float) and budget.is_integer():
        budget = int(budget)
    return _whole("budget", budget, 1, count)


def check_seed(seed: Any) -> int:
    """A seed that every generator takes, or `InputError`."""
    return _whole("seed", seed, 0, MAX_SEED)


def _whole(name: str, value: Any, least: int, most: int) -> int:
    expected = f"{name} must be a whole number from {least} to {most}"
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{expected}, got {str(value)[:40]!r}") from None
    if isinstance(value, bool) or not least <= number <= most:
        raise InputError(f"{expected}, got {str(value)[:40]}")
    return number
