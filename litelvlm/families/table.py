"""The models by name and the families that load them: data, and the only list of either."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

# Family -> its module, which offers `recognises`, `open_folder`, `random_config`, `build`,
# `blocks`, `tokens`, `wrap`.
FAMILIES = {
    "llava-1.5": "litelvlm.families.llava",  # before the more general layouts
    "lisa": "litelvlm.families.lisa",
    "glamm": "litelvlm.families.glamm",
    "florence": "litelvlm.families.florence",
    "sa2va": "litelvlm.families.sa2va",
    "sa2va-qwen": "litelvlm.families.sa2va_qwen",
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
        licence: of the weights; None where their page states none.
        random_only: the model has no trained weights; loading draws them.
        video: it takes clips.
    """

    note: str
    family: str = "glamm"
    hub: str | None = None
    tower: str | None = None
    folder: str | None = None
    licence: str | None = None
    random_only: bool = False
    video: bool = False


_CLIPS = {
    224: "openai/clip-vit-large-patch14",
    336: "openai/clip-vit-large-patch14-336",
}


def _glamm(name: str, note: str, pixels: int = 336) -> Preset:
    return Preset(
        note=f"GLaMM-{name}: {note}",
        hub=f"MBZUAI/GLaMM-{name}",
        licence="Apache-2.0",
        tower=_CLIPS[pixels],
    )


def _sa2va_qwen(model: str, note: str, most: str) -> Preset:
    return Preset(
        note=f"Sa2VA-{model}: {note}, SAM 2 Hiera-L; up to {most} image tokens",
        family="sa2va-qwen",
        hub=f"ByteDance/Sa2VA-{model}",
        video=True,
        licence="Apache-2.0",
        tower="openai/clip-vit-base-patch16",
    )


PRESETS: dict[str, Preset] = {
    "nano": Preset(
        note="small model trained by this project on generated scenes; runs on a laptop CPU",
        licence="Apache-2.0",
        folder="nano",
    ),
    "photo": Preset(
        note="small model for photographs on a pretrained backbone; runs on a laptop CPU",
        licence="Apache-2.0",
        folder="photo",
    ),
    "glamm-refseg": _glamm(
        "RefSeg", "CLIP ViT-L/14-336, Vicuna 7B, SAM ViT-H; 16.8 GB to download"
    ),
    "glamm-fullscope": _glamm("FullScope", "the same sizes, trained on all of its tasks"),
    "glamm-gcg": _glamm("GCG", "the same sizes, captions with masks"),
    "glamm-grand": _glamm("GranD-Pretrained", "the same sizes, before fine-tuning"),
    "glamm-fullscope-v0": _glamm(
        "FullScope_v0", "CLIP at 224 px (256 tokens) and one projector layer", pixels=224
    ),
    "lisa-7b": Preset(
        note="LISA-7B-v1: CLIP ViT-L/14-224 (256 tokens), LLaVA 7B, SAM ViT-H; 16.1 GB",
        family="lisa",
        hub="xinlai/LISA-7B-v1",
        tower=_CLIPS[224],
    ),
    "lisa-13b": Preset(
        note="LISA-13B-llama2-v1: the same with LLaMA 2 13B; 28.5 GB to download",
        family="lisa",
        hub="xinlai/LISA-13B-llama2-v1",
        tower=_CLIPS[224],
    ),
    "llava-1.5-7b": Preset(
        note="LLaVA-1.5: CLIP ViT-L/14-336, Vicuna 7B, answers in text; 14.1 GB to download",
        family="llava-1.5",
        hub="llava-hf/llava-1.5-7b-hf",
        tower="openai/clip-vit-large-patch14-336",
        licence="LLaMA 2 Community",
    ),
    "llava-1.5-13b": Preset(
        note="the same with Vicuna 13B; 26.7 GB to download",
        family="llava-1.5",
        hub="llava-hf/llava-1.5-13b-hf",
        tower="openai/clip-vit-large-patch14-336",
        licence="LLaMA 2 Community",
    ),
    "florence-2-base-ft": Preset(
        note="Florence-2 base, 0.23 B: outlines of phrases in photographs, on a laptop",
        family="florence",
        hub="florence-community/Florence-2-base-ft",
        licence="MIT",
        tower="openai/clip-vit-base-patch16",
    ),
    "florence-2-large-ft": Preset(
        note="Florence-2 large, 0.77 B: the same, larger",
        family="florence",
        hub="florence-community/Florence-2-large-ft",
        licence="MIT",
        tower="openai/clip-vit-base-patch16",
    ),
    "sa2va-1b": Preset(
        note="Sa2VA-1B: InternViT-300M, Qwen2.5 0.5B, SAM 2 Hiera-L; up to 3,328 image tokens",
        family="sa2va",
        hub="ByteDance/Sa2VA-1B",
        video=True,
        licence="Apache-2.0",
        tower="openai/clip-vit-base-patch16",
    ),
    "sa2va-4b": Preset(
        note="Sa2VA-4B: InternViT-300M, Qwen2.5 3B, SAM 2 Hiera-L; up to 3,328 image tokens",
        family="sa2va",
        hub="ByteDance/Sa2VA-4B",
        video=True,
        licence="Apache-2.0",
        tower="openai/clip-vit-base-patch16",
    ),
    "sa2va-8b": Preset(
        note="Sa2VA-8B: InternViT-300M, InternLM2.5 7B, SAM 2 Hiera-L; up to 3,328 image tokens",
        family="sa2va",
        hub="ByteDance/Sa2VA-8B",
        video=True,
        licence="Apache-2.0",
        tower="openai/clip-vit-base-patch16",
    ),
    "sa2va-qwen2.5-3b": _sa2va_qwen("Qwen2_5-VL-3B", "Qwen2.5-VL 3B", "2,048"),
    "sa2va-qwen2.5-7b": _sa2va_qwen("Qwen2_5-VL-7B", "Qwen2.5-VL 7B", "2,048"),
    "sa2va-qwen3-2b": _sa2va_qwen("Qwen3-VL-2B", "Qwen3-VL 2B with DeepStack", "1,568"),
    "sa2va-qwen3-4b": _sa2va_qwen("Qwen3-VL-4B", "Qwen3-VL 4B with DeepStack", "1,568"),
    "tiny-random": Preset(
        note="toy size, random weights: for tests of the machinery, its masks mean nothing",
        random_only=True,
    ),
}

# Family -> how some of its checkpoints' names begin, and no other family's.
SIGNS = {
    "lisa": ("model.visual_model.",),
    "glamm": ("model.grounding_encoder.", "dual_encoder.visual."),
    "sa2va-qwen": ("model.model.visual.",),
    "sa2va": ("grounding_encoder.sam2_model.",),
    "florence": ("model.vision_tower.convs.", "florence."),
}


def looks_like(names: Iterable[str]) -> str | None:
    """The family whose checkpoints hold tensors of these names, or None."""
    known = tuple(names)
    for kind, signs in SIGNS.items():
        if any(name.startswith(signs) for name in known):
            return kind
    return None


def with_video() -> list[str]:
    """Names of the presets that take clips."""
    return [name for name, preset in PRESETS.items() if preset.video]


def family(name: str) -> Any:
    """The module of a family."""
    return import_module(FAMILIES[name])
