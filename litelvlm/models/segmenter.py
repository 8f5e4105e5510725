"""SAM over transformers' SamModel: a picture once, then a mask for every [SEG] embedding.

The embedding is SAM's only sparse prompt; no point, box or mask is given, so the prompt encoder
contributes just its "no mask" embedding. No fork of SAM is needed for that.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SamConfig, SamModel

from litelvlm.geometry import MaskFrame, sam_corner, sam_hw, sam_resize
from litelvlm.models import sam_encoder
from litelvlm.models.backbone import Backbone, PyramidEncoder
from litelvlm.models.names import SAM_MEAN, SAM_STD


def build_sam(config: dict[str, Any]) -> SamModel:
    """SamModel from `vision_config`, `prompt_encoder_config` and `mask_decoder_config`.

    With `backbone` (the number of convolutions after it) the image encoder is a `PyramidEncoder`.
    """
    own: dict[str, Any] = {"attn_implementation": "sdpa"}
    own |= {key: value for key, value in config.items() if key != "backbone"}
    sam: Any = SamModel(SamConfig(**own))
    if "backbone" in config:
        width = config["vision_config"]["output_channels"]
        sam.vision_encoder = PyramidEncoder(Backbone(), width, config["backbone"])
    return sam


class Segmenter:
    """Masks from [SEG] embeddings.

    Args:
        sam: the module, from `build_sam`.
        place: where a picture stands in SAM's square; see `geometry.sam_corner`.

    Raises:
        InputError: unknown place.
    """

    def __init__(self, sam: SamModel, place: str = "corner") -> None:
        self.sam: Any = sam
        self.place = place
        config: Any = sam.config
        self.size: int = config.vision_config.image_size
        self.frame((1, 1))  # an unknown place is refused here, not at the first picture

    def frame(self, image_hw: tuple[int, int]) -> MaskFrame:
        """Sizes for a picture of (H, W)."""
        resized_hw = sam_hw(image_hw, self.size)
        corner = sam_corner(resized_hw, self.size, self.place)
        return MaskFrame(self.size, resized_hw, image_hw, corner)

    def pixels(self, image: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 -> (1, 3, S, S) float32: resized, normalised, zero-padded."""
        resized = torch.from_numpy(np.array(sam_resize(image, self.size))).float()
        pixels = ((resized - torch.tensor(SAM_MEAN)) / torch.tensor(SAM_STD)).permute(2, 0, 1)
        height, width = pixels.shape[1:]
        left, top = sam_corner((height, width), self.size, self.place)
        right, bottom = self.size - width - left, self.size - height - top
        return F.pad(pixels, (left, right, top, bottom)).unsqueeze(0)

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, C, h, w), the embeddings of pictures."""
        pixels = pixels.to(self.sam.dtype)
        ours = isinstance(self.sam.vision_encoder, PyramidEncoder)
        if pixels.device.type == "cpu" and not torch.is_grad_enabled() and not ours:
            return sam_encoder.encode(self.sam.vision_encoder, pixels)
        return self.encode_by_library(pixels)

    def encode_by_library(self, pixels: Tensor) -> Tensor:
        """`encode` by transformers' own path, to measure against."""
        return self.sam.vision_encoder(pixels.to(self.sam.dtype)).last_hidden_state

    def encode_in_float32(self, pixels: Tensor) -> Tensor:
        """`encode` exactly, one layer at a time: a whole copy of the weights may not fit."""

        def exact(module: nn.Module) -> nn.Module:
            return copy.deepcopy(module).float()

        encoder = self.sam.vision_encoder
        states = exact(encoder.patch_embed)(pixels.float())
        if encoder.pos_embed is not None:
            states = states + encoder.pos_embed.float()
        for layer in encoder.layers:
            states = exact(layer)(states)
        return exact(encoder.neck)(states)

    def decoder_in_float32(self) -> Segmenter:
        """A copy that can only `decode`, in float32."""
        with torch.device("meta"):
            sam: Any = SamModel(self.sam.config)
        for part in ("shared_image_embedding", "prompt_encoder", "mask_decoder"):
            setattr(sam, part, copy.deepcopy(getattr(self.sam, part)).float())
        return Segmenter(sam, self.place)

    def decode(self, embedding: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """One mask a prompt.

        Args:
            embedding: (1, C, h, w), from `encode`; or (P, C, h, w), one a prompt.
            prompts: (P, C), [SEG] embeddings.

        Returns:
            (P, 4h, 4w) mask logits of the padded square (mask where > 0), and (P,) SAM's own
            estimates of their IoU.
        """
        pictures = len(embedding)
        places = self.sam.get_image_wide_positional_embeddings().expand(pictures, -1, -1, -1)
        sparse = prompts.to(embedding.dtype).view(pictures, -1, 1, prompts.shape[-1])
        masks, quality = prompted_masks(self.sam, embedding, sparse, places)
        return masks.flatten(0, 1), quality.flatten(0, 1)


def prompted_masks(
    sam: Any, embedding: Tensor, sparse: Tensor, places: Tensor
) -> tuple[Tensor, Tensor]:
    """SAM's mask decoder, one mask a prompt.

    Args:
        sam: from `build_sam`.
        embedding: (B, C, h, w), of B pictures.
        sparse: (B, P, 1, C), one token a prompt.
        places: (B, C, h, w), position embedding of the pictures.

    Returns:
        (B, P, 4h, 4w) mask logits and (B, P) estimates of their IoU.
    """
    dense = sam.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
    masks, quality = sam.mask_decoder(
        image_embeddings=embedding,
        image_positional_embeddings=places,
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense.expand_as(embedding),
        multimask_output=False,
    )
    return masks[:, :, 0], quality[..., 0]
