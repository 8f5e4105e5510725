"""The plug-in on tiny random models of every kind: what goes in, what comes out."""

from __future__ import annotations

import pytest
import torch
from tiny_vlm import KINDS, fresh, logits, picture, plain, prompt, tiny

import litelvlm


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_budget_is_the_untouched_model_bit_for_bit(kind):
    model, processor = tiny(kind)
    pictures, prompts = (
        [picture(40, 56), picture(56, 40, seed=1)],
        [
            prompt(kind),
            prompt(kind, "where is the red apple on the left of the photo"),
        ],
    )
    inputs = litelvlm.Pruner(model, processor, method="grid").prepare(pictures, prompts)
    expected = logits(model, plain(kind, [[p] for p in pictures], prompts))
    assert torch.equal(logits(model, inputs), expected)
    assert [r.tokens_kept == r.tokens_total for r in inputs.record] == [True, True]


ASK = "where is the red apple on the left of the photo"
DECODERS = [kind for kind in KINDS if kind != "florence2"]
MROPE = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
STACKED = ["internvl", "gemma3", "paligemma"]


def pruner(kind, method="grid", **more):
    return litelvlm.Pruner(*tiny(kind), method=method, **more)


def close(one, other):
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_half_the_tokens_run_and_the_record_says_which(kind):
    inputs = pruner(kind).prepare(picture(), prompt(kind), budget=0.5)
    (record,) = inputs.record
    kept = sum(len(piece.indices) for piece in record.pieces)
    total = sum(piece.grid[0] * piece.grid[1] for piece in record.pieces)
    assert kept == round(total / 2)
    image = inputs["input_ids"] == tiny(kind)[0].config.image_token_id
    assert int(image.sum()) == record.tokens_kept < record.tokens_total
    full = pruner(kind).prepare(picture(), prompt(kind))
    half = logits(tiny(kind)[0], inputs)
    assert half.isfinite().all()
    assert not torch.equal(half, logits(tiny(kind)[0], full))
    assert (record.method, record.score) == ("grid", "tokens alone") or kind == "llava"


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_a_batch_with_several_pictures_a_row_equals_its_single_runs(kind, positions):
    model, _ = tiny(kind)
    prompts = [prompt(kind, pictures=2), prompt(kind, ASK)]
    pictures = [[picture(), picture(56, 40, 1)], [picture(48, 48, 2)]]
    prune = pruner(kind, "divprune")
    batch = prune.prepare(pictures, prompts, [0.7, 0.4, 0.5], positions=positions)
    found = logits(model, batch)
    for row, budget in enumerate([[0.7, 0.4], [0.5]]):
        single = prune.prepare(pictures[row], prompts[row], budget, positions=positions)
        close(found[:, row : row + 1], logits(model, single))
    if kind != "paligemma":  # see below
        close(logits(model, batch, cache_implementation="static"), found)
    assert [record.prompt for record in batch.record] == [0, 0, 1]


@pytest.mark.parametrize("kind", [k for k in DECODERS if k != "paligemma"])
def test_a_static_cache_gives_the_same(kind):
    model, _ = tiny(kind)
    inputs = pruner(kind).prepare(picture(), prompt(kind), 0.5)
    close(logits(model, inputs, cache_implementation="static"), logits(model, inputs))


@pytest.mark.parametrize("kind", ["llava", "qwen3_vl", "gemma3"])
def test_eager_attention_gives_the_same(kind):
    model, processor = fresh(kind)
    inputs = litelvlm.Pruner(model, processor, "grid").prepare(picture(), prompt(kind), 0.5)
    expected = logits(model, inputs)
    model.set_attn_implementation("eager")
    close(logits(model, inputs), expected)


def test_paligemma_itself_cannot_use_a_static_cache():
    model, _ = tiny("paligemma")
    untouched = plain("paligemma", [[picture()]], [prompt("paligemma")])
    with pytest.raises(AttributeError):
        logits(model, untouched, cache_implementation="static")


