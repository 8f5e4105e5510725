"""Procedural referring scenes: pictures of named things with phrases that need the picture.

Each scene puts 1-7 sprites over a photo or a generated ground, often several of one class or of
one colour, so that colour, place, relation, order and size decide what a phrase means. The same
seed and recipe give the same bytes, whatever was drawn before; no global random state is read or
written. (That holds for one build of OpenCV; another may round a pixel differently.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np

from litelvlm.data.backgrounds import background
from litelvlm.data.expressions import (
    COUNTS,
    Expression,
    SceneObject,
    View,
    known_words,
    nouns,
    write_expressions,
)
from litelvlm.data.sprites import PLURAL_ONLY, Variant, kinds, plural, sprite
from litelvlm.errors import InputError, unknown

__all__ = [
    "EASY",
    "TEST",
    "TRAIN",
    "VAL",
    "Expression",
    "Scene",
    "SceneObject",
    "SceneRecipe",
    "benchmark",
    "benchmark_hash",
    "known_words",
    "make_scene",
    "names",
    "nouns",
]

SPLITS = ("train", "val", "test")
_LEAST_VISIBLE = 0.45
# Random canvases: short side 336, long side by these ratios.
_RATIOS = (1.0, 1.0, 1.0, 1.0, 4 / 3, 4 / 3, 3 / 2, 16 / 9)


@dataclass(frozen=True)
class SceneRecipe:
    """How scenes are made.

    Attributes:
        canvas: (height, width) in pixels, or None for random shapes with a short side of 336.
        objects: fewest and most objects.
        object_px: range of an object's longest side in pixels, before rotation.
        split: "train", "val" or "test": own seeds and photos; "train" shows no held-out variant.
        level: 0 one or two things by name, 1 names and colours, 2 places too, 3 everything.
        expressions: most phrases per scene.
        none, several: chance of a phrase with no target, or with several targets (level 3 only).
        typos: chance of a misspelling per phrase.
        clutter: 0 plain grounds only .. 1 photos, textures and shapes.
        degrade: 0 clean pictures .. 1 blur, noise, JPEG and light changes at full rate.
    """

    canvas: tuple[int, int] | None = None
    objects: tuple[int, int] = (1, 7)
    object_px: tuple[int, int] = (50, 170)
    split: str = "train"
    level: int = 3
    expressions: int = 8
    none: float = 0.05
    several: float = 0.05
    typos: float = 0.02
    clutter: float = 1.0
    degrade: float = 1.0

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise unknown("split", self.split, SPLITS)
        if self.level not in (0, 1, 2, 3):
            raise InputError(f"level {self.level!r}; expected 0, 1, 2 or 3")
        if not 1 <= self.objects[0] <= self.objects[1] <= 12:
            raise InputError(f"objects {self.objects!r}; expected 1 <= fewest <= most <= 12")
        if not 16 <= self.object_px[0] <= self.object_px[1]:
            raise InputError(f"object_px {self.object_px!r}; expected 16 <= least <= most")
        if self.canvas is not None and min(self.canvas) < self.object_px[0]:
            raise InputError(f"canvas {self.canvas!r} is smaller than object_px {self.object_px!r}")


@dataclass(frozen=True)
class Scene:
    """A picture, what is in it, and phrases about it.

    Attributes:
        seed: the seed it was made from.
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) uint8; 0 background, i + 1 the visible pixels of objects[i].
        objects: the things, back to front.
        expressions: the phrases.
        caption: names all things, for example "a dog, two red apples and a car".
    """

    seed: int
    image: np.ndarray
    labels: np.ndarray
    objects: tuple[SceneObject, ...]
    expressions: tuple[Expression, ...]
    caption: str

    def mask(self, targets: Sequence[int]) -> np.ndarray:
        """Visible pixels of the given objects, (H, W) bool; all False for no targets."""
        if not len(targets):
            return np.zeros(self.labels.shape, bool)
        return np.isin(self.labels, np.asarray(targets) + 1)


TRAIN = SceneRecipe()
EASY = SceneRecipe(objects=(1, 2), level=0, none=0.0, several=0.0)
VAL = SceneRecipe(split="val", none=0.0, several=0.0)
TEST = SceneRecipe(split="test", none=0.0, several=0.0)


def names() -> tuple[str, ...]:
    """Canonical class names, sorted."""
    return tuple(kinds())


def make_scene(seed: int, recipe: SceneRecipe = TRAIN) -> Scene:
    """Draw one scene. The same seed and recipe give the same bytes.

    Args:
        seed: any non-negative integer.
        recipe: size, number of objects, difficulty, split.

    Returns:
        A scene with at least one object and, save for rare crowded cases, at least one phrase.
    """
    if seed < 0:
        raise InputError(f"seed {seed}; expected a non-negative integer")
    stream = np.random.SeedSequence([seed, SPLITS.index(recipe.split)])
    rng = np.random.Generator(np.random.PCG64(stream))
    for _ in range(4):
        scene = _draw(rng, seed, recipe)
        if scene.expressions or recipe.expressions == 0:
            break
    return scene


def _pick(rng: np.random.Generator, options: Sequence[Variant]) -> Variant:
    return options[int(rng.random() * len(options))]


def _draw(rng: np.random.Generator, seed: int, recipe: SceneRecipe) -> Scene:
    height, width = recipe.canvas or _random_canvas(rng)
    image, avoid = background(rng, height, width, recipe.split, recipe.clutter)
    fewest, most = recipe.objects
    if recipe.level == 0:
        most = max(fewest, min(most, 2))
    count = fewest + int(rng.random() * (most - fewest + 1))
    wanted = _choose(rng, recipe, count, avoid)
    placed = _place(rng, image, wanted, recipe)
    labels = placed.labels
    objects = placed.objects()
    image = _degrade(rng, image, recipe.degrade)
    view = View(objects, placed.pixels(), tuple(placed.full), height, width, avoid, placed.covers)
    full = recipe.level == 3
    phrases = write_expressions(
        rng,
        view,
        recipe.expressions,
        recipe.level,
        recipe.none if full else 0.0,
        recipe.several if full else 0.0,
        recipe.typos,
    )
    return Scene(seed, image, labels, objects, phrases, _caption(rng, objects))


def _random_canvas(rng: np.random.Generator) -> tuple[int, int]:
    ratio = _RATIOS[int(rng.random() * len(_RATIOS))]
    long = round(336 * ratio)
    return (336, long) if rng.random() < 0.7 else (long, 336)


# --- What is in the scene -------------------------------------------------------------------------


def _variants(split: str, name: str) -> tuple[Variant, ...]:
    """What a split may show of a class; outside training, held-out looks count four times."""
    looks = kinds()[name].variants
    if split == "train":
        return tuple(v for v in looks if not v.held_out)
    return tuple(v for v in looks for _ in range(4 if v.held_out else 1))


@lru_cache(maxsize=3)
def _by_name(split: str) -> dict[str, tuple[Variant, ...]]:
    return {name: _variants(split, name) for name in kinds()}


@lru_cache(maxsize=3)
def _by_colour(split: str) -> dict[str, tuple[Variant, ...]]:
    table: dict[str, list[Variant]] = {}
    for looks in _by_name(split).values():
        for variant in looks:
            if variant.colour:
                table.setdefault(variant.colour, []).append(variant)
    return {colour: tuple(looks) for colour, looks in table.items()}


def _choose(
    rng: np.random.Generator, recipe: SceneRecipe, count: int, avoid: frozenset[str]
) -> list[Variant]:
    """Choose what to show: groups of one class, and other things of the same colour."""
    looks = _by_name(recipe.split)
    classes = names()
    chosen: list[Variant] = []
    taken: set[str] = set(avoid)
    while len(chosen) < count:
        room = count - len(chosen)
        first: Variant | None = None
        if chosen and recipe.level >= 1 and rng.random() < 0.4:
            # Something else of a colour that is already there.
            model = chosen[int(rng.random() * len(chosen))].colour
            if model:
                first = _pick(rng, _by_colour(recipe.split)[model])
        if first is None:
            first = _pick(rng, looks[classes[int(rng.random() * len(classes))]])
        if first.name in taken:
            continue
        taken.add(first.name)
        chosen.append(first)
        size = 1
        if recipe.level >= 1 and room > 1:
            roll = rng.random()
            size = 1 if roll < 0.3 else 2 if roll < 0.65 else 3 if roll < 0.88 else 4
        same = rng.random() < (0.15 if recipe.level == 1 else 0.45)
        for _ in range(min(size, room) - 1):
            twin = first
            if not same or rng.random() < 0.15:
                twin = _pick(rng, looks[first.name])
            chosen.append(twin)
    order = rng.permutation(count)
    return [chosen[int(i)] for i in order]


# --- Drawing --------------------------------------------------------------------------------------


class _Canvas:
    """A scene while it is drawn: label map, pixels of each object (whole, still seen), overlaps."""

    def __init__(self, height: int, width: int) -> None:
        self.labels = np.zeros((height, width), np.uint8)
        self.full: list[int] = []
        self.left: list[int] = []
        self.variants: list[Variant] = []
        self.covers: dict[tuple[int, int], int] = {}

    def pixels(self) -> tuple[int, ...]:
        return tuple(self.left)

    def objects(self) -> tuple[SceneObject, ...]:
        found = []
        for i, variant in enumerate(self.variants):
            seen = self.labels == i + 1
            x, y, w, h = cv2.boundingRect(seen.view(np.uint8))
            box = (float(x), float(y), float(x + w), float(y + h))
            share = self.left[i] / self.full[i]
            found.append(SceneObject(variant.name, variant.key, variant.colour, box, share))
        return tuple(found)


@lru_cache(maxsize=2048)
def _mip(stem: str, mask: str, letter: str, level: int) -> np.ndarray:
    """A variant's pixels at 1 / 2**level of the size, so that shrinking does not alias."""
    pixels = sprite(stem, mask, letter)
    if level:
        size = (max(1, pixels.shape[1] >> level), max(1, pixels.shape[0] >> level))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        pixels.flags.writeable = False
    return pixels


