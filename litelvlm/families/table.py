"""The models by name and the families that load them: data, and the only list of either."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

# Family -> its module, which offers `recognises`, `open_folder`, `random_config`, `build`,
# `blocks`, `wrap`.
FAMILIES = {
    "glamm": "litelvlm.families.glamm",
}


@dataclass(frozen=True)
class Preset:
    """One named model.

    Attributes:
        note: one line for users.
        family: key of `FAMILIES`.
        hub: Hugging Face repository of the weights, None if they are not on the hub.
        tower: Hugging Face repository of the image-text tower where `hub` lacks it.
        folder: name of the folder under the project's assets that holds the model.
        random_only: the model has no trained weights; loading draws them.
    """

    note: str
    family: str = "glamm"
    hub: str | None = None
    tower: str | None = None
    folder: str | None = None
    random_only: bool = False


PRESETS: dict[str, Preset] = {
    "nano": Preset(
        note="small model trained by this project on generated scenes; runs on a laptop CPU",
        folder="nano",
    ),
    "glamm-refseg": Preset(
        note="GLaMM-RefSeg: CLIP ViT-L/14-336, Vicuna 7B, SAM ViT-H; 16.8 GB to download",
        hub="MBZUAI/GLaMM-RefSeg",
        tower="openai/clip-vit-large-patch14-336",
    ),
    "tiny-random": Preset(
        note="toy size, random weights: for tests of the machinery, its masks mean nothing",
        random_only=True,
    ),
}


def family(name: str) -> Any:
    """The module of a family."""
    return import_module(FAMILIES[name])