@pytest.mark.parametrize("kind", KINDS)
def test_beams_leave_the_inputs_as_they_were(kind):
    model, _ = tiny(kind)
    prompts = [prompt(kind), prompt(kind, ASK)]
    pictures = [[picture()], [picture(56, 40, 1)]]
    inputs = pruner(kind).prepare(pictures, prompts, [0.3, 0.6])
    beams = dict(num_beams=2, num_return_sequences=2, max_new_tokens=3)
    once, twice = model.generate(**inputs, **beams), model.generate(**inputs, **beams)
    assert torch.equal(once, twice)
    for row in range(2):  # each prompt's beams saw that prompt's own picture
        single = pruner(kind).prepare(pictures[row], prompts[row], [0.3, 0.6][row])
        alone = model.generate(**single, **beams)[:, -3:]
        assert torch.equal(once[2 * row : 2 * row + 2, -3:], alone)


@pytest.mark.parametrize("kind", MROPE)
def test_mrope_positions_are_those_of_the_kept_patches(kind):
    model, _ = tiny(kind)
    inputs = pruner(kind).prepare(picture(), prompt(kind), 0.5)
    untouched = plain(kind, [[picture()]], [prompt(kind)])
    axes, _ = model.model.get_rope_index(
        untouched["input_ids"],
        mm_token_type_ids=untouched["mm_token_type_ids"],
        image_grid_thw=untouched["image_grid_thw"],
        attention_mask=untouched["attention_mask"],
    )
    image = untouched["input_ids"][0] == model.config.image_token_id
    stays = ~image
    stays[image.nonzero()[:, 0][inputs.record[0].pieces[0].indices]] = True
    positions = inputs["position_ids"]
    assert positions.shape == (4, 1, int(stays.sum()))
    assert positions[0, 0].tolist() == list(range(positions.shape[2]))
    assert torch.equal(positions[1:, 0], axes[:, 0, stays])
    assert not {"image_grid_thw", "mm_token_type_ids", "pixel_values"} & set(inputs)


@pytest.mark.parametrize("kind", MROPE)
def test_without_positions_mrope_would_see_no_places_so_they_are_always_given(kind):
    model, _ = tiny(kind)
    for positions in ("original", "compact"):
        inputs = pruner(kind).prepare(picture(), prompt(kind), 0.5, positions=positions)
        bare = {k: v for k, v in dict(inputs).items() if k != "position_ids"}
        assert not torch.allclose(logits(model, inputs), logits(model, bare), atol=1e-4)


@pytest.mark.parametrize("kind", MROPE)
def test_compact_mrope_positions_have_no_gaps_and_keep_the_order(kind):
    inputs = pruner(kind).prepare(picture(80, 80), prompt(kind), 5, positions="compact")
    image = inputs["input_ids"][0] == tiny(kind)[0].config.image_token_id
    start, after = int(image.nonzero()[0]), int(image.nonzero()[-1]) + 1
    axes = inputs["position_ids"][1:, 0]
    for axis, values in enumerate(axes[:, image]):
        assert sorted(set(values.tolist())) == list(range(start, int(values.max()) + 1)), axis
    assert (axes[:, after] == axes[:, image].max() + 1).all()


@pytest.mark.parametrize("kind", MROPE)
def test_position_state_left_on_the_model_changes_nothing(kind):
    model, _ = tiny(kind)
    inputs = pruner(kind).prepare(picture(), prompt(kind), 0.5)
    first = logits(model, inputs)
    logits(model, plain(kind, [[picture(80, 40, 3)]], [prompt(kind, ASK)]))  # leaves rope_deltas
    left = model.model.rope_deltas.clone()
    again = pruner(kind).prepare(picture(), prompt(kind), 0.5)
    assert torch.equal(model.model.rope_deltas, left)
    assert torch.equal(logits(model, again), first)


