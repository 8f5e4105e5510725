"""Runs tasks on this machine: pictures are fetched and decoded ahead, answered in batches."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from litelvlm.annotate.rows import Row, Task, annotate, decoded

if TYPE_CHECKING:
    from litelvlm.pipeline import Pipeline

READERS = 4  # threads that fetch and decode


def run(
    pipe: Pipeline, tasks: Iterable[Task], batch: int = 8, **options: Any
) -> Iterator[list[list[Row]]]:
    """The rows of the tasks, `batch` pictures at a time, in order.

    Args:
        pipe: a loaded model.
        tasks: read as they are needed.
        batch: pictures in memory together; as many again are decoded ahead.
        **options: of `rows.annotate`.
    """
    ready = ahead(tasks, batch)
    while part := list(islice(ready, batch)):
        yield annotate(pipe, part, **options)


def ahead(tasks: Iterable[Task], count: int) -> Iterator[Task]:
    """Tasks with their pictures decoded, at most `count` of them before they are asked for."""
    waiting: deque[Future[Task]] = deque()
    with ThreadPoolExecutor(READERS) as pool:
        for task in tasks:
            waiting.append(pool.submit(decoded, task))
            if len(waiting) >= count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@dataclass
class Summary:
    """What came of a run.

    Attributes:
        pictures, phrases: answered, those with errors included.
        found: phrases with a mask that is not empty.
        errors: phrases that failed, by `kind_of` what was told.
    """

    pictures: int = 0
    phrases: int = 0
    found: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, rows: list[Row]) -> None:
        """Count the rows of one picture."""
        self.pictures += 1
        self.phrases += len(rows)
        self.found += sum(bool(row["found"]) for row in rows)
        self.errors.update(kind_of(row["error"]) for row in rows if row["error"])

    def told(self, seconds: float, pictures: int) -> str:
        """A few lines; `pictures` of them were answered in these `seconds`."""
        pace = f"{pictures / seconds:.2f} pictures a second" if pictures else "all done before"
        failed = sum(self.errors.values())
        head = (
            f"{self.pictures} pictures, {self.phrases} phrases, {self.found} found, "
            f"{failed} failed; {pace}"
        )
        return "\n".join([head, *(f"  {n} x {kind}" for kind, n in self.errors.most_common(10))])


def kind_of(error: str) -> str:
    """What is wrong, without what it is wrong with: file name, numbers and quoted text left out."""
    told = re.sub(r"^(\w+://)?[^:]*[./#][^:]*: ", "", error)
    return re.sub(r"\d+", "#", re.sub(r"'.*'", "'...'", told))
