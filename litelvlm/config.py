"""Configurations of models: frozen records that mirror the config.json of a model folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from litelvlm.errors import ModelError
from litelvlm.resources import read_json

FORMAT = "litelvlm-1"


@dataclass(frozen=True)
class PromptConfig:
    """The conversation around the picture. `{phrase}` and `<image>` are the two blanks.

    Laid out as `SYSTEM USER: IMAGE_SENTENCE QUESTION ASSISTANT: ANSWER</s>`, further turns
    appended; `<image>` becomes `<im_start>` + image tokens + `<im_end>`.
    """

    system: str
    user: str = "USER"
    assistant: str = "ASSISTANT"
    separators: tuple[str, str] = (" ", "</s>")
    image_sentence: str = "The <image> provides an overview of the picture.\n"
    question: str = "Please segment {phrase} in this image."
    answer: str = "It is [SEG]."


@dataclass(frozen=True)
class SelectionConfig:
    """The choices the paper leaves open; the defaults are a model's own.

    Attributes:
        split: "paper", "released" or a fraction in 0..1 of tokens kept for low similarity.
        order: "raster" or "released".
        positions: "compact" (0, 1, 2, ... over the kept tokens) or "original" (each kept token
            keeps the position it has in the unpruned prompt).
        context: "released" (in effect the norm of the values) or "attention" (per head).
        text: what CLIP reads: "phrase", "question" or "templates" (several wordings, averaged).
        view: what CLIP sees of a picture that is not square: "crop" (the middle, as GLaMM) or
            "letterbox" (all of it, padded); "whole" (squeezed) for models that see that alone.
    """

    split: str | float = "paper"
    order: str = "raster"
    positions: str = "compact"
    context: str = "released"
    text: str = "phrase"
    view: str = "crop"


POSITIONS = ("compact", "original")
CONTEXTS = ("released", "attention")
# What the text tower reads for a phrase; embeddings of several wordings are averaged. A model may
# have a question of its own.
WORDINGS: dict[str, tuple[str, ...]] = {
    "phrase": ("{}",),
    "question": ("Please segment {} in this image.",),
    "templates": (
        "{}",
        "a photo of {}",
        "a picture with {}",
        "where is {}?",
        "{} in this image",
    ),
}
TEXTS = tuple(WORDINGS)
MODES = ("forced", "generate")


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to build a model without its weights.

    Attributes:
        name: shown to users.
        dual_encoder: keyword arguments of open_clip's CLIP (`embed_dim`, `vision_cfg`,
            `text_cfg`, `quick_gelu`), plus `image_mean`, `image_std`.
        language: keyword arguments of transformers' LlamaConfig.
        segmenter: `vision_config`, `prompt_encoder_config`, `mask_decoder_config` of SamConfig;
            empty for a model that answers in text.
        prompt: the conversation format.
        tokens: ids of the special tokens: pad, bos, eos, im_start, im_end, seg, ...
        selection: the defaults for token selection.
        segmenter_place: where a picture stands in SAM's square; see `geometry.sam_corner`.
        confidence: {"found": q, "unsure": q}, least estimates of a mask's IoU at which an answer is
            called so; calibrated on validation data. None where nobody did.
        projector: "mlp" (two layers, GELU between) or "linear" (one).
    """

    name: str
    dual_encoder: dict[str, Any]
    language: dict[str, Any]
    segmenter: dict[str, Any]
    prompt: PromptConfig
    tokens: dict[str, int]
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    segmenter_place: str = "corner"
    confidence: dict[str, float] | None = None
    projector: str = "mlp"

    @staticmethod
    def from_json(path: Path) -> ModelConfig:
        """Read a config.json. Raises `ModelError` naming the file and the fault."""
        raw = read_json(path, dict, ModelError)
        if raw.pop("format", None) != FORMAT:
            raise ModelError(f"{path}: format is not {FORMAT!r}")
        raw.pop("comment", None)
        try:
            prompt = raw.pop("prompt")
            prompt["separators"] = tuple(prompt.get("separators", (" ", "</s>")))
            selection = SelectionConfig(**raw.pop("selection", {}))
            return ModelConfig(prompt=PromptConfig(**prompt), selection=selection, **raw)
        except (KeyError, TypeError) as fault:
            raise ModelError(f"{path}: missing or unknown setting: {fault}") from None

    def to_json(self) -> str:
        """The text of a config.json that `from_json` reads back."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"
