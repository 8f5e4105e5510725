"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO from their original files.

Layout under one folder, as the authors ship it (both spellings of the picture folder are known):

    refcoco/refs(unc).p   refcoco+/refs(unc).p   refcocog/refs(umd).p   refcocog/refs(google).p
    grefcoco/grefs(unc).json
    <each>/instances.json
    images/train2014/COCO_train2014_000000000009.jpg  (or train2014/, coco_2014/train2014/, ...)

The reference files are pickles of plain containers. They are read by an unpickler that refuses
everything else, so a hostile file can at worst be rejected. `instances.json` is one JSON document
of well over 100 MB; it is decoded object by object and only what the chosen split refers to stays.

What the files say is checked here, once: an expression that cannot be used is left out and told in
`refused`, the others stay.
"""

from __future__ import annotations

import codecs
import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from litelvlm.data.samples import Sample, check_share, nothing_left
from litelvlm.errors import InputError, one_line, unknown
from litelvlm.images import stored_size, turned
from litelvlm.question import read_phrases

# Name and who split it -> the splits there are.
SPLITS: dict[str, tuple[str, ...]] = {
    "refcoco/unc": ("train", "val", "testA", "testB"),
    "refcoco/google": ("train", "val", "test"),
    "refcoco+/unc": ("train", "val", "testA", "testB"),
    "refcocog/umd": ("train", "val", "test"),
    "refcocog/google": ("train", "val"),
    "grefcoco/unc": ("train", "val", "testA", "testB"),
}
_DEFAULT = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd", "grefcoco": "unc"}
_IMAGES = (
    "images/train2014",
    "images/mscoco/images/train2014",
    "images/coco_2014/train2014",
    "coco_2014/train2014",
    "train2014",
    "images",
    "",
)


class _PlainUnpickler(pickle.Unpickler):
    """Reads dictionaries, lists, tuples, sets, text and numbers; looks nothing up."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, plain data was expected")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to an outside object, plain data was expected")


def load_plain_pickle(file: BinaryIO) -> Any:
    """Unpickle plain containers of text and numbers.

    Text of Python 2 pickles is read as UTF-8. Nothing in the file is ever called or imported.

    Raises:
        pickle.UnpicklingError, EOFError, ValueError, ...: anything else is in it.
    """
    return _PlainUnpickler(file, encoding="utf-8", errors="replace").load()


def stream_list(path: Path, key: str) -> Iterator[dict[str, Any]]:
    """Objects of the list `key` at the top of a JSON document, one at a time.

    Raises:
        InputError: the file cannot be read or is not JSON.
    """
    import ijson

    try:
        with path.open("rb") as file:
            if file.read(3) != codecs.BOM_UTF8:
                file.seek(0)
            for item in ijson.items(file, f"{key}.item", use_float=True):
                if isinstance(item, dict):
                    yield item
    except (OSError, ijson.JSONError, ValueError) as fault:
        raise InputError(f"{path}: cannot be read as JSON ({one_line(fault, 80)})") from None


