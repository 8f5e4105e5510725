"""Composites: photos cropped anew, with things cut out of other photos pasted in.

The names that few photos show are seen on many grounds, beside many other things.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from litelvlm.nano.photos.data import FOREIGN, decode_mask, encode_mask

GROUNDS = {"coco_union": 0.5, "voc_aug": 0.5}  # sets that lend grounds, and how often


@dataclass(frozen=True)
class Composite:
    """A picture (H, W, 3) uint8 and its things: (class, whether single, mask (H, W) bool)."""

    picture: np.ndarray
    things: list[tuple[str, bool, np.ndarray]]


def write_composites(
    root: Path, rows: list[dict[str, Any]], count: int, folder: Path
) -> list[dict[str, Any]]:
    """Write composites into `folder`; returns their records, as lines of train.jsonl.

    `image` is the whole path; the set is "mix".
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number, composite in enumerate(composites(root, rows, count)):
        path = (folder / f"{number:05d}.png").resolve()
        Image.fromarray(composite.picture).save(path)
        masks = [
            {"class": name, "instance": single, "mask": encode_mask(mask)}
            for name, single, mask in composite.things
        ]
        made.append({"image": str(path), "set": "mix", "masks": masks})
    return made


def composites(
    root: Path, rows: list[dict[str, Any]], count: int, seed: int = 4
) -> Iterator[Composite]:
    """`count` composites of the photos of train.jsonl; the same for the same seed."""
    rng = np.random.default_rng(seed)
    grounds = {name: [r for r in rows if r["set"] == name] for name in GROUNDS}
    grounds = {name: found for name, found in grounds.items() if found} or {"": rows}
    share = np.array([GROUNDS.get(name, 1.0) for name in grounds])
    cuts = [
        (row, record)
        for row in rows
        for record in row["masks"]
        if record["instance"]
        and record["area"] > 0.004
        and row["set"] not in ("ccp", "car_parts")
        and not record["class"].startswith(FOREIGN)
    ]
    counts: dict[str, int] = {}
    for _, record in cuts:
        counts[record["class"]] = counts.get(record["class"], 0) + 1
    weight = np.array([counts[record["class"]] ** -0.75 for _, record in cuts])
    for _ in range(count):
        pool = list(grounds.values())[int(rng.choice(len(share), p=share / share.sum()))]
        made = _ground(root, pool[int(rng.integers(len(pool)))], rng)
        for i in rng.choice(len(cuts), int(rng.integers(1, 4)), p=weight / weight.sum()):
            row, record = cuts[i]
            made = _paste(made, root, row, record, rng)
        if made.things:
            yield made


def _ground(root: Path, row: dict[str, Any], rng: np.random.Generator) -> Composite:
    """A photo, cropped, mirrored by chance, in another light."""
    picture = np.asarray(Image.open(root / row["image"]).convert("RGB"))
    height, width = picture.shape[:2]
    scale = rng.uniform(0.6, 1.0)
    h, w = round(height * scale), round(width * scale)
    y, x = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    step = -1 if rng.random() < 0.5 else 1
    things = []
    for record in row["masks"]:
        mask = decode_mask(record["mask"])
        part = mask[y : y + h, x : x + w][:, ::step]
        if part.sum() > max(30, 0.35 * mask.sum()) and not record["class"].startswith(FOREIGN):
            things.append((record["class"], bool(record["instance"]), part))
    return Composite(_light(picture[y : y + h, x : x + w][:, ::step], rng), things)


def _paste(
    made: Composite,
    root: Path,
    row: dict[str, Any],
    record: dict[str, Any],
    rng: np.random.Generator,
) -> Composite:
    """A composite with a cut-out laid over it; what it hides most of is no thing any more."""
    mask = decode_mask(record["mask"])
    ys, xs = np.nonzero(mask)
    box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
    height, width = made.picture.shape[:2]
    scale = rng.uniform(0.15, 0.6) * min(height / (box[3] - box[1]), width / (box[2] - box[0]))
    size = max(8, round((box[2] - box[0]) * scale)), max(8, round((box[3] - box[1]) * scale))
    if size[0] > width or size[1] > height:
        return made
    cut = (
        Image.open(root / row["image"])
        .convert("RGB")
        .crop(box)
        .resize(size, Image.Resampling.BICUBIC)
    )
    shape = Image.fromarray(mask.astype(np.uint8) * 255).crop(box).resize(size)
    alpha = np.asarray(shape.filter(ImageFilter.GaussianBlur(0.8)), np.float32)[..., None] / 255
    colours = _light(np.asarray(cut), rng)
    if rng.random() < 0.5:
        alpha, colours = alpha[:, ::-1], colours[:, ::-1]
    y, x = int(rng.integers(height - size[1] + 1)), int(rng.integers(width - size[0] + 1))
    place = (slice(y, y + size[1]), slice(x, x + size[0]))
    picture = made.picture.astype(np.float32)
    picture[place] = picture[place] * (1 - alpha) + colours * alpha
    own = np.zeros((height, width), bool)
    own[place] = alpha[..., 0] > 0.5
    left = [(name, single, part & ~own, part.sum()) for name, single, part in made.things]
    things = [(n, s, part) for n, s, part, was in left if part.sum() > max(30, 0.4 * was)]
    return Composite(picture.astype(np.uint8), [*things, (record["class"], True, own)])


def _light(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(picture))
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(rng.uniform(0.65, 1.35))
    return np.asarray(image)
