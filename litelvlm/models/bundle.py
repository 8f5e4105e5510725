"""All weights of a model in one module; its parameter names are the names in model files."""

from __future__ import annotations

from typing import Any

from torch import nn

from litelvlm.config import ModelConfig
from litelvlm.models.dual_encoder import build_clip
from litelvlm.models.language import build_llama, build_projector, build_seg_head
from litelvlm.models.segmenter import build_sam


class GroundingModel(nn.Module):
    """CLIP, projector, LLaMA and, for masks, [SEG] head and SAM side by side. It only holds them.

    Build it under `torch.device("meta")` to load a large checkpoint without first drawing
    random weights.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.language["hidden_size"]
        self.dual_encoder: Any = build_clip(config.dual_encoder)
        self.projector = build_projector(
            config.dual_encoder["vision_cfg"]["width"], width, config.projector
        )
        self.language: Any = build_llama(config.language)
        if not config.segmenter:
            return
        self.seg_head = build_seg_head(
            width, config.segmenter["prompt_encoder_config"]["hidden_size"]
        )
        self.segmenter: Any = build_sam(config.segmenter)
        if "backbone" in config.dual_encoder and "backbone" in config.segmenter:
            # One backbone serves both encoders: its weights are held and stored once.
            encoder: Any = self.segmenter.vision_encoder
            tower: Any = self.dual_encoder
            encoder.backbone = tower.visual.conv1.backbone
