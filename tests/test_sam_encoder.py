"""The fast path of SAM's image encoder gives what transformers' own forward gives."""

import pytest
import torch
from transformers import SamVisionConfig, SamVisionModel

from litelvlm.families.glamm import random_config
from litelvlm.models import sam_encoder


def make(dtype=torch.float32, **changes):
    settings = random_config("tiny-random").segmenter["vision_config"] | changes
    torch.manual_seed(0)
    encoder = SamVisionModel(SamVisionConfig(**settings)).vision_encoder.eval()
    with torch.no_grad():
        for parameter in encoder.parameters():  # relative positions start at zero otherwise
            parameter.normal_(std=0.1)
    return encoder.to(dtype)


def both(encoder, batch=1):
    size = encoder.config.image_size
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(batch, 3, size, size, generator=generator).to(encoder.pos_embed.dtype)
    with torch.inference_mode():
        return sam_encoder.encode(encoder, pixels), encoder(pixels).last_hidden_state


@pytest.mark.parametrize(
    "changes",
    [
        {},  # 16 x 16 tokens: windows of 14 are padded
        {"window_size": 8},  # windows fit
        {"global_attn_indexes": [0, 1]},
        {"global_attn_indexes": []},
        {"use_rel_pos": False},
        {"qkv_bias": False},
    ],
    ids=str,
)
def test_it_equals_the_library_in_float32(changes):
    ours, theirs = both(make(**changes))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_it_equals_the_library_for_several_pictures():
    ours, theirs = both(make(), batch=3)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_small_blocks_change_nothing(monkeypatch):
    encoder = make()
    whole, _ = both(encoder)
    monkeypatch.setattr(sam_encoder, "BLOCK", 1000)  # neither a divisor nor a whole row of windows
    monkeypatch.setattr(sam_encoder, "ROWS", 37)
    blocks, _ = both(encoder)
    torch.testing.assert_close(blocks, whole, atol=1e-6, rtol=1e-5)


def test_in_bfloat16_it_is_as_close_to_float32_as_the_library():
    exact, _ = both(make())
    ours, theirs = both(make(torch.bfloat16))
    error = (ours.float() - exact).abs().mean()
    assert error < 1.5 * (theirs.float() - exact).abs().mean()
