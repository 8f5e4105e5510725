"""Selection methods that run before the language model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from litelvlm.errors import InputError
from litelvlm.methods import METHODS, BlockView, SelectionOptions, TokenView, get_method
from litelvlm.methods.litelvlm import Plus, plus
from litelvlm.pruning import Reason, gather_tokens

BEFORE = [name for name, method in METHODS.items() if method.where == "before"]
WHOLE = [name for name in BEFORE if name not in ("trim", "prumerge+")]  # no token without a patch
OPTIONS = SelectionOptions(seed=3)


def block(keys: torch.Tensor, seed: int, heads: int) -> BlockView:
    draw = torch.Generator().manual_seed(seed)
    batch, count, width = keys.shape
    attention = torch.rand(batch, heads, count, generator=draw)
    return BlockView(
        query=torch.randn(batch, width, generator=draw),
        keys=keys,
        values=torch.randn(batch, count, width, generator=draw),
        attention=attention / attention.sum(-1, keepdim=True),
    )


def random_view(
    grid: tuple[int, int] = (4, 5), batch: int = 2, phrases: int = 1, seed: int = 0
) -> TokenView:
    draw = torch.Generator().manual_seed(seed)
    count, width, shared, heads = grid[0] * grid[1], 8, 6, 2
    hidden, keys = torch.randn(2, batch, count, width, generator=draw)
    projected = torch.randn(batch, count, shared, generator=draw)
    text = torch.randn(batch, phrases, shared, generator=draw)
    return TokenView(
        hidden=hidden,
        similarity=text @ projected.transpose(1, 2),
        text=text,
        projected=projected,
        grid=grid,
        heads=heads,
        last=block(keys, seed + 1, heads),
        penultimate=block(keys * 0.5, seed + 2, heads),
        early=block(keys * 2, seed + 3, heads),
        llm=torch.randn(batch, count, 10, generator=draw),
    )


def hand_view(
    *,
    grid: tuple[int, int],
    similarity: list[float] | None = None,
    attention: list[float] | None = None,
    early: list[float] | None = None,
    hidden: list[list[float]] | None = None,
    llm: list[list[float]] | None = None,
    keys: list[list[float]] | None = None,
) -> TokenView:
    """One picture, one phrase, one head; whatever is not given is one."""
    count = grid[0] * grid[1]
    ones = torch.ones(1, count, 2)

    def row(values: list[float] | None) -> torch.Tensor:
        return torch.ones(1, 1, count) if values is None else torch.tensor([[values]])

    def table(values: list[list[float]] | None) -> torch.Tensor:
        return ones if values is None else torch.tensor([values])

    scores = row(similarity)
    seen = BlockView(torch.ones(1, 2), table(keys), ones, row(attention))
    return TokenView(
        hidden=table(hidden),
        similarity=scores,
        text=torch.tensor([[[1.0, 0.0]]]),
        projected=torch.stack([scores[:, 0], (1 - scores[:, 0] ** 2).clamp(min=0).sqrt()], -1),
        grid=grid,
        heads=1,
        last=seen,
        penultimate=seen,
        early=replace(seen, attention=row(early)),
        llm=table(llm),
    )


def kept(name: str, view: TokenView, budget: int, options: SelectionOptions = OPTIONS) -> list[int]:
    return METHODS[name].rule(view, budget, options).indices[0].tolist()


def row_of(view: TokenView, row: int) -> TokenView:
    def cut(value):  # type: ignore[no-untyped-def]
        if isinstance(value, torch.Tensor):
            return value[row : row + 1]
        if isinstance(value, BlockView):
            return BlockView(*(part[row : row + 1] for part in vars(value).values()))
        return value

    return TokenView(**{name: cut(value) for name, value in vars(view).items()})


@pytest.mark.parametrize("phrases", [1, 3])
@pytest.mark.parametrize("grid", [(4, 5), (1, 7), (3, 3)])
@pytest.mark.parametrize("name", BEFORE)
def test_every_budget_is_kept_exactly_with_patches_counted_once(name, grid, phrases):
    view = random_view(grid, phrases=phrases)
    count = grid[0] * grid[1]
    for budget in range(1, count + 1):
        selection = METHODS[name].rule(view, budget, OPTIONS)
        assert selection.indices.shape == selection.reason.shape == (2, budget)
        for row in selection.indices:
            patches = row[row >= 0]
            assert len(set(patches.tolist())) == len(patches)
            assert len(patches) >= budget - (name not in WHOLE)
            assert patches.numel() == 0 or int(patches.max()) < count
        if selection.tokens is not None:
            assert selection.tokens.shape == (2, budget, 8)
            assert selection.tokens.isfinite().all()


@pytest.mark.parametrize("name", BEFORE)
def test_a_batch_row_equals_the_single_run_and_a_second_run(name):
    view = random_view((5, 5), batch=3, phrases=2)
    for budget in (1, 7, 16):
        batch = METHODS[name].rule(view, budget, OPTIONS)
        again = METHODS[name].rule(view, budget, OPTIONS)
        assert torch.equal(batch.indices, again.indices)
        for row in range(3):
            single = METHODS[name].rule(row_of(view, row), budget, OPTIONS)
            assert torch.equal(batch.indices[row], single.indices[0])
            assert torch.equal(batch.reason[row], single.reason[0])
            if batch.tokens is not None:
                torch.testing.assert_close(batch.tokens[row], single.tokens[0])


@pytest.mark.parametrize("name", BEFORE)
def test_a_rule_leaves_its_inputs_alone(name):
    view, untouched = random_view(), random_view()
    METHODS[name].rule(view, 6, OPTIONS)
    for field in ("hidden", "similarity", "text", "projected", "llm"):
        assert torch.equal(getattr(view, field), getattr(untouched, field))
    for part in ("query", "keys", "values", "attention"):
        assert torch.equal(getattr(view.penultimate, part), getattr(untouched.penultimate, part))


@pytest.mark.parametrize("name", BEFORE)
@pytest.mark.parametrize("budget", [0, 21, 2.0, True])
def test_a_budget_outside_the_grid_is_refused(name, budget):
    with pytest.raises(ValueError, match="budget"):
        METHODS[name].rule(random_view(), budget, OPTIONS)


@pytest.mark.parametrize("name", BEFORE)
def test_a_method_runs_on_no_more_than_it_says_it_needs(name):
    view = random_view()
    # "similarity" comes with both of its sides.
    sides = {"text", "projected"}
    needs = METHODS[name].needs | (sides if "similarity" in METHODS[name].needs else set())
    spare = {"similarity", *sides, "last", "penultimate", "early", "llm"} - needs
    METHODS[name].rule(replace(view, **dict.fromkeys(spare)), 5, OPTIONS)
    for field in METHODS[name].needs - {"similarity"}:
        with pytest.raises(ValueError, match=field):
            METHODS[name].rule(replace(view, **{field: None}), 5, OPTIONS)


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"'litelvln'; known: litelvlm, "):
        get_method("litelvln")


def test_litelvlm_splits_the_budget_between_low_similarity_and_context():
    view = hand_view(grid=(1, 4), similarity=[0.9, 0.1, 0.5, 0.2])
    values = torch.tensor([[[5.0, 0.0], [1.0, 0.0], [2.0, 0.0], [1.0, 0.0]]])
    view = replace(view, last=replace(view.last, values=values))
    selection = METHODS["litelvlm"].rule(view, 2, OPTIONS)
    assert selection.indices.tolist() == [[0, 1]]
    assert selection.reason.tolist() == [[Reason.CONTEXT, Reason.SIMILARITY]]


def test_the_released_rule_leaves_one_phrase_no_context():
    view = hand_view(grid=(1, 4), similarity=[0.9, 0.1, 0.5, 0.2])
    selection = METHODS["litelvlm-released"].rule(view, 2, OPTIONS)
    assert selection.indices.tolist() == [[1, 3]]
    assert selection.reason.tolist() == [[Reason.SIMILARITY] * 2]


def test_random_patches_depend_on_the_seed_alone():
    first = kept("random", random_view(seed=1), 5, SelectionOptions(seed=1))
    assert first == kept("random", random_view(seed=2), 5, SelectionOptions(seed=1))
    assert first != kept("random", random_view(seed=1), 5, SelectionOptions(seed=2))


def test_the_grid_is_even():
    assert kept("grid", hand_view(grid=(4, 4)), 4) == [5, 7, 13, 15]
    assert kept("grid", hand_view(grid=(1, 6)), 3) == [1, 3, 5]


def test_most_and_least_similar_are_the_two_ends_of_one_ranking():
    view = hand_view(grid=(1, 4), similarity=[0.9, 0.1, 0.5, 0.2])
    assert kept("most-similar", view, 2) == [0, 2]
    assert kept("least-similar", view, 2) == [1, 3]


def test_several_phrases_take_turns():
    view = hand_view(grid=(1, 4))
    view = replace(view, similarity=torch.tensor([[[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]]]))
    assert kept("least-similar", view, 2) == [0, 3]


def test_context_alone_is_blind_to_the_phrase():
    view = random_view()
    other = replace(view, similarity=-view.similarity)
    assert kept("context", view, 6) == kept("context", other, 6)
    values = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [2.0, 0.0]]])
    hand = hand_view(grid=(1, 3))
    assert kept("context", replace(hand, last=replace(hand.last, values=values)), 2) == [1, 2]


def test_trim_keeps_the_least_similar_and_the_mean_of_the_rest():
    view = hand_view(
        grid=(1, 4),
        similarity=[0.9, 0.1, 0.5, 0.2],
        hidden=[[1.0, 0.0], [9.0, 9.0], [3.0, 4.0], [8.0, 8.0]],
    )
    selection = METHODS["trim"].rule(view, 3, OPTIONS)
    assert selection.indices.tolist() == [[1, 3, -1]]
    assert selection.reason.tolist() == [[Reason.RULE, Reason.RULE, Reason.MERGED]]
    assert selection.tokens.tolist() == [[[9.0, 9.0], [8.0, 8.0], [2.0, 2.0]]]


def test_class_attention_keeps_the_most_attended():
    assert kept("class-attention", hand_view(grid=(1, 4), attention=[0.1, 0.4, 0.2, 0.3]), 2) == [
        1,
        3,
    ]


def test_visionzip_adds_the_mean_of_those_that_join_a_target():
    # Of six kept, one is contextual (6 * 10 / 64, rounded): patch 5, the first of the rest.
    view = hand_view(
        grid=(1, 8),
        attention=[8.0, 7.0, 6.0, 5.0, 4.0, 1.0, 2.0, 3.0],
        hidden=[[float(patch), 1.0] for patch in range(8)],
    )
    selection = METHODS["visionzip"].rule(view, 6, OPTIONS)
    assert selection.indices.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert selection.reason.tolist() == [[Reason.RULE] * 5 + [Reason.MERGED]]
    assert selection.tokens[0, :5].tolist() == [[float(patch), 1.0] for patch in range(5)]
    assert selection.tokens[0, 5].tolist() == [5.0 + 6.5, 2.0]  # 5 and the mean of 6 and 7


def test_prumerge_plus_adds_neighbours_and_one_token_for_the_rest():
    # One by score, one spaced, one extra. Equal keys: scores 1/4 each, everybody a neighbour.
    view = hand_view(grid=(1, 4), hidden=[[4.0, 0.0], [0.0, 4.0], [8.0, 0.0], [0.0, 8.0]])
    selection = METHODS["prumerge+"].rule(view, 3, OPTIONS)
    assert selection.indices.tolist() == [[0, 1, -1]]
    expected = [[4.0 + 2.0, 3.0], [3.0, 4.0 + 2.0], [2.0, 2.0]]
    torch.testing.assert_close(selection.tokens[0], torch.tensor(expected))


def test_prumerge_plus_orders_by_score_before_spacing():
    keys = [[0.0, 0.0], [1.0, 1.0], [5.0, 5.0], [2.0, 2.0], [0.5, 0.5], [0.1, 0.1]]
    assert kept("prumerge+", hand_view(grid=(1, 6), keys=keys), 6) == [2, 3, 0, 1, 4, -1]


def test_vispruner_drops_duplicates_from_its_diverse_half():
    # Attention keeps 0. Of 1, 2, 3, 4 the even places 1 and 3 meet 2 and 4; 1 equals 2.
    view = hand_view(
        grid=(1, 5),
        attention=[5.0, 4.0, 3.0, 2.0, 1.0],
        hidden=[[1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.2], [0.0, 1.0]],
    )
    assert kept("vispruner", view, 3) == [0, 2, 4]  # next round: 3 meets 2, 4 stays: 3 is dropped


def test_cdpruner_prefers_what_the_text_is_unlike_and_avoids_twins():
    # 0 and 1 are the least similar and identical; 2 is different and half as relevant.
    view = hand_view(
        grid=(1, 4),
        similarity=[0.0, 0.01, 0.4, 0.8],
        llm=[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]],
    )
    assert kept("cdpruner", view, 1) == [0]
    assert kept("cdpruner", view, 2) == [0, 2]


def test_divprune_starts_far_out_and_skips_the_near_twin():
    # 3 is farthest from its nearest; 0 is farthest from 3; then 2, for 1 is all but 0 again.
    view = hand_view(grid=(1, 4), llm=[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.0]])
    assert kept("divprune", view, 1) == [3]
    assert kept("divprune", view, 2) == [0, 3]
    assert kept("divprune", view, 3) == [0, 2, 3]


def test_scope_weighs_coverage_by_attention():
    hidden = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    assert kept("scope", hand_view(grid=(1, 3), hidden=hidden), 2) == [0, 2]
    loud = hand_view(grid=(1, 3), hidden=hidden, attention=[0.1, 0.1, 0.9])
    assert kept("scope", loud, 1) == [2]


def test_vscan_takes_local_winners_in_turn_and_averages_the_rest():
    # 1 x 8: four windows of two. Global half: 0. Local: best of each window, best windows first.
    view = hand_view(
        grid=(1, 8),
        attention=[9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        early=[9.0, 0.1, 0.8, 0.9, 0.2, 0.1, 0.6, 0.3],
        hidden=[[1.0, 0.0], [3.0, 0.0]] + [[0.0, 2.0]] * 6,
    )
    selection = METHODS["vscan"].rule(view, 2, OPTIONS)
    assert selection.indices.tolist() == [[0, 3]]
    torch.testing.assert_close(selection.tokens[0], torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
    assert kept("vscan", view, 4) == [0, 1, 3, 6]


def test_nuwa_gives_each_cell_one_patch_before_any_gets_two():
    attention = [9.0, 8.0, 1.0, 1.5, 7.0, 6.0, 1.2, 1.1]  # 2 x 4: the left cell outshines the right
    view = hand_view(grid=(2, 4), attention=attention)
    assert kept("nuwa", view, 2) == [0, 3]
    assert kept("nuwa", view, 3) == [0, 1, 3]


def test_a_repeated_picture_of_equal_patches_ties_to_the_lower_numbers():
    for name in ("class-attention", "least-similar", "most-similar", "context"):
        assert kept(name, hand_view(grid=(2, 3)), 3) == [0, 1, 2]


def test_unmerged_tokens_are_the_patches_themselves():
    view = random_view()
    for name in ("trim", "visionzip", "vscan"):
        selection = METHODS[name].rule(view, 8, OPTIONS)
        plain = (selection.reason == Reason.RULE) & (selection.indices >= 0)
        own = gather_tokens(view.hidden, selection.indices.clamp(min=0))
        torch.testing.assert_close(selection.tokens[plain], own[plain])
        assert plain.any()


def test_litelvlm_plus_covers_the_grid_and_adds_the_most_different_of_the_least_similar():
    similarity = [5.0, 1.0, 3.0, 2.0, 1.5, 9.0, 6.0, 0.0]
    hidden = [[1.0, 0], [0, 1], [1, 0], [1, 0.1], [0, 1], [-1, 0], [1, 0], [0.1, 1]]
    view = hand_view(grid=(1, 8), similarity=similarity, hidden=hidden)
    # Cosine: all vectors have the same norm here; the lattice of two is 2 and 6.
    choices = Plus(share=0.5, most=1.0, pool=0.5, space=0.0)
    selection = plus(view, 4, OPTIONS, choices)
    # Allowed are 1, 3, 4, 7; 1 and 4 are farthest from the lattice, 1 first; then 7 is farther
    # from 1 than 4 is, which is its copy, and farther from the lattice than 3.
    assert selection.indices.tolist() == [[1, 2, 6, 7]]
    assert selection.reason.tolist() == [
        [Reason.SIMILARITY, Reason.CONTEXT, Reason.CONTEXT, Reason.SIMILARITY]
    ]


def test_litelvlm_plus_starts_with_the_least_similar_where_there_is_no_lattice():
    view = hand_view(grid=(1, 8), similarity=[5.0, 4.0, 3.0, 2.0, 1.0, 0.0, 6.0, 7.0])
    assert plus(view, 1, OPTIONS, Plus(share=1.0, most=1.0)).indices.tolist() == [[5]]


def test_litelvlm_plus_spreads_over_the_picture():
    view = hand_view(grid=(1, 8), similarity=[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    same = replace(view, hidden=torch.ones_like(view.hidden))
    choices = Plus(share=1.0, most=1.0, pool=1.0, space=1.0)
    assert plus(same, 2, OPTIONS, choices).indices.tolist() == [[0, 7]]


def test_litelvlm_plus_is_mostly_lattice_at_a_large_budget():
    view = random_view((6, 6))
    kept = plus(view, 30, OPTIONS)
    lattice = set(METHODS["grid"].rule(view, 24, OPTIONS).indices[0].tolist())  # 36 / 6 = 6
    assert lattice <= set(kept.indices[0].tolist())


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("pool", [0.0, 0.5, 1.0])
def test_every_choice_of_litelvlm_plus_keeps_the_budget(share, pool):
    view = random_view((4, 5), phrases=2)
    for budget in range(1, 21):
        selection = plus(view, budget, OPTIONS, Plus(share, most=1.0, pool=pool))
        assert all(len(set(row.tolist())) == budget for row in selection.indices)