def _render(rng: np.random.Generator, variant: Variant, longest: float) -> np.ndarray:
    """Scale, flip and turn a sprite. (h, w, 4) uint8, premultiplied, cropped to its frame."""
    level = 1 if longest < 70 else 0
    source = _mip(variant.stem, variant.mask, variant.letter, level)
    h, w = source.shape[:2]
    scale = longest / max(h, w)
    roll = rng.random()
    turn = rng.random() * 2 - 1
    degrees = 0.0 if roll < 0.25 else turn * 18 if roll < 0.85 else turn * 60
    stretch = 0.9 + 0.2 * rng.random()
    flip = -1.0 if rng.random() < 0.5 else 1.0
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix = np.array(
        [[c * scale * flip, -s * scale * stretch], [s * scale * flip, c * scale * stretch]]
    )
    out_w = int(np.ceil(abs(matrix[0, 0]) * w + abs(matrix[0, 1]) * h)) + 2
    out_h = int(np.ceil(abs(matrix[1, 0]) * w + abs(matrix[1, 1]) * h)) + 2
    shift = np.array([out_w, out_h]) / 2 - matrix @ np.array([w, h]) / 2
    whole = np.column_stack([matrix, shift]).astype(np.float32)
    out = cv2.warpAffine(source, whole, (out_w, out_h), flags=cv2.INTER_LINEAR)
    x, y, w, h = cv2.boundingRect((out[..., 3] > 24).view(np.uint8))
    return out[y : y + h, x : x + w]


