"""The idea: keep the image tokens that CLIP finds least like the text, and some context.

Pure tensor functions; the only import is torch. Axis letters used throughout:

    B  pictures (or picture-phrase pairs)      N  patch tokens of one picture, raster order
    T  phrases that share one selection        K  tokens kept, the budget
    D  width of the image tower                E  width of the space shared by image and text

Inside the referent CLIP's similarity to the text is *reversed*: the referent's own patches score
lowest. So the B tokens are filled in two steps: patches with the lowest similarity to the phrase
(the referent), then patches that matter to the picture as a whole (context), which keep
foreground and background apart. See Lee & Choi, "LiteLVLM", ICML 2026, arXiv 2605.13178.

The paper and its released code differ; both are offered:

    split="paper"     one phrase: half the budget by similarity, half context. Several phrases:
                      the K lowest of each phrase, intersected; the rest is context.
    split="released"  the floor(K / T) lowest of each phrase, united; the rest is context.
                      One phrase leaves no room for context.
    split=f           a fraction in 0..1: as "released", with f * K in place of K.

    order="raster"    kept tokens in patch order.
    order="released"  context tokens first, best first, then similarity tokens in patch order.

Scores are computed in float32 whatever the input, sorting is stable, and ties go to the lower
patch number, so the same scores give the same tokens on every device.

>>> import torch
>>> similarity = torch.tensor([[[5.0, 1.0, 4.0, 0.0, 3.0, 2.0]]])  # one picture of 2 x 3 patches
>>> context = torch.tensor([[0.9, 0.1, 0.8, 0.2, 0.3, 0.7]])
>>> kept = select_tokens(similarity, context, budget=4)
>>> kept.indices.tolist(), kept.reason.tolist()
([[0, 1, 2, 3]], [[1, 0, 1, 0]])
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor
from torch.nn import functional as F

SPLITS = ("paper", "released")
ORDERS = ("raster", "released")


class Reason(IntEnum):
    """Why a token was kept."""

    SIMILARITY = 0  # among the lowest similarities to the phrase
    CONTEXT = 1  # recovered for the picture as a whole
    RULE = 2  # by the own score of a method this one is compared with
    MERGED = 3  # a mean of several tokens, made by such a method


@dataclass(frozen=True)
class Selection:
    """Which tokens enter the language model, and why.

    Attributes:
        indices: (B, K) int64, patch numbers in the order in which the tokens enter; -1 for a
            merged token that stands for no single patch.
        reason: (B, K) uint8, values of `Reason`.
        similarity: (B, T, N) float32, the score that was ranked, lowest first; None where the
            method has none.
        context: (B, N) float32, the score that was ranked, highest first; None likewise.
        tokens: (B, K, D), the tokens themselves where a method merged some; None means
            "gather them by `indices`".
    """

    indices: Tensor
    reason: Tensor
    similarity: Tensor | None = None
    context: Tensor | None = None
    tokens: Tensor | None = None


def text_similarity(patches: Tensor, text: Tensor) -> Tensor:
    """Similarity of every patch to every phrase: a plain dot product, neither side normalised.

    Args:
        patches: (B, N, E), patch tokens in the shared space.
        text: (B, T, E) or (T, E), text embeddings in the shared space.

    Returns:
        (B, T, N) float32, any sign; low inside the referent where the reversal holds.
    """
    return text.float() @ patches.float().transpose(-1, -2)


def context_saliency(
    query: Tensor, keys: Tensor, values: Tensor, *, heads: int | None = None
) -> Tensor:
    """How much each patch contributes to the picture as a whole, from the last CLIP block.

    Args:
        query: (B, D), query of the class token.
        keys: (B, N, D), keys of the patches.
        values: (B, N, D), values of the patches.
        heads: None for the released rule: cosine of query and key over the full width, divided
            by sqrt(D). Its weights differ by a factor of exp(2 / sqrt(D)) at most, so it ranks by
            the norm of the values in effect. A number of heads for true attention:
            softmax(q k / sqrt(D / heads)) within each head.

    Returns:
        (B, N) float32, at least 0: norm of the attention-weighted value of each patch.
    """
    query, keys, values = query.float(), keys.float(), values.float()
    batch, patches, width = keys.shape
    if heads is None:
        logits = F.normalize(keys, dim=-1) @ F.normalize(query, dim=-1).unsqueeze(-1)  # (B, N, 1)
        weights = (logits / width**0.5).softmax(dim=1)
        return weights.squeeze(-1) * values.norm(dim=-1)
    if width % heads:
        raise ValueError(f"heads={heads} does not divide the width {width}")
    split = (batch, patches, heads, width // heads)
    logits = (keys.view(split) * query.view(batch, 1, heads, -1)).sum(-1)  # (B, N, heads)
    weights = (logits / (width // heads) ** 0.5).softmax(dim=1)
    return (weights.unsqueeze(-1) * values.view(split)).flatten(2).norm(dim=-1)


def select_tokens(
    similarity: Tensor,
    context: Tensor,
    budget: int,
    *,
    split: str | float = "paper",
    order: str = "raster",
) -> Selection:
    """Choose exactly `budget` tokens a picture. A budget of N in raster order is the identity.

    Args:
        similarity: (B, T, N), from `text_similarity`; all T phrases share the selection.
        context: (B, N), from `context_saliency`.
        budget: K, 1..N.
        split: "paper", "released" or a fraction in 0..1 (see the top of this file).
        order: "raster" or "released".

    Returns:
        A `Selection` of shape (B, K).

    Raises:
        ValueError: a budget outside 1..N, an unknown split or order.
    """
    similarity, context = similarity.float(), context.float()
    count = context.shape[-1]
    if isinstance(budget, bool) or not isinstance(budget, int) or not 1 <= budget <= count:
        raise ValueError(f"budget must be a whole number in 1..{count}, got {budget!r}")
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")

    alike = _lowest(similarity, budget, split)  # (B, N)
    # Fill up with context: best first among those not yet kept.
    rank = _rank(context.masked_fill(alike, -torch.inf), descending=True)
    recovered = (rank < budget - alike.sum(dim=-1, keepdim=True)) & ~alike

    patch = torch.arange(count, device=context.device).expand_as(rank)
    place = patch if order == "raster" else torch.where(recovered, rank, patch + count)
    place = place.masked_fill(~(alike | recovered), 2 * count)  # dropped tokens go last
    indices = place.argsort(dim=-1, stable=True)[:, :budget]
    reason = torch.where(recovered.gather(1, indices), Reason.CONTEXT, Reason.SIMILARITY)
    return Selection(indices, reason.to(torch.uint8), similarity, context)


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Pick tokens by patch number: (B, N, D), (B, K) -> (B, K, D)."""
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def _lowest(similarity: Tensor, budget: int, split: str | float) -> Tensor:
    """(B, N) bool: the tokens kept for their low similarity, at most `budget` a picture."""
    phrases = similarity.shape[1]
    rank = _rank(similarity, descending=False)  # (B, T, N)
    if split == "paper":
        return (rank < budget // 2).any(1) if phrases == 1 else (rank < budget).all(1)
    if split == "released":
        split = 1.0
    if isinstance(split, (str, bool)) or not 0.0 <= split <= 1.0:
        raise ValueError(f"split must be one of {', '.join(SPLITS)} or in 0..1, got {split!r}")
    return (rank < int(split * budget + 1e-9) // phrases).any(1)


def _rank(scores: Tensor, *, descending: bool) -> Tensor:
    """Place of every score along the last axis, 0 = first; equal scores in index order."""
    return scores.argsort(dim=-1, descending=descending, stable=True).argsort(dim=-1)
