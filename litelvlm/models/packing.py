"""Prompts that begin alike in one row: what they share, then the rest of each.

    shared ── rest 1 ── rest 2 ── ... ── rest n        each rest sees what is shared, and itself

The language model runs what is shared once, and no keys and values are held or copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where the prompts of B pictures stand in B rows.

    Attributes:
        first: (B,), the first prompt of each picture.
        owner: (P,), the row of each prompt.
        slot: (P,), its place there, from 0.
        shared: tokens that the prompts of each picture begin with.
        most: n, prompts of the picture that has most; others are padded.
    """

    first: Tensor
    owner: Tensor
    slot: Tensor
    shared: int
    most: int

    def pack(self, prompts: Tensor) -> Tensor:
        """(P, S, ...) -> (B, shared + n * rest, ...)."""
        rest = prompts[:, self.shared :]
        places = rest.new_zeros(len(self.first), self.most, *rest.shape[1:])
        places[self.owner, self.slot] = rest
        return torch.cat([prompts[self.first, : self.shared], places.flatten(1, 2)], 1)

    def unpack(self, rows: Tensor) -> Tensor:
        """The inverse of `pack`."""
        rest = rows[:, self.shared :].unflatten(1, (self.most, -1))
        return torch.cat([rows[self.owner, : self.shared], rest[self.owner, self.slot]], 1)

    def mask(self, length: int) -> Tensor:
        """What each token sees of its row: (1, 1, Q, Q) bool, by query and key.

        Args:
            length: S, of the prompts.
        """
        rest = length - self.shared
        place = torch.arange(self.shared + self.most * rest, device=self.first.device)
        prompt = (place - self.shared).div(rest, rounding_mode="floor").clamp(min=-1)
        seen = (prompt == -1) | (prompt == prompt[:, None])
        return (seen & (place <= place[:, None]))[None, None]


def packed_rows(
    embeds: Tensor, positions: Tensor, shortest: int, pictures: Sequence[int]
) -> Packing | None:
    """How to pack prompts, or None where that does not pay.

    It pays if at least half of every prompt is shared: each token's query meets the keys of the
    whole row, so long rests side by side cost more than they save.

    Args:
        embeds: (P, S, L), right-padded.
        positions: (P, S); those of M-RoPE, (3, P, S), are not packed.
        shortest: length of the shortest prompt.
        pictures: prompts of each picture, in order; () packs nothing.
    """
    if max(pictures, default=1) == 1 or positions.ndim > 2:
        return None
    counts = torch.tensor(pictures, device=embeds.device)
    first = counts.cumsum(0) - counts
    owner = torch.arange(len(counts), device=embeds.device).repeat_interleave(counts)
    start = first[owner]
    same = (embeds == embeds[start]).all(-1) & (positions == positions[start])  # (P, S)
    shared = min(int(same.all(0).cumprod(0).sum()), shortest - 1)
    if 2 * shared < embeds.shape[1]:
        return None
    slot = torch.arange(len(owner), device=embeds.device) - start
    return Packing(first, owner, slot, shared, max(pictures))