def _place(
    rng: np.random.Generator, image: np.ndarray, wanted: Sequence[Variant], recipe: SceneRecipe
) -> _Canvas:
    """Draw the objects one over the other, each in a spot that keeps all of them visible."""
    height, width = image.shape[:2]
    canvas = _Canvas(height, width)
    low, high = recipe.object_px
    high = min(
        high, max(low + 1, int(1.1 * (height * width / len(wanted)) ** 0.5)), min(height, width)
    )
    shadow = 0.55 * rng.random() if rng.random() < 0.6 else 0.0
    drop = ((rng.random() - 0.5) * 0.12, 0.02 + 0.08 * rng.random())
    crowd = 0.35 if rng.random() < 0.35 else 0.06
    alike = rng.random() < 0.3  # sizes close together, so that size gives nothing away
    common = low * (high / low) ** (0.3 + 0.6 * rng.random())
    spots = _line_up(rng, wanted)
    for number, variant in enumerate(wanted):
        look = variant
        for attempt in range(12):
            if alike:
                longest = common * (0.88 + 0.24 * rng.random())
            else:
                longest = low * (high / low) ** rng.random()
            longest = max(low, longest * 0.94**attempt)
            if attempt in (3, 5, 7):
                # Perhaps it cannot be told from the ground: another look of the class may.
                look = _pick(rng, _by_name(recipe.split)[variant.name])
            patch = _render(rng, look, longest)
            contrast = 75 if attempt < 9 else 30
            spot = spots.get(number) if attempt < 4 else None
            if _try(rng, canvas, image, look, patch, crowd, shadow, drop, contrast, spot):
                break
    if not canvas.variants:
        # The first object of an empty canvas always fits when it lies wholly inside.
        patch = _render(rng, wanted[0], low)
        _put(
            canvas,
            image,
            wanted[0],
            patch,
            (width - patch.shape[1]) // 2,
            (height - patch.shape[0]) // 2,
        )
    return canvas


