"""Photographs with named masks for training: the folder layout, phrases and targets.

A folder holds `train.jsonl` (a line a photo: `image`, `set`, `size` [w, h], `masks`:
`class`, `instance` (false: several things of the class in one mask), `mask` (COCO RLE)),
and may hold `captions.jsonl` (`image`, `captions`), `names.jsonl` (`image`, `name`)
and `val.jsonl` (`image`, `phrase`, `kind`, `class`, `mask`).
"""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from litelvlm.errors import InputError
from litelvlm.nano.train.targets import low_mask

SIDE = 768  # of the square that photos are letterboxed into
LOW = SIDE // 4  # side of the stored masks
GRID = SIDE // 32

# What else a class may be called; the first name is the class.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "person": ("human", "human being"),
    "couch": ("sofa", "settee"),
    "tv": ("television", "screen", "monitor", "tv screen"),
    "potted plant": ("plant", "houseplant"),
    "cell phone": ("phone", "mobile phone", "cellphone", "smartphone"),
    "motorcycle": ("motorbike", "bike"),
    "bicycle": ("bike", "cycle"),
    "airplane": ("plane", "aeroplane", "jet", "aircraft"),
    "car": ("automobile", "vehicle", "auto"),
    "truck": ("lorry", "vehicle"),
    "bus": ("coach", "vehicle"),
    "boat": ("ship", "vessel"),
    "cat": ("kitty", "kitten", "animal"),
    "dog": ("puppy", "hound", "animal"),
    "horse": ("pony", "animal"),
    "cow": ("calf", "bull", "cattle", "animal"),
    "sheep": ("lamb", "animal"),
    "elephant": ("animal",),
    "bear": ("animal",),
    "zebra": ("animal",),
    "giraffe": ("animal",),
    "cup": ("mug", "coffee cup", "glass"),
    "dining table": ("table", "desk"),
    "refrigerator": ("fridge",),
    "oven": ("stove", "cooker"),
    "donut": ("doughnut",),
    "sandwich": ("toast", "burger"),
    "handbag": ("bag", "purse"),
    "suitcase": ("luggage", "bag"),
    "backpack": ("rucksack", "bag"),
    "tie": ("necktie",),
    "wine glass": ("glass",),
    "laptop": ("computer", "notebook"),
    "book": ("novel",),
    "clock": ("watch",),
    "teddy bear": ("teddy", "stuffed animal", "toy"),
    "sports ball": ("ball",),
    "remote": ("remote control",),
    "fire hydrant": ("hydrant",),
    "traffic light": ("stoplight", "traffic signal"),
    "hair drier": ("hair dryer",),
    "bowl": ("dish",),
    "bottle": ("flask",),
    "chair": ("seat", "armchair"),
    "bird": ("animal",),
    "skis": ("ski",),
    "tennis racket": ("racket",),
    "toilet": ("toilet bowl",),
    "sink": ("basin", "washbasin"),
    "cake": ("pastry", "birthday cake"),
    "pizza": ("pizza pie",),
    "pants": ("trousers",),
    "shoes": ("footwear",),
    "wheel": ("tire", "tyre"),
    "front glass": ("windshield", "windscreen"),
}
PLURAL_CLASSES = frozenset(
    [
        "skin",
        "hair",
        "shoes",
        "pants",
        "jeans",
        "shorts",
        "stockings",
        "leggings",
        "accessories",
        "sandals",
        "boots",
        "socks",
        "sneakers",
        "loafers",
        "heels",
        "pumps",
        "flats",
        "tights",
        "gloves",
        "wedges",
        "sunglasses",
        "skis",
        "scissors",
    ]
)
FOREIGN = ("tahu", "tempe", "piring", "roti")