@dataclass
class RefCOCO:
    """One split of one of the data sets.

    Args:
        root: folder with the layout above, or the data set's own folder in it.
        data: "refcoco", "refcoco+", "refcocog" or "grefcoco", optionally "/unc", "/umd", "/google".
        split: a split it has, for example "val" or "testA".
        images: folder of the COCO train2014 pictures; None looks in the usual places.

    Attributes:
        name: for example "refcoco/unc/val".
        missing: file names of pictures that are not there, filled by `samples`; their expressions
            are left out.
        refused: expressions that cannot be used and why, filled by `samples`.

    Raises:
        InputError: unknown data set or split, or files that are not there.
    """

    root: Path
    data: str
    split: str
    images: Path | None = None
    name: str = ""
    missing: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        family, _, owner = self.data.partition("/")
        key = f"{family}/{owner or _DEFAULT.get(family, '')}"
        if key not in SPLITS:
            raise unknown("data set", self.data, SPLITS)
        if self.split not in SPLITS[key]:
            raise unknown(f"split of {key}", self.split, SPLITS[key])
        self.name = f"{key}/{self.split}"
        owner = key.partition("/")[2]
        file = f"grefs({owner}).json" if family == "grefcoco" else f"refs({owner}).p"
        root = Path(self.root)
        folders = (root / family, root)
        found = next((folder for folder in folders if (folder / file).is_file()), None)
        if found is None:
            raise InputError(f"{root}: neither {family}/{file} nor {file} is there")
        self._references = found / file
        self._instances = found / "instances.json"
        if not self._instances.is_file():
            raise InputError(f"{self._instances}: no such file")
        self._bases = (
            [Path(self.images)]
            if self.images
            else [base / folder for base in (root, root.parent) for folder in _IMAGES]
        )

    def samples(self, share: tuple[int, int] = (0, 1)) -> Iterator[Sample]:
        """See `litelvlm.data.samples.Source`. Pictures come in the order of the reference file."""
        index, count = check_share(share)
        refused: list[str] = []
        pictures: dict[int, list[dict[str, Any]]] = {}
        for reference in self._read_references(refused):
            pictures.setdefault(reference["image_id"], []).append(reference)
        own = dict(islice(pictures.items(), index, None, count))
        wanted = {number for refs in own.values() for ref in refs for number in _targets(ref)}
        known = {
            item["id"]: item
            for item in stream_list(self._instances, "images")
            if item.get("id") in own and isinstance(item.get("file_name"), str)
        }
        outlines = {
            item["id"]: _compact(item.get("segmentation"))
            for item in stream_list(self._instances, "annotations")
            if item.get("id") in wanted
        }
        names = {number: _last(item["file_name"]) for number, item in known.items()}
        paths = {number: self._find(name) for number, name in names.items()}
        lost = (names.get(number, f"image {number}") for number in own if not paths.get(number))
        self.missing = tuple(sorted(lost))
        served = False
        for number, references in own.items():
            path = paths.get(number)
            if path is None:
                continue
            for reference in references:
                fault = ""
                try:
                    target = _target(reference, outlines, known[number], path)
                except InputError as found:
                    fault = str(found)
                for sentence in reference["sentences"]:
                    name = f"{reference['ref_id']}-{sentence['sent_id']}"
                    text = sentence.get("sent") or sentence.get("raw") or ""
                    try:
                        if fault:
                            raise InputError(fault)
                        (text,) = read_phrases([text])
                    except InputError as found:
                        refused.append(f"expression {name}: {found}")
                        continue
                    served = True
                    kind = ("none", "one", "several")[min(len(_targets(reference)), 2)]
                    yield Sample(name, str(number), text.strip(), path, target, kind)
        self.refused = tuple(refused)
        if not served and count == 1:
            raise nothing_left(self, self._bases)

    def _read_references(self, refused: list[str]) -> list[dict[str, Any]]:
        """References of the split; those that cannot be used are told in `refused`."""
        path = self._references
        try:
            if path.suffix == ".json":
                found = json.loads(path.read_text(encoding="utf-8-sig"))
            else:
                with path.open("rb") as file:
                    found = load_plain_pickle(file)
            found = list(found)
        except Exception as fault:  # a damaged pickle may raise nearly anything
            raise InputError(f"{path}: cannot be read ({one_line(fault, 80)})") from None
        chosen = []
        for place, reference in enumerate(found):
            try:
                if reference["split"] != self.split:
                    continue
                if not isinstance(reference["image_id"], int):
                    raise TypeError("image_id is not a number")
                _targets(reference)
                for sentence in reference["sentences"]:
                    sentence["sent_id"], reference["ref_id"]
                chosen.append(reference)
            except (KeyError, TypeError, AttributeError) as fault:
                refused.append(f"reference {place}: {one_line(fault, 60)} missing or wrong")
        if not chosen:
            first = f"; {refused[0]}" if refused else ""
            raise InputError(f"{path}: no references of split {self.split!r}{first}")
        return chosen

    def _find(self, name: str) -> Path | None:
        return next((base / name for base in self._bases if (base / name).is_file()), None)


@dataclass(frozen=True)
class _Target:
    """Union of outlines, drawn when asked for.

    Attributes:
        shapes: outlines.
        stored_hw: size of the picture as stored, on which they are drawn.
        turn: EXIF orientation of the picture, which turns the target with it.
    """

    shapes: list[Any]
    stored_hw: tuple[int, int]
    turn: int

    def __call__(self, image_hw: tuple[int, int]) -> np.ndarray:
        mask = np.zeros(self.stored_hw, bool)
        for shape in self.shapes:
            mask |= draw_outline(shape, self.stored_hw)
        return turned(mask, self.turn)


def _target(
    reference: dict[str, Any], outlines: dict[int, Any], known: dict[str, Any], path: Path
) -> _Target:
    """The target of a reference, drawn once to see that it can be.

    Outlines of COCO are on the pixels as stored, unless instances.json gives the upright size.

    Raises:
        InputError: an outline that is missing or wrong, or a picture of another size than
            instances.json says.
    """
    numbers = _targets(reference)
    absent = [number for number in numbers if number not in outlines]
    if absent:
        raise InputError(f"annotation {absent[0]} is not there")
    stored, turn = stored_size(path)
    said = (known.get("height"), known.get("width"))
    if said != stored:
        if said != (stored[::-1] if turn > 4 else stored):
            raise InputError(
                f"{path.name} is {stored[1]} x {stored[0]}, instances.json says "
                f"{said[1]} x {said[0]}: the outlines do not fit"
            )
        stored, turn = stored[::-1], 1
    target = _Target([outlines[number] for number in numbers], stored, turn)
    target(stored)
    return target


