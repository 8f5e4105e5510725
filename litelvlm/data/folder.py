"""Your own pictures: one JSONL file, one expression a line.

    {"image": "kitchen.jpg", "text": "the red cup", "mask": "masks/cup.png"}
    {"image": "kitchen.jpg", "text": "both cups", "mask": ["masks/cup.png", "masks/cup2.png"]}
    {"image": "kitchen.jpg", "text": "the dog", "mask": null}
    {"image": "street.jpg", "text": "the bus", "mask": {"size": [480, 640], "counts": "..."}}
    {"image": "street.jpg", "text": "the left door", "mask": [[12.0, 40.5, 90, 41, 88, 200]]}

`image`: path from the folder of the JSONL file. `text` (or `phrase`): the expression. `mask`: path
of a picture of the same size whose pixels that are neither black nor transparent are the target (of
a JPEG: the brighter half); a list of such paths (their union); COCO polygons, or one polygon as
points [x, y]; a COCO run-length mask; or null for "nothing". Optional: `id` (default: the line
number), `kind`, `class` (of the thing), `split` (default: every split). Paths that lead out of the
folder are refused.

Every line is checked before it is used. One that is wrong is told in `refused`, by its number; the
others stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from litelvlm.data.refcoco import draw_outline
from litelvlm.data.samples import Sample, SampleList, nothing_left
from litelvlm.errors import InputError, one_line
from litelvlm.images import opened, stored_size
from litelvlm.question import read_phrases
from litelvlm.resources import read_lines


@dataclass
class Folder:
    """Samples of a JSONL file.

    Args:
        path: the file, or a folder that holds `samples.jsonl`.
        split: take lines of this split and lines without one; "" takes all.

    Attributes:
        name: name of the file and split.
        missing: pictures that are not there, filled by `samples`; their lines are left out.
        refused: lines that cannot be used and why, filled by `samples`.

    Raises:
        InputError: no such file; or, from `samples`, one that is not UTF-8 or of which no line
            can be used.
    """

    path: Path
    split: str = ""
    name: str = ""
    missing: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        if self.path.is_dir():
            self.path = self.path / "samples.jsonl"
        if not self.path.is_file():
            raise InputError(f"{self.path}: no such file")
        self.name = "/".join(filter(None, (self.path.parent.name, self.path.stem, self.split)))

    def samples(self, share: tuple[int, int] = (0, 1)) -> Iterator[Sample]:
        """See `litelvlm.data.samples.Source`."""
        given: dict[str, tuple[int, Sample]] = {}
        missing, splits, refused = set(), set(), []
        for number, line in read_lines(self.path):
            try:
                row = json.loads(line)
                sample = self._sample(number, row)
                if sample is None:
                    splits.add(str(row["split"]))
                elif sample.id in given:
                    raise ValueError(f"id {sample.id[:40]!r} stands in line {given[sample.id][0]}")
                elif sample.image.is_file():  # type: ignore[union-attr]
                    given[sample.id] = number, sample
                else:
                    missing.add(sample.picture)
            except (ValueError, TypeError, KeyError, RecursionError) as fault:
                refused.append(f"{self.path.name}, line {number}: {one_line(fault)}")
        self.missing = tuple(sorted(missing))
        if splits and not (given or missing or refused):
            known = ", ".join(sorted(splits))
            raise InputError(f"{self.path}: no line of split {self.split!r}; there are {known}")
        served = False
        for sample in SampleList(self.name, [each for _, each in given.values()]).samples(share):
            try:
                _check(sample)
            except InputError as fault:
                refused.append(f"{self.path.name}, line {given[sample.id][0]}: {fault}")
                continue
            served = True
            yield sample
        self.refused = tuple(refused)
        if not served and share[1] == 1:
            raise nothing_left(self, [self.path.parent])

    def _sample(self, number: int, row: Any) -> Sample | None:
        if not isinstance(row, dict):
            raise ValueError("expected one JSON object a line")
        if self.split and row.get("split", self.split) != self.split:
            return None
        said = "phrase" if "text" not in row and "phrase" in row else "text"
        for key in ("image", said):
            if not isinstance(row.get(key), str) or not row[key].strip():
                raise ValueError(f"{key!r} must be text")
        if "mask" not in row:
            raise ValueError("'mask' is missing; null stands for nothing")
        return Sample(
            id=str(row.get("id", number)),
            picture=row["image"].replace("\\", "/"),
            text=read_phrases(row[said])[0],
            image=self._inside(row["image"]),
            mask=_Mask(self._shapes(row["mask"])),
            kind=str(row.get("kind", "")),
            name=str(row.get("class", "")),
        )

    def _shapes(self, mask: Any) -> list[Any]:
        """Paths and outlines whose union is the target."""
        if mask is None:
            return []
        if isinstance(mask, str):
            return [self._inside(mask)]
        if isinstance(mask, list) and mask and all(isinstance(part, str) for part in mask):
            return [self._inside(part) for part in mask]
        if isinstance(mask, (list, dict)) and mask:
            return [mask]
        raise ValueError("'mask' must be a path, paths, polygons, a run-length mask or null")

    def _inside(self, name: str) -> Path:
        base = self.path.parent.resolve()
        path = (base / name.replace("\\", "/")).resolve()
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


def _check(sample: Sample) -> None:
    """Read the target of a sample once, to see that it can be. Raises `InputError`."""
    try:
        (height, width), turn = stored_size(sample.image)  # type: ignore[arg-type]
    except InputError:
        return  # a damaged picture fails when it is encoded
    drawn = any(not isinstance(shape, Path) for shape in sample.mask.shapes)  # type: ignore[union-attr]
    if turn > 1 and drawn:
        raise InputError(
            "the picture is turned by its EXIF data, so the outline may mean either side up; "
            "store it upright, or give the mask as a file"
        )
    sample.read_mask((width, height) if turn > 4 else (height, width))


def _read_mask(path: Path, image_hw: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: what is neither black nor transparent in a mask file.

    Where colour tells nothing (all that is seen is black), transparency is the mask.

    Raises:
        InputError: it cannot be read, or is not of the picture's size.
    """
    from PIL import ImageOps

    with opened(path) as image:
        upright = ImageOps.exif_transpose(image)
        if (upright.height, upright.width) != tuple(image_hw):
            size = f"{upright.width} x {upright.height}"
            raise InputError(f"{path.name}: mask is {size}, the picture is not")
        plain = image.mode in ("1", "L") or image.mode[0] in "IF"
        clear = upright.has_transparency_data
        values = np.nan_to_num(
            np.asarray(upright if plain and not clear else upright.convert("RGBA"))
        )
        if values.ndim == 2:
            return values > (values.max() / 2 if image.format == "JPEG" else 0)
        colour, alpha = values[..., :3].max(axis=-1), values[..., 3] > 0
        if image.format == "JPEG":
            return colour > colour.max() / 2
        if not clear or alpha.all() or not alpha.any():
            alpha = np.ones_like(alpha)
        seen = (colour > 0) & alpha
        if seen.any() or (alpha.all() and image.mode != "P"):
            return seen
        if alpha.all():
            if np.ptp(np.asarray(image)):
                raise InputError(f"{path.name}: every colour of its palette is black")
            return seen
        return alpha
