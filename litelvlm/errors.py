"""Errors a user can cause. Each message is one short line: what was given, what is expected."""

from __future__ import annotations

from collections.abc import Iterable


class InputError(ValueError):
    """Bad input. The message is fit to be shown to a user as it is."""


class ModelError(InputError):
    """A model cannot be loaded: it is unknown, its files are missing, corrupt or do not fit."""


def unknown(kind: str, given: object, known: Iterable[str]) -> InputError:
    """An `InputError` for a name that is not in a table, listing the names that are."""
    return InputError(f"unknown {kind} {str(given)[:60]!r}; known: {', '.join(known)}")


class MemoryShortError(InputError):
    """The device has not enough memory for what was asked."""


def one_line(fault: object, letters: int = 200) -> str:
    """What an exception says, as one short line; its kind where it says nothing."""
    return " ".join(str(fault).split())[:letters] or type(fault).__name__
