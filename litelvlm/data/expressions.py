"""Phrases that single out one thing of a scene, as people write them.

A phrase is proposed at random, then accepted only if a rule with a clear margin says that its
target is the one thing it is true of: nothing else is *nearly* as far left, *nearly* of that
colour, and so on. The forms follow RefCOCO (Kazemzadeh et al., "ReferItGame", EMNLP 2014; Yu et
al., "Modeling Context in Referring Expressions", ECCV 2016): names, colours, sizes, absolute
places, relations, order, extremes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TypeVar

import numpy as np

from litelvlm.data.sprites import COLOURS, NEAR, UNCOUNTED, kinds, plural

T = TypeVar("T")

KINDS = ("name", "colour", "size", "position", "relation", "ordinal", "superlative")


@dataclass(frozen=True)
class SceneObject:
    """One thing in a scene.

    Attributes:
        name: canonical class name, for example "bicycle".
        sprite: key of the sprite variant, "<file stem>:<colour>" or "<file stem>".
        colour: colour word that is true of it, or None.
        box: visible box x0, y0, x1, y1 in pixels, half-open.
        visible: fraction of its pixels that is seen, 0..1.
    """

    name: str
    sprite: str
    colour: str | None
    box: tuple[float, float, float, float]
    visible: float

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the visible box, x, y in pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Expression:
    """One phrase about a scene.

    Attributes:
        text: the phrase, as a person would type it.
        targets: indices into the scene's objects; empty if nothing fits.
        kind: name, colour, size, position, relation, ordinal, superlative, none or several.
    """

    text: str
    targets: tuple[int, ...]
    kind: str


@dataclass(frozen=True)
class View:
    """What phrases are made from: the objects, their sizes, and the canvas.

    Attributes:
        objects: the scene's objects.
        pixels: visible pixels of each object.
        full: pixels each object would have if nothing hid it.
        height, width: canvas in pixels.
        avoid: class names that the background shows.
        covers: (front, back) -> pixels of the back object that the front one hides.
    """

    objects: tuple[SceneObject, ...]
    pixels: tuple[int, ...]
    full: tuple[int, ...]
    height: int
    width: int
    avoid: frozenset[str]
    covers: Mapping[tuple[int, int], int]


# Templates: {x} target, {y} landmark (with its article), {k} order word, {xs} plural.
PLACES: dict[str, tuple[str, ...]] = {
    "left": (
        "left {x}",
        "{x} on the left",
        "{x} on left",
        "{x} to the left",
        "{x} on the left side",
    ),
    "right": (
        "right {x}",
        "{x} on the right",
        "{x} on right",
        "{x} to the right",
        "{x} on the right side",
    ),
    "top": ("top {x}", "upper {x}", "{x} at the top", "{x} at top"),
    "bottom": ("bottom {x}", "lower {x}", "{x} at the bottom", "{x} at bottom"),
    "middle": (
        "middle {x}",
        "center {x}",
        "{x} in the middle",
        "{x} in the center",
        "{x} in middle",
    ),
    "top left": ("top left {x}", "upper left {x}", "{x} in the top left", "{x} at top left"),
    "top right": ("top right {x}", "upper right {x}", "{x} in the top right", "{x} at top right"),
    "bottom left": (
        "bottom left {x}",
        "lower left {x}",
        "{x} in the bottom left",
        "{x} at bottom left",
    ),
    "bottom right": (
        "bottom right {x}",
        "lower right {x}",
        "{x} in the bottom right",
        "{x} at bottom right",
    ),
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
    "left": ("{k} {x} from the left", "{k} {x} from left"),
    "right": ("{k} {x} from the right", "{k} {x} from right"),
    "top": ("{k} {x} from the top", "{k} {x} from top"),
    "bottom": ("{k} {x} from the bottom", "{k} {x} from bottom"),
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


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
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


@dataclass(frozen=True)
class _Phrase:
    """A noun with or without a colour, and the objects it fits."""

    text: str
    noun: str
    colour: str | None
    fits: tuple[int, ...]


def fits(view: View, noun: str, colour: str | None) -> tuple[int, ...] | None:
    """Objects that a noun and colour are true of; None if that is a matter of taste for one.

    It is where an object may or may not be called by the noun, or where one of that noun has
    several colours or a colour easily taken for the one named.
    """
    names, unsure = nouns()[noun], doubtful().get(noun, frozenset())
    of_noun = [i for i, thing in enumerate(view.objects) if thing.name in names]
    if names & view.avoid and noun not in ANYTHING:
        return None
    if unsure and any(thing.name in unsure for thing in view.objects):
        return None
    if colour is None:
        return tuple(of_noun)
    found = []
    for i in of_noun:
        other = view.objects[i].colour
        if other == colour:
            found.append(i)
        elif other is None or other in NEAR[colour]:
            return None
    return tuple(found)


def _noun_for(rng: np.random.Generator, name: str, general: float) -> str:
    """A word for a class: usually its name, at times a synonym, a group, or "thing"."""
    kind = kinds()[name]
    roll = rng.random()
    if roll < general * 0.3:
        return _pick(rng, ANYTHING)
    if roll < general and kind.groups:
        return _pick(rng, kind.groups)
    if len(kind.words) > 1 and rng.random() < 0.4:
        return _pick(rng, kind.words[1:])
    return kind.words[0]


def _phrase(
    rng: np.random.Generator, view: View, target: int, coloured: float, general: float
) -> _Phrase | None:
    thing = view.objects[target]
    noun = _noun_for(rng, thing.name, general)
    colour = thing.colour if rng.random() < coloured else None
    if colour == noun:
        colour = None
    found = fits(view, noun, colour)
    if not found or target not in found:
        return None
    text = noun
    if colour is not None:
        text = (
            _pick(rng, COLOURED[:5]).format(c=colour, x=noun)
            if coloured >= 1
            else f"{colour} {noun}"
        )
    return _Phrase(text, noun, colour, found)


def _single(rng: np.random.Generator, view: View, index: int, noun_not: str) -> _Phrase | None:
    """A short phrase that fits this object only, for use as a landmark."""
    for coloured in (0.0, 1.1):
        thing = view.objects[index]
        noun = _noun_for(rng, thing.name, 0.0)
        colour = thing.colour if coloured else None
        if noun == noun_not or (coloured and (colour is None or colour == noun)):
            continue
        if fits(view, noun, colour) == (index,):
            return _Phrase(f"{colour} {noun}" if colour else noun, noun, colour, (index,))
    return None


# --- Rules. Each says whether the target is the one clear answer among the candidates. ------------

_AXIS = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}


def _along(view: View, index: int, side: str) -> float:
    """Distance of an object's middle from a side of the canvas, 0..1."""
    axis, sign = _AXIS[side]
    value = view.objects[index].centre[axis] / (view.width, view.height)[axis]
    return value if sign > 0 else 1 - value