def _try(
    rng: np.random.Generator,
    canvas: _Canvas,
    image: np.ndarray,
    variant: Variant,
    patch: np.ndarray,
    crowd: float,
    shadow: float,
    drop: tuple[float, float],
    contrast: float,
    spot: tuple[float, float] | None,
) -> bool:
    """Look for a free spot, a few times; draw there.

    Args:
        rng, canvas, image: randomness; where to draw (both changed).
        variant, patch: what to draw.
        crowd: share of its pixels that may lie over other objects.
        shadow, drop: strength of its shadow, 0 for none, and offset in its widths and heights.
        contrast: least difference from the ground, see `_contrast`.
        spot: where its middle should be, as fractions of width and height, or None for anywhere.

    Returns:
        Whether it was drawn.
    """
    height, width = image.shape[:2]
    h, w = patch.shape[:2]
    solid = patch[..., 3] >= 128
    full = int(np.count_nonzero(solid))
    if full < 60:
        return False
    for _ in range(6):
        if spot is not None:
            x = int(spot[0] * width + (rng.random() - 0.5) * 0.06 * width - w / 2)
            y = int(spot[1] * height + (rng.random() - 0.5) * 0.14 * height - h / 2)
            x, y = min(max(x, 0), width - w), min(max(y, 0), height - h)
        else:
            spill = 0.3 if rng.random() < 0.12 else 0.0  # now and then cut by the edge
            x = int(-spill * w + rng.random() * (width - w + 2 * spill * w + 1))
            y = int(-spill * h + rng.random() * (height - h + 2 * spill * h + 1))
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
        if x1 - x0 < 8 or y1 - y0 < 8:
            continue
        seen = solid[y0 - y : y1 - y, x0 - x : x1 - x]
        count = int(np.count_nonzero(seen))
        if count < 0.6 * full:
            continue
        under = np.bincount(canvas.labels[y0:y1, x0:x1][seen], minlength=len(canvas.full) + 1)
        hidden = [int(n) for n in under[1:]]
        if sum(hidden) > crowd * count:
            continue
        if any(
            n and canvas.left[i] - n < max(_LEAST_VISIBLE * canvas.full[i], 40)
            for i, n in enumerate(hidden)
        ):
            continue
        cut = patch[y0 - y : y1 - y, x0 - x : x1 - x]
        if _contrast(image[y0:y1, x0:x1], cut, seen) < contrast:
            continue
        if shadow:
            _shade(image, patch[..., 3], x + int(drop[0] * w), y + int(drop[1] * h), shadow)
        _put(canvas, image, variant, patch, x, y)
        return True
    return False


def _contrast(ground: np.ndarray, patch: np.ndarray, seen: np.ndarray) -> float:
    """Difference of the mean colours of an object and the ground it would hide, 0..765."""
    mask = seen.view(np.uint8)
    a = cv2.mean(ground, mask)[:3]
    b = cv2.mean(patch, mask)[:3]
    return sum(abs(p - q) for p, q in zip(a, b, strict=True))


