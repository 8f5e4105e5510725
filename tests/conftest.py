"""Shared fixtures: one toy model for the whole run, and pictures to ask it about."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def pipe():
    """The whole model at toy size, with random weights."""
    import litelvlm

    torch.set_num_threads(1)
    return litelvlm.load("tiny-random", device="cpu")


@pytest.fixture(scope="session")
def picture():
    """(90, 120, 3) uint8, a disc on noise."""
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3)).astype(np.uint8)
    rows, columns = np.mgrid[:90, :120]
    image[(rows - 40) ** 2 + (columns - 70) ** 2 < 400] = (220, 40, 30)
    return image


@pytest.fixture(scope="session")
def scene(pipe, picture):
    """The picture, encoded."""
    return pipe.encode(picture)