def is_at(view: View, target: int, others: Sequence[int], place: str) -> bool:
    """Whether the target is clearly the one at a place such as "left" or "top right"."""
    if place == "middle":
        dx, dy = abs(_along(view, target, "left") - 0.5), abs(_along(view, target, "top") - 0.5)
        if dx > 0.13 or dy > 0.16:
            return False
        return all(
            abs(_along(view, i, "left") - 0.5) > 0.25 or abs(_along(view, i, "top") - 0.5) > 0.28
            for i in others
        )
    sides = place.split()
    if len(sides) == 2:
        if any(_along(view, target, side) > 0.42 for side in sides):
            return False
        return all(any(_along(view, i, side) > 0.55 for side in sides) for i in others)
    here = _along(view, target, place)
    limit = 0.46 if others else 0.36
    return here < limit and all(_along(view, i, place) > here + 0.14 for i in others)


def is_extreme(view: View, target: int, others: Sequence[int], which: str) -> bool:
    """Whether the target is clearly the leftmost, biggest and so on."""
    if which in _AXIS:
        here = _along(view, target, which)
        return all(_along(view, i, which) > here + 0.09 for i in others)
    return is_sized(view, target, others, which, 1.25)


def is_sized(view: View, target: int, others: Sequence[int], which: str, ratio: float) -> bool:
    """Whether the target is longer (shorter) than all others by `ratio`, as seen and unhidden."""
    for i in others:
        for area in (view.full, view.pixels):
            larger = (area[target] / area[i]) ** 0.5
            if (larger if which == "big" else 1 / larger) < ratio:
                return False
    return True


