"""Phrases that single out one thing of a scene, as people write them.

A phrase is proposed at random, then accepted only if a rule with a clear margin says that its
target is the one thing it is true of: nothing else is *nearly* as far left, *nearly* of that
colour, and so on. The forms follow RefCOCO (Kazemzadeh et al., "ReferItGame", EMNLP 2014; Yu et
al., "Modeling Context in Referring Expressions", ECCV 2016): names, colours, sizes, absolute
places, relations, order, extremes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from litelvlm.nano import wording
from litelvlm.nano.rules import (
    Expression,
    View,
    fits,
    is_at,
    is_extreme,
    is_related,
    is_sized,
    order_from,
)
from litelvlm.nano.sprites import UNCOUNTED, kinds, plural
from litelvlm.nano.wording import pick

KINDS = ("name", "colour", "size", "position", "relation", "ordinal", "superlative")


@dataclass(frozen=True)
class _Phrase:
    """A noun with or without a colour, and the objects it fits."""

    text: str
    noun: str
    colour: str | None
    fits: tuple[int, ...]


def _noun_for(rng: np.random.Generator, name: str, general: float) -> str:
    """A word for a class: usually its name, at times a synonym, a group, or "thing"."""
    kind = kinds()[name]
    roll = rng.random()
    if roll < general * 0.3:
        return pick(rng, wording.ANYTHING)
    if roll < general and kind.groups:
        return pick(rng, kind.groups)
    if len(kind.words) > 1 and rng.random() < 0.4:
        return pick(rng, kind.words[1:])
    return kind.words[0]


def _form(rng: np.random.Generator, options: Sequence[str], noun: str) -> str:
    """One of the templates; none with "is" for a noun like "scissors"."""
    form = pick(rng, options)
    return options[0] if noun in UNCOUNTED and " is " in form else form


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
        form = _form(rng, wording.COLOURED, noun) if coloured >= 1 else wording.COLOURED[0]
        text = form.format(c=colour, x=noun)
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


# Text, the objects that its noun fits, the landmark.
Proposed = tuple[str, tuple[int, ...], int | None]
Proposal = Callable[[np.random.Generator, View, int], "Proposed | None"]


def _others(phrase: _Phrase, target: int) -> tuple[int, ...]:
    return tuple(i for i in phrase.fits if i != target)


def _worth(rng: np.random.Generator, others: Sequence[int]) -> bool:
    """Phrases should need more than the noun: rivals are wanted, with few exceptions."""
    return bool(others) or rng.random() < 0.12


def _name(rng: np.random.Generator, view: View, target: int) -> Proposed | None:
    phrase = _phrase(rng, view, target, 0.0, 0.15)
    if phrase is None or phrase.noun in wording.ANYTHING or phrase.fits != (target,):
        return None
    return phrase.text, phrase.fits, None


def _colour(rng: np.random.Generator, view: View, target: int) -> Proposed | None:
    thing = view.objects[target]
    if thing.colour is None:
        return None
    phrase = _phrase(rng, view, target, 1.0, 0.3)
    if phrase is None or phrase.colour is None or phrase.fits != (target,):
        return None
    rivals = fits(view, phrase.noun, None) or ()
    return (phrase.text, phrase.fits, None) if _worth(rng, rivals[1:]) else None


def _size(rng: np.random.Generator, view: View, target: int) -> Proposed | None:
    phrase = _phrase(rng, view, target, 0.25, 0.1)
    if phrase is None or len(phrase.fits) < 2:
        return None
    which = "big" if rng.random() < 0.5 else "small"
    if not is_sized(view, target, _others(phrase, target), which, 1.4):
        return None
    # Comparing words are for two things.
    two = len(phrase.fits) == 2
    options = [
        text for text in wording.SIZES[which] if two or not text.startswith(wording.COMPARING)
    ]
    return pick(rng, options).format(x=phrase.text), phrase.fits, None


def _position(rng: np.random.Generator, view: View, target: int) -> Proposed | None:
    phrase = _phrase(rng, view, target, 0.3, 0.2)
    if phrase is None:
        return None
    others = _others(phrase, target)
    if not _worth(rng, others):
        return None
    places = list(wording.PLACES)
    start = int(rng.random() * len(places))
    for step in range(len(places)):
        place = places[(start + step * 2) % len(places)]
        if is_at(view, target, others, place):
            return pick(rng, wording.PLACES[place]).format(x=phrase.text), phrase.fits, None
    return None


def _relation(rng: np.random.Generator, view: View, target: int) -> Proposed | None:
    phrase = _phrase(rng, view, target, 0.2, 0.25)
    if phrase is None or len(view.objects) < 2:
        return None
    if not _worth(rng, _others(phrase, target)):
        return None
    relations = list(wording.RELATIONS)
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
                text = pick(rng, wording.RELATIONS[relation])
                text = text.format(x=phrase.text, y=article + marker.text)
                return text, phrase.fits, landmark
    return None


def _ordinal(rng: np.random.Generator, view: View, target: int) -> Proposed | None:
    phrase = _phrase(rng, view, target, 0.15, 0.2)
    if phrase is None or len(phrase.fits) < 3 or phrase.noun in UNCOUNTED:
        return None
    side = pick(rng, tuple(wording.SIDES) if rng.random() < 0.4 else ("left", "right"))
    ranked = order_from(view, phrase.fits, side)
    if ranked is None:
        return None
    place = ranked.index(target)
    if place >= len(wording.ORDER) or place > (len(ranked) + 1) // 2:
        return None
    word = wording.ORDER[place][0 if rng.random() < 0.75 else 1]
    return pick(rng, wording.SIDES[side]).format(k=word, x=phrase.text), phrase.fits, None


def _superlative(rng: np.random.Generator, view: View, target: int) -> Proposed | None:
    phrase = _phrase(rng, view, target, 0.15, 0.25)
    if phrase is None or len(phrase.fits) < 2:
        return None
    others = _others(phrase, target)
    which = list(wording.EXTREMES)
    start = int(rng.random() * len(which))
    for step in range(len(which)):
        extreme = which[(start + step) % len(which)]
        if is_extreme(view, target, others, extreme):
            text = _form(rng, wording.EXTREMES[extreme], phrase.noun).format(x=phrase.text)
            return text, phrase.fits, None
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
    name = pick(rng, tuple(kinds()))
    kind = kinds()[name]
    noun = pick(rng, kind.words)
    present = {thing.name for thing in view.objects} | view.avoid
    # Nothing here may be called so, not even by a stretch.
    for word in (*kind.words, *(group for group in kind.groups if group not in wording.BROAD)):
        if (wording.nouns()[word] | wording.doubtful().get(word, frozenset())) & present:
            return None
    if any(present & wording.nouns()[word] for word in kind.doubtful if word in kinds()):
        return None
    text = noun
    if rng.random() < 0.3:
        colours = [v.colour for v in kind.variants if v.colour and v.colour != noun]
        if colours:
            text = f"{pick(rng, colours)} {noun}"
    roll = rng.random()
    if roll < 0.4:
        return pick(rng, pick(rng, tuple(wording.PLACES.values()))).format(x=text)
    if roll < 0.6:
        marker = _single(rng, view, int(rng.random() * len(view.objects)), noun)
        if marker is not None:
            relation = pick(rng, tuple(wording.RELATIONS))
            return pick(rng, wording.RELATIONS[relation]).format(x=text, y="the " + marker.text)
    return text


def _several(rng: np.random.Generator, view: View) -> tuple[str, tuple[int, ...]] | None:
    """A phrase about two or more objects."""
    target = int(rng.random() * len(view.objects))
    phrase = _phrase(rng, view, target, 0.3, 0.3)
    if phrase is not None and 2 <= len(phrase.fits) < 10 and phrase.noun not in UNCOUNTED:
        nouns_text = plural(phrase.noun)
        many = f"{phrase.colour} {nouns_text}" if phrase.colour else nouns_text
        one = f"{phrase.colour} {phrase.noun}" if phrase.colour else phrase.noun
        options = wording.SEVERAL_TWO if len(phrase.fits) == 2 else wording.SEVERAL_MORE
        text = pick(rng, options).format(xs=many, x=one, k=wording.COUNTS[len(phrase.fits)])
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
    text = pick(rng, wording.PAIRS).format(x=one_phrase.text, y="the " + two_phrase.text)
    return text, tuple(sorted((target, other)))


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
            targets: tuple[int, ...] = ()
            about: tuple[tuple[int, ...], int | None] = ((), None)
            text: str | None = None
            if roll < none:
                kind, text = "none", _none(rng, view)
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
                proposed = _PROPOSE[kind](rng, view, target)
                if proposed is None:
                    continue
                text, targets, about = proposed[0], (target,), proposed[1:]
            if text is None or text in texts:
                continue
            texts.add(text)
            if len(targets) == 1:
                used.add((targets[0], kind))
            found.append(Expression(wording.dress(rng, text, typos), targets, kind, *about))
            break
    return tuple(found)
