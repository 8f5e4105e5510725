"""Example pictures with phrases: `assets/examples/examples.json` and the files beside it."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from litelvlm.images import read_image
from litelvlm.resources import asset
from litelvlm.ui.limits import take_picture


@dataclass(frozen=True)
class Example:
    """One example.

    Attributes:
        path: of the picture.
        phrases: what to look for.
        note: what one sees in it, a few words.
        model: that answers it rightly, pruned and unpruned; None for whichever is chosen.
        truth: what each phrase refers to, as COCO run-length encodings of the picture's size; empty
            where nobody drew it.
    """

    path: Path
    phrases: tuple[str, ...]
    note: str = ""
    model: str | None = None
    truth: tuple[dict[str, Any], ...] = ()

    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8."""
        return read_image(self.path)

    def masks(self) -> list[np.ndarray]:
        """What each phrase refers to, (H, W) bool each."""
        from pycocotools import mask as coco

        return [coco.decode(rle).astype(bool) for rle in self.truth]


def examples(home: Path | None = None) -> tuple[Example, ...]:
    """All examples in the order of the list; none where there is no list."""
    home = home or asset("examples")
    listing = home / "examples.json"
    if not listing.is_file():
        return ()
    return tuple(
        Example(
            home / entry["file"],
            tuple(entry["phrases"]),
            entry.get("note", ""),
            entry.get("model"),
            tuple(entry.get("truth", ())),
        )
        for entry in json.loads(listing.read_text(encoding="utf-8"))
        if (home / entry["file"]).is_file()
    )


@functools.cache
def _keys() -> dict[str, str]:
    return {take_picture(example.pixels()).key: example.path.name for example in examples()}


def shipped(key: str) -> str | None:
    """File name of the example whose pixels have this key; None for other pictures."""
    return _keys().get(key)
