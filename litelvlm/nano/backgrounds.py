"""Backgrounds of scenes: crops of public-domain photos, and generated textures.

The photos of one split are never used in another. A photo that shows something with a name
(a cat, a cup) says so, and no phrase uses that name on it.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from litelvlm.errors import InputError
from litelvlm.resources import asset

# photo -> (split, class names that it shows)
PHOTOS: dict[str, tuple[str, tuple[str, ...]]] = {
    "astronaut": ("train", ("rocket",)),
    "grass": ("train", ()),
    "hubble_deep_field": ("train", ("star",)),
    "retina": ("train", ()),
    "rocket": ("train", ("rocket",)),
    "brick": ("val", ()),
    "chelsea": ("val", ("cat", "tiger", "lion")),
    "coffee": ("test", ("cup",)),
    "gravel": ("test", ()),
}


@lru_cache(maxsize=len(PHOTOS))
def photo(name: str) -> np.ndarray:
    """One photo, (H, W, 3) uint8 RGB, read-only."""
    path = asset("backgrounds", f"{name}.jpg")
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise InputError(f"cannot read the photo {path}; expected a JPEG file")
    rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    rgb.flags.writeable = False
    return rgb


def background(
    rng: np.random.Generator, height: int, width: int, split: str, clutter: float = 1.0
) -> tuple[np.ndarray, frozenset[str]]:
    """Draw a background.

    Args:
        rng: source of all randomness.
        height, width: size in pixels.
        split: "train", "val" or "test"; chooses the photos.
        clutter: 0 gives plain and smooth grounds only, 1 the full mixture.

    Returns:
        The picture, (H, W, 3) uint8, and the class names that it shows.
    """
    kind = rng.random()
    if rng.random() >= clutter:
        return _gradient(rng, height, width), frozenset()
    if kind < 0.38:
        return _photo_crop(rng, height, width, split)
    if kind < 0.55:
        return _gradient(rng, height, width), frozenset()
    if kind < 0.75:
        return _cloudy(rng, height, width), frozenset()
    if kind < 0.85:
        return _stripes(rng, height, width), frozenset()
    return _shapes(rng, height, width), frozenset()


def _colour(rng: np.random.Generator) -> np.ndarray:
    """A colour that is seldom as strong as the sprites' own, (3,) float32 0..255."""
    grey = 40 + 190 * rng.random()
    tint = rng.random(3) - 0.5
    return np.clip(grey + tint * 150 * rng.random(), 8, 247).astype(np.float32)


def _photo_crop(
    rng: np.random.Generator, height: int, width: int, split: str
) -> tuple[np.ndarray, frozenset[str]]:
    choices = [name for name, (home, _) in PHOTOS.items() if home == split]
    if not choices:
        raise InputError(f"unknown split {split!r}; known: train, val, test")
    name = choices[int(rng.random() * len(choices))]
    source = photo(name)
    largest = min(source.shape[0] / height, source.shape[1] / width)
    zoom = largest * (0.45 + 0.55 * rng.random())
    crop_h, crop_w = int(height * zoom), int(width * zoom)
    top = int(rng.random() * (source.shape[0] - crop_h + 1))
    left = int(rng.random() * (source.shape[1] - crop_w + 1))
    crop = source[top : top + crop_h, left : left + crop_w]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    out = cv2.resize(crop, (width, height), interpolation=cv2.INTER_LINEAR)
    # A change of light and tint, so that few photos look like many.
    gain = 0.55 + 0.6 * rng.random() + 0.25 * (rng.random(3) - 0.5)
    lift = 70 * (rng.random() - 0.35)
    table = np.clip(np.arange(256)[:, None] * gain + lift, 0, 255).astype(np.uint8)
    return cv2.LUT(out, table[None]), frozenset(PHOTOS[name][1])


def _gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    corners = np.empty((2, 2, 3), np.float32)
    base = _colour(rng)
    for i in range(4):
        corners[i // 2, i % 2] = base + 0.6 * (_colour(rng) - base)
    out = cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)
    return out.astype(np.uint8)


def _cloudy(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth noise of several octaves between two colours."""
    field = np.zeros((height // 2 + 1, width // 2 + 1), np.float32)
    first = 2 + int(rng.random() * 4)
    for octave in range(4):
        cells = first * 2**octave
        grid = rng.random((cells, cells), dtype=np.float32) - 0.5
        field += cv2.resize(grid, field.shape[::-1], interpolation=cv2.INTER_LINEAR) * 0.7**octave
    field = np.clip(field + 0.5, 0, 1)
    table = _ramp(_colour(rng), _colour(rng))
    small = cv2.LUT(cv2.merge([(field * 255).astype(np.uint8)] * 3), table)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def _ramp(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Look-up table (1, 256, 3) from one colour to another."""
    t = np.linspace(0, 1, 256, dtype=np.float32)[:, None]
    return (low * (1 - t) + high * t).astype(np.uint8)[None]


def _stripes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Stripes or checks of two colours, at any angle."""
    angle, period = np.pi * rng.random(), 12 + 60 * rng.random()
    y = np.arange(height, dtype=np.float32)[:, None]
    x = np.arange(width, dtype=np.float32)[None]
    c, s = np.float32(np.cos(angle) / period), np.float32(np.sin(angle) / period)
    one = np.floor(x * c + y * s).astype(np.int32)
    if rng.random() < 0.5:
        one = one + np.floor(y * c - x * s).astype(np.int32)
    low = _colour(rng)
    high = low + (0.25 + 0.5 * rng.random()) * (_colour(rng) - low)
    pair = np.stack([low, high]).astype(np.uint8)
    return cv2.blur(pair[one & 1], (3, 3))


def _shapes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A gradient cluttered with discs, boxes, triangles and lines."""
    out = _gradient(rng, height, width)
    for _ in range(4 + int(rng.random() * 14)):
        form = rng.random()
        colour = tuple(int(c) for c in _colour(rng))
        x, y = int(rng.random() * width), int(rng.random() * height)
        size = int(min(height, width) * (0.04 + 0.18 * rng.random()))
        if form < 0.3:
            cv2.circle(out, (x, y), size // 2, colour, -1, cv2.LINE_AA)
        elif form < 0.55:
            tall = int(size * (0.3 + rng.random()))
            cv2.rectangle(out, (x, y), (x + size, y + tall), colour, -1)
        elif form < 0.75:
            points = (rng.random((3, 2)) * 2 - 1) * size + (x, y)
            cv2.fillPoly(out, [points.astype(np.int32)], colour, cv2.LINE_AA)
        else:
            end = (int(rng.random() * width), int(rng.random() * height))
            cv2.line(out, (x, y), end, colour, 1 + int(rng.random() * 5), cv2.LINE_AA)
    return out
