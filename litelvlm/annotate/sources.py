"""Where tasks come from: a folder, a table, or the shards of a WebDataset, on any file system.

    pictures/ + phrases     every picture of the folder, each with all phrases
    table.jsonl|csv|parquet columns picture (or image), phrase or phrases; id if there is one
    shards-{000..009}.tar   members of one name: a picture, and phrases in its .json or .txt

Names of pictures in a table start at the table's folder. A line that cannot be used becomes a task
whose picture is the fault, so it ends up among the rows.
"""

from __future__ import annotations

import csv
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from litelvlm.annotate.rows import MAX_BYTES, Task
from litelvlm.errors import InputError, one_line

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic")
TABLES = (".jsonl", ".csv", ".parquet")


def read_tasks(source: str, phrases: tuple[str, ...] = ()) -> Iterator[Task]:
    """The tasks of a source, in an order that is the same in every run.

    Args:
        source: path or address.
        phrases: asked of every picture that does not bring its own.

    Raises:
        InputError: nothing there, no phrases, or two tasks of one id.
    """
    seen: set[str] = set()
    for task in _read(source, phrases):
        if task.id in seen:
            raise InputError(f"{source}: two tasks have the id {task.id[:80]!r}")
        seen.add(task.id)
        yield task
    if not seen:
        raise InputError(f"{source}: no pictures there; {', '.join(PICTURES)} are looked for")


def _read(source: str, phrases: tuple[str, ...]) -> Iterator[Task]:
    kind = PurePosixPath(source).suffix.lower()
    if kind in TABLES:
        yield from _table(source, kind, phrases)
    elif kind == ".tar":
        for shard in shards(source):
            yield from _shard(shard, phrases)
    else:
        if not phrases:
            raise InputError(f"{source}: a folder needs --phrases, a file with one phrase a line")
        yield from _folder(source, phrases)


def shards(pattern: str) -> list[str]:
    """The files of a pattern: {000..009} counts, * ? match.

    Raises:
        InputError: no such file.
    """
    import fsspec

    if found := re.search(r"\{(\d+)\.\.(\d+)\}", pattern):
        first, last = found[1], found[2]
        numbers = (str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))
        head, tail = pattern[: found.start()], pattern[found.end() :]
        return [name for number in numbers for name in shards(f"{head}{number}{tail}")]
    system, path = fsspec.core.url_to_fs(pattern)
    names = sorted(system.glob(path))
    if not names:
        raise InputError(f"{pattern}: no such file")
    return [system.unstrip_protocol(name) for name in names]


def _folder(folder: str, phrases: tuple[str, ...]) -> Iterator[Task]:
    import fsspec

    system, path = fsspec.core.url_to_fs(folder)
    if not system.isdir(path):
        raise InputError(f"{folder}: no such folder; a table ends in {', '.join(TABLES)}")
    for name in sorted(system.find(path)):
        if PurePosixPath(name).suffix.lower() in PICTURES:
            own = name[len(path.rstrip("/")) + 1 :]
            yield Task(own, system.unstrip_protocol(name), phrases)


def _table(table: str, kind: str, phrases: tuple[str, ...]) -> Iterator[Task]:
    folder = table.rpartition("/")[0]
    for number, row in enumerate(_rows(table, kind)):
        name = f"row {number}"
        try:
            if isinstance(row, ValueError):
                raise row
            picture = row.get("picture", row.get("image"))
            if isinstance(picture, dict):  # how the datasets library stores a picture
                picture = picture.get("bytes") or picture.get("path")
            if not picture or not isinstance(picture, (str, bytes)):
                raise ValueError("no column picture (or image) with a path or the bytes of a file")
            name = f"{picture}#{number}" if isinstance(picture, str) else name
            name = str(row["id"]) if row.get("id") not in (None, "") else name
            own = _texts(row.get("phrases") or row.get("phrase")) or phrases
            if not own:
                raise ValueError("no column phrase or phrases with text")
            if isinstance(picture, str) and folder and "://" not in picture:
                picture = picture if picture.startswith("/") else f"{folder}/{picture}"
            yield Task(name, picture, own)
        except ValueError as fault:
            wrong = InputError(f"{table[-60:]}, row {number}: {one_line(fault)}")
            yield Task(name, wrong, phrases or ("",))


