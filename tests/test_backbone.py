"""The backbone in front of both encoders: sizes, shared weights, folded norms."""

from __future__ import annotations

import timm
import torch

from litelvlm.models.backbone import STAGES, Backbone, PatchStem, PyramidEncoder, fold_norms


def test_folded_norms_change_no_number() -> None:
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
        pixels = torch.randn(1, 3, 64, 64)
        before = net.forward_features(pixels)
        fold_norms(net)
        after = net.forward_features(pixels)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules())
    assert torch.allclose(before, after, atol=1e-3 * float(before.abs().max()))


def test_the_stem_gives_a_vector_a_patch_of_32_pixels_and_the_pyramid_of_16() -> None:
    backbone = Backbone().eval()
    pixels = torch.randn(1, 3, 384, 384)
    with torch.no_grad():
        assert len(backbone(pixels)) == len(STAGES)
        assert PatchStem(backbone, 64)(pixels).shape == (1, 64, 12, 12)
        embedding = PyramidEncoder(backbone, 32, 1)(pixels).last_hidden_state
    assert embedding.shape == (1, 32, 24, 24)
