"""Every example that is shipped is answered rightly, with all tokens and with a third of them."""

from __future__ import annotations

import functools

import pytest

import litelvlm
from litelvlm.metrics import iou
from litelvlm.ui.examples import examples

RIGHT = 0.7  # least IoU with the truth
PRUNED = 192


@functools.cache
def model(name):
    """A model, loaded once."""
    return litelvlm.load(name, device="cpu")


@functools.cache
def encoded(name, path):
    """A picture, encoded once by the model of that name."""
    return model(name).encode(path)


def ground(example, budget, **options):
    scene = encoded(example.model, example.path)
    return model(example.model).ground(scene, list(example.phrases), budget, **options)


@pytest.mark.parametrize("budget", [None, PRUNED])
@pytest.mark.parametrize("example", examples(), ids=lambda example: example.path.stem)
def test_an_example_is_answered_rightly_by_the_model_named_for_it(example, budget):
    answers = ground(example, budget)
    truth = example.masks()
    assert len(truth) == len(example.phrases)
    for item, mask in zip(answers, truth, strict=True):
        assert iou(item.mask, mask) >= RIGHT, item.phrase


def test_examples_include_some_where_the_phrase_decides_what_is_kept():
    shares = []
    for example in examples():
        blind = ground(example, PRUNED, method="context")[0].token_map.kept()
        kept = [item.token_map.kept() for item in ground(example, PRUNED)]
        shares += [(own & blind).sum() / PRUNED for own in kept]
    assert min(shares) < 2 / 3
