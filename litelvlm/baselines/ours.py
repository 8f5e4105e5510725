"""LiteLVLM: the paper's rule, the rule of the released code, and our own."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from litelvlm.baselines.view import (
    SelectionOptions,
    TokenView,
    best,
    check_budget,
    grid_points,
    mask_of,
    numbers_of,
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
    """The choices of `litelvlm+`, made on half of the validation scenes of the embedded model.

    Attributes:
        cover: share of the budget that goes to an even lattice over the whole picture.
        least: lattice points that are wanted in any case, as a share of all N patches; a budget
            below that is all lattice.
        pool: the rest is chosen among that many times as many patches least like the phrase...
        cell: ...one from each square cell of this side in turn, so that no object takes all.
        cosine: divide similarity by the norm of the patch.
    """

    cover: float = 0.75
    least: float = 1 / 9
    pool: float = 2.0
    cell: int = 3
    cosine: bool = True


PLUS = Plus()


def plus(
    view: TokenView, budget: int, options: SelectionOptions, choices: Plus = PLUS
) -> Selection:
    """Cover the whole picture evenly, then add patches least like the phrase, spread out.

    The language model finds the referent among other things and in its place, so it needs to see
    all of the picture: an even lattice comes first. What is left of the budget goes to the
    patches with the lowest cosine to the phrase, one from each cell in turn. Raster order,
    original positions. As cheap as LiteLVLM; several phrases take turns.
    """
    count = view.hidden.shape[1]
    check_budget(budget, count)
    similarity = view.similarity.float()
    if choices.cosine:
        norm = view.projected.float().norm(dim=-1).clamp(min=1e-6)
        similarity = similarity / norm.unsqueeze(1)
    spread = max(round(choices.cover * budget), round(choices.least * count))
    spread = min(spread, budget)
    numbers = torch.tensor(grid_points(view.grid, spread) if spread else [], dtype=torch.long)
    covered = mask_of(numbers.to(similarity.device).expand(len(similarity), -1), count)

    # Place of each patch that is left, 0 = least like a phrase; covered ones go last.
    place = place_under_any(similarity).masked_fill(covered, count)
    place = best(-place, count).argsort(dim=-1)
    pool = place < round(choices.pool * (budget - spread))
    cells = windows_of(view.grid, choices.cell, choices.cell).to(place.device)
    turn = place_within((-place).float().masked_fill(~pool, -torch.inf), cells)
    # Those in the pool by turn, then by place; the others after them, by place.
    key = torch.where(pool, turn * count + place, count * count + place)
    alike = best(-key.masked_fill(covered, 3 * count * count), budget - spread)
    kept = covered | mask_of(alike, count)
    indices = numbers_of(kept)
    context = covered.gather(1, indices)
    reason = torch.where(context, int(Reason.CONTEXT), int(Reason.SIMILARITY)).to(torch.uint8)
    return Selection(indices, reason, similarity, None)
