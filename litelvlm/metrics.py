"""Scores of masks and of token maps: numpy arrays in, plain numbers out.

A *pair* is (prediction, target), two boolean masks of one shape. An expression may have no target:
an empty prediction is then fully right (IoU 1), anything else fully wrong (IoU 0).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]


def overlap(prediction: np.ndarray, target: np.ndarray) -> tuple[int, int]:
    """Pixels in both masks and pixels in either: (intersection, union)."""
    prediction, target = np.asarray(prediction, bool), np.asarray(target, bool)
    if prediction.shape != target.shape:
        raise ValueError(f"masks differ in shape: {prediction.shape} and {target.shape}")
    both = int(np.count_nonzero(prediction & target))
    return both, int(np.count_nonzero(prediction)) + int(np.count_nonzero(target)) - both


def iou(prediction: np.ndarray, target: np.ndarray) -> float:
    """Intersection over union, 0..1; 1 where both masks are empty."""
    intersection, union = overlap(prediction, target)
    return intersection / union if union else 1.0


def ious(overlaps: Iterable[tuple[int, int]]) -> np.ndarray:
    """(M,) float64, the IoU of each (intersection, union)."""
    counts = np.asarray(list(overlaps), float).reshape(-1, 2)
    empty = counts[:, 1] == 0
    return np.where(empty, 1.0, counts[:, 0] / np.where(empty, 1.0, counts[:, 1]))


def mean_iou(overlaps: Iterable[tuple[int, int]]) -> float:
    """gIoU of (intersection, union) counts: the mean of the IoUs; NaN for none."""
    each = ious(overlaps)
    return float(each.mean()) if len(each) else float("nan")


def total_iou(overlaps: Iterable[tuple[int, int]]) -> float:
    """cIoU of (intersection, union) counts: sum of intersections over sum of unions.

    Large objects weigh more. 1 where all unions are empty, NaN for no counts.
    """
    counts = np.asarray(list(overlaps), float).reshape(-1, 2)
    if not len(counts):
        return float("nan")
    intersection, union = counts.sum(axis=0)
    return float(intersection / union) if union else 1.0


def share_above(overlaps: Iterable[tuple[int, int]], threshold: float) -> float:
    """Pr@threshold of counts: share of IoUs at or above the threshold (0..1); NaN for none."""
    each = ious(overlaps)
    return float((each >= threshold).mean()) if len(each) else float("nan")


def giou(pairs: Iterable[Pair]) -> float:
    """Mean IoU over pairs of masks, 0..1 (the gIoU of GRES, arXiv 2306.00968)."""
    return mean_iou(overlap(*pair) for pair in pairs)


def ciou(pairs: Iterable[Pair]) -> float:
    """Cumulative IoU over pairs of masks: sum of intersections over sum of unions, 0..1."""
    return total_iou(overlap(*pair) for pair in pairs)


def precision_at(pairs: Iterable[Pair], threshold: float) -> float:
    """Share of pairs whose IoU is at or above `threshold`, 0..1."""
    return share_above((overlap(*pair) for pair in pairs), threshold)


def reversal_auc(similarity: np.ndarray, inside: np.ndarray) -> float | None:
    """Chance that a patch inside the referent scores higher than one outside.

    0.5: no relation. Below 0.5: the similarity is reversed, as LiteLVLM needs it.

    Args:
        similarity: (N,), score of each patch, any scale.
        inside: (N,), bool, or the share of each patch under the mask (0..1); half counts as in.

    Returns:
        0..1, ties counted half; None where no patch is inside or none is outside.
    """
    similarity = np.asarray(similarity, np.float64)
    within = np.asarray(inside, np.float64) >= 0.5
    hits, misses = int(within.sum()), int((~within).sum())
    if not hits or not misses:
        return None
    _, place, ties = np.unique(similarity, return_inverse=True, return_counts=True)
    last = np.cumsum(ties)
    rank = (last - (ties - 1) / 2)[place.reshape(-1)]  # 1-based, ties share their mean rank
    return float((rank[within].sum() - hits * (hits + 1) / 2) / (hits * misses))


def token_recall(kept: np.ndarray, inside: np.ndarray) -> float | None:
    """Share of the referent that the kept patches cover, 0..1.

    Args:
        kept: (N,) bool.
        inside: (N,), bool, or the share of each patch under the mask, which then weighs it.

    Returns:
        None where no patch touches the referent.
    """
    inside = np.asarray(inside, np.float64)
    total = inside.sum()
    return float(inside[np.asarray(kept, bool)].sum() / total) if total > 0 else None


def mean_and_deviation(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation of the values that exist; None where there are too few."""
    given = np.asarray([value for value in values if value is not None], float)
    given = given[~np.isnan(given)]
    if not len(given):
        return None, None
    return float(given.mean()), float(given.std(ddof=1)) if len(given) > 1 else None
