"""Positions of M-RoPE, as Qwen-VL numbers a prompt: time, row and column of every token.

Text has the same number on all axes. A picture's tokens share one time and are numbered by row and
column from there; what follows begins after the largest of these numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def prompt_positions(pieces: Sequence[int | tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Positions of an unpruned prompt, and which picture each of its tokens is of.

    Args:
        pieces: in order, the number of tokens of a text or the (rows, columns) of a picture.

    Returns:
        (3, L), and (L,) that is -1 on text and numbers the pictures elsewhere.
    """
    parts, owners, base, picture = [], [], 0, 0
    for piece in pieces:
        if isinstance(piece, int):
            part, owner = torch.arange(piece).expand(3, -1), -1
        else:
            rows, columns = torch.meshgrid(*map(torch.arange, piece), indexing="ij")
            part = torch.stack([torch.zeros_like(rows), rows, columns]).flatten(1)
            owner, picture = picture, picture + 1
        parts.append(base + part)
        owners.append(torch.full_like(part[0], owner))
        base += piece if isinstance(piece, int) else max(piece)
    return torch.cat(parts, 1), torch.cat(owners)


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
