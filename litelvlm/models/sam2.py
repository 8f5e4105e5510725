"""SAM 2 over transformers' Sam2Model: a picture once, then for every [SEG] the best of three masks.

The embedding follows two tokens that stand for "not a point", as Sa2VA was trained. What its
checkpoints say about "no object here" is not applied, as there.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Sam2Config, Sam2Model

from litelvlm.geometry import MaskFrame
from litelvlm.models.names import Place

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Hiera-L, of which Sa2VA's config.json says nothing.
HIERA_L: dict[str, Any] = {
    "vision_config": {
        "backbone_config": {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": 144,
            "embed_dim_per_stage": [144, 288, 576, 1152],
            "num_attention_heads_per_stage": [2, 4, 8, 16],
            "blocks_per_stage": [2, 6, 36, 4],
            "global_attention_blocks": [23, 33, 43],
            "window_positional_embedding_background_size": [7, 7],
            "window_size_per_stage": [8, 4, 16, 8],
        },
        "backbone_channel_list": [1152, 576, 288, 144],
    }
}

# What only video needs.
_VIDEO = re.compile(r"^(memory_|maskmem_|mask_downsample|no_mem_pos_enc|no_obj_|obj_ptr_)")
_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
        (r"^image_encoder\.neck\.convs\.(\d+)\.conv\.", r"vision_encoder.neck.convs.\1."),
        (r"^sam_prompt_encoder\.", "prompt_encoder."),
        (r"^sam_mask_decoder\.", "mask_decoder."),
        (r"^no_mem_embed$", "no_memory_embedding"),
        (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
        (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
        (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
        (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
        (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
        (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
        (r"\.output_upscaling\.0\.", ".upscale_conv1."),
        (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
        (r"\.output_upscaling\.3\.", ".upscale_conv2."),
        (r"\.mlp\.layers\.0\.", ".mlp.proj_in."),
        (r"\.mlp\.layers\.1\.", ".mlp.proj_out."),
        (r"((?:_mlps\.\d+|_head))\.layers\.0\.", r"\1.proj_in."),
        (r"((?:_mlps\.\d+|_head))\.layers\.2\.", r"\1.proj_out."),
        (r"((?:_mlps\.\d+|_head))\.layers\.1\.", r"\1.layers.0."),
        (r"\.norm", ".layer_norm"),
        (r"\.out_proj\.", ".o_proj."),
    ]
]


def place_sam2(key: str) -> Place | tuple[Place, ...] | None:
    """SAM 2's own name of a weight -> transformers' name; None for what only video needs."""
    if _VIDEO.match(key):
        return None
    if key.endswith("pe_layer.positional_encoding_gaussian_matrix"):
        return (
            Place("shared_image_embedding.positional_embedding"),
            Place("prompt_encoder.shared_embedding.positional_embedding"),
        )
    if point := re.fullmatch(r"sam_prompt_encoder\.point_embeddings\.(\d)\.weight", key):
        return Place("prompt_encoder.point_embed.weight", part=int(point[1]))
    for pattern, replacement in _RULES:
        key = pattern.sub(replacement, key)
    return Place(key)


def build_sam2(config: dict[str, Any]) -> Sam2Model:
    """Sam2Model from the arguments of its configuration."""
    return Sam2Model(Sam2Config(**config))


class Sam2Segmenter:
    """Masks from [SEG] embeddings.

    Args:
        sam: the module, from `build_sam2`.
    """

    def __init__(self, sam: Sam2Model) -> None:
        self.sam: Any = sam
        config: Any = sam.config
        self.size: int = config.prompt_encoder_config.image_size

    def frame(self, image_hw: tuple[int, int]) -> MaskFrame:
        """How a mask, a quarter of the square's side, comes back onto a picture of (H, W)."""
        side = self.size // 4
        return MaskFrame(side, (side, side), image_hw)

    def pixels(self, image: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 -> (1, 3, S, S) float32: squeezed into the square and normalised."""
        from PIL import Image

        resized = Image.fromarray(image).resize((self.size,) * 2, Image.Resampling.BILINEAR)
        square = torch.from_numpy(np.array(resized))
        return ((square / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)[None]

    def encode(self, pixels: Tensor) -> list[Tensor]:
        """(1, 3, S, S) -> its features at three sizes, coarsest last."""
        return self.sam.get_image_embeddings(pixels.to(self.sam.dtype))

    def decode(self, embedding: list[Tensor], prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Of the three masks of each prompt the one with the best predicted IoU.

        Args:
            embedding: from `encode`.
            prompts: (P, C), [SEG] embeddings.

        Returns:
            (P, S / 4, S / 4) mask logits, and (P,) their predicted IoU.
        """
        count = len(prompts)
        blank = prompts.new_zeros(1, count, 1, 2)
        labels = torch.full((1, count, 1), -1, device=prompts.device)
        sparse, dense = self.sam.get_prompt_embeddings(input_points=blank, input_labels=labels)
        own = prompts.to(sparse.dtype).view(1, count, 1, -1)
        masks, quality, _, _ = self.sam.mask_decoder(
            image_embeddings=embedding[-1],
            image_positional_embeddings=self.sam.get_image_wide_positional_embeddings(),
            sparse_prompt_embeddings=torch.cat([sparse, own], 2),
            dense_prompt_embeddings=dense,
            multimask_output=True,
            high_resolution_features=embedding[:-1],
        )
        best = quality[0].argmax(-1)
        row = torch.arange(count, device=best.device)
        return masks[0, row, best], quality[0, row, best]
