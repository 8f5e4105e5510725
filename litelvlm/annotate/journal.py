"""What has been answered, kept so that a run can be killed at any moment and go on.

`journal.jsonl` holds the run's settings in its first line and then one line a picture, appended
and synchronised batch by batch. A line that was cut off is removed and its picture runs again;
nothing else ever does. The table and the COCO file are made from it at the end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from litelvlm.annotate.rows import Row
from litelvlm.errors import InputError


class Journal:
    """An append-only file of answered pictures.

    Args:
        folder: made if missing.
        settings: of the run, plain data; a journal of other settings is refused.
        resume: go on with a journal that is there, instead of refusing it.

    Attributes:
        done: ids of the pictures answered, those of earlier runs included.

    Raises:
        InputError: the folder holds a journal that this run cannot go on with.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], resume: bool = False) -> None:
        self.path = folder / "journal.jsonl"
        self.done: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)
        settings = json.loads(json.dumps(settings))
        length = self._whole()
        if length:
            if not resume:
                raise InputError(f"{folder} holds a run; add --resume, or use another folder")
            known = json.loads(self._first())
            for key in sorted(known.keys() | settings.keys()):
                if known.get(key) != settings.get(key):
                    given = f"{key} {known.get(key)!r}, not {settings.get(key)!r}"
                    raise InputError(f"{folder} holds a run with {given}; use another folder")
            self.done = {rows[0]["id"] for rows in self.pictures()}
        self._file = self.path.open("ab")
        self._file.truncate(length)
        if not length:
            self._write([settings])

    def add(self, pictures: Sequence[list[Row]]) -> None:
        """Append the rows of some pictures; on disk when this returns."""
        self._write(pictures)
        self.done |= {rows[0]["id"] for rows in pictures}

    def pictures(self) -> Iterator[list[Row]]:
        """The rows of every picture answered, in the order in which they were."""
        with self.path.open("rb") as file:
            next(file, None)
            for line in file:
                if line.endswith(b"\n"):
                    yield json.loads(line)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, lines: Sequence[Any]) -> None:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        self._file.write(text.encode("utf-8", "surrogatepass"))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _first(self) -> bytes:
        with self.path.open("rb") as file:
            return file.readline()

    def _whole(self) -> int:
        """Bytes up to the end of the last whole line."""
        if not self.path.is_file():
            return 0
        with self.path.open("rb") as file:
            return sum(len(line) for line in file if line.endswith(b"\n"))
