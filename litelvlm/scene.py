"""A picture after the image encoders: what is kept of it to answer any question.

Such a picture is called a scene; what the built-in benchmark draws is a `nano.scenes.DrawnScene`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from litelvlm.geometry import MaskFrame, PatchFrame
from litelvlm.profiling import StageCost


@dataclass(frozen=True)
class MaskScene:
    """What the mask branch keeps of a picture.

    Attributes:
        embedding: (1, C, h, w), its features; several of different sizes for some.
        frame: where they lie in the picture.
    """

    embedding: Any
    frame: MaskFrame


@dataclass(frozen=True)
class EncodedImage:
    """A picture after encoding; ask it as many questions as you like.

    Attributes:
        image: (H, W, 3) uint8, the picture, upright.
        tokens: what the image tower says, in the form of the model's family.
        segmenter: what the mask branch says; None for a model that has none.
        frame: where the N patch tokens lie in the picture.
        costs: of the encoders.
        model: name of the model that encoded it.
    """

    image: np.ndarray
    tokens: Any
    segmenter: MaskScene | None
    frame: PatchFrame
    costs: tuple[StageCost, ...]
    model: str

    @property
    def count(self) -> int:
        """N, patch tokens of this picture."""
        return self.frame.count

    @property
    def grid(self) -> tuple[int, int, int]:
        """(frames, rows, columns) of the patches; a picture is one frame."""
        return (1, *self.frame.grid)
