"""What `Pruner.prepare` hands back: arguments of `generate`, and what was kept of each picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class PieceRecord:
    """What was kept of one grid of a picture.

    Attributes:
        grid: (rows, columns) of patches; N = rows * columns.
        box: x0, y0, x1, y1 of the grid as shares of the picture's width and height.
        indices: (K,) int64, patch numbers in the order in which they entered; -1: a merged token.
        reason: (K,) uint8, values of `litelvlm.pruning.Reason`, aligned with `indices`.
        similarity: (N,) float32 as ranked, lowest first; None where the rule reads none.
        context: (N,) float32 as ranked, highest first; None likewise.
    """

    grid: tuple[int, int]
    box: tuple[float, float, float, float]
    indices: np.ndarray
    reason: np.ndarray
    similarity: np.ndarray | None = None
    context: np.ndarray | None = None


@dataclass(frozen=True)
class PictureRecord:
    """What was kept of one picture.

    Attributes:
        prompt: number of the prompt it belongs to.
        pieces: its grids; most models have one, tiled models one a tile.
        tokens_total: image tokens of the unpruned prompt, those that end rows included.
        tokens_kept: image tokens that enter.
        method: name of the rule; "none" where all was kept.
        score: which score the rule read.
        text: what the text tower read; None where none did.
    """

    prompt: int
    pieces: tuple[PieceRecord, ...]
    tokens_total: int
    tokens_kept: int
    method: str
    score: str
    text: str | None


class PrunedInputs(Mapping[str, Any]):
    """Arguments for `model.generate(**inputs)`, used like what a processor returns.

    The vision features come in a fresh container at each access, because `generate` changes the
    one it gets when it expands beams: the same inputs may be used again.

    Attributes:
        record: one `PictureRecord` a picture, in the order of the placeholders.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        record: tuple[PictureRecord, ...],
        features: tuple[type, dict[str, Any]],
    ) -> None:
        self.record = record
        self._tensors = tensors
        self._features = features

    def __getitem__(self, name: str) -> Any:
        if name == "mm_encoder_outputs":
            kind, fields = self._features
            return {"image": kind(**fields)}
        return self._tensors[name]

    def __getattr__(self, name: str) -> Tensor:
        """`inputs.input_ids` as in a processor's output."""
        if name.startswith("_") or name not in self._tensors:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self._tensors[name]

    def to(self, *_: Any, **__: Any) -> PrunedInputs:
        """Itself: all tensors are where the model takes them, and in its dtype."""
        return self

    def __iter__(self) -> Iterator[str]:
        yield from self._tensors
        yield "mm_encoder_outputs"

    def __len__(self) -> int:
        return len(self._tensors) + 1
