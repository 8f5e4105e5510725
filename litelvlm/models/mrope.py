"""Positions of M-RoPE, as Qwen-VL numbers a prompt: time, row and column of every token.

Text has the same number on all axes. A picture's tokens share one time and are numbered by row and
column from there; what follows begins after the largest of these numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor


def prompt_positions(start: int, grid: tuple[int, int], after: int) -> Tensor:
    """(3, L) positions of an unpruned prompt about one picture.

    Args:
        start: tokens before the picture.
        grid: (rows, columns) of its tokens.
        after: tokens behind it.
    """
    rows, columns = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
    image = torch.stack([torch.zeros_like(rows), rows, columns]).flatten(1)  # (3, N)
    before = torch.arange(start).expand(3, -1)
    tail = max(grid) + torch.arange(after).expand(3, -1)
    return torch.cat([before, start + image, start + tail], 1)


def compact_positions(positions: Tensor, image: Tensor) -> Tensor:
    """M-RoPE positions of kept tokens without gaps: (3, n), (n,) -> (3, n).

    On each axis the values that a picture still uses are numbered consecutively, so neighbours
    stay in order, and what follows the picture begins after its largest number. `image` is -1 on
    text and numbers the picture elsewhere.
    """
    parts, base = [], 0
    borders = (image.diff() != 0).nonzero()[:, 0] + 1
    for group, number in zip(
        positions.tensor_split(borders.cpu(), dim=1),
        image.tensor_split(borders.cpu()),
        strict=True,
    ):
        if number[0] < 0:
            ranks = torch.arange(group.shape[1], device=group.device).expand(3, -1)
        else:
            ranks = torch.stack([axis.unique(return_inverse=True)[1] for axis in group])
        parts.append(base + ranks)
        base = int(parts[-1].max()) + 1
    return torch.cat(parts, dim=1)