def _line_up(rng: np.random.Generator, wanted: Sequence[Variant]) -> dict[int, tuple[float, float]]:
    """Now and then, put the members of a group of three or more in a row or column.

    Returns:
        Index into `wanted` -> middle as fractions of width and height; empty for a loose scene.
    """
    if len(wanted) < 3 or rng.random() >= 0.3:
        return {}
    members: dict[str, list[int]] = {}
    for i, variant in enumerate(wanted):
        members.setdefault(variant.name, []).append(i)
    group = max(members.values(), key=len)
    if len(group) < 3:
        return {}
    upright = rng.random() < 0.25
    across = 0.25 + 0.5 * rng.random()
    margin = 0.12
    spots = {}
    for place, i in enumerate(group):
        along = margin + (1 - 2 * margin) * (place + 0.5) / len(group)
        spots[i] = (across, along) if upright else (along, across)
    return spots


def _shade(image: np.ndarray, alpha: np.ndarray, x: int, y: int, strength: float) -> None:
    """Darken the ground where an object's soft shadow falls. Changes `image`."""
    height, width = image.shape[:2]
    reach = max(3, alpha.shape[1] // 10)
    soft = cv2.copyMakeBorder(alpha, reach, reach, reach, reach, cv2.BORDER_CONSTANT, value=0)
    soft = cv2.blur(soft, (2 * reach + 1, 2 * reach + 1))
    x, y = x - reach, y - reach
    x0, y0 = max(x, 0), max(y, 0)
    x1, y1 = min(x + soft.shape[1], width), min(y + soft.shape[0], height)
    if x1 <= x0 or y1 <= y0:
        return
    keep = cv2.convertScaleAbs(soft[y0 - y : y1 - y, x0 - x : x1 - x], alpha=-strength, beta=255)
    region = image[y0:y1, x0:x1]
    region[:] = cv2.multiply(region, cv2.merge([keep, keep, keep]), scale=1 / 255)


def _put(
    canvas: _Canvas, image: np.ndarray, variant: Variant, patch: np.ndarray, x: int, y: int
) -> None:
    """Lay a patch over picture and label map. Changes both."""
    height, width = image.shape[:2]
    x0, y0 = max(x, 0), max(y, 0)
    x1, y1 = min(x + patch.shape[1], width), min(y + patch.shape[0], height)
    part = patch[y0 - y : y1 - y, x0 - x : x1 - x]
    clear = cv2.bitwise_not(np.ascontiguousarray(part[..., 3]))
    region = image[y0:y1, x0:x1]
    behind = cv2.multiply(region, cv2.merge([clear, clear, clear]), scale=1 / 255)
    region[:] = cv2.add(behind, np.ascontiguousarray(part[..., :3]))
    seen = part[..., 3] >= 128
    labels = canvas.labels[y0:y1, x0:x1]
    for i, n in enumerate(np.bincount(labels[seen], minlength=len(canvas.full) + 1)[1:]):
        if n:
            canvas.left[i] -= int(n)
            canvas.covers[len(canvas.full), i] = int(n)
    labels[seen] = len(canvas.full) + 1
    canvas.full.append(int(np.count_nonzero(patch[..., 3] >= 128)))
    canvas.left.append(int(np.count_nonzero(seen)))
    canvas.variants.append(variant)


# --- How the picture was taken --------------------------------------------------------------------


@lru_cache(maxsize=1)
def _grain() -> np.ndarray:
    """A fixed tile of Gaussian noise, (1024, 1024, 3) int8 with deviation 32, cut at random."""
    rng = np.random.Generator(np.random.PCG64(20251))
    noise = rng.standard_normal((1024, 1024, 3), dtype=np.float32) * 32
    return np.clip(noise, -127, 127).astype(np.int8)


def _degrade(rng: np.random.Generator, image: np.ndarray, strength: float) -> np.ndarray:
    """Change of light, blur, noise and JPEG, each at its own chance times `strength`."""
    if rng.random() < 0.5 * strength:
        gain, lift = 0.8 + 0.35 * rng.random(), 24 * (rng.random() - 0.5)
        image = cv2.convertScaleAbs(image, alpha=gain, beta=max(lift, 0.0))
    if rng.random() < 0.15 * strength:
        image = cv2.GaussianBlur(image, (0, 0), 0.5 + 0.7 * rng.random())
    if rng.random() < 0.3 * strength:
        image = _noisy(rng, image, 1.5 + 7 * rng.random())
    if rng.random() < 0.25 * strength:
        quality = 40 + int(rng.random() * 55)
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
        image = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return np.ascontiguousarray(image)


def _noisy(rng: np.random.Generator, image: np.ndarray, deviation: float) -> np.ndarray:
    height, width = image.shape[:2]
    tile = _grain()
    if height > tile.shape[0] or width > tile.shape[1]:
        tile = np.tile(tile, (-(-height // tile.shape[0]), -(-width // tile.shape[1]), 1))
    y = int(rng.random() * (tile.shape[0] - height + 1))
    x = int(rng.random() * (tile.shape[1] - width + 1))
    cut = np.ascontiguousarray(tile[y : y + height, x : x + width])
    return cv2.addWeighted(image, 1.0, cut, deviation / 32, 0.0, dtype=cv2.CV_8U)


# --- Words about the whole ------------------------------------------------------------------------


def _caption(rng: np.random.Generator, objects: Sequence[SceneObject]) -> str:
    """Name everything: "a dog, two red apples and a car"."""
    groups: dict[tuple[str, str | None], int] = {}
    plain = {name for name in {t.name: 0 for t in objects} if rng.random() < 0.2}
    for thing in objects:
        colour = None if thing.name in plain or thing.colour == thing.name else thing.colour
        groups[thing.name, colour] = groups.get((thing.name, colour), 0) + 1
    parts = []
    for (name, colour), count in groups.items():
        words = [colour] if colour else []
        if name in PLURAL_ONLY:
            parts.append(" ".join(["some", *words, name] if count > 1 else [*words, name]))
        elif count > 1:
            parts.append(" ".join([COUNTS[min(count, len(COUNTS) - 1)], *words, plural(name)]))
        else:
            text = " ".join([*words, name])
            parts.append(("an " if text[0] in "aeiou" else "a ") + text)
    if len(parts) == 1:
        return parts[0]
    return ", ".join(parts[:-1]) + " and " + parts[-1]


# --- Held-out benchmark ---------------------------------------------------------------------------

_BENCH = {"val": (VAL, 500), "test": (TEST, 500)}
# Share of each kind that the benchmark aims at.
MIXTURE = {
    "name": 0.10,
    "colour": 0.15,
    "size": 0.09,
    "position": 0.23,
    "relation": 0.20,
    "ordinal": 0.10,
    "superlative": 0.13,
}


def benchmark(split: str) -> Iterator[tuple[Scene, Expression]]:
    """The held-out benchmark: 500 scenes with one phrase each, always the same.

    Scenes have 1, 2 .. 7 objects in turn, the recipe's random shapes, and all degradations. Seeds
    and photos are the split's own; variants that training never shows are four times as likely as
    others. Each phrase has exactly one target. Of the kinds that a scene offers, the one that is
    furthest behind its share is taken; single objects allow names, places and colours only.

    Args:
        split: "val" or "test". Nothing may be tuned on "test".
    """
    if split not in _BENCH:
        raise unknown("benchmark split", split, _BENCH)
    recipe, total = _BENCH[split]
    taken = dict.fromkeys(MIXTURE, 0)
    made, seed = 0, 0
    while made < total:
        count = made % 7 + 1
        scene = make_scene(seed, replace(recipe, objects=(count, count)))
        seed += 1
        if not scene.expressions or len(scene.objects) != count:
            continue
        chosen = min(scene.expressions, key=lambda e: taken[e.kind] / MIXTURE[e.kind])
        taken[chosen.kind] += 1
        made += 1
        yield scene, chosen


def benchmark_hash(split: str) -> str:
    """SHA-256 over texts, targets, label maps and pictures of the benchmark, as hex.

    It pins one build of OpenCV and one processor family: another may round a pixel differently.
    """
    digest = hashlib.sha256()
    for scene, expression in benchmark(split):
        digest.update(repr((expression.text, expression.targets, scene.labels.shape)).encode())
        digest.update(scene.labels.tobytes())
        digest.update(scene.image.tobytes())
    return digest.hexdigest()
