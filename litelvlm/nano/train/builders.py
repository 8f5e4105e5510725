"""The engine's modules with initial weights that suit training from nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from litelvlm.models.backbone import PyramidEncoder
from litelvlm.models.dual_encoder import build_clip
from litelvlm.models.language import build_llama
from litelvlm.models.segmenter import build_sam


def build_dual_encoder(config: dict[str, Any]) -> nn.Module:
    """An untrained `open_clip.model.CLIP` from `{"embed_dim", "vision_cfg", "text_cfg"}`."""
    model = build_clip(config)
    visual = model.visual
    width, layers = visual.conv1.out_channels, len(visual.transformer.resblocks)
    for block in visual.transformer.resblocks:
        nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
        nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.mlp.c_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
    with torch.no_grad():
        # Random vectors this small drown in the patch contents within a few blocks.
        visual.positional_embedding[1:] += place_waves(*visual.grid_size, width)
    return model


def place_waves(rows: int, cols: int, width: int, octaves: int = 4) -> torch.Tensor:
    """Smooth position vectors (rows * cols, width) with entries of deviation about 0.3.

    Sines and cosines of the place over 1/2, 1, 2, ... periods of the grid, in random directions.
    """
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(cols) + 0.5, indexing="ij")
    phases = [torch.pi * 2**k * axis for k in range(octaves) for axis in (x / cols, y / rows)]
    waves = torch.stack([f(p) for p in phases for f in (torch.sin, torch.cos)], -1).flatten(0, 1)
    directions = torch.randn(waves.shape[-1], width)
    return waves @ directions * (0.3 * (2 / waves.shape[-1]) ** 0.5)


def build_language(config: dict[str, Any], mimetic: bool = True) -> nn.Module:
    """An untrained `transformers.LlamaForCausalLM` from keyword arguments of `LlamaConfig`.

    `mimetic` starts each attention head close to content matching, W_q W_k^T and W_v W_o near
    scaled identities (Trockman & Kolter 2023, "Mimetic initialization of self-attention layers").
    Without it the attention that ties a word to the patches it names forms late.
    """
    model = build_llama(config)
    if mimetic:
        for layer in model.model.layers:
            _mimetic(layer.self_attn, model.config.num_attention_heads)
    return model


def _mimetic(attention: nn.Module, heads: int, match: float = 0.7, copy: float = 0.2) -> None:
    """Set one attention in place: q ~ k per head, o v ~ `copy` times identity."""
    width = attention.q_proj.in_features
    d = width // heads
    with torch.no_grad():
        for head in range(heads):
            rows = slice(head * d, (head + 1) * d)
            shared = torch.randn(d, width) * width**-0.5
            for projection in (attention.q_proj, attention.k_proj):
                noise = torch.randn(d, width) * width**-0.5
                projection.weight[rows] = match**0.5 * shared + (1 - match) ** 0.5 * noise
        mixing = torch.linalg.qr(torch.randn(width, width))[0]
        attention.v_proj.weight.copy_(copy**0.5 * mixing + 0.01 * torch.randn(width, width))
        attention.o_proj.weight.copy_(copy**0.5 * mixing.T + 0.01 * torch.randn(width, width))


def build_segmenter(config: dict[str, Any]) -> nn.Module:
    """An untrained `transformers.SamModel` from its three sub-configurations.

    The library's defaults suit loading a checkpoint; for training from nothing the positional
    frequencies are drawn with unit variance and the weights with Xavier's.
    """
    model = build_sam(config)
    # Plain matrix products are faster to train with than the fused kernel on bfloat16 CPUs.
    model.set_attn_implementation("eager")
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
    with torch.no_grad():
        model.shared_image_embedding.positional_embedding.normal_()
        if not isinstance(model.vision_encoder, PyramidEncoder):
            model.vision_encoder.pos_embed.normal_(std=0.1)
    return model
