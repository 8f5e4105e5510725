"""Properties of the selection that hold for any scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from litelvlm.pruning import (
    Reason,
    context_saliency,
    gather_tokens,
    select_tokens,
    text_similarity,
)

N = 30


@pytest.fixture
def scores():
    """Similarity (3 pictures, 2 phrases, 30 patches) and context (3, 30)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 2, N, generator=generator), torch.rand(3, N, generator=generator)


@pytest.mark.parametrize("split", ["paper", "released", 0.0, 0.3, 1.0])
@pytest.mark.parametrize("phrases", [1, 2])
@pytest.mark.parametrize("budget", [1, 2, 7, N - 1, N])
def test_exactly_the_budget_is_kept_without_repetition(scores, split, phrases, budget):
    kept = select_tokens(scores[0][:, :phrases], scores[1], budget, split=split)
    assert kept.indices.shape == kept.reason.shape == (3, budget)
    for row in kept.indices.tolist():
        assert row == sorted(set(row))
        assert 0 <= min(row) <= max(row) < N


@pytest.mark.parametrize("split", ["paper", "released", 0.4])
def test_a_full_budget_is_the_identity(scores, split):
    tokens = torch.randn(3, N, 4)
    kept = select_tokens(*scores, N, split=split)
    assert torch.equal(gather_tokens(tokens, kept.indices), tokens)


def test_the_paper_keeps_half_by_similarity_for_one_phrase(scores):
    kept = select_tokens(scores[0][:, :1], scores[1], 11)
    assert (kept.reason == Reason.SIMILARITY).sum(1).tolist() == [5, 5, 5]
    lowest = scores[0][:, 0].argsort(1)[:, :5]
    for row in range(3):
        alike = kept.indices[row][kept.reason[row] == Reason.SIMILARITY]
        assert set(alike.tolist()) == set(lowest[row].tolist())


def test_the_paper_intersects_the_phrases(scores):
    kept = select_tokens(*scores, 12)
    first, second = (set(scores[0][0, t].argsort()[:12].tolist()) for t in (0, 1))
    alike = kept.indices[0][kept.reason[0] == Reason.SIMILARITY]
    assert set(alike.tolist()) == first & second


def test_the_released_rule_leaves_no_context_for_one_phrase(scores):
    kept = select_tokens(scores[0][:, :1], scores[1], 11, split="released")
    assert (kept.reason == Reason.SIMILARITY).all()


def test_a_fraction_sets_the_share_of_similarity_tokens(scores):
    kept = select_tokens(scores[0][:, :1], scores[1], 10, split=0.3)
    assert (kept.reason == Reason.SIMILARITY).sum(1).tolist() == [3, 3, 3]


def test_context_tokens_are_the_best_of_those_not_yet_kept(scores):
    kept = select_tokens(scores[0][:, :1], scores[1], 10)
    alike = kept.indices[0][kept.reason[0] == Reason.SIMILARITY]
    left = scores[1][0].clone()
    left[alike] = -1
    best = set(left.argsort(descending=True)[:5].tolist())
    assert set(kept.indices[0][kept.reason[0] == Reason.CONTEXT].tolist()) == best


def test_the_released_order_puts_context_first_by_score(scores):
    kept = select_tokens(*scores, 12, split="released", order="released")
    for row in range(3):
        context = kept.indices[row][kept.reason[row] == Reason.CONTEXT]
        alike = kept.indices[row][kept.reason[row] == Reason.SIMILARITY]
        assert torch.equal(kept.indices[row], torch.cat([context, alike]))
        assert (scores[1][row][context].diff() <= 0).all()
        assert (alike.diff() > 0).all()


def test_a_picture_alone_gets_what_it_gets_in_a_batch(scores):
    together = select_tokens(*scores, 9)
    for row in range(3):
        alone = select_tokens(scores[0][row : row + 1], scores[1][row : row + 1], 9)
        assert torch.equal(alone.indices[0], together.indices[row])


def test_moving_the_patches_moves_the_choice(scores):
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    plain = select_tokens(*scores, 9)
    moved = select_tokens(scores[0][..., order], scores[1][..., order], 9)
    assert set(order[moved.indices[0]].tolist()) == set(plain.indices[0].tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ties_go_to_the_lower_patch_number(dtype):
    similarity, context = torch.zeros(1, 1, N, dtype=dtype), torch.zeros(1, N, dtype=dtype)
    kept = select_tokens(similarity, context, 7)
    assert kept.indices.tolist() == [list(range(7))]
    assert kept.reason.tolist() == [[0, 0, 0, 1, 1, 1, 1]]


def test_the_inputs_are_left_alone(scores):
    before = scores[0].clone(), scores[1].clone()
    select_tokens(*scores, 9, order="released")
    assert torch.equal(scores[0], before[0])
    assert torch.equal(scores[1], before[1])


@pytest.mark.parametrize("budget", [0, -1, N + 1, 2.0, "8", None, True, float("nan")])
def test_a_bad_budget_is_refused_with_both_numbers(scores, budget):
    with pytest.raises(ValueError, match=rf"1\.\.{N}, got"):
        select_tokens(*scores, budget)


@pytest.mark.parametrize("split", ["half", -0.1, 1.1, True])
def test_a_bad_split_is_refused(scores, split):
    with pytest.raises(ValueError, match="split must be"):
        select_tokens(*scores, 8, split=split)


def test_a_bad_order_is_refused(scores):
    with pytest.raises(ValueError, match="order must be"):
        select_tokens(*scores, 8, order="random")


def test_both_scores_match_a_plain_derivation():
    rng = np.random.default_rng(0)
    query, keys, values = rng.normal(size=(8,)), rng.normal(size=(N, 8)), rng.normal(size=(N, 8))
    norm = np.linalg.norm
    cosine = keys @ query / norm(keys, axis=1) / norm(query) / 8**0.5
    released = np.exp(cosine) / np.exp(cosine).sum() * norm(values, axis=1)
    given = [torch.tensor(a)[None] for a in (query, keys, values)]
    np.testing.assert_allclose(context_saliency(*given)[0], released, rtol=1e-5)

    per_head = np.zeros((N, 8))
    for head in (slice(0, 4), slice(4, 8)):
        logits = keys[:, head] @ query[head] / 2
        per_head[:, head] = (np.exp(logits) / np.exp(logits).sum())[:, None] * values[:, head]
    np.testing.assert_allclose(
        context_saliency(*given, heads=2)[0], norm(per_head, axis=1), rtol=1e-5
    )

    text = rng.normal(size=(3, 8))
    similar = text_similarity(torch.tensor(keys)[None], torch.tensor(text))
    np.testing.assert_allclose(similar[0], text @ keys.T, rtol=1e-4, atol=1e-5)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="does not divide"):
        context_saliency(torch.zeros(1, 8), torch.zeros(1, 4, 8), torch.zeros(1, 4, 8), heads=3)
