"""Sa2VA on Qwen-VL: a picture at its own shape, M-RoPE and DeepStack, [SEG] states into SAM 2.

The layout of ByteDance/Sa2VA-Qwen2_5-VL-3B, -7B and Sa2VA-Qwen3-VL-2B, -4B, built from
transformers' own Qwen-VL parts, none of the code beside the weights. A token is 28 x 28 pixels of a
picture resized to at most 2,048 of them (Qwen2.5), or 32 x 32 (Qwen3). Its position is a time, a
row and a column, which a kept token keeps. What Qwen3's tower adds in the first layers of the
language model (DeepStack) is gathered like the tokens. Key frames of a clip are pictures one after
another, each numbered behind the last, without timestamps, as Sa2VAChatModelQwen.predict_forward
asks (projects/sa2va/hf/models_qwen/modeling_sa2va_qwen.py). All else is as in `sa2va`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, Qwen2VLImageProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from litelvlm.errors import InputError, ModelError, one_line
from litelvlm.families.glamm import Prompted
from litelvlm.families.glamm_files import stand_in_tokenizer
from litelvlm.families.sa2va import Sa2va, Seen, blocks, open_tokenizer
from litelvlm.families.sa2va_files import (
    GUIDE,
    SAM,
    Sa2vaConfig,
    place_segmenter,
    side_clip,
)
from litelvlm.geometry import PatchFrame
from litelvlm.models.dual_encoder import DualEncoder, build_clip
from litelvlm.models.files import ModelSource, index
from litelvlm.models.language import build_seg_head, wrap_tokenizer
from litelvlm.models.mrope import compact_positions, prompt_positions
from litelvlm.models.names import COMPUTED, Place, renamed
from litelvlm.models.sam2 import HIERA_L, build_sam2, sam2_config
from litelvlm.profiling import Profiler
from litelvlm.pruning import Selection
from litelvlm.question import Question
from litelvlm.scene import EncodedImage

__all__ = [
    "Sa2vaQwen",
    "blocks",
    "build",
    "open_folder",
    "random_config",
    "recognises",
    "tokens",
    "wrap",
]

KINDS = ("qwen2_5_vl", "qwen3_vl")
TOKENS = {
    "seg": "[SEG]",
    "img": "<|vision_start|>",
    "img_end": "<|vision_end|>",
    "eos": "<|im_end|>",
}
# Pixels of a picture as both lines of models are asked, whatever the side of their tokens.
LEAST, MOST = 512 * 28 * 28, 2048 * 28 * 28
# Of config.json, what is not the Qwen-VL's own.
OUTER = ("model_type", "architectures", "auto_map", "template", "sam2_config")


class QwenLanguage(nn.Module):
    """Qwen-VL's language model with its output layer, without its vision tower."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.model: Any = AutoModel.from_config(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.get_input_embeddings().weight

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of words."""
        return self.model.embed_tokens

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return self.lm_head.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.lm_head.weight.device


class Sa2vaQwenModel(nn.Module):
    """All parts side by side."""

    def __init__(self, config: Sa2vaConfig) -> None:
        super().__init__()
        vision = AutoConfig.for_model(f"{config.kind}_vision", **config.vision)
        text = AutoConfig.for_model(f"{config.kind}_text", **config.language)
        self.vision: Any = AutoModel.from_config(vision)
        self.language = QwenLanguage(text)
        self.segmenter: Any = build_sam2(config.sam)
        hidden = config.sam.get("prompt_encoder_config", {}).get("hidden_size", 256)
        self.seg_head = build_seg_head(text.hidden_size, hidden)
        self.dual_encoder: Any = None if config.clip is None else build_clip(config.clip)


def recognises(raw: dict[str, Any]) -> bool:
    """Whether a config.json is of this family's original layout."""
    return raw.get("model_type") == "sa2va_chat" and not isinstance(raw.get("llm_config"), dict)


