"""SAM 2 over transformers' parts: a picture once, then for every [SEG] the best of three masks.

The embedding follows two tokens that stand for "not a point", as Sa2VA was trained. What its
checkpoints say about "no object here" is not applied to pictures and key frames, as there.
In a clip, masks of its key frames go on through Sam2VideoModel's memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    Sam2Config,
    Sam2Model,
    Sam2VideoConfig,
    Sam2VideoInferenceSession,
    Sam2VideoModel,
)

from litelvlm.geometry import MaskFrame
from litelvlm.models.names import Place

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# What SAM 2.1 has and SAM 2 lacks -> the weights that tell.
_NEWER = {
    "enable_temporal_pos_encoding_for_object_pointers": "temporal_positional_encoding_projection",
    "enable_occlusion_spatial_embedding": "occlusion_spatial_embedding_parameter",
}
# Hiera-L, of which Sa2VA's config.json says nothing.
HIERA_L: dict[str, Any] = {
    "video": dict.fromkeys(_NEWER, False),
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
    },
}

_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
        (r"^image_encoder\.neck\.convs\.(\d+)\.conv\.", r"vision_encoder.neck.convs.\1."),
        (r"^sam_prompt_encoder\.", "prompt_encoder."),
        (r"^sam_mask_decoder\.", "mask_decoder."),
        (r"^no_mem_embed$", "no_memory_embedding"),
        (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
        (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
        (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
        (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
        (r"^no_obj_ptr$", "no_object_pointer"),
        (r"^obj_ptr_proj\.layers\.0\.", "object_pointer_proj.proj_in."),
        (r"^obj_ptr_proj\.layers\.2\.", "object_pointer_proj.proj_out."),
        (r"^obj_ptr_proj\.layers\.1\.", "object_pointer_proj.layers.0."),
        (r"^memory_encoder\.out_proj\.", "memory_encoder.projection."),
        (r"^memory_encoder\.pix_feat_proj\.", "memory_encoder.feature_projection."),
        (r"^memory_encoder\.fuser\.", "memory_encoder.memory_fuser."),
        (r"\.dwconv\.", ".depthwise_conv."),
        (r"\.pwconv(\d)\.", r".pointwise_conv\1."),
        (r"\.(gamma|g_weight)$", ".scale"),
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


def place_sam2(key: str) -> Place | tuple[Place, ...]:
    """SAM 2's own name of a weight -> transformers' name."""
    if key.endswith("pe_layer.positional_encoding_gaussian_matrix"):
        return (
            Place("shared_image_embedding.positional_embedding"),
            Place("prompt_encoder.shared_embedding.positional_embedding"),
        )
    if point := re.fullmatch(r"sam_prompt_encoder\.point_embeddings\.(\d)\.weight", key):
        return Place("prompt_encoder.point_embed.weight", part=int(point[1]))
    if step := re.fullmatch(r"memory_encoder\.mask_downsampler\.encoder\.(\d+)\.(.+)", key):
        number, part = divmod(int(step[1]), 3)
        own = f"layers.{number}.{('conv', 'layer_norm')[part]}" if number < 4 else "final_conv"
        return Place(f"memory_encoder.mask_downsampler.{own}.{step[2]}")
    for pattern, replacement in _RULES:
        key = pattern.sub(replacement, key)
    return Place(key)


def sam2_config(given: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Arguments of `build_sam2` for a checkpoint.

    Args:
        given: what its configuration says, or `HIERA_L`.
        names: of its weights, as placed; without the memory's there is no video.
    """
    own = {key: value for key, value in given.items() if key != "video"}
    if not any("memory_attention." in name for name in names):
        return own
    newer = {switch: any(part in name for name in names) for switch, part in _NEWER.items()}
    return own | {"video": given.get("video", {}) | newer}