def plural(name: str) -> str:
    """The plural of an English name."""
    irregular = {"person": "people", "sheep": "sheep", "knife": "knives", "mouse": "mice"}
    head, _, last = name.rpartition(" ")
    if last in irregular:
        last = irregular[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        last = last if name in PLURAL_CLASSES else last + "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return f"{head} {last}".strip()


@dataclass(frozen=True)
class Thing:
    """One mask: its class, whether it is a single thing, its box in units of the square's side."""

    name: str
    single: bool
    box: tuple[float, float, float, float]
    area: float
    row: int  # of the stored low masks


@dataclass(frozen=True)
class Photo:
    """A photo of train.jsonl with what is masked in it."""

    image: str
    source: str
    things: tuple[Thing, ...]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl file.

    Raises:
        InputError: no such file, or a line is no JSON.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as fault:
        raise InputError(f"{path}: cannot be read ({fault})") from None


def decode_mask(record: dict[str, Any]) -> np.ndarray:
    """(H, W) bool of a COCO run-length record."""
    from pycocotools import mask as rle

    return rle.decode({"size": record["size"], "counts": record["counts"].encode()}).astype(bool)


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """The COCO run-length record of (H, W) bool."""
    from pycocotools import mask as rle

    code = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": code["counts"].decode()}


def square_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """The box of a mask (H, W) in the letterboxed square, in units of its side."""
    height, width = mask.shape
    ys, xs = np.nonzero(mask)
    side = max(height, width)
    left, top = (side - width) / 2, (side - height) / 2
    return (
        float(xs.min() + left) / side,
        float(ys.min() + top) / side,
        float(xs.max() + 1 + left) / side,
        float(ys.max() + 1 + top) / side,
    )


def store_photos(rows: list[dict[str, Any]], cache: Path) -> tuple[list[Photo], np.ndarray]:
    """Photos of lines of train.jsonl and their masks, (M, LOW, LOW) uint8 shares x 255.

    The masks are kept in `cache`, and what is known of the photos beside them.
    """
    photos = []
    kept = np.lib.format.open_memmap(
        cache / "masks.npy", "w+", np.uint8, (sum(len(r["masks"]) for r in rows), LOW, LOW)
    )
    number = 0
    for row in rows:
        things = []
        for record in row["masks"]:
            mask = decode_mask(record["mask"])
            if mask.any():
                kept[number] = low_mask(mask, LOW)
                single = bool(record["instance"])
                thing = Thing(record["class"], single, square_box(mask), float(mask.mean()), number)
                things.append(thing)
            number += 1
        photos.append(Photo(row["image"], row["set"], tuple(things)))
    kept.flush()
    text = json.dumps([asdict(photo) for photo in photos])
    (cache / "photos.json").write_text(text, encoding="utf-8")
    return photos, kept


def stored_photos(cache: Path) -> tuple[list[Photo], np.ndarray]:
    """What `store_photos` has kept."""
    photos = []
    for p in json.loads((cache / "photos.json").read_text(encoding="utf-8")):
        things = (
            Thing(t["name"], t["single"], tuple(t["box"]), t["area"], t["row"]) for t in p["things"]
        )
        photos.append(Photo(p["image"], p["source"], tuple(things)))
    return photos, np.load(cache / "masks.npy", mmap_mode="r")


@dataclass(frozen=True)
class Said:
    """A phrase true of some things of a photo.

    Attributes:
        kind: "name", "place", "size", "order", "relation" or "plural".
        fits: the things that its noun fits.
    """

    text: str
    targets: tuple[int, ...]
    kind: str
    fits: tuple[int, ...]
    landmark: int | None = None


def phrases(
    photo: Photo, rng: np.random.Generator, called: dict[int, str] | None = None
) -> list[Said]:
    """Phrases that hold of a photo's things, as far as its masks tell.

    called: stored mask -> another name of the thing under it.
    """
    called = called or {}
    out: list[Said] = []
    things = photo.things
    by_name: dict[str, list[int]] = {}
    for i, thing in enumerate(things):
        if not thing.name.startswith(FOREIGN):
            by_name.setdefault(thing.name, []).append(i)
    for name, members in by_name.items():
        fits = tuple(members)
        alone = len(members) == 1
        single = all(things[i].single for i in members)
        for i in members:
            if things[i].area < 0.002:
                continue
            word = _called(name, rng)
            # Clothes are masked by kind: one dress is one mask, though no "instance".
            if not single and name not in PLURAL_CLASSES and photo.source != "ccp":
                if alone:
                    out.append(Said(f"the {plural(word)}", (i,), "plural", fits))
                continue
            x0, _, x1, _ = things[i].box
            cx = (x0 + x1) / 2
            own = called.get(things[i].row, "")
            if own and sum(called.get(things[k].row) == own for k in members) == 1:
                out.append(Said(f"{_article(rng)}{own}", (i,), "name", fits))
            if own and rng.random() < 0.4:
                word = own
            if alone:
                out.append(Said(f"{_article(rng)}{word}", (i,), "name", fits))
                side = "left" if cx < 0.4 else "right" if cx > 0.6 else ""
                if side and rng.random() < 0.5:
                    out.append(Said(f"the {word} on the {side}", (i,), "place", fits))
                elif abs(cx - 0.5) < 0.08 and rng.random() < 0.2:
                    out.append(Said(f"the {word} in the middle", (i,), "place", fits))
            elif name not in PLURAL_CLASSES:
                out += _among(things, members, i, word, rng)
            for j, other in enumerate(things):
                if j == i or not other.single or other.name == name or rng.random() < 0.5:
                    continue
                if len(by_name.get(other.name, [])) != 1 or photo.source in ("ccp", "car_parts"):
                    continue
                link = _relation(things[i].box, other.box, rng)
                rivals = [k for k in members if k != i and _relates(things[k].box, other.box, link)]
                if link and not rivals:
                    text = f"the {word} {link} the {_called(other.name, rng)}"
                    out.append(Said(text, (i,), "relation", fits, j))
    return out


def _article(rng: np.random.Generator) -> str:
    return ("the ", "the ", "the ", "the ", "a ", "")[int(rng.integers(6))]


def _called(name: str, rng: np.random.Generator) -> str:
    others = SYNONYMS.get(name, ())
    if others and rng.random() < 0.3:
        return others[int(rng.integers(len(others)))]
    return name


def _among(
    things: tuple[Thing, ...], members: list[int], i: int, word: str, rng: np.random.Generator
) -> list[Said]:
    """Phrases that tell one of several things of a class from the others."""
    out = []
    fits = tuple(members)
    centre = {
        k: ((things[k].box[0] + things[k].box[2]) / 2, (things[k].box[1] + things[k].box[3]) / 2)
        for k in members
    }
    for axis, low, high in ((0, "left", "right"), (1, "top", "bottom")):
        order = sorted(members, key=lambda k: centre[k][axis])
        if i == order[0] and centre[order[1]][axis] - centre[i][axis] > 0.08:
            side = low
        elif i == order[-1] and centre[i][axis] - centre[order[-2]][axis] > 0.08:
            side = high
        else:
            continue
        forms = [
            f"the {word} on the {side}",
            f"the {side} {word}",
            f"the {side}most {word}",
            f"the {word} at the {side}",
        ]
        out.append(Said(forms[int(rng.integers(len(forms)))], (i,), "place", fits))
    order = sorted(members, key=lambda k: centre[k][0])
    at = order.index(i)
    gaps = [centre[b][0] - centre[a][0] for a, b in itertools.pairwise(order)]
    if len(order) == 3 and min(gaps) > 0.08:
        if at == 1:
            out.append(Said(f"the {word} in the middle", (i,), "order", fits))
        number = ("first", "second", "third")[at]
        out.append(Said(f"the {number} {word} from the left", (i,), "order", fits))
    areas = sorted(members, key=lambda k: -things[k].area)
    if i == areas[0] and things[i].area > 1.4 * things[areas[1]].area:
        size = ("largest", "biggest", "larger" if len(members) == 2 else "largest", "big")[
            int(rng.integers(4))
        ]
        out.append(Said(f"the {size} {word}", (i,), "size", fits))
    if i == areas[-1] and things[i].area * 1.4 < things[areas[-2]].area:
        size = ("smallest", "smaller" if len(members) == 2 else "smallest", "small")[
            int(rng.integers(3))
        ]
        out.append(Said(f"the {size} {word}", (i,), "size", fits))
    return out


LINKS = ("left of", "right of", "above", "below", "next to")


def _relates(a: tuple[float, ...], b: tuple[float, ...], link: str) -> bool:
    ax, ay, bx, by = (a[0] + a[2]) / 2, (a[1] + a[3]) / 2, (b[0] + b[2]) / 2, (b[1] + b[3]) / 2
    if link in ("left of", "to the left of"):
        return ax < bx
    if link in ("right of", "to the right of"):
        return ax > bx
    if link == "above":
        return ay < by
    if link == "below":
        return ay > by
    return True


def _relation(a: tuple[float, ...], b: tuple[float, ...], rng: np.random.Generator) -> str:
    """How a box stands to another, "" where no word fits well."""
    found = []
    if a[2] < b[0] + 0.05 and a[0] < b[0]:
        found += ["left of", "to the left of"]
    if a[0] > b[2] - 0.05 and a[2] > b[2]:
        found += ["right of", "to the right of"]
    if a[3] < b[1] + 0.05:
        found.append("above")
    if a[1] > b[3] - 0.05:
        found.append("below")
    gap = max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3])
    if gap < 0.05:
        found += ["next to", "near", "by"]
    return found[int(rng.integers(len(found)))] if found else ""


_MIRROR = {"left": "right", "right": "left", "leftmost": "rightmost", "rightmost": "leftmost"}


def mirrored(text: str) -> str:
    """A phrase about the picture as a mirror shows it."""
    return " ".join(_MIRROR.get(word, word) for word in text.split())


def load_square(path: Path, side: int = SIDE) -> np.ndarray:
    """A photo letterboxed as the image tower sees it: (side, side, 3) uint8."""
    from litelvlm.geometry import clip_square

    return clip_square(np.asarray(Image.open(path).convert("RGB")), side, "letterbox")
