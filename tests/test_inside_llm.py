"""Selection methods that run inside the language model, on a small random LLaMA."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama import modeling_llama

from litelvlm.methods import METHODS
from litelvlm.methods.inside import density_clusters, stage_counts
from litelvlm.models.language import cache_argument

INSIDE = [name for name, method in METHODS.items() if method.where == "inside"]
SPAN, COUNT, LENGTH = (3, 23), 20, 30


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def llama(request):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    config._attn_implementation = request.param
    return LlamaModel(config).eval()


def sequence(phrases: int = 2, padding: int = 0):
    draw = torch.Generator().manual_seed(1)
    embeds = torch.randn(phrases, LENGTH, 32, generator=draw)
    mask = torch.ones(phrases, LENGTH, dtype=torch.long)
    if padding:
        mask[0, -padding:] = 0
    return embeds, mask, torch.arange(LENGTH).expand(phrases, -1)


@torch.no_grad()
def run(name: str, model, budget: int, padding: int = 0):
    return METHODS[name].rule(model, *sequence(padding=padding), SPAN, budget)


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("name", INSIDE)
@torch.no_grad()
def test_the_full_budget_equals_the_models_own_forward(llama, name, padding):
    embeds, mask, positions = sequence(padding=padding)
    expected = llama(inputs_embeds=embeds, attention_mask=mask, position_ids=positions)
    result = run(name, llama, COUNT, padding)
    real = mask.bool()
    torch.testing.assert_close(
        result.hidden[real], expected.last_hidden_state[real], atol=1e-5, rtol=1e-5
    )
    assert torch.equal(result.places, torch.arange(LENGTH).expand(2, -1))
    assert result.layer_tokens == (LENGTH,) * 8
    assert result.attention_bytes == 0


@pytest.mark.parametrize("name", INSIDE)
@torch.no_grad()
def test_padding_on_the_left_is_not_read(llama, name):
    embeds, mask, positions = sequence()
    mask = mask.clone()
    mask[0, :2] = 0
    changed = embeds.clone()
    changed[0, :2] += 1.0
    first, second = (
        METHODS[name].rule(llama, given, mask, positions, SPAN, 7) for given in (embeds, changed)
    )
    assert torch.equal(first.kept, second.kept)
    torch.testing.assert_close(first.hidden[:, 2:], second.hidden[:, 2:], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop"])
def test_the_budget_is_what_reaches_the_last_layer(llama, name):
    for budget in range(1, COUNT):
        result = run(name, llama, budget)
        assert result.kept.shape == (2, budget)
        assert result.hidden.shape[1] == result.places.shape[1] == LENGTH - COUNT + budget
        assert result.layer_tokens[-1] == LENGTH - COUNT + budget
        for row in result.kept:
            assert row.tolist() == sorted(set(row.tolist()))


@pytest.mark.parametrize("name", ["sparsevlm", "sparsevlm-no-merge"])
def test_sparsevlm_states_its_own_count(llama, name):
    for budget in range(1, COUNT):
        result = run(name, llama, budget)
        assert result.hidden.shape[1] == LENGTH - COUNT + result.kept.shape[1]
        assert result.layer_tokens[-1] == result.hidden.shape[1]
        if name == "sparsevlm-no-merge":
            assert bool((result.kept >= 0).all())
            assert result.kept.shape[1] == stage_counts(budget, COUNT)[-1]
    assert bool((run("sparsevlm", llama, 6).kept < 0).any())


@pytest.mark.parametrize("name", INSIDE)
def test_text_rows_all_stay_and_image_rows_match_the_patches(llama, name):
    result = run(name, llama, 7)
    for places, kept in zip(result.places, result.kept, strict=True):
        text = [row for row in places.tolist() if row >= 0 and not SPAN[0] <= row < SPAN[1]]
        assert text == [*range(SPAN[0]), *range(SPAN[1], LENGTH)]
        image = places[SPAN[0] : SPAN[0] + len(kept)]
        assert torch.equal(torch.where(kept < 0, -1, kept + SPAN[0]), image)


@pytest.mark.parametrize("name", INSIDE)
def test_padding_does_not_change_the_answer(llama, name):
    embeds, mask, positions = sequence(padding=4)
    with torch.no_grad():
        padded = METHODS[name].rule(llama, embeds, mask, positions, SPAN, 7)
        bare = METHODS[name].rule(
            llama, embeds[:1, :-4], mask[:1, :-4], positions[:1, :-4], SPAN, 7
        )
    assert torch.equal(padded.kept[0], bare.kept[0])
    torch.testing.assert_close(padded.hidden[:1, :-4], bare.hidden, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", INSIDE)
def test_sequences_never_grow_and_attention_is_counted(llama, name):
    result = run(name, llama, 6)
    assert result.layer_tokens[0] == LENGTH
    assert all(a >= b for a, b in zip(result.layer_tokens, result.layer_tokens[1:], strict=False))
    assert result.attention_bytes > 0


def test_fastv_cuts_after_two_layers_and_writes_one_row(llama):
    result = run("fastv", llama, 5)
    assert result.layer_tokens == (LENGTH, LENGTH, *[LENGTH - COUNT + 5] * 6)
    assert result.attention_bytes == 2 * 4 * LENGTH * 4  # phrases, heads, one row, float32


@torch.no_grad()
def test_fastv_follows_the_attention_the_model_reports():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="eager",
    )
    model = LlamaModel(config).eval()
    embeds, mask, positions = sequence()
    reported = model(inputs_embeds=embeds, position_ids=positions, output_attentions=True)
    row = reported.attentions[1].mean(1)[:, -1, SPAN[0] : SPAN[1]]
    expected = row.topk(5).indices.sort().values
    result = METHODS["fastv"].rule(model, embeds, mask, positions, SPAN, 5)
    assert torch.equal(result.kept, expected)


def test_pyramiddrop_halves_at_each_quarter_for_an_eighth(llama):
    embeds, mask, positions = sequence()
    with torch.no_grad():
        result = METHODS["pyramiddrop"].rule(llama, embeds, mask, positions, (3, 27), 3)
    assert result.layer_tokens == (30, 30, 18, 18, 12, 12, 9, 9)


def test_the_cache_goes_by_the_name_that_a_release_has_for_it():
    class New(torch.nn.Module):
        def forward(self, x, cache=None): ...

    class Old(torch.nn.Module):
        def forward(self, x, past_key_values=None): ...

    assert (cache_argument(New()), cache_argument(Old())) == ("cache", "past_key_values")


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_pyramiddrop_reaches_its_budget_at_any_depth(depth):
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=depth,
        num_attention_heads=4,
        attn_implementation="sdpa",
    )
    result = run("pyramiddrop", LlamaModel(config).eval(), 5)
    assert result.kept.shape == (2, 5)
    assert result.layer_tokens[-1] == LENGTH - COUNT + 5


def test_sparsevlm_uses_the_table_of_its_code():
    assert stage_counts(192, 576) == (300, 200, 110)
    assert stage_counts(64, 576) == (66, 30, 17)
    assert stage_counts(576, 576) == (576, 576, 576)
    assert stage_counts(16, 144) == (16, 8, 4)  # 66 / 4 = 16.5, rounded to even


def test_clusters_are_means_of_groups_that_lie_apart():
    tokens = torch.tensor([[[0.0, 0.0]] * 6 + [[10.0, 10.0]] * 6])
    merged = density_clusters(tokens)
    assert sorted(merged[0].tolist()) == [[0.0, 0.0], [10.0, 10.0]]


@pytest.mark.parametrize("name", INSIDE)
def test_the_models_classes_and_modules_are_left_as_they_were(llama, name):
    before = (
        modeling_llama.LlamaAttention.forward,
        modeling_llama.LlamaDecoderLayer.forward,
        modeling_llama.LlamaModel.forward,
    )
    state = {key: value.clone() for key, value in llama.state_dict().items()}
    run(name, llama, 4)
    after = (
        modeling_llama.LlamaAttention.forward,
        modeling_llama.LlamaDecoderLayer.forward,
        modeling_llama.LlamaModel.forward,
    )
    assert before == after
    assert not any(layer._forward_hooks or "forward" in vars(layer) for layer in llama.layers)
    assert all(torch.equal(state[key], value) for key, value in llama.state_dict().items())


@pytest.mark.parametrize("name", INSIDE)
def test_a_bad_budget_or_span_is_refused(llama, name):
    with pytest.raises(ValueError, match="budget"):
        run(name, llama, COUNT + 1)
    with pytest.raises(ValueError, match="image_span"):
        METHODS[name].rule(llama, *sequence(), (5, 5), 1)