def _rows(table: str, kind: str) -> Iterator[Any]:
    """The rows of a table as dictionaries; in place of one that is not, a ValueError."""
    import fsspec

    try:
        if kind == ".parquet":
            from pyarrow import parquet

            with fsspec.open(table, "rb") as file:
                for batch in parquet.ParquetFile(file).iter_batches(256):
                    yield from batch.to_pylist()
            return
        with fsspec.open(table, "rt", encoding="utf-8-sig", newline="") as file:
            if kind == ".csv":
                yield from csv.DictReader(file)
                return
            for line in filter(str.strip, file):
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as fault:
                    row = ValueError(one_line(fault))
                yield row if isinstance(row, (dict, ValueError)) else ValueError("not an object")
    except FileNotFoundError:
        raise InputError(f"{table}: no such file") from None
    except ImportError:
        raise InputError("Parquet needs pyarrow: pip install 'litelvlm[annotate]'") from None
    except (ValueError, csv.Error) as fault:
        raise InputError(f"{table}: cannot be read ({one_line(fault, 80)})") from None


def _texts(given: Any) -> tuple[str, ...]:
    """Phrases of a cell: one, a list, or a list written as JSON."""
    if isinstance(given, str) and given.lstrip().startswith("["):
        given = json.loads(given)
    given = [given] if isinstance(given, str) else given or []
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise ValueError(f"phrases must be text or a list of texts, got {str(given)[:60]!r}")
    return tuple(given)


def _shard(shard: str, phrases: tuple[str, ...]) -> Iterator[Task]:
    """The samples of one tar file, read from front to back."""
    import fsspec

    try:
        with fsspec.open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r|*") as tar:
            key, parts = "", {}
            for member in filter(tarfile.TarInfo.isfile, tar):
                folder, _, base = member.name.rpartition("/")
                stem, _, kind = base.partition(".")
                own = f"{folder}/{stem}" if folder else stem
                if own != key:
                    yield from _sample(shard, key, parts, phrases)
                    key, parts = own, {}
                large = member.size > MAX_BYTES
                content = None if large else tar.extractfile(member)
                parts[f".{kind.lower()}"] = content.read() if content else None
            yield from _sample(shard, key, parts, phrases)
    except (tarfile.TarError, EOFError, OSError) as fault:
        wrong = InputError(f"{shard[-60:]}: cannot be read to its end ({one_line(fault, 80)})")
        yield Task(f"{shard.rpartition('/')[2]}/", wrong, phrases or ("",))


def _sample(
    shard: str, key: str, parts: dict[str, bytes | None], phrases: Iterable[str]
) -> Iterator[Task]:
    """The task of the members of one name, if there is a picture among them."""
    name = f"{shard.rpartition('/')[2]}/{key}"
    picture: Any = next((parts[kind] for kind in PICTURES if kind in parts), "")
    if picture == "":
        return
    own = tuple(phrases)
    try:
        if picture is None:
            raise ValueError(f"more than {MAX_BYTES // 10**6} MB")
        if told := parts.get(".json"):
            row = json.loads(told)
            own = _texts(row.get("phrases") or row.get("phrase")) or own
        elif told := parts.get(".txt"):
            own = tuple(filter(str.strip, told.decode("utf-8").splitlines())) or own
        if not own:
            raise ValueError("no phrases: neither .json nor .txt names one")
    except (ValueError, AttributeError) as fault:
        picture, own = InputError(f"{name}: {one_line(fault)}"), own or ("",)
    yield Task(name, picture, own)
