"""The plug-in on tiny random models of every kind: what goes in, what comes out."""

from __future__ import annotations

import pytest
import torch

import litelvlm
from litelvlm.plugin import FAMILIES
from tiny_vlm import KINDS, logits, picture, plain, prompt, tiny


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_budget_is_the_untouched_model_bit_for_bit(kind):
    model, processor = tiny(kind)
    pictures, prompts = [picture(40, 56), picture(56, 40, seed=1)], [
        prompt(kind),
        prompt(kind, "where is the red apple on the left of the photo"),
    ]
    inputs = litelvlm.Pruner(model, processor, method="grid").prepare(pictures, prompts)
    expected = logits(model, plain(kind, [[p] for p in pictures], prompts))
    assert torch.equal(logits(model, inputs), expected)
    assert [r.tokens_kept == r.tokens_total for r in inputs.record] == [True, True]
