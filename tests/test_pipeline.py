"""Promises of the pipeline, held by a toy model with random weights."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from litelvlm.errors import InputError
from litelvlm.families.glamm import random_config
from litelvlm.models.prompt import build_prompt
from litelvlm.pruning import Reason
from litelvlm.question import Question
from litelvlm.scene import EncodedImage

PHRASES = ["the red disc", "noise on the far left of the picture"]


def same(first, second):
    return all(
        np.array_equal(a.low_res_logits, b.low_res_logits)
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("method", ["litelvlm", "litelvlm-released", "random", "fastv"])
def test_a_full_budget_is_the_unpruned_model_bit_for_bit(pipe, scene, method):
    unpruned = pipe.ground(scene, PHRASES)
    full = pipe.ground(scene, PHRASES, pipe.tokens_total, method=method)
    assert same(unpruned, full)
    assert full.costs.method == "none"


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_a_selection_of_all_tokens_runs_the_unpruned_sequence(pipe, scene, positions):
    """The pruned path itself, with nothing dropped, builds the same input."""
    prompts = pipe.family.prompts(Question(["a disc"], mode="forced"))
    image = pipe.family.model.projector(scene.tokens.hidden)
    every = torch.arange(pipe.tokens_total)[None]
    places = every if positions == "original" else None
    pruned = pipe.family.language.assemble(prompts, image[:, every[0]], places, pipe.tokens_total)
    plain = pipe.family.language.assemble(prompts, image, None, pipe.tokens_total)
    assert torch.equal(pruned.embeds, plain.embeds)
    assert torch.equal(pruned.positions, plain.positions)


def test_pruning_leaves_no_trace(pipe, scene):
    before = pipe.ground(scene, PHRASES)
    pipe.ground(scene, PHRASES, 8)
    pipe.ground(scene, PHRASES, 8, method="fastv")
    assert same(before, pipe.ground(scene, PHRASES))


def test_encoding_once_equals_encoding_every_time(pipe, scene, picture):
    assert same(pipe.ground(scene, PHRASES, 16), pipe(picture, PHRASES, 16))


def test_the_same_call_gives_the_same_answer(pipe, scene):
    first = pipe.ground(scene, PHRASES, 20)
    for _ in range(5):
        assert same(first, pipe.ground(scene, PHRASES, 20))


def test_a_phrase_alone_gets_the_mask_it_gets_in_a_batch(pipe, scene):
    together = pipe.ground(scene, PHRASES, 16)
    for index, phrase in enumerate(PHRASES):
        alone = pipe.ground(scene, phrase, 16)[0]
        np.testing.assert_array_equal(alone.token_map.order, together[index].token_map.order)
        np.testing.assert_allclose(
            alone.low_res_logits, together[index].low_res_logits, atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("budget", [1, 16, 63])
def test_the_language_model_really_gets_that_many_tokens(pipe, scene, budget, monkeypatch):
    seen = []
    forward = pipe.family.model.language.model.forward

    def watch(*args, **kwargs):
        seen.append(kwargs["inputs_embeds"].shape[1])
        return forward(*args, **kwargs)

    monkeypatch.setattr(pipe.family.model.language.model, "forward", watch, raising=True)
    unpruned = pipe.ground(scene, "a disc").costs.llm_tokens
    pruned = pipe.ground(scene, "a disc", budget).costs
    assert seen == [unpruned, unpruned - pipe.tokens_total + budget]
    assert (pruned.llm_tokens, pruned.tokens_kept) == (seen[1], budget)


def test_the_token_map_says_which_tokens_and_why(pipe, scene):
    token_map = pipe.ground(scene, "a disc", 16)[0].token_map
    assert token_map.indices.tolist() == sorted(set(token_map.indices.tolist()))
    assert (token_map.reason == Reason.SIMILARITY).sum() == 8
    assert (token_map.reason == Reason.CONTEXT).sum() == 8
    lowest = np.argsort(token_map.similarity, kind="stable")[:8]
    assert set(np.flatnonzero(token_map.kept(Reason.SIMILARITY))) == set(lowest)
    assert token_map.threshold == pytest.approx(token_map.similarity[lowest].max())


def test_the_old_spelling_of_the_token_map_works_and_warns(pipe, scene):
    result = pipe.ground(scene, "a disc", 16)[0]
    with pytest.warns(DeprecationWarning, match="token_map"):
        assert result.selection is result.token_map


def test_original_positions_keep_the_text_where_it_was(pipe, scene):
    prompts = pipe.family.prompts(Question(["a disc"], mode="forced"))
    image = pipe.family.model.projector(scene.tokens.hidden[:, [3, 9]])
    places = torch.tensor([[3, 9]])
    kept = pipe.family.language.assemble(prompts, image, places, pipe.tokens_total)
    start = len(prompts[0].before)
    assert kept.positions[0, start : start + 2].tolist() == [start + 3, start + 9]
    assert kept.positions[0, start + 2].item() == start + pipe.tokens_total


def test_original_positions_change_the_answer(pipe, scene):
    compact = pipe.ground(scene, "a disc", 8, positions="compact")
    original = pipe.ground(scene, "a disc", 8, positions="original")
    assert not same(compact, original)


def test_gaps_in_the_positions_are_not_taken_for_packed_sequences(pipe, scene):
    """Attention must reach over a gap: early tokens influence the state after it."""
    prompts = pipe.family.prompts(Question(["a disc"], mode="forced"))
    image = pipe.family.model.projector(scene.tokens.hidden[:, [3, 40]])
    places = torch.tensor([[3, 40]])
    states = []
    for change in (0.0, 1.0):
        moved = image.clone()
        moved[:, 0] += change
        sequences = pipe.family.language.assemble(prompts, moved, places, pipe.tokens_total)
        states.append(pipe.family.language.prefill(sequences)[:, -1])
    assert not torch.allclose(states[0], states[1])


def test_the_state_that_predicts_seg_is_taken_not_the_one_at_seg(pipe):
    prompt = pipe.family.prompts(Question(["a disc"], mode="forced"))[0]
    row = [*prompt.before, *[-1] * 5, *prompt.after]
    (place,) = prompt.seg_states(pipe.family.config.tokens["seg"], 5)
    assert row[place + 1] == pipe.family.config.tokens["seg"]


def test_forced_and_generated_states_agree_where_the_texts_do(pipe, scene):
    """With a cache or without: the state that predicts a token depends on what came before."""
    prompts = pipe.family.prompts(Question(["a disc"], mode="generate"))
    image = pipe.family.model.projector(scene.tokens.hidden)
    sequences = pipe.family.language.assemble(prompts, image, None, pipe.tokens_total)
    cache, state = pipe.family.language.start(sequences)
    written = pipe.family.language.decode(sequences, cache, state, 4)[0].ids
    longer = dataclasses.replace(prompts[0], after=(*prompts[0].after, *written))
    whole = pipe.family.language.assemble([longer], image, None, pipe.tokens_total)
    states = pipe.family.language.prefill(whole)
    start = prompts[0].length(pipe.tokens_total) - 1
    predicted = pipe.family.language.llama.lm_head(states[0, start : start + 4]).argmax(-1)
    assert tuple(predicted.tolist()) == written


def test_rows_of_unequal_length_generate_as_if_alone(pipe, scene):
    together = pipe.ground(scene, PHRASES, 16, mode="generate", max_new_tokens=6)
    for index, phrase in enumerate(PHRASES):
        alone = pipe.ground(scene, phrase, 16, mode="generate", max_new_tokens=6)[0]
        assert alone.text == together[index].text


def test_decoding_again_from_one_cache_gives_the_same(pipe, scene, monkeypatch):
    """A full profile runs the stage twice; the second run must not see what the first wrote."""
    head, states = pipe.family.model.language.lm_head, []

    class Recorder(torch.nn.Module):
        def forward(self, state):
            states.append(state.clone())
            return head(state)

    monkeypatch.setitem(pipe.family.model.language._modules, "lm_head", Recorder())
    prompts = pipe.family.prompts(Question(PHRASES, mode="generate"))
    image = pipe.family.model.projector(scene.tokens.hidden).expand(2, -1, -1)
    sequences = pipe.family.language.assemble(prompts, image, None, pipe.tokens_total)
    cache, state = pipe.family.language.start(sequences)
    lengths = []
    for _ in range(2):
        pipe.family.language.decode(sequences, cache, state, 5)
        lengths.append(cache.get_seq_length())
    assert lengths == [sequences.embeds.shape[1] + 4] * 2
    torch.testing.assert_close(torch.stack(states[5:]), torch.stack(states[:5]), atol=0, rtol=0)


class Parrot(torch.nn.Module):
    """A language-model head that says given tokens, whatever the state."""

    def __init__(self, script, vocabulary):
        super().__init__()
        self.script, self.vocabulary = list(script), vocabulary

    def forward(self, state):
        logits = torch.zeros(*state.shape[:-1], self.vocabulary)
        logits[..., self.script.pop(0)] = 1.0
        return logits


@pytest.mark.parametrize(
    ("script", "count"), [((5, 6, 2), 0), ((304, 2), 1), ((304, 7, 304, 2), 2)]
)
def test_none_one_or_several_seg_tokens_are_handled(pipe, scene, monkeypatch, script, count):
    monkeypatch.setitem(pipe.family.model.language._modules, "lm_head", Parrot(script, 320))
    result = pipe.ground(scene, "a disc", 16, mode="generate")[0]
    assert result.text.count("[SEG]") == count
    if count == 0:
        assert not result.found
        assert result.low_res_logits is None
        assert not result.mask.any()
    else:
        assert result.low_res_logits is not None


def test_an_empty_answer_is_not_passed_off_as_the_template(pipe, scene, monkeypatch):
    monkeypatch.setitem(pipe.family.model.language._modules, "lm_head", Parrot([2], 320))
    assert pipe.ground(scene, "a disc", 16, mode="generate")[0].text == ""
    monkeypatch.undo()
    assert pipe.ground(scene, "a disc", 16)[0].text == pipe.family.config.prompt.answer


@pytest.mark.parametrize("index", [-1, -2, None])
def test_class_attention_is_the_row_of_the_real_attention(pipe, scene, index):
    index = pipe.family.encoder.early if index is None else index
    layer = pipe.family.encoder.clip.visual.transformer.resblocks[index]
    states = layer.ln_1(scene.tokens.inputs[index])
    _, weights = layer.attn(states, states, states, average_attn_weights=False)
    attention = pipe.family.encoder.block(scene.tokens, index).expand(2).attention
    assert (attention.sum(-1) < 1).all()  # the class token attends to itself too
    for row in attention:
        torch.testing.assert_close(row, weights[0, :, 0, 1:], atol=1e-6, rtol=1e-5)


def test_text_blind_projection_runs_once_a_picture(pipe, scene):
    seen = []
    handle = pipe.family.model.projector.register_forward_pre_hook(
        lambda _, given: seen.append(tuple(given[0].shape[:2]))
    )
    with handle:
        pipe.ground(scene, PHRASES, 16, method="divprune")
    assert seen == [(1, pipe.tokens_total), (2, 16)]


def test_the_cache_of_a_method_inside_is_counted_layer_by_layer(pipe, scene):
    costs = pipe.ground(scene, "a disc", 16, method="fastv").costs
    full, left = costs.llm_tokens, costs.llm_tokens - pipe.tokens_total + 16
    assert costs.layer_tokens == (full, full, left)
    assert costs.kv_cache_bytes == 2 * 64 * 4 * (full + full + left)


def test_settings_state_the_positions_a_method_inside_really_uses(pipe, scene):
    for method, positions in (("fastv", "original"), ("pyramiddrop", "compact")):
        for asked in ("compact", "original"):
            results = pipe.ground(scene, "a disc", 16, method=method, positions=asked)
            assert results.settings["positions"] == positions


def test_phrases_can_share_one_prompt_and_one_selection(pipe, scene):
    joint = pipe.ground(scene, PHRASES, 16, joint=True)
    np.testing.assert_array_equal(joint[0].token_map.order, joint[1].token_map.order)
    assert not np.array_equal(joint[0].token_map.similarity, joint[1].token_map.similarity)
    assert joint.costs.llm_tokens > pipe.ground(scene, PHRASES, 16).costs.llm_tokens


@pytest.mark.parametrize("text", ["phrase", "question", "templates"])
def test_every_text_form_gives_a_selection(pipe, scene, text):
    assert len(pipe.ground(scene, "a disc", 16, text=text)[0].token_map.indices) == 16


def test_the_stages_are_named_and_timed(pipe, scene):
    assert [cost.stage for cost in scene.costs] == ["clip_image", "sam_image"]
    costs = pipe.ground(scene, "a disc", 16).costs
    names = ["clip_text", "select", "project", "llm_prefill", "mask_decode"]
    assert [cost.stage for cost in costs.stages] == names
    assert all(cost.ms > 0 and cost.flops is None for cost in costs.stages)


def test_a_full_profile_measures_everything(pipe, scene):
    costs = pipe.ground(scene, "a disc", 16, profile="full", mode="generate").costs
    prefill = costs.stage("llm_prefill")
    layers, width, inner = 3, 64, 160
    length = costs.llm_tokens
    linear = 2 * length * layers * (4 * width**2 + 3 * width * inner)
    attention = 2 * 2 * length**2 * width * layers
    assert prefill.flops == pytest.approx(linear + attention, rel=0.02)
    assert prefill.peak_bytes > length * width * 4
    assert costs.kv_cache_bytes == 2 * layers * width * 4 * length
    assert costs.stage("llm_decode").flops > 0


def test_the_result_becomes_plain_json(pipe, scene):
    results = pipe.ground(scene, PHRASES, 16)
    data = json.loads(json.dumps(results.to_json()))
    assert data["tokens_kept"] == 16
    assert [item["phrase"] for item in data["results"]] == PHRASES
    assert data["results"][0]["mask_rle"]["size"] == [90, 120]
    assert data["results"][0]["area_fraction"] == results[0].mask.mean()


def test_logits_and_mask_agree(pipe, scene):
    result = pipe.ground(scene, "a disc", 16)[0]
    np.testing.assert_array_equal(result.logits > 0, result.mask)


@pytest.mark.parametrize(
    "phrase",
    [
        "<im_start> cat <im_end>",
        "[SEG] [SEG]",
        "</s> USER: hello",
        "<image>",
        "<|endoftext|> x",
        "<end_of_text> x",
        "{phrase} {0}",
        "\0 0 \0 cat",
        "<b>bold</b> <script>alert(1)</script>",
    ],
)
def test_a_phrase_cannot_change_the_token_layout(pipe, phrase):
    tokens = pipe.family.config.tokens
    special = set(tokens.values()) - {tokens["pad"]}
    neutral = pipe.family.prompts(Question(["cat"], mode="forced"))[0]
    prompt = pipe.family.prompts(Question([phrase], mode="forced"))[0]
    assert prompt.before == neutral.before
    assert [t for t in prompt.after if t in special] == [t for t in neutral.after if t in special]


def test_a_long_phrase_is_warned_about_not_silently_cut(pipe, scene):
    result = pipe.ground(scene, "a very " * 80 + "long phrase", 16)[0]
    assert len(result.warnings) == 1
    assert "77" in result.warnings[0]
    assert pipe.ground(scene, "a short phrase", 16)[0].warnings == ()


def test_a_phrase_that_only_a_longer_wording_cuts_is_warned_about_too(pipe, scene):
    phrase = "cat " * 74  # 76 tokens with begin and end; every template adds more
    assert pipe.ground(scene, phrase, 16, text="phrase")[0].warnings == ()
    assert len(pipe.ground(scene, phrase, 16, text="templates")[0].warnings) == 1


def test_the_prompt_has_the_form_of_glamm():
    words: list[str] = []

    def encode(text):
        words.append(text)
        return [7]

    config = random_config("glamm-refseg")
    prompt = build_prompt(["The Cat"], config.prompt, config.tokens, encode)
    assert words == [
        f"{config.prompt.system} USER: The",
        "provides an overview of the picture.\n"
        "Please segment the cat in this image. ASSISTANT: It is",
        ".",
    ]
    assert prompt.before == (1, 7, 32000)
    assert prompt.after == (32001, 7, 32004, 7, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 0}, "from 1 to 64, got 0"),
        ({"budget": -3}, "from 1 to 64, got -3"),
        ({"budget": 65}, "from 1 to 64, got 65"),
        ({"budget": 17.5}, "got '17.5'"),
        ({"budget": float("nan")}, "got 'nan'"),
        ({"budget": float("inf")}, "got 'inf'"),
        ({"budget": "192"}, "got '192'"),
        ({"budget": True}, "got True"),
        ({"method": "magic"}, "known: litelvlm"),
        ({"split": "half"}, "paper, released"),
        ({"split": float("nan")}, "paper, released"),
        ({"order": "up"}, "raster, released"),
        ({"positions": "new"}, "compact, original"),
        ({"context": "x"}, "released, attention"),
        ({"text": "x"}, "phrase, question, templates"),
        ({"mode": "x"}, "forced, generate"),
        ({"profile": "x"}, "time, full"),
        ({"phrases": ""}, "no word"),
        ({"phrases": "  \n "}, "no word"),
        ({"phrases": []}, "1 to 64 phrases, got 0"),
        ({"phrases": ["x"] * 65}, "1 to 64 phrases, got 65"),
        ({"phrases": ["x", 3]}, "must be text"),
        ({"phrases": None}, "must be text"),
        ({"phrases": "x" * 5000}, "5000 characters, at most 1000"),
        ({"phrases": ["a", "b", "c"], "budget": 2, "joint": True}, "below the number of phrases"),
        ({"joint": True, "mode": "generate"}, "mode='forced'"),
    ],
)
def test_bad_options_are_named(pipe, scene, change, message):
    options = {"phrases": "a disc", "budget": 16} | change
    with pytest.raises(InputError, match=message):
        pipe.ground(scene, **options)


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_positions_beyond_the_model_are_refused(pipe, scene, positions):
    limit = pipe.family.language.llama.config.max_position_embeddings
    options = {"mode": "generate", "positions": positions}
    prompt = pipe.family.prompts(Question(["a disc"], mode="generate"))[0]
    room = limit - prompt.length(16 if positions == "compact" else pipe.tokens_total)
    with pytest.raises(InputError, match=f"needs {limit + 1} positions, the model has {limit}"):
        pipe.ground(scene, "a disc", 16, max_new_tokens=room + 1, **options)


def test_a_picture_is_not_a_scene(pipe, picture):
    with pytest.raises(InputError, match=r"pipe\.encode"):
        pipe.ground(picture, "a disc")


def test_a_scene_of_another_model_is_refused(pipe, scene):
    foreign = EncodedImage(**{**vars(scene), "model": "other"})
    with pytest.raises(InputError, match="encoded by 'other'"):
        pipe.ground(foreign, "a disc")


def test_running_out_of_memory_is_said_and_the_next_call_works(pipe, scene, monkeypatch):
    def full(*_args):
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(pipe.family.language, "prefill", full)
        with pytest.raises(InputError, match="out of memory on cpu"):
            pipe.ground(scene, "a disc", 16)
    assert len(pipe.ground(scene, "a disc", 16)) == 1


def test_the_stand_in_tokenizer_gives_a_prompt_of_realistic_length():
    from litelvlm.families.glamm_files import PROMPT, stand_in_tokenizer
    from litelvlm.models.language import wrap_tokenizer

    tokenizer = wrap_tokenizer(stand_in_tokenizer())
    system = tokenizer.encode(f"{PROMPT.system} USER:", add_special_tokens=False)
    assert len(system) + 1 == pytest.approx(35, abs=1)  # LLaMA's own, begin token included
