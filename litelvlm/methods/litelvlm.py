"""LiteLVLM: the paper's rule, the rule of the released code, and our own."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from litelvlm.methods.view import (
    Block,
    SelectionOptions,
    TokenView,
    check_budget,
    grid_points,
    mask_of,
    numbers_of,
    place_under_any,
)
from litelvlm.pruning import Reason, Selection, context_saliency, select_tokens


def context_score(view: TokenView, context: str = "released") -> Tensor:
    """(B, N), how much each patch contributes to the picture; "released" or "attention"."""
    if context not in ("released", "attention"):
        raise ValueError(f"context must be released or attention, got {context!r}")
    block: Block = view.need("last")
    heads = view.heads if context == "attention" else None
    return context_saliency(block.query, block.keys, block.values, heads=heads)


def litelvlm(view: TokenView, budget: int, options: SelectionOptions) -> Selection:
    """Half the budget to the patches least like the phrase, half to recovered context.

    Several phrases, other splits, orders and context scores: see `litelvlm.pruning`.
    """
    return select_tokens(
        view.need("similarity"),
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
        share: most of the budget that goes to patches chosen for what they show...
        most: ...and most such patches, as a share of all N; the rest is an even lattice.
        pool: they are chosen among that share of the patches, those least like the phrase.
        space: weight of a patch's place (1: side of the picture) beside its unit vector.
    """

    share: float = 0.75
    most: float = 1 / 6
    pool: float = 0.5
    space: float = 0.5


PLUS = Plus()


def plus(
    view: TokenView, budget: int, options: SelectionOptions, choices: Plus = PLUS
) -> Selection:
    """Show every thing in the half least like the phrase, and cover the whole picture evenly.

    Patches of things are unlike the phrase, and the language model needs all things, the referent
    and what it is told from, but few patches of each: among the half with the lowest cosine to the
    phrase, patches are added that are farthest from all chosen ones in content and place. Some 96
    of 576 do; what is left of the budget is a lattice over the whole picture. Raster order,
    original positions. As cheap as DivPrune; several phrases take turns.
    """
    batch, count = view.hidden.shape[:2]
    check_budget(budget, count)
    norm = view.need("projected").float().norm(dim=-1).clamp(min=1e-6)
    similarity = view.need("similarity").float() / norm.unsqueeze(1)
    shown = min(round(choices.share * budget), round(choices.most * count))
    device = similarity.device
    lattice = torch.tensor(grid_points(view.grid, budget - shown) if shown < budget else [])
    covered = mask_of(lattice.long().to(device).expand(batch, -1), count)
    place = place_under_any(similarity)
    allowed = (place < max(round(choices.pool * count), budget)) & ~covered

    y, x = torch.meshgrid(*(torch.arange(side) / side for side in view.grid), indexing="ij")
    where = choices.space * torch.stack([y, x], -1).reshape(1, count, 2).to(device)
    content = F.normalize(view.hidden.float(), dim=-1)
    points = torch.cat([content, where.expand(batch, -1, -1)], -1)  # (B, N, D + 2)
    distance = torch.cdist(points, points)  # (B, N, N)
    # With no lattice all are far, beyond any distance, and the least like the phrase comes first.
    far = distance.amax() + 1 + count - place
    nearest = torch.where(covered.unsqueeze(1), distance, far.unsqueeze(-1)).amin(-1)  # (B, N)
    kept = covered.clone()
    rows = torch.arange(batch, device=device)
    for _ in range(shown):
        chosen = nearest.masked_fill(~allowed, -torch.inf).argmax(-1)
        kept[rows, chosen], allowed[rows, chosen] = True, False
        nearest = torch.minimum(nearest, distance[rows, chosen])
    indices = numbers_of(kept)
    reason = torch.where(
        covered.gather(1, indices), int(Reason.CONTEXT), int(Reason.SIMILARITY)
    ).to(torch.uint8)
    return Selection(indices, reason, similarity, None)
