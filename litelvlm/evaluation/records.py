"""What was measured, unit by unit, kept on disk so that an interrupted run goes on.

A *unit* is one picture under one (variant, budget, seed): one line of JSON, written when done. A
line that was cut off by an interruption is ignored and its unit runs again; so do failed units.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from litelvlm.errors import InputError

Key = tuple[str, str, str, int, int]  # source, picture, variant, budget, seed


@dataclass(frozen=True)
class Item:
    """One expression under one unit.

    Attributes:
        id, text, kind: of the sample.
        intersection, union: pixels of the predicted mask and the target.
        recall: share of the target that the kept patches cover; None where it covers no patch.
        auc: chance that a patch inside the target is more similar to the text than one outside;
            in unpruned units only; None where no patch is inside.
        found: whether the model answered with a mask.
    """

    id: str
    text: str
    kind: str
    intersection: int
    union: int
    recall: float | None
    auc: float | None
    found: bool

    @property
    def iou(self) -> float:
        """0..1; 1 where both masks are empty."""
        return self.intersection / self.union if self.union else 1.0


@dataclass(frozen=True)
class Answered:
    """One question with an answer in text under one unit.

    Attributes:
        id, text, kind: of the sample.
        answer: what the model wrote.
        label: the right answer, or the first of them.
        score: of the answer alone, 0..1, as the benchmark defines it.
    """

    id: str
    text: str
    kind: str
    answer: str
    label: str
    score: float


@dataclass(frozen=True)
class Unit:
    """One picture under one (variant, budget, seed).

    Attributes:
        source, picture: where it comes from.
        variant, budget, seed: how it was run.
        items: its expressions (`Item`) or questions (`Answered`).
        tokens: image tokens that reached the last layer of the language model.
        mean_tokens: mean image tokens over the layers.
        stages: stage -> (ms, peak bytes or None, FLOPs or None), the whole call; in unpruned units
            with the encoders.
        kv_bytes: keys and values of one expression.
        attention_bytes: attention weights written out per expression, by methods inside the model.
        same: mean share of the kept patches that two expressions with different targets have in
            common; None where there are no two.
        error: what went wrong; then there are no items.
    """

    source: str
    picture: str
    variant: str
    budget: int
    seed: int
    items: tuple[Any, ...] = ()
    tokens: int = 0
    mean_tokens: float = 0.0
    stages: dict[str, tuple[float, int | None, int | None]] = field(default_factory=dict)
    kv_bytes: int = 0
    attention_bytes: int = 0
    same: float | None = None
    error: str | None = None

    @property
    def key(self) -> Key:
        """What names the unit."""
        return self.source, self.picture, self.variant, self.budget, self.seed

    def to_line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @staticmethod
    def from_line(line: str | bytes) -> Unit:
        """Read `to_line` back. Raises ValueError, TypeError or KeyError on anything else."""
        row = json.loads(line)
        items = tuple(
            Answered(**item) if "answer" in item else Item(**item) for item in row.pop("items")
        )
        stages = {name: tuple(cost) for name, cost in row.pop("stages").items()}
        return Unit(items=items, stages=stages, **row)  # type: ignore[arg-type]


class Store:
    """The records of a run in a folder; each process appends to a file of its own.

    Args:
        folder: made if missing.
        fingerprint: what the run is; a folder that holds another run is refused.
        process: (index, count) of this process.

    Raises:
        InputError: the folder holds records of another run.
    """

    def __init__(
        self, folder: Path, fingerprint: dict[str, Any], process: tuple[int, int] = (0, 1)
    ) -> None:
        self.folder = Path(folder)
        self.fingerprint = json.loads(json.dumps(fingerprint))
        index, count = process
        self.path = self.folder / f"units-{index:05d}-of-{count:05d}.jsonl"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as fault:
            raise InputError(f"{folder}: cannot be made ({fault.strerror})") from None
        self._claim(index == 0)
        self.units = {unit.key: unit for unit in self.read()}

    def _claim(self, first: bool) -> None:
        path = self.folder / "run.json"
        if path.is_file():
            try:
                known = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                raise InputError(f"{path}: cannot be read; remove it to start over") from None
            for key, value in self.fingerprint.items():
                if known.get(key) != value:
                    given = f"{key} {known.get(key)!r}, not {value!r}"
                    raise InputError(f"{self.folder} holds a run with {given}; use another folder")
        elif first:
            text = json.dumps(self.fingerprint, indent=2, ensure_ascii=False) + "\n"
            path.write_text(text, encoding="utf-8")

    def read(self) -> Iterator[Unit]:
        """All whole units in the folder, those of other processes and earlier runs included."""
        for path in sorted(self.folder.glob("units-*.jsonl")):
            with path.open("rb") as file:  # the cut may lie inside a character
                for line in file:
                    try:
                        unit = Unit.from_line(line)
                    except (ValueError, TypeError, KeyError):
                        continue  # cut off by an interruption
                    yield unit

    def done(self, key: Key) -> bool:
        """Whether a unit is there and did not fail."""
        unit = self.units.get(key)
        return unit is not None and unit.error is None

    def add(self, units: Iterable[Unit]) -> None:
        """Append units and remember them."""
        with self.path.open("a", encoding="utf-8") as file:
            if file.tell() and not _ends_line(self.path):
                file.write("\n")
            for unit in units:
                file.write(unit.to_line() + "\n")
                self.units[unit.key] = unit


class Memory:
    """As `Store`, without a disk."""

    def __init__(self) -> None:
        self.units: dict[Key, Unit] = {}

    def done(self, key: Key) -> bool:
        """See `Store`."""
        return key in self.units and self.units[key].error is None

    def add(self, units: Iterable[Unit]) -> None:
        """See `Store`."""
        self.units.update({unit.key: unit for unit in units})


def merge(units: Iterable[Unit]) -> list[Unit]:
    """One unit a key, in an order that does not depend on who ran it; success beats failure."""
    best: dict[Key, Unit] = {}
    for unit in units:
        other = best.get(unit.key)
        if other is None or other.error is not None or unit.error is None:
            best[unit.key] = unit
    return [best[key] for key in sorted(best)]


def _ends_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"
