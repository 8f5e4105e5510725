"""From the journal to files that others read: Parquet, one row a picture and phrase, and COCO."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from litelvlm.annotate.rows import Row
from litelvlm.errors import InputError

CHUNK = 1000  # pictures held in memory at once


def write_parquet(pictures: Iterable[list[Row]], path: Path) -> None:
    """One row a picture and phrase; rle becomes the columns rle_size and rle_counts.

    Raises:
        InputError: pyarrow is missing.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise InputError("Parquet needs pyarrow: pip install 'litelvlm[annotate]'") from None
    text, whole, many = pa.string(), pa.int64(), pa.list_(pa.int64())
    schema = pa.schema(
        {
            "id": text,
            "number": whole,
            "phrase": text,
            "width": whole,
            "height": whole,
            "found": pa.bool_(),
            "area": whole,
            "box": many,
            "rle_size": many,
            "rle_counts": text,
            "unknown_words": pa.list_(text),
            "confidence": pa.float64(),
            "verdict": text,
            "tokens_kept": whole,
            "tokens_total": whole,
            "model": text,
            "error": text,
        }
    )
    left = iter(pictures)
    with _whole_file(path, "wb") as file, parquet.ParquetWriter(file, schema) as writer:
        while part := list(islice(left, CHUNK)):
            flat = [_flat(row) for row in chain.from_iterable(part)]
            writer.write_table(pa.Table.from_pylist(flat, schema))


def _flat(row: Row) -> Row:
    rle = row["rle"] or {"size": None, "counts": None}
    texts = {key: _utf8(row[key]) for key in ("id", "phrase", "error")}
    words = row["unknown_words"] and [_utf8(word) for word in row["unknown_words"]]
    flat = {"rle_size": rle["size"], "rle_counts": rle["counts"], "unknown_words": words}
    return row | texts | flat


def _utf8(text: str | None) -> str | None:
    """Text that Arrow takes: names of files need not be UTF-8."""
    return text and text.encode("utf-8", "replace").decode()


def write_coco(pictures: Any, path: Path) -> None:
    """COCO: a category a phrase, a run-length mask an annotation; only what was found.

    Args:
        pictures: function that returns the rows of every picture; called twice.
        path: of the file.
    """
    categories: dict[str, int] = {}

    def images() -> Iterator[dict[str, Any]]:
        for number, (row, *_) in enumerate(pictures()):
            if row["width"]:
                size = {"width": row["width"], "height": row["height"]}
                yield {"id": number, "file_name": row["id"], **size}

    def annotations() -> Iterator[dict[str, Any]]:
        count = 0
        for number, rows in enumerate(pictures()):
            for row in filter(lambda row: row["found"], rows):
                count += 1
                yield {
                    "id": count,
                    "image_id": number,
                    "category_id": categories.setdefault(row["phrase"], len(categories) + 1),
                    "segmentation": row["rle"],
                    "area": row["area"],
                    "bbox": row["box"],
                    "score": row["confidence"],
                    "iscrowd": 0,
                }

    def named() -> Iterator[dict[str, Any]]:  # last: the annotations fill it
        yield from ({"id": number, "name": phrase} for phrase, number in categories.items())

    parts = {"images": images, "annotations": annotations, "categories": named}
    with _whole_file(path, "w") as file:
        for key, items in parts.items():
            file.write(f'{"{" if key == "images" else ","}\n"{key}": [')
            for place, item in enumerate(items()):
                file.write((",\n" if place else "\n") + json.dumps(item))
            file.write("\n]")
        file.write("}\n")


@contextmanager
def _whole_file(path: Path, mode: str) -> Iterator[IO[Any]]:
    """A file that takes its place only once it is whole."""
    part = path.with_name(path.name + ".part")
    with part.open(mode, encoding=None if "b" in mode else "utf-8") as file:
        yield file
    os.replace(part, path)
