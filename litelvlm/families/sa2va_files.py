"""Sa2VA's files: its original checkpoints on InternVL, where their tensors go, its published sizes.

The original names are `vision_model...`, `mlp1...`, `language_model...` (Qwen2's own names, or
InternLM2's with one grouped tensor of queries, keys and values), `text_hidden_fcs...` and
`grounding_encoder.sam2_model...` (SAM 2's own names).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from litelvlm.config import SelectionConfig
from litelvlm.errors import ModelError
from litelvlm.models.dual_encoder import DualEncoder
from litelvlm.models.files import ModelSource, folder_beside, index, read_object
from litelvlm.models.names import COMPUTED, Place, clip_config, place_clip, renamed
from litelvlm.models.sam2 import HIERA_L, place_sam2, sam2_config

KINDS = ("Qwen2ForCausalLM", "InternLM2ForCausalLM")
SAM = "grounding_encoder.sam2_model."
GUIDE = "openai/clip-vit-base-patch16"
# Of llm_config, what transformers' configurations take.
LANGUAGE_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "hidden_act",
)
# Of vision_config: its name there -> here.
VISION_KEYS = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "hidden_act": "hidden_act",
    "layer_norm_eps": "layer_norm_eps",
    "norm_type": "norm_type",
    "qkv_bias": "attention_bias",
    "qk_normalization": "use_qk_norm",
}


@dataclass(frozen=True)
class Wording:
    """What is asked and answered."""

    question: str = "Please segment {phrase} in this image."
    answer: str = "It is [SEG]."


@dataclass(frozen=True)
class Sa2vaConfig:
    """What builds the model.

    Attributes:
        name: shown to users.
        vision: arguments of InternVLVisionConfig.
        kind: of `KINDS`; language: arguments of its configuration.
        sam: arguments of `build_sam2`.
        clip: arguments of `build_clip` for the CLIP that scores; None without one.
        guide: its name, for the record.
    """

    name: str
    vision: dict[str, Any]
    kind: str
    language: dict[str, Any]
    sam: dict[str, Any] = field(default_factory=lambda: HIERA_L)
    clip: dict[str, Any] | None = None
    guide: str = GUIDE
    prompt: Wording = field(default_factory=Wording)
    selection: SelectionConfig = SelectionConfig(view="whole", positions="original")  # noqa: RUF009

    def to_json(self) -> str:
        """Refused: its original layout is the only one that is read."""
        raise ModelError(f"{self.name}: a Sa2VA is read in its original layout and not converted")


def recognises(raw: dict[str, Any]) -> bool:
    """Whether a config.json is of this family's original layout."""
    return raw.get("model_type") == "sa2va_chat" and isinstance(raw.get("llm_config"), dict)