def open_folder(folder: Path, raw: dict[str, Any], tower: str | Path | None) -> ModelSource:
    """Open a model folder whose config.json is recognised; see `sa2va_files.open_folder`."""
    where, vision = folder / "config.json", raw.get("vision_config")
    given = vision.get("model_type", "none") if isinstance(vision, dict) else "none"
    kind = str(given).removesuffix("_vision")
    if kind not in KINDS:
        raise ModelError(f"{where}: vision tower is {given}, expected {' or '.join(KINDS)}")
    try:  # older files hold the language model's settings in the open
        own: Any = AutoConfig.for_model(kind, **{k: raw[k] for k in raw if k not in OUTER})
    except Exception as fault:  # transformers' checks raise bare Exceptions
        raise ModelError(f"{where}: {one_line(fault)}") from None
    clip, parts = side_clip(folder, tower)
    entries, ignored = index([*parts, (folder, place_sa2va_qwen)])
    language, sight = own.text_config.to_dict(), own.vision_config.to_dict()
    if embedding := entries.get("language.model.embed_tokens.weight"):
        language["vocab_size"] = embedding.shape[0]
    language["tie_word_embeddings"] = "language.lm_head.weight" not in entries
    for settings in (language, sight):
        settings.pop("model_type")
    sam = sam2_config(raw.get("sam2_config", HIERA_L), list(entries))
    config = Sa2vaConfig(folder.name, sight, kind, language, sam, clip, str(tower or GUIDE))
    return ModelSource(config, folder, "sa2va-qwen", entries, ignored)


def place_sa2va_qwen(key: str) -> Place | tuple[Place, ...] | None:
    """Where a tensor of a checkpoint goes; None where it is knowingly left out."""
    if COMPUTED.search(key):
        return None
    if key.startswith(SAM):
        return place_segmenter(key)
    starts = {
        "model.model.visual.": "vision.",
        "model.model.language_model.": "language.model.",
        "model.lm_head.": "language.lm_head.",
        "text_hidden_fcs.": "seg_head.",
    }
    return Place(renamed(key, starts))


