"""LiteLVLM: the paper's rule, the rule of the released code, and our own."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from litelvlm.baselines.view import SelectionOptions, TokenView
from litelvlm.pruning import Selection, context_saliency, select_tokens


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
