"""How scenes are made: size, number of things, difficulty, split."""

from __future__ import annotations

from dataclasses import dataclass

from litelvlm.errors import InputError, unknown

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class SceneRecipe:
    """How scenes are made.

    Attributes:
        canvas: (height, width) in pixels, or None for random shapes with a short side of 336.
        objects: fewest and most objects.
        object_px: range of an object's longest side in pixels, before rotation.
        split: "train", "val" or "test": own seeds and photos; "train" shows no held-out variant.
        level: 0 one or two things by name, 1 names and colours, 2 places too, 3 everything.
        expressions: most phrases per scene.
        none, several: chance of a phrase with no target, or with several targets (level 3 only).
        typos: chance of a misspelling per phrase.
        clutter: 0 plain grounds only .. 1 photos, textures and shapes.
        degrade: 0 clean pictures .. 1 blur, noise, JPEG and light changes at full rate.
        repaint: chance that a thing is painted anew, in any colour but one held out for its
            class; no colour word is said of it then. Without it a model takes the colours that a
            class was shown in for part of what the class is.
    """

    canvas: tuple[int, int] | None = None
    objects: tuple[int, int] = (1, 7)
    object_px: tuple[int, int] = (50, 170)
    split: str = "train"
    level: int = 3
    expressions: int = 8
    none: float = 0.05
    several: float = 0.05
    typos: float = 0.02
    clutter: float = 1.0
    degrade: float = 1.0
    repaint: float = 0.0

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise unknown("split", self.split, SPLITS)
        if self.level not in (0, 1, 2, 3):
            raise InputError(f"level {self.level!r}; expected 0, 1, 2 or 3")
        if not 1 <= self.objects[0] <= self.objects[1] <= 12:
            raise InputError(f"objects {self.objects!r}; expected 1 <= fewest <= most <= 12")
        if not 16 <= self.object_px[0] <= self.object_px[1]:
            raise InputError(f"object_px {self.object_px!r}; expected 16 <= least <= most")
        if self.canvas is not None and min(self.canvas) < self.object_px[0]:
            raise InputError(f"canvas {self.canvas!r} is smaller than object_px {self.object_px!r}")


TRAIN = SceneRecipe()
EASY = SceneRecipe(objects=(1, 2), level=0, none=0.0, several=0.0)
VAL = SceneRecipe(split="val", none=0.0, several=0.0)
TEST = SceneRecipe(split="test", none=0.0, several=0.0)