def draw_outline(shape: Any, image_hw: tuple[int, int]) -> np.ndarray:
    """(H, W) bool from an outline, checked before native code sees it.

    Args:
        shape: COCO polygons [[x, y, x, y, ...], ...], one polygon, points [[x, y], ...], or a
            run-length mask {"size": [H, W], "counts": runs or COCO's packed text}.
        image_hw: size of the picture, pixels.

    Raises:
        InputError: what is wrong with it; an outline is never silently nothing.
    """
    height, width = image_hw
    if isinstance(shape, dict):
        if list(shape.get("size") or ()) != [height, width]:
            raise InputError(
                f"a run-length mask of size {shape.get('size')}, the picture is {[height, width]}"
            )
        counts = shape.get("counts")
        runs = unpack_runs(counts) if isinstance(counts, (str, bytes)) else counts
        if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
            raise InputError("run-length counts must be whole numbers from 0, or packed text")
        if sum(runs) != height * width:
            raise InputError(
                f"run-length counts sum to {sum(runs)}, the picture has {height * width} pixels"
            )
        inside = np.arange(len(runs)) % 2 == 1
        return np.repeat(inside, runs).reshape(width, height).T.copy()
    from pycocotools import mask as coco

    polygons = [_polygon(part, image_hw) for part in _parts(shape)]
    mask = coco.decode(coco.merge(coco.frPyObjects(polygons, height, width))).astype(bool)
    if not mask.any():
        raise InputError("the polygon encloses no pixel")
    return mask


def unpack_runs(text: str | bytes) -> list[int]:
    """Run lengths from COCO's packed text: 5 bits a character, differences to the run before last.

    Raises:
        InputError: it is cut off or holds other characters.
    """
    runs: list[int] = []
    value = shift = 0
    for code in text.encode() if isinstance(text, str) else text:
        code -= 48
        if not 0 <= code < 64 or shift > 60:
            raise InputError("packed run lengths hold a character that does not belong there")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code >> 4 & 1) << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise InputError("packed run lengths are cut off")
    return runs


def _parts(shape: Any) -> list[Any]:
    """Polygons of an outline: several, one, or one as points."""
    if not isinstance(shape, (list, tuple)) or not len(shape):
        raise InputError(f"no polygon: {str(shape)[:40]}")
    if not any(isinstance(part, (list, tuple, np.ndarray)) for part in shape):
        return [shape]
    points = all(isinstance(part, (list, tuple)) and len(part) == 2 for part in shape)
    if points and not any(isinstance(value, (list, tuple)) for part in shape for value in part):
        return [shape]
    return list(shape)


def _polygon(part: Any, image_hw: tuple[int, int]) -> list[float]:
    """x, y, x, y, ... of three points or more that lie on the picture, or `InputError`."""
    if isinstance(part, (list, tuple)) and all(isinstance(p, (list, tuple)) for p in part):
        if any(len(point) != 2 for point in part):
            raise InputError("a polygon's points must be pairs x, y")
        part = [value for point in part for value in point]
    numbers = isinstance(part, np.ndarray) or (
        isinstance(part, (list, tuple))
        and all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in part)
    )
    if not numbers:
        raise InputError(f"a polygon must be numbers: {str(part)[:40]}")
    if len(part) < 6 or len(part) % 2:
        raise InputError(f"a polygon has x and y of 3 points or more, got {len(part)} numbers")
    ends = [side + max(2, side // 20) for side in image_hw[::-1]]
    for place, value in enumerate(part):
        end = ends[place % 2]
        if not image_hw[1 - place % 2] - end <= value <= end:  # false for NaN, too
            axis, size = "xy"[place % 2], image_hw[1 - place % 2]
            raise InputError(
                f"a polygon has {axis} {value!s:.20}, the picture goes from 0 to {size}"
            )
    return [float(value) for value in part]


def _targets(reference: dict[str, Any]) -> list[int]:
    """Annotation numbers an expression refers to; gRefCOCO lists several, or [-1] for none."""
    numbers = reference["ann_id"]
    numbers = numbers if isinstance(numbers, list) else [numbers]
    if not numbers or not all(isinstance(number, int) for number in numbers):
        raise TypeError("ann_id is not a number")
    return [number for number in numbers if number >= 0]


def _last(name: str) -> str:
    # The name comes from a file, perhaps of Windows: only its last part is used.
    return Path(name.replace("\\", "/")).name


def _compact(shape: Any) -> Any:
    """Usual polygons as float64 arrays: a third of the memory of Python lists."""
    if isinstance(shape, list) and all(
        isinstance(part, list) and all(type(value) is float for value in part) for part in shape
    ):
        return [np.asarray(part, np.float64) for part in shape]
    return shape
