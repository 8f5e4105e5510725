"""Scores on hand-worked masks."""

from __future__ import annotations

import numpy as np
import pytest

from litelvlm import metrics

EMPTY = np.zeros((2, 3), bool)
LEFT = np.array([[1, 0, 0], [1, 0, 0]], bool)
TOP = np.array([[1, 1, 0], [0, 0, 0]], bool)
ALL = np.ones((2, 3), bool)


def test_overlap_counts_pixels_in_both_and_in_either():
    assert metrics.overlap(LEFT, TOP) == (1, 3)
    assert metrics.iou(LEFT, TOP) == pytest.approx(1 / 3)
    assert metrics.iou(ALL, ALL) == 1.0


def test_an_empty_target_is_right_only_with_an_empty_prediction():
    assert metrics.iou(EMPTY, EMPTY) == 1.0
    assert metrics.iou(LEFT, EMPTY) == 0.0
    assert metrics.iou(EMPTY, LEFT) == 0.0


def test_masks_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="shape"):
        metrics.overlap(EMPTY, EMPTY.T)


def test_giou_is_the_mean_and_ciou_weighs_by_area():
    pairs = [(LEFT, TOP), (ALL, ALL), (EMPTY, EMPTY)]
    assert metrics.giou(pairs) == pytest.approx((1 / 3 + 1 + 1) / 3)
    assert metrics.ciou(pairs) == pytest.approx((1 + 6 + 0) / (3 + 6 + 0))


def test_precision_counts_the_threshold_itself():
    pairs = [(ALL, ALL), (LEFT, TOP), (TOP, np.array([[1, 1, 1], [1, 0, 0]], bool))]  # 1, 1/3, 1/2
    assert metrics.precision_at(pairs, 0.5) == pytest.approx(2 / 3)
    assert metrics.precision_at(pairs, 0.9) == pytest.approx(1 / 3)


def test_no_pairs_give_nan():
    assert np.isnan(metrics.giou([]))
    assert np.isnan(metrics.ciou([]))
    assert np.isnan(metrics.precision_at([], 0.5))


def test_reversal_auc_is_zero_when_all_inside_score_lower():
    inside = np.array([1, 1, 0, 0], bool)
    assert metrics.reversal_auc(np.array([0.1, 0.2, 0.3, 0.4]), inside) == 0.0
    assert metrics.reversal_auc(np.array([0.4, 0.3, 0.2, 0.1]), inside) == 1.0
    assert metrics.reversal_auc(np.array([0.1, 0.4, 0.2, 0.3]), inside) == 0.5


def test_reversal_auc_counts_ties_half():
    assert metrics.reversal_auc(np.ones(4), np.array([1, 0, 0, 0])) == 0.5
    assert metrics.reversal_auc(np.array([1.0, 2, 3, 3]), np.array([0, 1, 0, 1])) == 0.625


def test_reversal_auc_agrees_with_counting_pairs():
    draw = np.random.default_rng(0)
    scores = draw.integers(0, 6, 40).astype(float)
    inside = draw.random(40) < 0.3
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0 for a in scores[inside] for b in scores[~inside]
    ]
    assert metrics.reversal_auc(scores, inside) == pytest.approx(np.mean(pairs))


def test_reversal_auc_takes_half_covered_patches_as_inside():
    assert metrics.reversal_auc(np.array([0.0, 1.0]), np.array([0.5, 0.49])) == 0.0


def test_reversal_auc_needs_both_sides():
    assert metrics.reversal_auc(np.arange(3.0), np.ones(3)) is None
    assert metrics.reversal_auc(np.arange(3.0), np.zeros(3)) is None


def test_token_recall_weighs_by_cover():
    kept = np.array([True, False, True])
    assert metrics.token_recall(kept, np.array([1, 1, 0], bool)) == 0.5
    assert metrics.token_recall(kept, np.array([0.75, 0.25, 0.0])) == 0.75
    assert metrics.token_recall(kept, np.zeros(3)) is None


def test_mean_and_deviation_leave_out_what_is_missing():
    assert metrics.mean_and_deviation([1.0, None, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert metrics.mean_and_deviation([2.0]) == (2.0, None)
    assert metrics.mean_and_deviation([None]) == (None, None)
