"""Where the project's own files lie, and how a JSON document is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from litelvlm.errors import InputError, one_line

_PACKAGE = Path(__file__).resolve().parent


def asset(*parts: str) -> Path:
    """Path of a file or folder under assets/, in a checkout or in an installed package."""
    installed = _PACKAGE / "assets"
    root = installed if installed.is_dir() else _PACKAGE.parent / "assets"
    return root.joinpath(*parts)


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
