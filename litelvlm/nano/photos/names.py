"""What the captions and names of photographs say is in view: nouns, and which names overlap."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from litelvlm.nano.photos.data import SYNONYMS, plural


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PEOPLE = _words(
    "man woman boy girl people child lady guy player kid men women children baby skier surfer "
    "rider skateboarder snowboarder batter catcher pitcher umpire bride toddler "
)
WORN = _words(
    "hair skin shoes pants dress coat jacket shirt hat shorts skirt suit tie glasses helmet "
)
# Nouns of captions beside the names of masks and their synonyms.
NOUNS = _words(
    "street table ball field beach water snow umbrella room building board wave road plate "
    "bat kite racquet ocean bed sign sidewalk kitchen grass crowd mountain hill glasses "
    "mirror hat fence wall sky tracks camera tree trees fruit river window floor statue "
    "helmet plant bridge carriage bread flowers blanket door scooter flag cheese beer box "
    "cart lake toy tray pole bicycle sand cigarette runway house candles rail counter tower "
    "net shelf curtain lamp rug pillow towel "
)

# Names that may lie on one patch.
ALIKE = (
    "dining table/plate, dining table/food, tree/trees, person/crowd, bicycle/scooter, "
    "motorcycle/scooter, tennis racket/racquet, street/road, ocean/water, ocean/wave, "
    "water/wave, beach/sand, hill/mountain, mountain/snow, hill/snow, lake/water, "
    "river/water, field/grass, baseball bat/bat, surfboard/board, skateboard/board, "
    "snowboard/board, building/house, building/tower, sink/counter, rail/fence, sky/ocean, "
    "train/tracks, room/wall, room/floor, kitchen/counter"
)


def bank(classes: Iterable[str]) -> dict[str, str]:
    """Every word or phrase that names something -> the name it stands for."""
    found = {noun: noun for noun in (*NOUNS, *PEOPLE)}
    for name in classes:
        for word in (name, plural(name)):
            found[word] = name
    for others in SYNONYMS.values():
        for word in others:
            found.setdefault(word, word)
            found.setdefault(plural(word), word)
    return found


def nouns_of(captions: list[str], words: dict[str, str]) -> set[str]:
    """The names that at least two of some captions, or the only one, mention."""
    counts: dict[str, int] = {}
    for caption in captions:
        tokens = re.findall(r"[a-z-]+", caption.lower())
        pairs = [" ".join(tokens[i : i + 2]) for i in range(len(tokens) - 1)]
        for name in {words[t] for t in (*tokens, *pairs) if t in words}:
            counts[name] = counts.get(name, 0) + 1
    return {name for name, count in counts.items() if count >= min(2, len(captions))}


def labelled(rows: list[dict[str, Any]], words: dict[str, str]) -> dict[str, set[str]]:
    """Image -> names that its captions mention, or its own name; photos that say nothing go."""
    found = {
        r["image"]: {r["name"]} if "name" in r else nouns_of(r["captions"], words) for r in rows
    }
    return {image: names for image, names in found.items() if names}


def overlaps(classes: Iterable[str], others: Iterable[str]) -> dict[str, set[str]]:
    """Name -> names that may be true of the same patch, itself among them."""
    found: dict[str, set[str]] = {name: {name} for name in (*classes, *others)}

    def join(a: str, b: str) -> None:
        found.setdefault(a, {a}).add(b)
        found.setdefault(b, {b}).add(a)

    for name, words in SYNONYMS.items():
        for word in words:
            join(name, word)
    for word in (*PEOPLE, *WORN):
        join("person", word)
        for other in (*PEOPLE, *WORN):
            join(word, other)
    for pair in ALIKE.split(", "):
        join(*pair.split("/"))
    for a in list(found):  # a picture's place says nothing against what stands in it
        if a in ("room", "kitchen", "street", "beach", "field", "crowd"):
            for b in list(found):
                found[b].add(a)
    return found
