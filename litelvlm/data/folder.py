"""Your own pictures: one JSONL file, one expression a line.

    {"image": "kitchen.jpg", "text": "the red cup", "mask": "masks/cup.png"}
    {"image": "kitchen.jpg", "text": "both cups", "mask": ["masks/cup.png", "masks/cup2.png"]}
    {"image": "kitchen.jpg", "text": "the dog", "mask": null}
    {"image": "street.jpg", "text": "the bus", "mask": {"size": [480, 640], "counts": "..."}}
    {"image": "street.jpg", "text": "the left door", "mask": [[12.0, 40.5, 90, 41, 88, 200]]}

`image`: path from the folder of the JSONL file. `text`: the expression. `mask`: path of a picture
of the same size whose non-zero pixels are the target; a list of such paths (their union); COCO
polygons; a COCO run-length mask; or null for "nothing". Optional: `id` (default: the line number),
`kind`, `split` (default: every split). Paths that lead out of the folder are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from litelvlm.data.refcoco import draw_outline
from litelvlm.data.samples import Sample, SampleList
from litelvlm.errors import InputError


@dataclass
class Folder:
    """Samples of a JSONL file.

    Args:
        path: the file, or a folder that holds `samples.jsonl`.
        split: take lines of this split and lines without one; "" takes all.

    Attributes:
        name: name of the file and split.
        missing: pictures that are not there, filled by `samples`; their lines are left out.

    Raises:
        InputError: no such file; or, from `samples`, a line that is wrong, with its number.
    """

    path: Path
    split: str = ""
    name: str = ""
    missing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        if self.path.is_dir():
            self.path = self.path / "samples.jsonl"
        if not self.path.is_file():
            raise InputError(f"{self.path}: no such file")
        self.name = "/".join(filter(None, (self.path.parent.name, self.path.stem, self.split)))

    def samples(self, share: tuple[int, int] = (0, 1)) -> Iterator[Sample]:
        """See `litelvlm.data.samples.Source`."""
        given, missing = [], set()
        with self.path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    sample = self._sample(number, json.loads(line))
                except (ValueError, TypeError, KeyError) as fault:
                    reason = f"{fault.args[0] if fault.args else fault}"
                    raise InputError(f"{self.path.name}, line {number}: {reason}"[:200]) from None
                if sample is None:
                    continue
                if sample.image.is_file():  # type: ignore[union-attr]
                    given.append(sample)
                else:
                    missing.add(sample.picture)
        self.missing = tuple(sorted(missing))
        yield from SampleList(self.name, given).samples(share)

    def _sample(self, number: int, row: Any) -> Sample | None:
        if not isinstance(row, dict):
            raise ValueError("expected one JSON object a line")
        if self.split and row.get("split", self.split) != self.split:
            return None
        for key in ("image", "text"):
            if not isinstance(row.get(key), str) or not row[key].strip():
                raise ValueError(f"{key!r} must be text")
        if "mask" not in row:
            raise ValueError("'mask' is missing; null stands for nothing")
        return Sample(
            id=str(row.get("id", number)),
            picture=row["image"],
            text=row["text"],
            image=self._inside(row["image"]),
            mask=_Mask(self._shapes(row["mask"])),
            kind=str(row.get("kind", "")),
        )

    def _shapes(self, mask: Any) -> list[Any]:
        """Paths and outlines whose union is the target."""
        if mask is None:
            return []
        if isinstance(mask, str):
            return [self._inside(mask)]
        if isinstance(mask, dict):
            if set(mask) < {"size", "counts"}:
                raise ValueError("a run-length mask has 'size' and 'counts'")
            return [mask]
        if isinstance(mask, list) and all(isinstance(part, str) for part in mask):
            return [self._inside(part) for part in mask]
        if isinstance(mask, list) and all(isinstance(part, list) for part in mask):
            return [mask]
        raise ValueError("'mask' must be a path, paths, polygons, a run-length mask or null")

    def _inside(self, name: str) -> Path:
        base = self.path.parent.resolve()
        path = (base / name).resolve()
        if not path.is_relative_to(base):
            raise ValueError(f"{name[:60]!r} leads out of the folder")
        return path


@dataclass(frozen=True)
class _Mask:
    """Union of mask files and outlines, read when asked for."""

    shapes: list[Any]

    def __call__(self, image_hw: tuple[int, int]) -> np.ndarray:
        mask = np.zeros(image_hw, bool)
        for shape in self.shapes:
            mask |= (
                _read_mask(shape, image_hw)
                if isinstance(shape, Path)
                else draw_outline(shape, image_hw)
            )
        return mask


def _read_mask(path: Path, image_hw: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
            if (image.height, image.width) != tuple(image_hw):
                size = f"{image.width} x {image.height}"
                raise InputError(f"{path.name}: mask is {size}, the picture is not")
            # Palette and colour pictures: any channel but alpha that is not zero.
            values = np.asarray(
                image if image.mode in ("1", "L", "P", "I;16", "I") else image.convert("RGB")
            )
    except FileNotFoundError:
        raise InputError(f"{path.name}: no such mask") from None
    except (OSError, SyntaxError) as fault:
        raise InputError(f"{path.name}: not a readable mask ({str(fault)[:60]})") from None
    return (values if values.ndim == 2 else values.max(axis=-1)) > 0
