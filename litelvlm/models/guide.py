"""A CLIP that looks at the same picture and lends its patches to the tokens of another model.

Each token takes the CLIP's tensors at its own centre, interpolated between the four nearest
patches. Dot products are linear, so that similarity is interpolated likewise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from litelvlm.methods import BlockView
from litelvlm.models.dual_encoder import DualEncoder, ImageTokens

LENT = frozenset({"similarity", "last", "penultimate", "early"})  # fields of `TokenView`


def lend(
    encoder: DualEncoder,
    tokens: ImageTokens,
    needs: frozenset[str],
    points: Tensor,
    rows: int = 1,
) -> dict[str, Any]:
    """Fields of `TokenView` for tokens at some points; "projected" stands for "similarity".

    Args:
        encoder: the CLIP.
        tokens: what it says about one picture.
        needs: fields that will be read.
        points: (N, 2), from `centres`.
        rows: prompts that read them; each gets the same.
    """
    grid = encoder.grid

    def many(values: Tensor) -> Tensor:
        return values.expand(rows, *values.shape[1:])

    view: dict[str, Any] = {}
    for name, index in {"last": -1, "penultimate": -2, "early": encoder.early}.items():
        if name in needs:
            block = encoder.block(tokens, index)
            view[name] = BlockView(
                many(block.query),
                many(sample(block.keys, grid, points)),
                many(sample(block.values, grid, points)),
                many(sample(block.attention.mT, grid, points).mT),
            )
    if "similarity" in needs:
        view["projected"] = many(sample(encoder.project(tokens), grid, points))
    return view


def centres(
    grid: tuple[int, int], box: np.ndarray, square: tuple[float, float, float, float]
) -> Tensor:
    """Centres of a grid's cells in another square: (N, 2) as x, y in -1..1.

    Args:
        grid: (rows, columns).
        box: x0, y0, x1, y1 of the grid, picture pixels.
        square: x0, y0, x1, y1 of the square that -1..1 spans, likewise.
    """
    rows, columns = grid
    x = box[0] + (torch.arange(columns) + 0.5) / columns * (box[2] - box[0])
    y = box[1] + (torch.arange(rows) + 0.5) / rows * (box[3] - box[1])
    x = (x - square[0]) / (square[2] - square[0]) * 2 - 1
    y = (y - square[1]) / (square[3] - square[1]) * 2 - 1
    ys, xs = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([xs, ys], -1).reshape(-1, 2).float()


def sample(values: Tensor, grid: tuple[int, int], points: Tensor) -> Tensor:
    """Bilinear values between patch centres: (1, G, D) on `grid`, (N, 2) -> (1, N, D) float32."""
    picture = values.float().mT.unflatten(-1, grid)  # (1, D, rows, columns)
    taken = F.grid_sample(
        picture, points[None, None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return taken[:, :, 0].mT
