"""LiteLVLM: the paper's rule, the rule of the released code, and our own."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from litelvlm.baselines.view import (
    SelectionOptions,
    TokenView,
    best,
    check_budget,
    grid_points,
    mask_of,
    place_under_any,
    place_within,
    windows_of,
)
from litelvlm.pruning import Reason, Selection, context_saliency, select_tokens


def context_score(view: TokenView, context: str = "released") -> Tensor:
    """(B, N), how much each patch contributes to the picture; "released" or "attention"."""
    if context not in ("released", "attention"):
        raise ValueError(f"context must be released or attention, got {context!r}")
    block = view.last
    heads = view.heads if context == "attention" else None
    return context_saliency(block.query, block.keys, block.values, heads=heads)


def litelvlm(view: TokenView, budget: int, options: SelectionOptions) -> Selection:
    """Half the budget to the patches least like the phrase, half to recovered context.

    Several phrases, other splits, orders and context scores: see `litelvlm.pruning`.
    """
    return select_tokens(
        view.similarity,
        context_score(view, options.context),
        budget,
        split=options.split,
        order=options.order,
    )


def released(view: TokenView, budget: int, options: SelectionOptions) -> Selection:
    """The rule of the authors' code: floor(K / T) lowest of each phrase, united, then context.

    Context tokens come first, best first. One phrase leaves no room for context.
    """
    options = replace(options, split="released", order="released", context="released")
    return litelvlm(view, budget, options)


@dataclass(frozen=True)
class Plus:
    """The choices of `litelvlm+`, made on training scenes and a validation half.

    Attributes:
        cover: share of the budget spread over the picture before similarity has its say.
        spread: how it is spread: "grid" (an even lattice), "cells" (the patch least like the
            phrase of each cell in turn), "context" (the most salient patch of each cell in turn).
        cell: side of a cell in patches.
        smooth: side of the square window over which similarity is averaged; 1 leaves it alone.
        cosine: divide by the norm of the patch.
    """

    cover: float = 0.5
    spread: str = "grid"
    cell: int = 2
    smooth: int = 3
    cosine: bool = False


PLUS = Plus()


def plus(
    view: TokenView, budget: int, options: SelectionOptions, choices: Plus = PLUS
) -> Selection:
    """Cover the whole picture thinly, then add the patches least like the phrase.

    Part of the budget is spread over the picture, the rest goes to the lowest similarities,
    averaged over neighbours so that single stray patches do not count. Raster order, original
    positions. As cheap as LiteLVLM.
    """
    count = view.hidden.shape[1]
    check_budget(budget, count)
    similarity = view.similarity.float()
    if choices.cosine:
        norm = view.projected.float().norm(dim=-1).clamp(min=1e-6)
        similarity = similarity / norm.unsqueeze(1)
    similarity = _smoothed(similarity, view.grid, choices.smooth)
    place = place_under_any(similarity)  # (B, N), 0 = least like a phrase
    spread = round(choices.cover * budget)
    if choices.spread == "grid":
        points = torch.tensor(grid_points(view.grid, spread) if spread else [], dtype=torch.long)
        cover = points.to(place.device).expand(len(place), -1)
    else:
        score = -place.float() if choices.spread == "cells" else context_score(view, "attention")
        cells = windows_of(view.grid, choices.cell, choices.cell).to(place.device)
        turn = place_within(score, cells)
        order = best(score, count)
        cover = order.gather(1, turn.gather(1, order).argsort(dim=-1, stable=True))[:, :spread]
    covered = mask_of(cover, count)
    alike = best(-place.masked_fill(covered, count), budget - spread)
    indices = torch.cat([cover, alike], dim=1).sort(dim=-1).values
    context = covered.gather(1, indices)
    reason = torch.where(context, int(Reason.CONTEXT), int(Reason.SIMILARITY)).to(torch.uint8)
    return Selection(indices, reason, similarity, None)


def _smoothed(similarity: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Mean over a square window of neighbours that exist: (B, T, N) -> (B, T, N)."""
    if side == 1:
        return similarity
    maps = similarity.unflatten(-1, grid)
    pooled = F.avg_pool2d(maps, side, stride=1, padding=side // 2, count_include_pad=False)
    return pooled.flatten(-2)
