"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO from their original files.

Layout under one folder, as the authors ship it (both spellings of the picture folder are known):

    refcoco/refs(unc).p   refcoco+/refs(unc).p   refcocog/refs(umd).p   refcocog/refs(google).p
    grefcoco/grefs(unc).json
    <each>/instances.json
    images/train2014/COCO_train2014_000000000009.jpg  (or train2014/, coco_2014/train2014/, ...)

The reference files are pickles of plain containers. They are read by an unpickler that refuses
everything else, so a hostile file can at worst be rejected. `instances.json` is one JSON document
of well over 100 MB; it is decoded object by object and only what the chosen split refers to stays.
Measured on one core with a simulated file of the real size (20,000 pictures, 200,000 annotations,
140,000 expressions, 124 MB), all in one split: 6 s and 210 MB.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from litelvlm.data.samples import Sample, check_share
from litelvlm.errors import InputError, unknown

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
_CHUNK = 1 << 22  # characters read at once


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


def stream_json_lists(path: Path) -> Iterator[tuple[str, Any]]:
    """Items of the lists at the top of a JSON object, one at a time, as (key, item).

    Values at the top that are not lists are handed out whole. Memory: one chunk of text and one
    item.

    Raises:
        InputError: the file cannot be read or is not such a document.
    """
    decode = json.JSONDecoder().raw_decode
    try:
        with path.open(encoding="utf-8") as file:
            text = _Text(file)
            text.expect("{")
            if text.peek() == "}":
                return
            while True:
                key = text.value(decode)
                text.expect(":")
                if text.peek() == "[":
                    text.expect("[")
                    if text.peek() == "]":
                        text.expect("]")
                    else:
                        while True:
                            yield key, text.value(decode)
                            if text.expect(",]") == "]":
                                break
                else:
                    yield key, text.value(decode)
                if text.expect(",}") == "}":
                    return
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as fault:
        raise InputError(f"{path}: cannot be read as JSON ({str(fault)[:80]})") from None


class _Text:
    """A window on a text file that moves on as values are decoded."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.text = ""
        self.place = 0

    def more(self) -> bool:
        """Read another chunk; False at the end of the file."""
        piece = self.file.read(_CHUNK)
        self.text = self.text[self.place :] + piece
        self.place = 0
        return bool(piece)

    def peek(self) -> str:
        """The next character that is not white space."""
        while True:
            while self.place < len(self.text):
                if not self.text[self.place].isspace():
                    return self.text[self.place]
                self.place += 1
            if not self.more():
                raise ValueError("the file ends too early")

    def expect(self, wanted: str) -> str:
        """Step over one of the wanted characters."""
        found = self.peek()
        if found not in wanted:
            raise ValueError(f"{found!r} where one of {wanted!r} was expected")
        self.place += 1
        return found

    def value(self, decode: Callable[[str, int], tuple[Any, int]]) -> Any:
        """Decode the value that begins here, reading on while it is cut off."""
        self.peek()
        while True:
            try:
                found, end = decode(self.text, self.place)
            except json.JSONDecodeError:
                if not self.more():
                    raise
                continue
            # A number may go on in the next chunk; only what follows tells that it is whole.
            number = isinstance(found, (int, float)) and not isinstance(found, bool)
            if number and self.text[end : end + 1] not in tuple(", ]}\n\r\t") and self.more():
                continue
            self.place = end
            return found


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

    Raises:
        InputError: unknown data set or split, or files that are not there.
    """

    root: Path
    data: str
    split: str
    images: Path | None = None
    name: str = ""
    missing: tuple[str, ...] = ()

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
        pictures: dict[int, list[dict[str, Any]]] = {}
        for reference in self._read_references():
            pictures.setdefault(reference["image_id"], []).append(reference)
        own = {
            picture: references
            for place, (picture, references) in enumerate(pictures.items())
            if place % count == index
        }
        wanted = {number for refs in own.values() for ref in refs for number in _targets(ref)}
        names, polygons = self._read_instances(set(own), wanted)
        paths = {picture: self._find(name) for picture, name in names.items()}
        lost = [names.get(picture, f"image {picture}") for picture in own if not paths.get(picture)]
        self.missing = tuple(sorted(lost))
        for picture, references in own.items():
            path = paths.get(picture)
            if path is None:
                continue
            for reference in references:
                numbers = _targets(reference)
                shapes = [polygons[number] for number in numbers if number in polygons]
                if len(shapes) < len(numbers):
                    absent = [number for number in numbers if number not in polygons]
                    raise InputError(f"{self._instances}: annotation {absent[0]} is not there")
                for sentence in reference["sentences"]:
                    yield Sample(
                        id=f"{reference['ref_id']}-{sentence['sent_id']}",
                        picture=str(picture),
                        text=str(sentence.get("sent") or sentence.get("raw") or "").strip(),
                        image=path,
                        mask=_Target(shapes),
                        kind=("none", "one", "several")[min(len(numbers), 2)],
                    )

    def _read_references(self) -> list[dict[str, Any]]:
        path = self._references
        try:
            if path.suffix == ".json":
                found = json.loads(path.read_text(encoding="utf-8"))
            else:
                with path.open("rb") as file:
                    found = load_plain_pickle(file)
        except Exception as fault:  # a damaged pickle may raise nearly anything
            raise InputError(f"{path}: cannot be read ({str(fault)[:80]})") from None
        try:
            chosen = [reference for reference in found if reference["split"] == self.split]
            for reference in chosen:
                _targets(reference)
                if not isinstance(reference["image_id"], int):
                    raise TypeError("image_id is not a number")
                for sentence in reference["sentences"]:
                    sentence["sent_id"], reference["ref_id"]
        except (KeyError, TypeError, AttributeError) as fault:
            raise InputError(f"{path}: not a list of references ({str(fault)[:60]})") from None
        return chosen

    def _read_instances(
        self, pictures: set[int], wanted: set[int]
    ) -> tuple[dict[int, str], dict[int, Any]]:
        """File names of the pictures, outlines of the annotations."""
        names: dict[int, str] = {}
        outlines: dict[int, Any] = {}
        try:
            for key, item in stream_json_lists(self._instances):
                if key == "images" and item["id"] in pictures:
                    names[item["id"]] = item["file_name"]
                elif key == "annotations" and item["id"] in wanted:
                    outlines[item["id"]] = _compact(item["segmentation"])
        except (KeyError, TypeError) as fault:
            raise InputError(f"{self._instances}: not a COCO file ({str(fault)[:60]})") from None
        return names, outlines

    def _find(self, name: str) -> Path | None:
        # The name comes from a file: only its last part is used.
        last = Path(name).name
        return next((base / last for base in self._bases if (base / last).is_file()), None)