def test_gaps_in_the_positions_are_not_taken_for_packed_sequences():
    # Without a mask and a cache, transformers would cut attention at each gap.
    model, _ = tiny("llava")
    inputs = dict(pruner("llava").prepare(picture(), prompt("llava"), 4))
    assert (inputs["position_ids"].diff() > 1).any()
    assert inputs["attention_mask"].all()
    with torch.no_grad():
        cached = model(**inputs).logits
        inputs = dict(pruner("llava").prepare(picture(), prompt("llava"), 4))
        bare = model(**inputs, use_cache=False).logits
        inputs.pop("attention_mask")
        cut = model(**inputs, use_cache=False).logits
    close(bare, cached)
    assert not torch.allclose(cut, cached, atol=1e-3)


@pytest.mark.parametrize("kind", ["llava", "internvl", "gemma3", "idefics3"])
def test_kept_tokens_keep_their_original_positions(kind):
    model, _ = tiny(kind)
    inputs = pruner(kind).prepare(picture(), prompt(kind), 0.5)
    full = pruner(kind).prepare(picture(), prompt(kind))
    image = full["input_ids"][0] == model.config.image_token_id
    kept, start = [], 0
    for piece in inputs.record[0].pieces:
        kept += [start + int(i) for i in piece.indices]
        start += piece.grid[0] * piece.grid[1]
    stays = ~image
    stays[image.nonzero()[:, 0][kept]] = True
    assert torch.equal(inputs["position_ids"], full["position_ids"][:, stays])
    assert torch.equal(inputs["input_ids"], full["input_ids"][:, stays])
    compact = pruner(kind).prepare(picture(), prompt(kind), 0.5, positions="compact")
    assert compact["position_ids"][0].tolist() == list(range(int(stays.sum())))


@pytest.mark.parametrize("kind", ["llava", *MROPE])
def test_decoding_goes_on_after_the_last_original_position(kind):
    model, _ = tiny(kind)
    inputs = pruner(kind).prepare(picture(), prompt(kind), 4)
    full = pruner(kind).prepare(picture(), prompt(kind))
    last = full["position_ids"][..., -1].flatten()[-3:]  # time, row and column under M-RoPE
    assert torch.equal(inputs["position_ids"][..., -1].flatten()[-3:], last)
    seen = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["position_ids"][..., -1].flatten()[-3:]),
        with_kwargs=True,
    )
    try:
        logits(model, inputs, steps=3)
    finally:
        hook.remove()
    assert [step.tolist() for step in seen] == [(last + n).tolist() for n in range(3)]


def test_a_second_turn_keeps_the_pruned_prompt():
    """Nothing is left from call to call: the same picture in a longer chat is pruned alike."""
    prune, other = pruner("qwen2_5_vl", "divprune"), picture(80, 40, 3)
    first = prune.prepare(picture(), prompt("qwen2_5_vl"), 4)
    prune.prepare(other, prompt("qwen2_5_vl", ASK), 2)
    chat = prompt("qwen2_5_vl") + " the apple is red " + prompt("qwen2_5_vl", ASK)
    second = prune.prepare([picture(), other], chat, [4, 3])
    length = first["input_ids"].shape[1]
    assert torch.equal(second["input_ids"][:, :length], first["input_ids"])
    assert torch.equal(second["position_ids"][..., :length], first["position_ids"])
    kept, again = (i["mm_encoder_outputs"]["image"].pooler_output for i in (first, second))
    close(torch.cat(again)[:4], torch.cat(kept))


@pytest.mark.parametrize("kind", KINDS)
def test_placeholders_are_counted_by_their_ids_never_by_their_embeddings(kind):
    """With `inputs_embeds` a kept token equal to the placeholder's embedding would be counted."""
    inputs = pruner(kind).prepare(picture(), prompt(kind), 0.5)
    assert "input_ids" in inputs
    assert "inputs_embeds" not in inputs


def test_deepstack_features_are_pruned_with_the_same_patches():
    inputs = pruner("qwen3_vl").prepare(picture(), prompt("qwen3_vl"), 3)
    full = pruner("qwen3_vl").prepare(picture(), prompt("qwen3_vl"))
    kept = inputs.record[0].pieces[0].indices
    out, every = inputs["mm_encoder_outputs"]["image"], full["mm_encoder_outputs"]["image"]
    assert len(out.deepstack_features) == 2
    for plane, whole in zip(
        [out.pooler_output, *out.deepstack_features],
        [every.pooler_output, *every.deepstack_features],
        strict=True,
    ):
        assert torch.equal(torch.cat(plane), torch.cat(whole)[kept])