def random_config(name: str) -> Sa2vaConfig:
    """The configuration of a preset whose weights are drawn."""
    sizes = {  # width, perceptron, layers, heads, key-value heads
        "sa2va-qwen2.5-3b": (2048, 11_008, 36, 16, 2),
        "sa2va-qwen2.5-7b": (3584, 18_944, 28, 28, 4),
        "sa2va-qwen3-2b": (2048, 6144, 28, 16, 8),
        "sa2va-qwen3-4b": (2560, 9728, 36, 32, 8),
    }
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    language: dict[str, Any] = dict(zip((*names, "num_key_value_heads"), sizes[name], strict=True))
    language |= {"rms_norm_eps": 1e-6, "max_position_embeddings": 128_000}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    kind, vocabulary = KINDS[0], 151_670
    vision: dict[str, Any] = {"hidden_size": 1280, "out_hidden_size": sizes[name][0]}
    if "qwen3" in name:
        kind, vocabulary = KINDS[1], 151_674
        rope |= {"rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
        language |= {"head_dim": 128, "max_position_embeddings": 262_144}
        vision |= {"hidden_size": 1024, "intermediate_size": 4096, "depth": 24}
        vision["deepstack_visual_indexes"] = [5, 11, 17]
    language |= {"rope_parameters": rope, "vocab_size": vocabulary, "tie_word_embeddings": False}
    clip = DualEncoder.named("ViT-B-16-quickgelu", "openai")
    return Sa2vaConfig(name, vision, kind, language, clip=clip)


def build(config: Sa2vaConfig) -> Sa2vaQwenModel:
    """The module that the weights of a configuration fill."""
    try:
        return Sa2vaQwenModel(config)
    except (TypeError, ValueError, KeyError) as fault:
        raise ModelError(f"{config.name}: config.json: {one_line(fault)}") from None


def tokens(config: Sa2vaConfig) -> int:
    """N of the largest picture."""
    return MOST // _token_side(config) ** 2


def _token_side(config: Sa2vaConfig) -> int:
    patch = 14 if config.kind == "qwen2_5_vl" else 16
    return config.vision.get("patch_size", patch) * config.vision.get("spatial_merge_size", 2)


def wrap(model: Sa2vaQwenModel, config: Sa2vaConfig, folder: Path | None) -> Sa2vaQwen:
    """A filled module with the tokenizer and the image processor of its folder.

    Raises:
        ModelError: one of them cannot be read or lacks a special token.
    """
    size: Any = {"min_pixels": LEAST, "max_pixels": MOST}
    if folder is None:
        if config.kind == "qwen3_vl":
            size |= {"patch_size": 16, "image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
        processor = Qwen2VLImageProcessor(**size)
        last = config.language["vocab_size"] - 1
        ids = {name: last - number for number, name in enumerate(TOKENS)}
        return Sa2vaQwen(model, config, wrap_tokenizer(stand_in_tokenizer()), ids, processor)
    try:
        processor = Qwen2VLImageProcessor.from_pretrained(folder, local_files_only=True, **size)
    except Exception as fault:  # the library raises bare Exceptions
        raise ModelError(f"{folder}: image processor cannot be read ({one_line(fault)})") from None
    return Sa2vaQwen(model, config, *open_tokenizer(folder, TOKENS), processor)


class Sa2vaQwen(Sa2va):
    """A Sa2VA on Qwen-VL in memory.

    Args:
        model: all weights, in evaluation mode.
        config: its configuration.
        tokenizer: of the language model.
        ids: of the special tokens, keys of `TOKENS`.
        processor: resizes a picture and cuts its patches.
    """

    most = staticmethod(tokens)
    gap = ""

    def __init__(
        self,
        model: nn.Module,
        config: Sa2vaConfig,
        tokenizer: Any,
        ids: dict[str, int],
        processor: Qwen2VLImageProcessor,
    ) -> None:
        super().__init__(model, config, tokenizer, ids)
        self.processor = processor

    def _see(
        self, image: np.ndarray, hw: tuple[int, int], most: int = 0
    ) -> tuple[Seen, PatchFrame]:
        cut: Any = self.processor(_rounded(image), return_tensors="pt")
        seen = self.model.vision(
            cut.pixel_values.to(self.device, self.dtype), grid_thw=cut.image_grid_thw
        )
        merge = self.model.vision.spatial_merge_size
        _, rows, columns = (cut.image_grid_thw[0] // merge).tolist()
        deep = getattr(seen, "deepstack_features", None)
        found = Seen(seen.pooler_output[None], torch.stack(deep) if deep else None)
        return found, PatchFrame((rows, columns), hw, "whole")

    def sequence(  # noqa: D102
        self,
        scene: EncodedImage,
        question: Question,
        selection: Selection | None,
        profiler: Profiler,
    ) -> Prompted:
        prompted = super().sequence(scene, _by_column(question), selection, profiler)
        return self._numbered(prompted, [scene], question)

    def _clip_sequence(
        self,
        scenes: Sequence[EncodedImage],
        question: Question,
        selections: Sequence[Selection | None],
    ) -> Prompted:
        prompted = super()._clip_sequence(scenes, _by_column(question), selections)
        return self._numbered(prompted, scenes, question)

    def _numbered(
        self, prompted: Prompted, scenes: Sequence[EncodedImage], question: Question
    ) -> Prompted:
        """Columns of the unpruned prompt exchanged for M-RoPE; DeepStack read at them."""
        batch, start = prompted.batch, prompted.batch.image_start
        columns = batch.positions  # (P, S)
        marks = 2  # an end and a start, between pictures
        pieces: list[int | tuple[int, int]] = [start]
        for scene in scenes:
            pieces += [scene.frame.grid, marks]
        pieces[-1] = columns.shape[1] - start - prompted.kept
        axes, pictures = prompt_positions(pieces)  # (3, L), (L,)
        axes, pictures = axes.to(self.device), pictures.to(self.device)
        positions = axes[:, columns]  # (3, P, S)
        if question.positions == "compact":
            rows = zip(positions.unbind(1), pictures[columns], strict=True)
            positions = torch.stack([compact_positions(*row) for row in rows], 1)
        deep: Tensor | None = None
        if scenes[0].tokens.deep is not None:
            # Text reads the zeros behind the last token.
            added = F.pad(torch.cat([scene.tokens.deep for scene in scenes], 1), (0, 0, 0, 1))
            tokens = torch.where(pictures < 0, 0, (pictures >= 0).cumsum(0)) - 1
            deep = added[:, tokens[columns]]  # (D, P, S, L)
        return replace(prompted, batch=replace(batch, positions=positions, deep=deep))


def _by_column(question: Question) -> Question:
    """The question whose tokens are numbered by their columns in the unpruned prompt."""
    return replace(question, positions="original")


def _rounded(image: np.ndarray) -> Any:
    """A picture with sides of whole multiples of 28, as qwen_vl_utils hands it to the processor."""
    from PIL import Image

    height, width = image.shape[:2]
    if max(height, width) > 200 * min(height, width):
        raise InputError(f"Qwen-VL takes sides of at most 1 : 200, got {height} x {width}")
    height, width = smart_resize(height, width, 28, 4 * 28 * 28, 16_384 * 28 * 28)
    return Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