def gap(view: View, a: int, b: int) -> float:
    """Distance between two visible boxes in pixels, 0 if they touch."""
    p, q = view.objects[a].box, view.objects[b].box
    dx = max(q[0] - p[2], p[0] - q[2], 0.0)
    dy = max(q[1] - p[3], p[1] - q[3], 0.0)
    return float((dx * dx + dy * dy) ** 0.5)


def relates(view: View, target: int, landmark: int, relation: str, strict: bool) -> bool:
    """Whether a relation to the landmark holds: clearly (strict), or perhaps (not strict)."""
    short = min(view.height, view.width)
    if relation in ("front", "behind"):
        pair = (target, landmark) if relation == "front" else (landmark, target)
        hidden = view.covers.get(pair, 0)
        if strict:
            return hidden >= 0.1 * min(view.full[i] for i in pair)
        return hidden > 0 or gap(view, target, landmark) < 3
    if relation == "next":
        return gap(view, target, landmark) <= short * (0.06 if strict else 0.2)
    (tx, ty), (lx, ly) = view.objects[target].centre, view.objects[landmark].centre
    t, m = view.objects[target].box, view.objects[landmark].box
    ahead, aside = {
        "left": (lx - tx, ly - ty),
        "right": (tx - lx, ly - ty),
        "above": (ly - ty, lx - tx),
        "below": (ty - ly, lx - tx),
    }[relation]
    if not strict:
        return ahead > 0 and abs(aside) < 2.5 * ahead
    flat = relation in ("left", "right")
    spans = (t[2] - t[0] + m[2] - m[0], t[3] - t[1] + m[3] - m[1])
    reach = spans[0] if flat else spans[1]
    return ahead > 0.4 * reach and abs(aside) < 0.75 * ahead


def is_related(
    view: View, target: int, others: Sequence[int], landmark: int, relation: str
) -> bool:
    """Whether the target alone stands in that relation to the landmark."""
    if relation == "closest":
        if not others:
            return False
        tx, ty = view.objects[target].centre
        lx, ly = view.objects[landmark].centre
        here = ((tx - lx) ** 2 + (ty - ly) ** 2) ** 0.5
        near = gap(view, target, landmark)
        short = min(view.height, view.width)
        for i in others:
            ox, oy = view.objects[i].centre
            there = ((ox - lx) ** 2 + (oy - ly) ** 2) ** 0.5
            if there < 1.35 * here or gap(view, i, landmark) < near + 0.1 * short:
                return False
        return True
    if not relates(view, target, landmark, relation, strict=True):
        return False
    return not any(relates(view, i, landmark, relation, strict=False) for i in others)


def order_from(view: View, fitting: Sequence[int], side: str) -> tuple[int, ...] | None:
    """The objects in order from a side, or None if two stand too close to call."""
    ranked = sorted((_along(view, i, side), i) for i in fitting)
    if any(b[0] - a[0] < 0.08 for a, b in pairwise(ranked)):
        return None
    return tuple(i for _, i in ranked)


# --- Proposals: one attempt each, None if the dice fall badly. ------------------------------------

Proposal = Callable[[np.random.Generator, View, int], "str | None"]


def _others(phrase: _Phrase, target: int) -> tuple[int, ...]:
    return tuple(i for i in phrase.fits if i != target)


def _worth(rng: np.random.Generator, others: Sequence[int]) -> bool:
    """Phrases should need more than the noun: rivals are wanted, with few exceptions."""
    return bool(others) or rng.random() < 0.12


def _name(rng: np.random.Generator, view: View, target: int) -> str | None:
    phrase = _phrase(rng, view, target, 0.0, 0.15)
    if phrase is None or phrase.noun in ANYTHING or phrase.fits != (target,):
        return None
    return phrase.text


def _colour(rng: np.random.Generator, view: View, target: int) -> str | None:
    thing = view.objects[target]
    if thing.colour is None:
        return None
    phrase = _phrase(rng, view, target, 1.0, 0.3)
    if phrase is None or phrase.colour is None or phrase.fits != (target,):
        return None
    rivals = fits(view, phrase.noun, None) or ()
    return phrase.text if _worth(rng, rivals[1:]) else None