@pytest.mark.parametrize("kind", ["gemma3", "paligemma"])
def test_token_types_are_shortened_with_the_prompt(kind):
    inputs = pruner(kind).prepare(picture(), prompt(kind), 5)
    image = inputs["input_ids"] == tiny(kind)[0].config.image_token_id
    assert inputs["token_type_ids"].shape == inputs["input_ids"].shape
    if kind == "gemma3":
        assert torch.equal(inputs["token_type_ids"] == 1, image)


@pytest.mark.parametrize("kind", STACKED)
def test_unequal_prompts_share_one_tensor_by_placeholders_nothing_attends_to(kind):
    pictures, prompts = [picture(48, 48), picture(48, 48, 1)], [prompt(kind)] * 2
    inputs = pruner(kind).prepare(pictures, prompts, [4, 6])
    assert inputs["mm_encoder_outputs"]["image"].pooler_output.shape[:2] == (2, 6)
    image = inputs["input_ids"] == tiny(kind)[0].config.image_token_id
    assert image.sum(-1).tolist() == [6, 6]
    assert (image & inputs["attention_mask"].bool()).sum(-1).tolist() == [4, 6]


@pytest.mark.parametrize("kind", ["llava_next", "llava_onevision"])
def test_row_ends_follow_the_rows_that_keep_a_patch(kind):
    model, _ = tiny(kind)
    inputs = pruner(kind).prepare(picture(32, 120), prompt(kind), 6)
    (record,) = inputs.record
    base, tiles = record.pieces
    rows = len({int(i) // tiles.grid[1] for i in tiles.indices})
    assert record.tokens_kept == 6 + rows
    features = torch.cat(inputs["mm_encoder_outputs"]["image"].pooler_output)
    ends = (features == model.model.image_newline).all(-1)
    assert int(ends.sum()) == rows
    assert ends[-1]
    assert not ends[: len(base.indices)].any()


def test_florence_keeps_the_mean_and_has_no_positions_of_its_own():
    inputs = pruner("florence2").prepare(picture(), prompt("florence2"), 9)
    assert inputs.record[0].tokens_kept == 10
    assert "position_ids" not in inputs
    with pytest.raises(litelvlm.InputError, match="compact"):
        pruner("florence2").prepare(picture(), prompt("florence2"), 9, positions="original")


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_lies_where_its_patch_is(kind):
    """A change of the picture in one place moves the token of that place the most."""
    before = picture(64, 64)
    for x, y in ((10, 20), (52, 40)):
        after = before.copy()
        after[y - 3 : y + 3, x - 3 : x + 3] = 255 * (before[y - 3 : y + 3, x - 3 : x + 3] < 128)
        whole = [pruner(kind).prepare(p, prompt(kind)) for p in (before, after)]
        rows = [i["mm_encoder_outputs"]["image"].pooler_output for i in whole]
        moved = (torch.cat(list(rows[1])) - torch.cat(list(rows[0]))).norm(dim=-1)
        start = 0
        for piece in whole[0].record[0].pieces:
            if kind == "florence2":
                start += 1
            (height, width), (x0, y0, x1, y1) = piece.grid, piece.box
            newline = (
                kind in ("llava_next", "llava_onevision")
                and piece is not whole[0].record[0].pieces[0]
            )
            part = moved[start : start + height * (width + newline)].view(height, -1)[:, :width]
            start += height * (width + newline)
            cx, cy = (x / 64 - x0) / (x1 - x0) * width, (y / 64 - y0) / (y1 - y0) * height
            if 0 <= cx < width and 0 <= cy < height:
                best = divmod(int(part.argmax()), width)
                assert abs(best[0] + 0.5 - cy) <= 1, (piece, best, cx, cy)
                assert abs(best[1] + 0.5 - cx) <= 1, (piece, best, cx, cy)
