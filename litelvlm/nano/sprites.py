"""The things scenes are made of: named sprites, their true colours, their recoloured variants.

Sprites are Fluent Emoji 3D drawings ((c) Microsoft Corporation, MIT licence), 160 x 160, RGBA.
`assets/sprites/table.txt` holds the hand-checked facts: names, synonyms, colours, groups.
A *variant* is a sprite with a colour word, written `"<file stem>:<colour>"`, or `"<file stem>"`
where no single colour word is true of it. A tenth of the variants is held out from training.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from litelvlm.errors import InputError
from litelvlm.resources import asset

Paint = tuple[int, int, int]  # hue 0..179, saturation and value 0..255

# Letter in the table -> colour word, then the hue (0-180), saturation and value (0-255) given to
# the recoloured pixels; saturation and value are those of the median pixel.
_PAINT: dict[str, tuple[str, int, int, int]] = {
    "r": ("red", 179, 215, 225),
    "o": ("orange", 11, 220, 250),
    "y": ("yellow", 26, 205, 252),
    "g": ("green", 62, 190, 185),
    "b": ("blue", 107, 205, 235),
    "p": ("purple", 137, 165, 205),
    "k": ("pink", 166, 110, 252),
    "n": ("brown", 11, 165, 140),
    "w": ("white", 0, 4, 247),
    "x": ("black", 0, 12, 48),
    "e": ("grey", 0, 8, 150),
}
COLOURS: tuple[str, ...] = tuple(sorted(paint[0] for paint in _PAINT.values()))

# Colours that one person may call by the other's word. A phrase that names a colour never has to
# decide between two of these.
_LOOKALIKE = (
    "red orange|red pink|red brown|orange yellow|orange brown|yellow brown|pink purple|blue purple"
    "|grey white|grey black|black brown|pink white|yellow white|grey brown|pink orange|black purple"
)
NEAR: dict[str, frozenset[str]] = {
    colour: frozenset(
        other for pair in _LOOKALIKE.split("|") for other in pair.split() if colour in pair.split()
    )
    | {colour}
    for colour in COLOURS
}

PLURAL_ONLY = frozenset(
    (
        *("grapes", "cherries", "glasses", "sunglasses", "jeans", "pants", "trousers", "shorts"),
        *("scissors", "headphones", "eyeglasses", "shades"),
    )
)
# Nouns that are not counted: no ordinal and no plural is made of them.
UNCOUNTED = PLURAL_ONLY | {"clothes", "furniture", "food", "luggage", "mail"}


@dataclass(frozen=True)
class Variant:
    """One look of one class: a sprite file and how it is recoloured.

    Attributes:
        key: `"<stem>:<colour>"` or `"<stem>"`.
        name: canonical class name.
        stem: file stem in assets/sprites.
        colour: colour word that is true of it, or None.
        mask: pixels to recolour ("h" main hue, "h175" a given hue, "s" pale, "*" all, "" none).
        letter: target colour's letter, or "" for the drawing as it is.
        held_out: true if training scenes never show it.
    """

    key: str
    name: str
    stem: str
    colour: str | None
    mask: str
    letter: str
    held_out: bool = False


@dataclass(frozen=True)
class Kind:
    """A class.

    Attributes:
        name: canonical name.
        words: the name and its synonyms; each is used in phrases.
        groups: more general nouns that are true of it; used in phrases.
        doubtful: nouns, of other classes or groups, that some people would use for it. Never used
            for it, and no phrase with such a noun is written where it is in the picture.
        variants: its looks.
    """

    name: str
    words: tuple[str, ...]
    groups: tuple[str, ...]
    doubtful: tuple[str, ...]
    variants: tuple[Variant, ...]


@lru_cache(maxsize=1)
def kinds() -> dict[str, Kind]:
    """All classes by canonical name, sorted. Raises `InputError` if the sprite table is missing."""
    path = asset("sprites", "table.txt")
    if not path.is_file():
        raise InputError(
            f"no sprite table at {path}; expected the assets/ folder of the repository"
        )
    words: dict[str, list[str]] = {}
    groups: dict[str, list[str]] = {}
    variants: dict[str, list[Variant]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        stem, noun, colour, paint, group = (cell.strip() for cell in line.split("|"))
        nouns = [word.strip() for word in noun.split(",")]
        name = nouns[0]
        for store, cells in ((words, nouns), (groups, [g.strip() for g in group.split(",")])):
            known = store.setdefault(name, [])
            known.extend(cell for cell in cells if cell and cell not in known)
        looks = variants.setdefault(name, [])
        if colour != "!":
            own = None if colour == "-" else colour
            looks.append(Variant(f"{stem}:{own}" if own else stem, name, stem, own, "", ""))
        mask, _, letters = paint.partition(":")
        for letter in letters:
            word = _PAINT[letter][0]
            if word == colour:
                raise InputError(f"sprite {stem} lists its own colour {word!r} as a recolouring")
            looks.append(Variant(f"{stem}:{word}", name, stem, word, mask, letter))
    held = _held_out(variants)
    return {
        name: Kind(
            name,
            tuple(words[name]),
            tuple(word for word in groups[name] if not word.startswith("~")),
            tuple(word[1:] for word in groups[name] if word.startswith("~")),
            tuple(replace(variant, held_out=variant.key in held) for variant in variants[name]),
        )
        for name in sorted(words)
    }


def _held_out(variants: dict[str, list[Variant]]) -> frozenset[str]:
    """A tenth of all variants, by hash of the key; at most a quarter of the looks of a class."""
    everything = sorted(
        (v for looks in variants.values() for v in looks), key=lambda v: zlib.crc32(v.key.encode())
    )
    want = round(len(everything) / 10)
    taken: dict[str, int] = {}
    held: list[str] = []
    for variant in everything:
        used = taken.get(variant.name, 0)
        if len(held) < want and (used + 1) * 4 <= len(variants[variant.name]):
            taken[variant.name] = used + 1
            held.append(variant.key)
    return frozenset(held)


@lru_cache(maxsize=1024)
def sprite(stem: str, mask: str = "", letter: str = "") -> np.ndarray:
    """Pixels of one variant, cropped to what is visible.

    Returns:
        (H, W, 4) uint8, RGB premultiplied by alpha, read-only; longest side at most 160 pixels.
    """
    path = asset("sprites", f"{stem}.webp")
    bgra = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if bgra is None or bgra.ndim != 3 or bgra.shape[2] != 4:
        raise InputError(f"cannot read the sprite {path}; expected an RGBA webp file")
    rgb, alpha = cv2.cvtColor(bgra[..., :3], cv2.COLOR_BGR2RGB), bgra[..., 3]
    if letter:
        rgb = _recolour(rgb, alpha, mask, _PAINT[letter][1:])
    ys, xs = np.nonzero(alpha > 40)
    box = (slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1))
    rgb, alpha = rgb[box], alpha[box]
    out = _premultiplied(rgb, alpha)
    out.flags.writeable = False
    return out


def _premultiplied(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """(H, W, 3) and (H, W) uint8 -> (H, W, 4) uint8, colours times alpha."""
    return np.dstack([(rgb.astype(np.uint16) * alpha[..., None] // 255).astype(np.uint8), alpha])


@lru_cache(maxsize=1)
def _shades() -> tuple[tuple[str, ...], np.ndarray]:
    """Colour words and the Lab colours (11, 3) int they stand for."""
    hsv = np.array([[paint[1:] for paint in _PAINT.values()]], np.uint8)
    lab = cv2.cvtColor(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), cv2.COLOR_RGB2LAB)
    return tuple(paint[0] for paint in _PAINT.values()), lab[0].astype(np.int64)


def nearest_colour(paint: Paint) -> str:
    """The colour word nearest to a paint in Lab."""
    words, shades = _shades()
    rgb = cv2.cvtColor(np.array([[paint]], np.uint8), cv2.COLOR_HSV2RGB)
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)[0, 0].astype(np.int64)
    return words[int(np.argmin(((shades - lab) ** 2).sum(1)))]


def any_paint(rng: np.random.Generator, name: str) -> Paint:
    """A random paint for a class.

    Never one near a colour in which a look of the class is held out from training, by its
    nearest word or within 30 degrees of its hue: what is held out stays unseen.
    """
    held = {variant.colour for variant in kinds()[name].variants if variant.held_out}
    hues = [hue for word, hue, saturation, _ in _PAINT.values() if word in held and saturation > 40]
    while True:
        paint = (
            int(rng.random() * 180),
            int(255 * rng.random() ** 0.7),
            int(40 + 215 * rng.random() ** 0.7),
        )
        far = all(abs(_turn(paint[0], hue)) > 15 for hue in hues)
        if nearest_colour(paint) not in held and (far or paint[1] <= 40):
            return paint


def repainted(pixels: np.ndarray, variant: Variant, paint: Paint) -> np.ndarray:
    """A drawing in another paint: (h, w, 4) uint8 of `sprite(variant.stem)`, of any size."""
    masks = (v.mask for v in kinds()[variant.name].variants if v.stem == variant.stem and v.mask)
    alpha = np.ascontiguousarray(pixels[..., 3])
    whole = np.maximum(alpha, 1)[..., None].astype(np.uint16)
    rgb = np.minimum(pixels[..., :3].astype(np.uint16) * 255 // whole, 255).astype(np.uint8)
    rgb = _recolour(rgb, alpha, next(masks, "h"), paint)
    return _premultiplied(rgb, alpha)


def _turn(hue: Any, other: float) -> Any:
    """The way round the circle of hues from `other` to `hue`, a number or array: -90..90."""
    return (hue - other + 90) % 180 - 90


def _recolour(rgb: np.ndarray, alpha: np.ndarray, mask: str, paint: Paint) -> np.ndarray:
    """Paint the chosen pixels in one colour and keep their shading. (H, W, 3) uint8 in and out."""
    hue, saturation, value = paint
    hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV).astype(np.float32)
    h, s, v = hsv[..., 0], hsv[..., 1], hsv[..., 2]
    solid = alpha > 60
    if mask.startswith("h"):
        if mask == "h":
            weight = np.where(solid, s, 0)
            spread = np.bincount(h.astype(np.int64).ravel(), weights=weight.ravel(), minlength=180)
            ring = np.concatenate([spread[-10:], spread, spread[:10]])
            main = int(np.argmax(np.convolve(ring, np.ones(21), mode="valid")))
        else:
            main = int(mask[1:])
        turn = _turn(h, main)
        far = np.abs(turn)
        # Soft edge in hue and saturation, so that no jagged seam shows.
        amount = np.clip((24 - far) / 6, 0, 1) * np.clip((s - 30) / 30, 0, 1)
        shift = turn * 0.25
    elif mask == "s":
        amount = np.clip((90 - s) / 30, 0, 1) * np.clip((v - 90) / 40, 0, 1)
        shift = np.zeros_like(h)
    else:
        amount = np.ones_like(h)
        shift = np.zeros_like(h)
    chosen = solid & (amount > 0.5)
    if not chosen.any():
        return rgb
    mid_s, mid_v = max(float(np.median(s[chosen])), 12.0), float(np.median(v[chosen]))
    new = np.empty_like(hsv)
    new[..., 0] = (hue + shift) % 180
    keep = 0.4 if saturation > 40 else 0.0
    new[..., 1] = np.clip(saturation * (1 + keep * (s - mid_s) / max(mid_s, 80)), 0, 255)
    if value > 200:
        new[..., 2] = np.clip(value + (v - mid_v) * 0.8, 0, 255)
    else:
        new[..., 2] = np.clip(value * np.power(np.maximum(v, 1) / mid_v, 1.2), 0, 255)
    painted = cv2.cvtColor(new.astype(np.uint8), cv2.COLOR_HSV2RGB).astype(np.float32)
    blend = amount[..., None]
    return np.rint(painted * blend + rgb * (1 - blend)).astype(np.uint8)


_IRREGULAR = {
    "mouse": "mice",
    "fish": "fish",
    "sheep": "sheep",
    "deer": "deer",
    "dice": "dice",
    "die": "dice",
    "knife": "knives",
    "loaf": "loaves",
    "scarf": "scarves",
    "snowman": "snowmen",
    "tomato": "tomatoes",
}


def plural(noun: str) -> str:
    """The plural of a noun phrase of the table; an uncounted noun as it is."""
    if noun in UNCOUNTED:
        return noun
    if noun == "bread":
        return "loaves of bread"
    head, of, tail = noun.partition(" of ")
    first, space, last = head.rpartition(" ")
    if last in _IRREGULAR:
        last = _IRREGULAR[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return first + space + last + of + tail