def _size(rng: np.random.Generator, view: View, target: int) -> str | None:
    phrase = _phrase(rng, view, target, 0.25, 0.1)
    if phrase is None or len(phrase.fits) < 2:
        return None
    which = "big" if rng.random() < 0.5 else "small"
    if not is_sized(view, target, _others(phrase, target), which, 1.4):
        return None
    # Comparing words are for two things.
    two = len(phrase.fits) == 2
    options = [text for text in SIZES[which] if two or not text.startswith(COMPARING)]
    return _pick(rng, options).format(x=phrase.text)


def _position(rng: np.random.Generator, view: View, target: int) -> str | None:
    phrase = _phrase(rng, view, target, 0.3, 0.2)
    if phrase is None:
        return None
    others = _others(phrase, target)
    if not _worth(rng, others):
        return None
    places = list(PLACES)
    start = int(rng.random() * len(places))
    for step in range(len(places)):
        place = places[(start + step * 2) % len(places)]
        if is_at(view, target, others, place):
            return _pick(rng, PLACES[place]).format(x=phrase.text)
    return None


def _relation(rng: np.random.Generator, view: View, target: int) -> str | None:
    phrase = _phrase(rng, view, target, 0.2, 0.25)
    if phrase is None or len(view.objects) < 2:
        return None
    if not _worth(rng, _others(phrase, target)):
        return None
    relations = list(RELATIONS)
    first = int(rng.random() * len(view.objects))
    for step in range(len(view.objects)):
        landmark = (first + step) % len(view.objects)
        if landmark == target:
            continue
        marker = _single(rng, view, landmark, phrase.noun)
        if marker is None:
            continue
        others = tuple(i for i in phrase.fits if i not in (target, landmark))
        start = int(rng.random() * len(relations))
        for turn in range(len(relations)):
            relation = relations[(start + turn) % len(relations)]
            if is_related(view, target, others, landmark, relation):
                article = "" if rng.random() < 0.15 else "the "
                return _pick(rng, RELATIONS[relation]).format(
                    x=phrase.text, y=article + marker.text
                )
    return None


def _ordinal(rng: np.random.Generator, view: View, target: int) -> str | None:
    phrase = _phrase(rng, view, target, 0.15, 0.2)
    if phrase is None or len(phrase.fits) < 3 or phrase.noun in UNCOUNTED:
        return None
    side = _pick(rng, tuple(SIDES) if rng.random() < 0.4 else ("left", "right"))
    ranked = order_from(view, phrase.fits, side)
    if ranked is None:
        return None
    place = ranked.index(target)
    if place >= len(ORDER) or place > (len(ranked) + 1) // 2:
        return None
    word = ORDER[place][0 if rng.random() < 0.75 else 1]
    return _pick(rng, SIDES[side]).format(k=word, x=phrase.text)


def _superlative(rng: np.random.Generator, view: View, target: int) -> str | None:
    phrase = _phrase(rng, view, target, 0.15, 0.25)
    if phrase is None or len(phrase.fits) < 2:
        return None
    others = _others(phrase, target)
    which = list(EXTREMES)
    start = int(rng.random() * len(which))
    for step in range(len(which)):
        extreme = which[(start + step) % len(which)]
        if is_extreme(view, target, others, extreme):
            return _pick(rng, EXTREMES[extreme]).format(x=phrase.text)
    return None


