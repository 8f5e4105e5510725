"""Names of weights: where a tensor of a published checkpoint belongs in this project's modules.

Pure functions over strings and shapes; nothing is loaded here. The parts that several families
share; a family adds the names of its own checkpoints. Known here:

    ours   what `litelvlm convert` writes. Prefixes `dual_encoder.` (open_clip's CLIP), `language.`
           (transformers' LlamaForCausalLM), `projector.`, `seg_head.`, `segmenter.`
           (transformers' SamModel).
    CLIP   Hugging Face's CLIPModel: `vision_model...`, `text_model...`, projections.
    SAM    Meta's own: `image_encoder...`, `prompt_encoder...`, `mask_decoder...`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Mean and spread of the RGB channels, 0..1 scale, that OpenAI's CLIP was trained with.
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]

# The same of SAM, 0..255 scale.
SAM_MEAN = (123.675, 116.28, 103.53)
SAM_STD = (58.395, 57.12, 57.375)

# Published CLIPs by (width, image size, patch size) of their vision tower.
CLIP_FILES = {
    (1024, 336, 14): "openai/clip-vit-large-patch14-336",
    (1024, 224, 14): "openai/clip-vit-large-patch14",
}

PREFIXES = ("dual_encoder", "language", "projector", "seg_head", "segmenter")


@dataclass(frozen=True)
class Place:
    """Where one tensor of a checkpoint goes.

    Attributes:
        name: our name.
        part: its number where the tensor is a piece of a joined one, such as query, key and value.
        transpose: the two axes are swapped.
        rows: (groups, first, last, of): the first axis is that many groups of `of` equal shares,
            and shares first..last of each group are taken.
    """

    name: str
    part: int | None = None
    transpose: bool = False
    rows: tuple[int, int, int, int] | None = None


def renamed(key: str, starts: dict[str, str]) -> str:
    """A name with the first of the beginnings that it has, theirs -> ours, exchanged."""
    for theirs, ours in starts.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return key


# What a checkpoint may hold though the configuration tells it: rotary frequencies, numbers.
COMPUTED = re.compile(r"rotary_emb\.inv_freq$|(^|\.)embeddings\.position_ids$")

# SAM's own names to transformers' names, in order; each pattern sees the result of the last.
_SAM = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        # image encoder
        (r"^image_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision_encoder.layers.\1.layer_norm\2."),
        (r"^image_encoder\.blocks\.", r"vision_encoder.layers."),
        (r"^image_encoder\.patch_embed\.proj\.", r"vision_encoder.patch_embed.projection."),
        (r"^image_encoder\.neck\.0\.", r"vision_encoder.neck.conv1."),
        (r"^image_encoder\.neck\.1\.", r"vision_encoder.neck.layer_norm1."),
        (r"^image_encoder\.neck\.2\.", r"vision_encoder.neck.conv2."),
        (r"^image_encoder\.neck\.3\.", r"vision_encoder.neck.layer_norm2."),
        (r"^image_encoder\.", r"vision_encoder."),
        # prompt encoder
        (
            r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$",
            r"shared_image_embedding.positional_embedding",
        ),
        (r"^prompt_encoder\.point_embeddings\.", r"prompt_encoder.point_embed."),
        (r"^prompt_encoder\.mask_downscaling\.0\.", r"prompt_encoder.mask_embed.conv1."),
        (r"^prompt_encoder\.mask_downscaling\.1\.", r"prompt_encoder.mask_embed.layer_norm1."),
        (r"^prompt_encoder\.mask_downscaling\.3\.", r"prompt_encoder.mask_embed.conv2."),
        (r"^prompt_encoder\.mask_downscaling\.4\.", r"prompt_encoder.mask_embed.layer_norm2."),
        (r"^prompt_encoder\.mask_downscaling\.6\.", r"prompt_encoder.mask_embed.conv3."),
        # mask decoder
        (r"^(mask_decoder\.transformer\.layers\.\d+)\.norm([1-4])\.", r"\1.layer_norm\2."),
        (r"^(mask_decoder\.transformer)\.norm_final_attn\.", r"\1.layer_norm_final_attn."),
        (r"^mask_decoder\.output_upscaling\.0\.", r"mask_decoder.upscale_conv1."),
        (r"^mask_decoder\.output_upscaling\.1\.", r"mask_decoder.upscale_layer_norm."),
        (r"^mask_decoder\.output_upscaling\.3\.", r"mask_decoder.upscale_conv2."),
        # Three-layer perceptrons: 0, 1, 2 are called proj_in, layers.0, proj_out.
        (r"^(mask_decoder\.(?:output_hyper.+|iou_prediction_head))\.layers\.0\.", r"\1.proj_in."),
        (r"^(mask_decoder\.(?:output_hyper.+|iou_prediction_head))\.layers\.2\.", r"\1.proj_out."),
        (r"^(mask_decoder\.(?:output_hyper.+|iou_prediction_head))\.layers\.1\.", r"\1.layers.0."),
    ]
]


def place_sam(key: str) -> str:
    """SAM's own name of a weight -> transformers' name."""
    for pattern, replacement in _SAM:
        key = pattern.sub(replacement, key)
    return key


_CLIP_BLOCK = re.compile(r"^encoder\.layers\.(\d+)\.(.+)\.(weight|bias)$")
_CLIP_LAYERS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_CLIP_REST = {
    "vision": {
        "embeddings.class_embedding": "visual.class_embedding",
        "embeddings.patch_embedding.weight": "visual.conv1.weight",
        "embeddings.position_embedding.weight": "visual.positional_embedding",
        "pre_layrnorm.weight": "visual.ln_pre.weight",  # spelt so in the checkpoints
        "pre_layrnorm.bias": "visual.ln_pre.bias",
        "post_layernorm.weight": "visual.ln_post.weight",
        "post_layernorm.bias": "visual.ln_post.bias",
    },
    "text": {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    },
}
_CLIP_TOP = {
    "visual_projection.weight": Place("dual_encoder.visual.proj", transpose=True),
    "text_projection.weight": Place("dual_encoder.text_projection", transpose=True),
    "logit_scale": Place("dual_encoder.logit_scale"),
}


def place_clip(key: str, tower: str = "vision") -> Place | None:
    """Where a tensor of Hugging Face's CLIP goes in open_clip's CLIP; None where it is left out.

    Args:
        key: nested (`vision_model.encoder...`) or flattened (`encoder...`) name.
        tower: "vision" or "text", the tower of a flattened name.

    An unknown name comes back unchanged.
    """
    if COMPUTED.search(key):
        return None
    if key in _CLIP_TOP:
        return _CLIP_TOP[key]
    name = key
    while name.startswith(("vision_model.", "text_model.")):
        head, _, name = name.partition(".")
        tower = head.removesuffix("_model")
    block = _CLIP_BLOCK.match(name)
    if block is None:
        known = _CLIP_REST[tower].get(name)
        return Place(f"dual_encoder.{known}" if known else key)
    number, layer, leaf = block.groups()
    stem = "visual.transformer" if tower == "vision" else "transformer"
    stem = f"dual_encoder.{stem}.resblocks.{number}"
    if layer in _CLIP_LAYERS:
        return Place(f"{stem}.{_CLIP_LAYERS[layer]}.{leaf}")
    joined = {"self_attn.q_proj": 0, "self_attn.k_proj": 1, "self_attn.v_proj": 2}
    if layer in joined:
        return Place(f"{stem}.attn.in_proj_{leaf}", part=joined[layer])
    return Place(key)


def place_ours(key: str) -> Place | None:
    """Our own layout: every name is its own place."""
    return Place(key)


# Hugging Face leaves settings at their default out of config.json.
_VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_TEXT_DEFAULTS: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


def clip_config(raw: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None) -> dict:
    """The `dual_encoder` part of a `ModelConfig` from Hugging Face CLIP's config.json.

    Args:
        raw: the parsed config.json.
        preprocessor: the parsed preprocessor_config.json, for mean and spread of the channels.

    Raises:
        ValueError: activations that open_clip's CLIP cannot have.
    """
    vision = _VISION_DEFAULTS | dict(raw.get("vision_config") or {})
    text = _TEXT_DEFAULTS | dict(raw.get("text_config") or {})
    acts = {vision["hidden_act"], text["hidden_act"]}
    if acts != {"quick_gelu"} and acts != {"gelu"}:
        raise ValueError(f"activations {sorted(acts)}, expected quick_gelu or gelu in both towers")
    preprocessor = preprocessor or {}

    def tower(of: Mapping[str, Any]) -> dict[str, Any]:
        common = {
            "width": of["hidden_size"],
            "layers": of["num_hidden_layers"],
            "mlp_ratio": of["intermediate_size"] / of["hidden_size"],
        }
        if of["layer_norm_eps"] != 1e-5:  # open_clip's own
            common["norm_kwargs"] = {"eps": of["layer_norm_eps"]}
        return common

    return {
        "embed_dim": raw.get("projection_dim", 512),
        "vision_cfg": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            **tower(vision),
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "heads": text["num_attention_heads"],
            **tower(text),
        },
        "quick_gelu": acts == {"quick_gelu"},
        "image_mean": list(preprocessor.get("image_mean", CLIP_MEAN)),
        "image_std": list(preprocessor.get("image_std", CLIP_STD)),
    }


def sam_config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, Any]]:
    """The `segmenter` part of a `ModelConfig`, read off the shapes of SAM's weights.

    GLaMM's config.json says nothing about SAM. All sizes follow from shapes but the number of heads
    of the mask decoder, which is 8 in every published SAM.

    Args:
        shapes: shape of every weight under our names (`segmenter.` prefix).

    Raises:
        KeyError: a weight that the sizes are read from is missing.
    """
    prefix = "segmenter.vision_encoder."
    position = shapes[prefix + "pos_embed"]  # (1, rows, columns, width)
    grid, width = position[1], position[3]
    depth = _count(shapes, prefix + r"layers\.(\d+)\.")
    spans = [shapes[f"{prefix}layers.{i}.attn.rel_pos_h"] for i in range(depth)]  # (2 size - 1, d)
    sizes = [(span[0] + 1) // 2 for span in spans]
    windows = [size for size in sizes if size != grid]
    decoder = "segmenter.mask_decoder."
    return sam_sizes(
        grid=grid,
        patch=shapes[prefix + "patch_embed.projection.weight"][2],
        width=width,
        mlp=shapes[prefix + "layers.0.mlp.lin1.weight"][0],
        heads=width // spans[0][1],
        depth=depth,
        whole=[i for i, size in enumerate(sizes) if size == grid],
        window=windows[0] if windows else 0,
        out=shapes[prefix + "neck.conv2.weight"][0],
        frequencies=shapes["segmenter.shared_image_embedding.positional_embedding"][1],
        hidden=shapes["segmenter.prompt_encoder.no_mask_embed.weight"][1],
        mask_channels=shapes["segmenter.prompt_encoder.mask_embed.conv2.weight"][0],
        decoder_mlp=shapes[decoder + "transformer.layers.0.mlp.lin1.weight"][0],
        decoder_depth=_count(shapes, decoder + r"transformer\.layers\.(\d+)\."),
        quality=shapes[decoder + "iou_prediction_head.proj_in.weight"][0],
    )


def sam_sizes(
    *,
    grid: int,
    width: int,
    depth: int,
    heads: int,
    whole: list[int],
    mlp: int,
    out: int,
    hidden: int,
    frequencies: int,
    patch: int = 16,
    window: int = 14,
    mask_channels: int = 16,
    decoder_mlp: int = 2048,
    decoder_depth: int = 2,
    quality: int = 256,
) -> dict[str, dict[str, Any]]:
    """The `segmenter` part of a `ModelConfig` from the sizes of a SAM.

    Args:
        grid: patches a side of the square picture; `patch`: pixels a side of a patch.
        width, depth, heads, mlp: of the image encoder; `whole`: its blocks that attend over the
            whole picture, the others in windows of `window` patches.
        out: channels of the picture's embedding; `hidden`: of the prompts.
        frequencies: of the random position encoding.
        mask_channels: of the (unused) mask prompt.
        decoder_mlp, decoder_depth: of the two-way transformer; quality: width of its IoU head.
    """
    square = {"image_size": grid * patch, "patch_size": patch}
    return {
        "vision_config": {
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "global_attn_indexes": whole,
            **square,
            "window_size": window,
            "mlp_ratio": mlp / width,
            "mlp_dim": mlp,
            "output_channels": out,
            "num_pos_feats": frequencies,
            "layer_norm_eps": 1e-6,
        },
        "prompt_encoder_config": {
            "hidden_size": hidden,
            **square,
            "image_embedding_size": grid,
            "mask_input_channels": mask_channels,
            "layer_norm_eps": 1e-6,
        },
        "mask_decoder_config": {
            "hidden_size": hidden,
            "mlp_dim": decoder_mlp,
            "num_hidden_layers": decoder_depth,
            "num_attention_heads": 8,
            "iou_head_hidden_dim": quality,
            # transformers' default is 1e-6; the two-way blocks were trained with 1e-5.
            "layer_norm_eps": 1e-5,
        },
    }


def _count(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int:
    """One more than the highest number that `pattern` finds at the start of a name."""
    found = [int(hit[1]) for name in shapes if (hit := re.match(pattern, name))]
    return max(found, default=-1) + 1
