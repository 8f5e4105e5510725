"""Prompts without the image tokens that were dropped: which columns stay, and their positions.

Pure tensor functions. B prompts of L columns; every entering token names the column of the full
prompt whose place it takes, so ids, token types and positions are all taken from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from litelvlm.plugin.families import Piece


def runs_of(mask: Tensor) -> list[int]:
    """(B, L) bool -> lengths of the unbroken runs of True, row by row."""
    edges = torch.nn.functional.pad(mask.int(), (1, 1)).diff(dim=1)
    starts, stops = (edges == 1).nonzero()[:, 1], (edges == -1).nonzero()[:, 1]
    return (stops - starts).tolist()


def columns_of(
    mask: Tensor, attention: Tensor, pieces: Sequence[tuple[int, Tensor]]
) -> list[Tensor]:
    """The columns that stay in each prompt, in the order in which their tokens enter.

    Args:
        mask: (B, L) bool, image placeholders.
        attention: (B, L), 0 on padding.
        pieces: for each piece of the pictures, in the order of the placeholders: how many it has
            and (k,) offsets of those that stay, in the order in which they enter.

    Returns:
        One (L',) int64 tensor a prompt; padding is left out.
    """
    rows, places = mask.nonzero(as_tuple=True)  # the placeholders, prompt by prompt
    full = torch.arange(mask.shape[1], device=mask.device)
    parts: list[list[Tensor]] = [[] for _ in mask]
    cursor = [0] * len(mask)
    start = 0
    for count, offsets in pieces:
        row, first, last = (int(t) for t in (rows[start], places[start], places[start + count - 1]))
        if last - first != count - 1 or int(rows[start + count - 1]) != row:
            raise RuntimeError(f"{count} image tokens of one piece are not in one run")
        parts[row] += [full[cursor[row] : first], first + offsets.to(mask.device)]
        cursor[row] = last + 1
        start += count
    kept = []
    for row, segments in enumerate(parts):
        columns = torch.cat([*segments, full[cursor[row] :]])
        kept.append(columns[attention[row, columns].bool()])
    return kept


def take(
    values: Tensor, fill: int, *, columns: Sequence[Tensor], length: int, left: bool
) -> Tensor:
    """(…, B, L) values a column -> (…, B, `length`) of those that stay, padded with `fill`."""
    taken = values.new_full((*values.shape[:-1], length), fill)
    for row, chosen in enumerate(columns):
        place = slice(length - len(chosen), None) if left else slice(0, len(chosen))
        taken[..., row, place] = values[..., row, chosen]
    return taken


def shares_of(budget: int, pieces: Sequence[Piece]) -> list[int]:
    """A picture's budget over its pieces, by their size; largest remainders first."""
    total = sum(piece.patches for piece in pieces)
    parts = [divmod(budget * piece.patches, total) for piece in pieces]
    shares = [whole for whole, _ in parts]
    order = sorted(range(len(pieces)), key=lambda i: -parts[i][1])
    for i in order[: budget - sum(shares)]:
        shares[i] += 1
    return shares


def entries_of(features: Tensor, counts: Sequence[int], stacked: bool) -> Any:
    """(M', L) of all prompts -> entries of those sizes, in the form the model hands out."""
    entries = features.split([count for count in counts if count])
    if not stacked:
        return entries
    longest = max(counts)
    gaps = [longest - len(entry) for entry in entries]
    return torch.stack(
        [torch.nn.functional.pad(e, (0, 0, gap, 0)) for e, gap in zip(entries, gaps, strict=True)]
    )


def close_rows(
    piece: Piece, offsets: Tensor, merged: Tensor | None, tokens: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Add the token that ends the row after each row that keeps a patch."""
    width = piece.grid[1] + 1
    rows = offsets // width
    last = torch.cat([rows[1:] != rows[:-1], torch.tensor([True])])
    ends = rows[last] * width + piece.grid[1]
    order = torch.cat([offsets, ends]).argsort(stable=True)
    if merged is not None:
        order = order.to(merged.device)
        merged = torch.cat([merged, tokens[ends.to(tokens.device)]])[order]
    return torch.cat([offsets, ends])[order.cpu()], merged


def pad_to(values: Tensor, length: int, left: bool) -> Tensor:
    """(…, n) -> (…, `length`), zeros on one side."""
    gap = length - values.shape[-1]
    return torch.nn.functional.pad(values, (gap, 0) if left else (0, gap))