_PROPOSE: dict[str, Proposal] = {
    "name": _name,
    "colour": _colour,
    "size": _size,
    "position": _position,
    "relation": _relation,
    "ordinal": _ordinal,
    "superlative": _superlative,
}
# Chance of each kind being tried first, by level.
_WEIGHTS: tuple[tuple[float, ...], ...] = (
    (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    (0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0),
    (0.25, 0.3, 0.0, 0.45, 0.0, 0.0, 0.0),
    (0.10, 0.16, 0.09, 0.18, 0.21, 0.14, 0.12),
)
# One thing alone has no rivals in size, order or extremes.
_ALONE = np.array((1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0))


def _none(rng: np.random.Generator, view: View) -> str | None:
    """A phrase about a class that is neither in the scene nor in its background."""
    name = _pick(rng, tuple(kinds()))
    kind = kinds()[name]
    noun = _pick(rng, kind.words)
    present = {thing.name for thing in view.objects} | view.avoid
    # Nothing here may be called so, not even by a stretch.
    for word in (*kind.words, *(group for group in kind.groups if group not in BROAD)):
        if (nouns()[word] | doubtful().get(word, frozenset())) & present:
            return None
    if any(present & nouns()[word] for word in kind.doubtful if word in kinds()):
        return None
    text = noun
    if rng.random() < 0.3:
        colours = [v.colour for v in kind.variants if v.colour and v.colour != noun]
        if colours:
            text = f"{_pick(rng, colours)} {noun}"
    roll = rng.random()
    if roll < 0.4:
        return _pick(rng, _pick(rng, tuple(PLACES.values()))).format(x=text)
    if roll < 0.6:
        marker = _single(rng, view, int(rng.random() * len(view.objects)), noun)
        if marker is not None:
            relation = _pick(rng, tuple(RELATIONS))
            return _pick(rng, RELATIONS[relation]).format(x=text, y="the " + marker.text)
    return text


def _several(rng: np.random.Generator, view: View) -> tuple[str, tuple[int, ...]] | None:
    """A phrase about two or more objects."""
    target = int(rng.random() * len(view.objects))
    phrase = _phrase(rng, view, target, 0.3, 0.3)
    if phrase is not None and 2 <= len(phrase.fits) < 10 and phrase.noun not in UNCOUNTED:
        nouns_text = plural(phrase.noun)
        many = f"{phrase.colour} {nouns_text}" if phrase.colour else nouns_text
        one = f"{phrase.colour} {phrase.noun}" if phrase.colour else phrase.noun
        options = SEVERAL_TWO if len(phrase.fits) == 2 else SEVERAL_MORE
        text = _pick(rng, options).format(xs=many, x=one, k=COUNTS[len(phrase.fits)])
        return text, phrase.fits
    if len(view.objects) < 2:
        return None
    other = int(rng.random() * len(view.objects))
    if other == target:
        return None
    one_phrase = _single(rng, view, target, "")
    two_phrase = _single(rng, view, other, "")
    if one_phrase is None or two_phrase is None:
        return None
    text = _pick(rng, PAIRS).format(x=one_phrase.text, y="the " + two_phrase.text)
    return text, tuple(sorted((target, other)))


def _dress(rng: np.random.Generator, text: str, typos: float) -> str:
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
    i = _pick(rng, long)
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


def write_expressions(
    rng: np.random.Generator,
    view: View,
    count: int,
    level: int,
    none: float,
    several: float,
    typos: float,
) -> tuple[Expression, ...]:
    """Write up to `count` different phrases about a scene, spread over its objects and over kinds.

    Args:
        rng: source of all randomness.
        view: the scene.
        count: most phrases to write.
        level: 0 names, 1 names and colours, 2 places too, 3 everything.
        none, several: chance for each phrase to have no target, or several.
        typos: chance of a misspelling.

    Returns:
        The phrases; fewer than `count` where the scene allows no more.
    """
    weights = np.array(_WEIGHTS[level])
    if len(view.objects) < 2:
        weights = weights * _ALONE
    share = np.cumsum(weights / weights.sum())
    order = [int(i) for i in rng.permutation(len(view.objects))]
    found: list[Expression] = []
    texts: set[str] = set()
    used: set[tuple[int, str]] = set()
    for slot in range(count):
        roll = rng.random()
        for attempt in range(24):
            targets: tuple[int, ...]
            text: str | None
            if roll < none:
                kind, text, targets = "none", _none(rng, view), ()
            elif roll < none + several:
                kind = "several"
                pair = _several(rng, view)
                text, targets = pair if pair else (None, ())
            else:
                # A kind is tried on every target before another kind is, so that those which
                # fit seldom are not crowded out by those which fit always.
                if attempt % 8 == 0:
                    kind = KINDS[min(int(np.searchsorted(share, rng.random(), "right")), 6)]
                target = order[(slot + attempt) % len(order)]
                if (target, kind) in used and attempt < 16:
                    continue
                text, targets = _PROPOSE[kind](rng, view, target), (target,)
            if text is None or text in texts:
                continue
            texts.add(text)
            if len(targets) == 1:
                used.add((targets[0], kind))
            found.append(Expression(_dress(rng, text, typos), targets, kind))
            break
    return tuple(found)
