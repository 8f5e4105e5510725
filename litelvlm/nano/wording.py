"""The words of phrases: templates, nouns, capitals and misspellings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np

from litelvlm.nano.sprites import COLOURS, kinds, plural

T = TypeVar("T")

# Templates: {x} target, {y} landmark (with its article), {k} order word, {xs} plural.
PLACES: dict[str, tuple[str, ...]] = {
    **{
        side: (
            f"{side} {{x}}",
            f"{{x}} on the {side}",
            f"{{x}} on {side}",
            f"{{x}} to the {side}",
            f"{{x}} on the {side} side",
        )
        for side in ("left", "right")
    },
    **{
        side: (f"{side} {{x}}", f"{word} {{x}}", f"{{x}} at the {side}", f"{{x}} at {side}")
        for side, word in (("top", "upper"), ("bottom", "lower"))
    },
    "middle": (
        "middle {x}",
        "center {x}",
        "{x} in the middle",
        "{x} in the center",
        "{x} in middle",
    ),
    **{
        f"{up} {side}": (
            f"{up} {side} {{x}}",
            f"{word} {side} {{x}}",
            f"{{x}} in the {up} {side}",
            f"{{x}} at {up} {side}",
        )
        for up, word in (("top", "upper"), ("bottom", "lower"))
        for side in ("left", "right")
    },
}
RELATIONS: dict[str, tuple[str, ...]] = {
    "left": ("{x} left of {y}", "{x} to the left of {y}", "{x} on the left of {y}"),
    "right": ("{x} right of {y}", "{x} to the right of {y}", "{x} on the right of {y}"),
    "above": ("{x} above {y}", "{x} over {y}"),
    "below": ("{x} below {y}", "{x} under {y}", "{x} beneath {y}"),
    "next": ("{x} next to {y}", "{x} beside {y}", "{x} near {y}", "{x} by {y}", "{x} close to {y}"),
    "front": ("{x} in front of {y}",),
    "behind": ("{x} behind {y}", "{x} hidden by {y}"),
    "closest": ("{x} closest to {y}", "{x} nearest to {y}", "{x} nearest {y}"),
}
EXTREMES: dict[str, tuple[str, ...]] = {
    "left": ("leftmost {x}", "{x} furthest left", "far left {x}", "{x} on the far left"),
    "right": ("rightmost {x}", "{x} furthest right", "far right {x}", "{x} on the far right"),
    "top": ("topmost {x}", "highest {x}", "uppermost {x}"),
    "bottom": ("bottommost {x}", "lowest {x}"),
    "big": ("biggest {x}", "largest {x}", "{x} that is biggest"),
    "small": ("smallest {x}", "{x} that is smallest", "tiniest {x}"),
}
SIZES: dict[str, tuple[str, ...]] = {
    "big": ("big {x}", "large {x}", "bigger {x}", "larger {x}"),
    "small": ("small {x}", "tiny {x}", "little {x}", "smaller {x}"),
}
COMPARING = ("bigger", "larger", "smaller")
SIDES: dict[str, tuple[str, ...]] = {
    side: (f"{{k}} {{x}} from the {side}", f"{{k}} {{x}} from {side}")
    for side in ("left", "right", "top", "bottom")
}
ORDER = (("first", "1st"), ("second", "2nd"), ("third", "3rd"), ("fourth", "4th"), ("fifth", "5th"))
COLOURED = ("{c} {x}", "{c} {x}", "{c} {x}", "{c} {x}", "{x} that is {c}", "{c} colored {x}")
SEVERAL_TWO = ("both {xs}", "two {xs}", "the two {xs}", "all {xs}", "the {xs}", "{xs}")
SEVERAL_MORE = ("all {xs}", "all the {xs}", "the {xs}", "{xs}", "every {x}", "{k} {xs}")
COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PAIRS = ("the {x} and {y}", "{x} and {y}", "both the {x} and {y}")
ANYTHING = ("thing", "object")
# Groups whose members nobody takes for one another.
BROAD = frozenset(
    ("animal", "food", "fruit", "vegetable", "vehicle", "clothes", "furniture", "plant", "tool")
) | {"instrument", "drink", "bag"}
_OTHER_WORDS = "the a an and of some one"


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, each as likely; much faster than `rng.choice`."""
    return options[int(rng.random() * len(options))]


@lru_cache(maxsize=1)
def nouns() -> dict[str, frozenset[str]]:
    """Each noun that phrases use, with the class names it is true of (words, groups, anything)."""
    table: dict[str, set[str]] = {}
    for name, kind in kinds().items():
        for noun in (*kind.words, *kind.groups, *ANYTHING):
            table.setdefault(noun, set()).add(name)
    # A class's own word may also be a group of others ("bird"), and the other way round.
    return {noun: frozenset(names) for noun, names in table.items()}


@lru_cache(maxsize=1)
def doubtful() -> dict[str, frozenset[str]]:
    """Each noun with the class names for which it is a matter of taste."""
    table: dict[str, set[str]] = {}
    for name, kind in kinds().items():
        for word in kind.doubtful:
            # A doubtful class name brings its synonyms.
            for noun in kinds()[word].words if word in kinds() else (word,):
                table.setdefault(noun, set()).add(name)
    return {noun: frozenset(found - nouns().get(noun, set())) for noun, found in table.items()}


@lru_cache(maxsize=1)
def known_words() -> frozenset[str]:
    """Every lower-case word that phrases and captions can contain, misspellings left out."""
    texts = [_OTHER_WORDS, *COLOURS, *COUNTS, *COLOURED, *SEVERAL_TWO, *SEVERAL_MORE, *PAIRS]
    for table in (PLACES, RELATIONS, EXTREMES, SIZES, SIDES):
        texts += [text for options in table.values() for text in options]
    texts += [word for pair in ORDER for word in pair]
    for noun in nouns():
        texts += [noun, plural(noun)]
    words = " ".join(texts).replace("{", " {").split()
    return frozenset(word.lower() for word in words if not word.startswith("{"))


def dress(rng: np.random.Generator, text: str, typos: float) -> str:
    """Article, capitals, full stop and misspelling, as people vary them."""
    if not text.startswith(("the ", "all ", "both ", "every ")) and rng.random() < 0.55:
        text = "the " + text
    if rng.random() < typos:
        text = _misspell(rng, text)
    roll = rng.random()
    if roll < 0.1:
        text = text[0].upper() + text[1:]
    elif roll < 0.11:
        text = text.upper()
    if rng.random() < 0.06:
        text += "."
    return text


def _misspell(rng: np.random.Generator, text: str) -> str:
    """Swap, drop or double one inner letter of one word of five letters or more."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if not long:
        return text
    i = pick(rng, long)
    word = words[i]
    at = 1 + int(rng.random() * (len(word) - 3))
    form = rng.random()
    if form < 0.4:
        word = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    elif form < 0.7:
        word = word[:at] + word[at + 1 :]
    else:
        word = word[: at + 1] + word[at:]
    words[i] = word
    return " ".join(words)
