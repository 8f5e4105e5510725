"""A pretrained convolutional backbone in front of both image encoders.

EfficientNet-Lite0 (Tan & Le 2019; timm's `tf_efficientnet_lite0`) with its batch norms folded into
the convolutions. It stands where CLIP's patch embedding stands (`PatchStem`) and where SAM's image
encoder stands (`PyramidEncoder`); both hold the same module, so its weights are stored once.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from litelvlm.models.names import SAM_MEAN, SAM_STD

STAGES = (1, 2, 4, 6)  # blocks that end at strides 4, 8, 16 and 32
WIDTHS = (24, 40, 112, 320)


class Backbone(nn.Module):
    """Features at strides 4, 8, 16 and 32 of (B, 3, H, W) pixels, normalised to -1..1."""

    def __init__(self) -> None:
        super().__init__()
        net: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        fold_norms(net)
        self.stem, self.act, self.blocks = net.conv_stem, net.bn1, net.blocks
        self.head, self.head_act = net.conv_head, net.bn2

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, 24, H/4, W/4), (B, 40, H/8, W/8), (B, 112, H/16, W/16), (B, 320, H/32, W/32)."""
        states = self.act(self.stem(pixels.contiguous(memory_format=torch.channels_last)))
        found = []
        for number, block in enumerate(self.blocks):
            states = block(states)
            if number in STAGES:
                found.append(states)
        return found

    def top(self, deepest: Tensor) -> Tensor:
        """(B, 320, h, w) -> (B, 1280, h, w): the classifier's input before its mean over places."""
        return self.head_act(self.head(deepest))


def fold_norms(net: nn.Module) -> None:
    """Fold every batch norm of a timm EfficientNet into the convolution before it, in place."""
    for module in [net, *net.modules()]:
        children = dict(module.named_children())
        names = list(children)
        for before, name in itertools.pairwise(names):
            if not isinstance(children[before], nn.Conv2d):
                continue
            if not isinstance(children[name], nn.BatchNorm2d):
                continue
            conv: Any = children[before]
            norm: Any = children[name]
            gain = norm.weight / (norm.running_var + norm.eps).sqrt()
            conv.weight = nn.Parameter((conv.weight * gain.view(-1, 1, 1, 1)).detach())
            conv.bias = nn.Parameter((norm.bias - norm.running_mean * gain).detach())
            setattr(module, name, getattr(norm, "act", nn.Identity()))


class PatchStem(nn.Module):
    """Pixels -> patch embeddings at stride 32: takes the place of CLIP's `conv1`.

    Args:
        backbone: shared with the segmenter.
        width: of the image tower.
    """

    def __init__(self, backbone: Backbone, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.out_channels = width
        self.fine = nn.Conv2d(4 * WIDTHS[2], width, 1)
        self.coarse = nn.Conv2d(WIDTHS[3], width, 1)
        self.top = nn.Conv2d(1280, width, 1, bias=False)
        self.mix = nn.Sequential(
            nn.GroupNorm(1, width),
            nn.Conv2d(width, 2 * width, 1),
            nn.GELU(),
            nn.Conv2d(2 * width, width, 1),
        )

    @property
    def weight(self) -> Tensor:
        """Its dtype is the one that pixels are brought to."""
        return self.fine.weight

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, width, S/32, S/32)."""
        return self.fuse(*self.backbone(pixels)[2:])

    def fuse(self, sixteenth: Tensor, deepest: Tensor) -> Tensor:
        """Features at strides 16 and 32 -> (B, width, S/32, S/32)."""
        fused = self.fine(F.pixel_unshuffle(sixteenth, 2)) + self.coarse(deepest)
        fused = fused + self.top(self.backbone.top(deepest))
        return fused + self.mix(fused)  # (B, width, S/32, S/32)


@dataclass
class Encoded:
    """What SAM's encoder returns."""

    last_hidden_state: Tensor


class PyramidEncoder(nn.Module):
    """Pixels -> SAM's image embedding at stride 16, from the backbone's features.

    SAM's normalisation of the pixels is undone here: the backbone has its own.

    Args:
        backbone: shared with the dual encoder.
        width: C, channels of the embedding.
        layers: residual 3 x 3 convolutions after the features are summed.
    """

    def __init__(self, backbone: Backbone, width: int, layers: int = 3) -> None:
        super().__init__()
        self.backbone = backbone
        self.fine = nn.Conv2d(4 * WIDTHS[1] + WIDTHS[2], width, 1)
        self.coarse = nn.Conv2d(WIDTHS[3], width, 1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(8, width), nn.GELU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(layers)
        )
        self.norm = nn.GroupNorm(1, width)

    def forward(self, pixels: Tensor) -> Encoded:
        """(B, 3, S, S), normalised and padded as SAM's, -> (B, C, S/16, S/16)."""
        mean = pixels.new_tensor(SAM_MEAN).view(1, 3, 1, 1)
        std = pixels.new_tensor(SAM_STD).view(1, 3, 1, 1)
        return Encoded(self.fuse(*self.backbone((pixels * std + mean - 127) / 128)[1:]))

    def fuse(self, eighth: Tensor, sixteenth: Tensor, deepest: Tensor) -> Tensor:
        """Features at strides 8, 16 and 32 -> (B, C, S/16, S/16)."""
        states = self.fine(torch.cat([F.pixel_unshuffle(eighth, 2), sixteenth], 1))
        states = states + F.interpolate(self.coarse(deepest), scale_factor=2.0, mode="bilinear")
        for layer in self.layers:
            states = states + layer(states)
        return self.norm(states)