def open_folder(folder: Path, raw: dict[str, Any], tower: str | Path | None) -> ModelSource:
    """Open a model folder whose config.json is recognised.

    Args:
        folder: holds config.json, the weights and the tokenizer.
        raw: the parsed config.json. It says nothing about SAM 2, which is Hiera-L in all published
            checkpoints; `sam2_config`, arguments of `build_sam2`, names another.
        tower: folder or hub id of the CLIP that scores; None takes OpenAI's ViT-B/16; "none"
            leaves it out.

    Raises:
        ModelError: naming the file and the fault.
    """
    where = folder / "config.json"
    own, vision = raw["llm_config"], raw.get("vision_config")
    if not isinstance(vision, dict):
        raise ModelError(f"{where}: no vision_config")
    kind = (own.get("architectures") or ["none"])[0]
    if kind not in KINDS:
        raise ModelError(f"{where}: language model is {kind}, expected {' or '.join(KINDS)}")
    clip, parts = side_clip(folder, tower)
    heads = own["num_attention_heads"]
    groups = own.get("num_key_value_heads") or heads

    def place(key: str) -> Any:
        return place_sa2va(key, groups, heads // groups)

    entries, ignored = index([*parts, (folder, place)])
    embedding = entries.get("language.model.embed_tokens.weight")
    language = {key: own[key] for key in LANGUAGE_KEYS if own.get(key) is not None}
    language["vocab_size"] = embedding.shape[0] if embedding else own["vocab_size"]
    language["tie_word_embeddings"] = "language.lm_head.weight" not in entries
    config = Sa2vaConfig(
        folder.name,
        {ours: vision[theirs] for theirs, ours in VISION_KEYS.items() if theirs in vision},
        kind,
        language,
        sam2_config(raw.get("sam2_config", HIERA_L), list(entries)),
        clip,
        str(tower or GUIDE),
    )
    return ModelSource(config, folder, "sa2va", entries, ignored)


def side_clip(folder: Path, tower: str | Path | None) -> tuple[dict[str, Any] | None, list[Any]]:
    """Arguments of `build_clip` for the CLIP that scores, and its folder for `index`.

    Args:
        folder: of the model.
        tower: as for `open_folder`.
    """
    if str(tower) == "none":
        return None, []
    beside = folder_beside(folder, tower or GUIDE)
    preprocessor = beside / "preprocessor_config.json"
    means = read_object(preprocessor) if preprocessor.is_file() else None
    return clip_config(read_object(beside / "config.json"), means), [(beside, place_clip)]


_VISION = [
    (r"\.embeddings\.class_embedding$", ".embeddings.cls_token"),
    (r"\.position_embedding$", ".position_embeddings"),
    (r"\.patch_embedding\.", ".patch_embeddings.projection."),
    (r"\.layers\.", ".layer."),
    (r"\.ls(\d)$", r".lambda_\1"),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.attn\.", ".attention."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
]
_INTERNLM = [
    (r"\.tok_embeddings\.", ".embed_tokens."),
    (r"\.attention\.wo\.", ".self_attn.o_proj."),
    (r"\.feed_forward\.w1\.", ".mlp.gate_proj."),
    (r"\.feed_forward\.w2\.", ".mlp.down_proj."),
    (r"\.feed_forward\.w3\.", ".mlp.up_proj."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
    (r"^language\.output\.", "language.lm_head."),
]


def place_sa2va(key: str, groups: int, queries: int) -> Place | tuple[Place, ...] | None:
    """Where a tensor of a Sa2VA checkpoint goes; None where it is knowingly left out.

    Args:
        key: its name there.
        groups: key-value heads, and `queries`: query heads for each, which InternLM2 stores
            group by group in one tensor.
    """
    if COMPUTED.search(key):
        return None
    if key.startswith(SAM):
        return place_segmenter(key)
    starts = {
        "vision_model.": "vision.",
        "language_model.": "language.",
        "mlp1.": "projector.",
        "text_hidden_fcs.": "seg_head.",
    }
    key = renamed(key, starts)
    for pattern, replacement in {"v": _VISION, "l": _INTERNLM}.get(key[0], []):
        key = re.sub(pattern, replacement, key)
    shares = {"q_proj": (0, 1), "k_proj": (1, 2), "v_proj": (2, 3)}
    of, joined = (1, 3), "qkv."
    if ".attention.wqkv." in key:
        shares = {"q_proj": (0, queries)}
        shares |= {"k_proj": (queries, queries + 1), "v_proj": (queries + 1, queries + 2)}
        of, joined = (groups, queries + 2), "wqkv."
        key = key.replace(".attention.wqkv.", ".self_attn.wqkv.")
    if f".{joined}" not in key:
        return Place(key)
    return tuple(
        Place(key.replace(joined, f"{name}."), rows=(of[0], *span, of[1]))
        for name, span in shares.items()
    )


def place_segmenter(key: str) -> tuple[Place, ...]:
    """Where a tensor of SAM 2 goes."""
    placed = place_sam2(key.removeprefix(SAM))
    many = placed if isinstance(placed, tuple) else (placed,)
    return tuple(Place(f"segmenter.{at.name}", at.part) for at in many)


def random_config(name: str) -> Sa2vaConfig:
    """The configuration of a preset whose weights are drawn."""
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "attention_bias": True}
    sizes = {  # width, perceptron, layers, heads, key-value heads, vocabulary
        "sa2va-1b": (896, 4864, 24, 14, 2, 151_679),
        "sa2va-4b": (2048, 11_008, 36, 16, 2, 151_679),
        "sa2va-8b": (4096, 14_336, 32, 32, 8, 92_558),
    }
    width, mlp, layers, heads, groups, vocabulary = sizes[name]
    numbers = (width, mlp, layers, heads, groups, 32_768, 1e-6, 1e6)
    language: dict[str, Any] = dict(zip(LANGUAGE_KEYS, numbers, strict=False))
    language |= {"vocab_size": vocabulary, "tie_word_embeddings": False}
    kind = KINDS[name == "sa2va-8b"]
    clip = DualEncoder.named("ViT-B-16-quickgelu", "openai")
    return Sa2vaConfig(name, vision, kind, language, clip=clip)
