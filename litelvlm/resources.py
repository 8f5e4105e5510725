"""Where the project's own files lie, and how text and JSON documents are read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from litelvlm.errors import InputError, one_line

_PACKAGE = Path(__file__).resolve().parent


def asset(*parts: str) -> Path:
    """Path of a file or folder under assets/, in a checkout or in an installed package."""
    installed = _PACKAGE / "assets"
    root = installed if installed.is_dir() else _PACKAGE.parent / "assets"
    return root.joinpath(*parts)


def read_text(path: Path) -> str:
    """A text file in UTF-8, its ends of lines as they are.

    Raises:
        InputError: naming the file, and the line that is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({one_line(error, 160)})") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        number = content.count(b"\n", 0, fault.start) + 1
        raise InputError(f"{path}, line {number}: not UTF-8; save the file as UTF-8") from None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of `read_text` that are not blank, with their numbers from 1."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line


def read_json(path: Path, kind: type = object, fault: type[InputError] = InputError) -> Any:
    """A JSON document.

    Args:
        path: of a file in UTF-8.
        kind: what must stand in it: dict or list; object takes anything.
        fault: class of the error.

    Raises:
        InputError: of the class `fault`, naming the file and what is wrong.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise fault(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise fault(f"{path}: cannot be read as JSON ({one_line(error, 160)})") from None
    if not isinstance(found, kind):
        wanted = "an object" if kind is dict else "a list"
        raise fault(f"{path}: holds a {type(found).__name__}, expected {wanted}")
    return found
