"""Compose a picture: choose things, place them so that each stays visible, degrade the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np

from litelvlm.nano.rules import SceneObject
from litelvlm.nano.scene_recipe import SceneRecipe
from litelvlm.nano.sprites import Paint, Variant, any_paint, kinds, repainted, sprite
from litelvlm.nano.wording import pick

LEAST_VISIBLE = 0.45


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


def choose(
    rng: np.random.Generator, recipe: SceneRecipe, count: int, avoid: frozenset[str]
) -> list[Variant]:
    """Choose what to show: groups of one class, and other things of the same colour."""
    looks = _by_name(recipe.split)
    classes = tuple(kinds())
    chosen: list[Variant] = []
    taken: set[str] = set(avoid)
    while len(chosen) < count:
        room = count - len(chosen)
        first: Variant | None = None
        if chosen and recipe.level >= 1 and rng.random() < 0.4:
            # Something else of a colour that is already there.
            model = chosen[int(rng.random() * len(chosen))].colour
            if model:
                first = pick(rng, _by_colour(recipe.split)[model])
        if first is None:
            first = pick(rng, looks[classes[int(rng.random() * len(classes))]])
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
                twin = pick(rng, looks[first.name])
            chosen.append(twin)
    order = rng.permutation(count)
    return [chosen[int(i)] for i in order]


# --- Drawing --------------------------------------------------------------------------------------


class Canvas:
    """A scene while it is drawn: label map, pixels of each object (whole, still seen), overlaps."""

    def __init__(self, height: int, width: int) -> None:
        self.labels = np.zeros((height, width), np.uint8)
        self.full: list[int] = []
        self.left: list[int] = []
        self.variants: list[Variant] = []
        self.covers: dict[tuple[int, int], int] = {}

    def pixels(self) -> tuple[int, ...]:
        """Visible pixels of each object."""
        return tuple(self.left)

    def objects(self) -> tuple[SceneObject, ...]:
        """The objects as drawn, back to front."""
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


def _render(
    rng: np.random.Generator,
    variant: Variant,
    longest: float,
    paint: Paint | None = None,
) -> np.ndarray:
    """Scale, flip and turn a sprite, painted anew if `paint` is given (see `any_paint`).

    Returns:
        (h, w, 4) uint8, premultiplied, cropped to its frame.
    """
    level = 0 if longest >= 70 else 1 if longest >= 38 else 2
    if paint is None:
        source = _mip(variant.stem, variant.mask, variant.letter, level)
    else:
        source = repainted(_mip(variant.stem, "", "", level), variant, paint)
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


def place(
    rng: np.random.Generator, image: np.ndarray, wanted: Sequence[Variant], recipe: SceneRecipe
) -> Canvas:
    """Draw the objects one over the other, each in a spot that keeps all of them visible."""
    height, width = image.shape[:2]
    canvas = Canvas(height, width)
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
                look = pick(rng, _by_name(recipe.split)[variant.name])
            paint = None
            # Nothing is drawn from rng where nothing is repainted: the benchmark's bytes stay.
            if recipe.repaint and rng.random() < recipe.repaint:
                paint = any_paint(rng, look.name)
                look = replace(look, key=look.stem, colour=None)
            patch = _render(rng, look, longest, paint)
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
    canvas: Canvas,
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
            n and canvas.left[i] - n < max(LEAST_VISIBLE * canvas.full[i], 40)
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
    canvas: Canvas, image: np.ndarray, variant: Variant, patch: np.ndarray, x: int, y: int
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


def degrade(rng: np.random.Generator, image: np.ndarray, strength: float) -> np.ndarray:
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
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert decoded is not None  # it was encoded just above
        image = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
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