@dataclass(frozen=True)
class _Target:
    """Union of outlines, drawn when asked for."""

    shapes: list[Any]

    def __call__(self, image_hw: tuple[int, int]) -> np.ndarray:
        mask = np.zeros(image_hw, bool)
        for shape in self.shapes:
            mask |= draw_outline(shape, image_hw)
        return mask


def draw_outline(shape: Any, image_hw: tuple[int, int]) -> np.ndarray:
    """(H, W) bool from a COCO segmentation: polygons, or run lengths (compressed or not)."""
    from pycocotools import mask as coco

    height, width = image_hw
    if isinstance(shape, dict):
        if list(shape["size"]) != [height, width]:
            raise InputError(f"a run-length mask is {shape['size']}, the picture {[height, width]}")
        if isinstance(shape["counts"], (list, tuple, np.ndarray)):
            plain = {**shape, "counts": [int(run) for run in shape["counts"]]}
            return coco.decode(coco.frPyObjects(plain, height, width)).astype(bool)
        return coco.decode(shape).astype(bool)
    polygons = [np.asarray(polygon, float).tolist() for polygon in shape]
    # Fewer than three points enclose nothing, and pycocotools reads four numbers as a box.
    polygons = [polygon for polygon in polygons if len(polygon) >= 6]
    if not polygons:
        return np.zeros(image_hw, bool)
    return coco.decode(coco.merge(coco.frPyObjects(polygons, height, width))).astype(bool)


def _targets(reference: dict[str, Any]) -> list[int]:
    """Annotation numbers an expression refers to; gRefCOCO lists several, or [-1] for none."""
    numbers = reference["ann_id"]
    numbers = numbers if isinstance(numbers, list) else [numbers]
    if not all(isinstance(number, int) for number in numbers):
        raise TypeError("ann_id is not a number")
    return [number for number in numbers if number >= 0]


def _compact(shape: Any) -> Any:
    """Polygons as float32 arrays: a fifth of the memory of Python lists."""
    if isinstance(shape, dict):
        return shape
    return [np.asarray(polygon, np.float32) for polygon in shape]
