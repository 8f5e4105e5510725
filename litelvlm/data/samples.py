"""One expression to ground, whatever data set it comes from, and the built-in benchmark as such.

Samples are cheap: the picture and the mask are read or drawn when asked for. A source hands out
`share=(i, n)`, every n-th picture from the i-th on, so that n processes hold no more than they use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from litelvlm.errors import InputError

if TYPE_CHECKING:
    from litelvlm.nano.scenes import DrawnScene


@dataclass(frozen=True)
class Sample:
    """One expression about one picture.

    Attributes:
        id: unique within its source, the same in every run.
        picture: id of the picture; samples of one picture share its encoding.
        text: the referring expression.
        image: path, (H, W, 3) uint8 array, or a function that returns such an array.
        mask: (H, W) bool array, or a function of (H, W) that returns one; all False for an
            expression that refers to nothing.
        kind: kind of expression where the source knows it, else "".
        name: class of the thing where the source knows it, else "".
    """

    id: str
    picture: str
    text: str
    image: Path | np.ndarray | Callable[[], np.ndarray]
    mask: np.ndarray | Callable[[tuple[int, int]], np.ndarray]
    kind: str = ""
    name: str = ""

    def read_image(self) -> np.ndarray:
        """The picture, (H, W, 3) uint8. Raises `InputError` if its file cannot be read."""
        from litelvlm.images import read_image

        return self.image() if callable(self.image) else read_image(self.image)

    def read_mask(self, image_hw: tuple[int, int]) -> np.ndarray:
        """The target, (H, W) bool. Raises `InputError` if it does not fit the picture."""
        mask = self.mask(image_hw) if callable(self.mask) else self.mask
        mask = np.asarray(mask)
        if mask.shape != image_hw:
            raise InputError(f"{self.id}: mask is {mask.shape}, the picture is {image_hw}")
        return mask.astype(bool)


class Source(Protocol):
    """A data set.

    Attributes:
        name: data set and split, for example "refcoco/unc/val".
        missing: names of the pictures that are not there; filled by `samples`.
        refused: a sentence about each expression that cannot be used; filled by `samples`.
    """

    name: str
    missing: tuple[str, ...]
    refused: tuple[str, ...]

    def samples(self, share: tuple[int, int] = (0, 1)) -> Iterator[Any]:
        """The samples of share i of n, all of a picture together: `Sample`s, or questions."""
        ...


@dataclass
class SampleList:
    """Samples that are already there, as a source."""

    name: str
    given: list[Sample]
    missing: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    def samples(self, share: tuple[int, int] = (0, 1)) -> Iterator[Sample]:
        """See `Source`."""
        index, count = check_share(share)
        order: dict[str, list[Sample]] = {}
        for sample in self.given:
            order.setdefault(sample.picture, []).append(sample)
        for place, group in enumerate(order.values()):
            if place % count == index:
                yield from group


@dataclass
class SceneSource:
    """The procedural benchmark (`litelvlm.nano.scenes.benchmark`).

    Attributes:
        split: "val" or "test"; "val-a" and "val-b" are the even and odd scenes of "val".
        name, missing, refused: see `Source`.
    """

    split: str
    name: str = ""
    missing: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.split not in ("val", "val-a", "val-b", "test"):
            raise InputError(f"scenes has splits val, val-a, val-b and test, not {self.split!r}")
        self.name = f"scenes/{self.split}"

    def samples(self, share: tuple[int, int] = (0, 1)) -> Iterator[Sample]:
        """See `Source`. Every process walks the benchmark; only its own scenes are kept."""
        from litelvlm.nano.scenes import benchmark

        index, count = check_share(share)
        split, _, half = self.split.partition("-")
        place = -1
        for number, (scene, expression) in enumerate(benchmark(split)):
            if half and number % 2 != (half == "b"):
                continue
            place += 1
            if place % count == index:
                picture = f"{split}-{number:04d}"
                yield Sample(
                    id=f"{picture}-0",
                    picture=picture,
                    text=expression.text,
                    image=scene.image,
                    mask=scene.mask(expression.targets),
                    kind=expression.kind,
                )


def training_scenes(count: int, first: int = 1_000_000) -> SampleList:
    """All expressions of `count` scenes like those the embedded model is trained on.

    For choosing rules and settings without touching the benchmark. Scenes are drawn when asked
    for, a few are remembered.
    """
    from litelvlm.nano.scenes import make_scene

    scene = lru_cache(maxsize=4)(make_scene)
    given = []
    for seed in range(first, first + count):
        for place, expression in enumerate(scene(seed).expressions):
            given.append(
                Sample(
                    id=f"train-{seed}-{place}",
                    picture=f"train-{seed}",
                    text=expression.text,
                    image=partial(_image, scene, seed),
                    mask=partial(_mask, scene, seed, expression.targets),
                    kind=expression.kind,
                )
            )
    return SampleList(f"scenes/train-{first}", given)


def _image(scene: Callable[[int], DrawnScene], seed: int) -> np.ndarray:
    return scene(seed).image


def _mask(
    scene: Callable[[int], DrawnScene], seed: int, targets: tuple[int, ...], _: tuple[int, int]
) -> np.ndarray:
    return scene(seed).mask(targets)


def by_picture(samples: Iterator[Any]) -> Iterator[list[Any]]:
    """Samples of one picture at a time; a source hands them out together."""
    for _, group in groupby(samples, key=lambda sample: sample.picture):
        yield list(group)


def nothing_left(source: Source, places: Sequence[Path]) -> InputError:
    """The error of a source of which no expression can be used."""
    told = []
    if source.missing:
        looked = ", ".join(map(str, places[:3]))
        told.append(f"{len(source.missing)} pictures missing, looked in {looked}")
    if source.refused:
        told.append(f"{len(source.refused)} refused, the first: {source.refused[0]}")
    return InputError(f"{source.name}: no expressions to evaluate: {'; '.join(told) or 'empty'}")


def check_share(share: tuple[int, int]) -> tuple[int, int]:
    """A valid (index, count), or `InputError`."""
    index, count = share
    if not 0 <= index < count:
        raise InputError(f"share {share} is not (i, n) with 0 <= i < n")
    return index, count
