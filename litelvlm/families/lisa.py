"""LISA: what GLaMM grew out of, with CLIP at 224 px and one projector layer.

Lai et al., LISA: Reasoning Segmentation via Large Language Model, CVPR 2024. The parts, the state
that prompts SAM (the one that predicts [SEG]) and the way through them are GLaMM's; the mask
branch is called `model.visual_model...` in its checkpoints and CLIP is never among them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from litelvlm.config import ModelConfig
from litelvlm.families.clip_llama import blocks, build, tokens, wrap_as
from litelvlm.families.glamm import QUESTIONS, Glamm
from litelvlm.families.glamm_files import PROMPT as GLAMM_PROMPT
from litelvlm.families.glamm_files import open_original, place_glamm, sized_config
from litelvlm.models.bundle import GroundingModel
from litelvlm.models.files import ModelSource
from litelvlm.models.names import Place

__all__ = [
    "Lisa",
    "blocks",
    "build",
    "open_folder",
    "random_config",
    "recognises",
    "tokens",
    "wrap",
]

# The picture opens the question; the wording is that of its validation on referring expressions.
PROMPT = replace(
    GLAMM_PROMPT,
    image_sentence="<image>\n",
    question="What is {phrase} in this image? Please output segmentation mask.",
    answer="[SEG].",
)


class Lisa(Glamm):
    """A LISA in memory: a GLaMM that knows fewer wordings."""

    questions = QUESTIONS[:1] + QUESTIONS[2:4]


def recognises(raw: dict[str, Any]) -> bool:
    """Whether a config.json is of this family's original layout."""
    kinds = raw.get("architectures") or ()
    return "bbox_token_idx" not in raw and "LISAForCausalLM" in kinds


def open_folder(folder: Path, raw: dict[str, Any], tower: str | Path | None) -> ModelSource:
    """Open a model folder whose config.json is recognised; see `glamm_files.open_original`."""
    raw = {"mm_vision_tower": "openai/clip-vit-large-patch14", **raw}
    return open_original(folder, raw, tower, place_lisa, PROMPT, "lisa")


def place_lisa(key: str) -> Place | None:
    """Where a tensor of a LISA checkpoint goes; None where it is knowingly left out."""
    stem = "model.visual_model."
    if key.startswith(stem):
        key = "model.grounding_encoder." + key.removeprefix(stem)
    elif key.startswith("model.grounding_encoder."):
        return Place(key)  # not of this layout: reported
    return place_glamm(key)


def random_config(name: str) -> ModelConfig:
    """The configuration of a preset whose weights are drawn."""
    large = name == "lisa-13b"
    return sized_config(
        name,
        PROMPT,
        224,
        4096 if large else 2048,
        1e-5 if large else 1e-6,
        llama=(5120, 13824, 40, 40) if large else (4096, 11008, 32, 32),
        projector="linear",
    )


def wrap(model: GroundingModel, config: ModelConfig, folder: Path | None) -> Glamm:
    """A filled module as a LISA; see `clip_llama.wrap_as`."""
    return wrap_as(Lisa, model, config, folder)
