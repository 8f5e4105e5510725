"""Features of the frozen backbone for many photos, computed once and kept on disk in int8."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from litelvlm.models.backbone import WIDTHS, Backbone
from litelvlm.nano.photos.data import SIDE, Photo, load_square

STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class Features:
    """Reads the cache of `compute`; picklable for workers.

    folder: holds `order.json` (images by row), `scales.pt` and a table `s<stride>.i8` each.
    """

    folder: Path

    @cached_property
    def rows(self) -> dict[str, int]:
        """Image -> row."""
        order = json.loads((self.folder / "order.json").read_text())
        return {image: row for row, image in enumerate(order)}

    @cached_property
    def scales(self) -> list[Tensor]:
        """(C,) a stride: what a unit of the table is worth."""
        return torch.load(self.folder / "scales.pt")

    @cached_property
    def tables(self) -> list[np.ndarray]:
        """(rows, side, side, C) int8 a stride."""
        return [_table(self.folder, stride, "r") for stride in STRIDES]

    def __reduce__(self) -> tuple[type[Features], tuple[Path]]:
        return Features, (self.folder,)

    def __call__(self, images: list[str], strides: tuple[int, ...] = STRIDES) -> list[Tensor]:
        """(B, C, SIDE / stride, SIDE / stride) float32 a stride."""
        found = []
        for stride in strides:
            i = STRIDES.index(stride)
            value = torch.from_numpy(np.stack([self.tables[i][self.rows[name]] for name in images]))
            found.append((value.float() * self.scales[i]).permute(0, 3, 1, 2))
        return found


def _table(folder: Path, stride: int, mode: Any, rows: int = -1) -> np.ndarray:
    side, width = SIDE // stride, WIDTHS[1 + STRIDES.index(stride)]
    path = folder / f"s{stride}.i8"
    if rows < 0:
        rows = path.stat().st_size // (side * side * width)
    return np.memmap(path, np.int8, mode, shape=(rows, side, side, width))


def weights_of(photos: list[Photo]) -> np.ndarray:
    """How often each photo is drawn: rare names often, sets of breadth more, of detail less."""
    counts: dict[str, int] = {}
    for photo in photos:
        for name in {t.name for t in photo.things}:
            counts[name] = counts.get(name, 0) + 1
    breadth = {"coco_union": 1.5, "mix": 0.3, "ccp": 0.25, "car_parts": 0.25}
    raw = [
        breadth.get(p.source, 1.0) * max((counts[t.name] ** -0.5 for t in p.things), default=0.0)
        for p in photos
    ]
    return np.array(raw) / sum(raw)


@dataclass(frozen=True)
class Data:
    """What a folder of photos holds, and the cached features of it.

    Attributes:
        photos: with masks, composites among them.
        masks: (M, LOW, LOW) uint8, shares x 255, by `Thing.row`.
        features: of all photos.
        captions: image -> captions.
        labelled: image of a captioned or named photo -> names of what it shows.
        alike: name -> names that may be true of the same patch.
        classes: names of masks.
        items: of val.jsonl, to measure on.
    """

    photos: list[Photo]
    masks: np.ndarray
    features: Features
    captions: dict[str, list[str]]
    labelled: dict[str, set[str]]
    alike: dict[str, set[str]]
    classes: list[str]
    items: list[dict[str, Any]]

    @cached_property
    def weights(self) -> np.ndarray:
        """How often each of `photos` is drawn: see `weights_of`."""
        return weights_of(self.photos)


@torch.no_grad()
def compute(
    backbone: Backbone, root: Path, deep: list[str], others: list[str], folder: Path, batch: int = 4
) -> Features:
    """Write the cache of photos in `root`: all strides of `deep`, 16 and 32 of `others`."""
    order = [*deep, *others]
    rng = np.random.default_rng(0)
    sample = [order[i] for i in rng.choice(len(order), min(48, len(order)), replace=False)]
    parts = [_forward(backbone, root, sample[k : k + batch]) for k in range(0, len(sample), batch)]
    high = [torch.cat(maps).abs().flatten(0, 2) for maps in zip(*parts, strict=True)]
    scales = [h.topk(min(24, len(h)), 0).values[-1].clamp(min=0.01) / 127 for h in high]
    tables = [_table(folder, s, "w+", len(deep) if s == 8 else len(order)) for s in STRIDES]
    for start in range(0, len(order), batch):
        maps = _forward(backbone, root, order[start : start + batch])
        for value, scale, table in zip(maps, scales, tables, strict=True):
            stop = min(start + len(value), len(table))
            code = (value / scale).round().clamp(-127, 127).to(torch.int8).numpy()
            table[start:stop] = code[: max(0, stop - start)]
    torch.save(scales, folder / "scales.pt")
    (folder / "order.json").write_text(json.dumps(order))
    return Features(folder)


def _forward(backbone: Backbone, root: Path, images: list[str]) -> list[Tensor]:
    squares = np.stack([load_square(root / name) for name in images])
    pixels = (torch.from_numpy(squares).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.autocast("cpu", torch.bfloat16):
        return [f.float().permute(0, 2, 3, 1) for f in backbone(pixels)[1:]]