def build_sam2(config: dict[str, Any]) -> Sam2Model | Sam2VideoModel:
    """Sam2Model from the arguments of its configuration; with "video", those of the memory too."""
    own = {key: value for key, value in config.items() if key != "video"}
    if "video" not in config:
        return Sam2Model(Sam2Config(**own))
    size = own.get("prompt_encoder_config", {}).get("image_size", 1024)
    own |= {"image_size": size, "memory_attention_rope_feat_sizes": [size // 16] * 2}
    return Sam2VideoModel(Sam2VideoConfig(**own, **config["video"]))


@dataclass(frozen=True)
class Decoded:
    """The best mask of each of P prompts.

    Attributes:
        logits: (P, s, s), the mask where > 0.
        quality: (P,), predicted IoU.
        token: (P, C), the decoder's state of that mask.
        present: (P,), logits of whether the object is there at all.
    """

    logits: Tensor
    quality: Tensor
    token: Tensor
    present: Tensor


class _Squares(Sequence[Tensor]):
    """The frames of a clip as SAM 2 sees them, made when they are asked for."""

    def __init__(self, segmenter: Sam2Segmenter, frames: np.ndarray) -> None:
        self.segmenter, self.frames = segmenter, frames

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: Any) -> Any:
        pixels = self.segmenter.pixels(self.frames[index])[0]
        return pixels.to(self.segmenter.sam.dtype)


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

    def decode(self, embedding: list[Tensor], prompts: Tensor) -> Decoded:
        """Of the three masks of each prompt the one with the best predicted IoU.

        Args:
            embedding: from `encode`.
            prompts: (P, C), [SEG] embeddings.
        """
        count = len(prompts)
        blank = prompts.new_zeros(1, count, 1, 2)
        labels = torch.full((1, count, 1), -1, device=prompts.device)
        sparse, dense = self.sam.get_prompt_embeddings(input_points=blank, input_labels=labels)
        own = prompts.to(sparse.dtype).view(1, count, 1, -1)
        masks, quality, tokens, present = self.sam.mask_decoder(
            image_embeddings=embedding[-1],
            image_positional_embeddings=self.sam.get_image_wide_positional_embeddings(),
            sparse_prompt_embeddings=torch.cat([sparse, own], 2),
            dense_prompt_embeddings=dense,
            multimask_output=True,
            high_resolution_features=embedding[:-1],
        )
        best = quality[0].argmax(-1)
        row = torch.arange(count, device=best.device)
        found = (masks[0, row, best], quality[0, row, best], tokens[0, row, best])
        return Decoded(*found, present[0, :, 0])

    def follow(
        self, frames: np.ndarray, prompts: Tensor, keys: int
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Masks of things in a clip: prompted in its first frames, then by memory of them.

        Args:
            frames: (T, H, W, 3) uint8.
            prompts: (P, C), [SEG] embeddings, P >= 1.
            keys: how many frames are prompted.

        Yields:
            Frame by frame (P, s, s) mask logits, and for a key frame (P,) predicted IoU.
        """
        device, dtype = self.sam.device, self.sam.dtype
        session: Any = Sam2VideoInferenceSession(
            video_height=frames.shape[1],
            video_width=frames.shape[2],
            inference_device=device,
            inference_state_device=device,
            dtype=dtype,
        )
        session.processed_frames = _Squares(self, frames)
        things = [session.obj_id_to_idx(number) for number in range(len(prompts))]
        qualities = []
        for key in range(min(keys, len(frames))):
            found = self.decode(self.encode(session.get_frame(key)[None]), prompts)
            qualities.append(found.quality)
            large = F.interpolate(found.logits[None].float(), (self.size,) * 2, mode="bilinear")[0]
            for thing in things:
                session.add_mask_inputs(thing, key, large[thing][None, None] > 0)
            session.obj_with_new_inputs = list(session.obj_ids)
            self.sam(session, frame_idx=key)
            # A mask that is given leads to another pointer than the prompt that it came from.
            there = (found.present[:, None] > 0).to(dtype)
            pointers = there * self.sam.object_pointer_proj(found.token)
            pointers = pointers + (1 - there) * self.sam.no_object_pointer
            for thing in things:
                own = {"pred_masks": found.logits, "object_pointer": pointers}
                for name, value in own.items():
                    session.store_output(thing, key, name, value[thing][None, None])
        walk = self.sam.propagate_in_video_iterator(session, start_frame_idx=0)
        for number, step in enumerate(walk):
            yield step.pred_masks[:, 0], qualities[number] if number < len(qualities) else None
