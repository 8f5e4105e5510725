"""When a phrase is true of one thing alone: rules with clear margins.

A rule answers for a target and its rivals (all else that the noun and colour fit). It says yes only
where the target fits well *and* no rival nearly fits, so that two people would point at the same
thing. Places are judged by the middle of the visible box, in fractions of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from litelvlm.nano.sprites import NEAR
from litelvlm.nano.wording import ANYTHING, doubtful, nouns


@dataclass(frozen=True)
class SceneObject:
    """One thing in a scene.

    Attributes:
        name: canonical class name, for example "bicycle".
        sprite: key of the sprite variant, "<file stem>:<colour>" or "<file stem>", the latter for
            things painted anew too.
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
        fits: objects that the noun and colour alone are true of, the target among them.
        landmark: the object that a relation is told from, or None.
    """

    text: str
    targets: tuple[int, ...]
    kind: str
    fits: tuple[int, ...] = ()
    landmark: int | None = None


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


_AXIS = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}


def along(view: View, index: int, side: str) -> float:
    """Distance of an object's middle from a side of the canvas, 0..1."""
    axis, sign = _AXIS[side]
    value = view.objects[index].centre[axis] / (view.width, view.height)[axis]
    return value if sign > 0 else 1 - value


def is_at(view: View, target: int, others: Sequence[int], place: str) -> bool:
    """Whether the target is clearly the one at a place such as "left" or "top right"."""
    if place == "middle":
        dx, dy = abs(along(view, target, "left") - 0.5), abs(along(view, target, "top") - 0.5)
        if dx > 0.13 or dy > 0.16:
            return False
        return all(
            abs(along(view, i, "left") - 0.5) > 0.25 or abs(along(view, i, "top") - 0.5) > 0.28
            for i in others
        )
    sides = place.split()
    if len(sides) == 2:
        if any(along(view, target, side) > 0.42 for side in sides):
            return False
        return all(any(along(view, i, side) > 0.55 for side in sides) for i in others)
    here = along(view, target, place)
    limit = 0.46 if others else 0.36
    return here < limit and all(along(view, i, place) > here + 0.14 for i in others)


def is_extreme(view: View, target: int, others: Sequence[int], which: str) -> bool:
    """Whether the target is clearly the leftmost, biggest and so on."""
    if which in _AXIS:
        here = along(view, target, which)
        return all(along(view, i, which) > here + 0.09 for i in others)
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
    ranked = sorted((along(view, i, side), i) for i in fitting)
    if any(b[0] - a[0] < 0.08 for a, b in pairwise(ranked)):
        return None
    return tuple(i for _, i in ranked)
