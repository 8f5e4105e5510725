"""Training of the embedded model: fast paths equal the engine, stages learn, runs resume."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from litelvlm.errors import InputError
from litelvlm.nano.scenes import DrawnScene, Expression, SceneObject, make_scene, names
from litelvlm.nano.train import clip as clip_stage
from litelvlm.nano.train import masks as mask_stage
from litelvlm.nano.train import probe, targets
from litelvlm.nano.train.builders import build_dual_encoder, build_segmenter
from litelvlm.nano.train.common import attention, optimisers, schedule, stream
from litelvlm.nano.train.frozen import load_frozen
from litelvlm.nano.train.grounder import Grounder, box_iou, to_corners
from litelvlm.nano.train.language_batches import LanguageBatches, spread
from litelvlm.nano.train.packed import packed
from litelvlm.nano.train.recipe import recipe
from litelvlm.nano.train.run import ensure_tokenizer, read_curves, train
from litelvlm.nano.train.start import start_from_head, start_from_prompt
from litelvlm.nano.train.tokens import PromptTokens

torch.set_num_threads(1)
TINY = recipe("tiny")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder with all three stages of the tiny recipe trained once."""
    folder = tmp_path_factory.mktemp("run")
    for stage in ("clip", "masks", "language"):
        train(TINY, (stage,), folder, probes=0, limit=2)  # its log then has the first steps apart
        train(TINY, (stage,), folder, resume=True, probes=2)
    return folder


def _log(folder, stage):
    return [json.loads(line) for line in (folder / f"{stage}.jsonl").read_text().splitlines()]


@lru_cache(maxsize=1)
def _tokens():
    return PromptTokens(ensure_tokenizer(TINY, Path(tempfile.mkdtemp())))


def _scene():
    labels = np.zeros((168, 168), np.uint8)
    labels[28:56, 42:70] = 1
    thing = SceneObject(names()[3], "x", "red", (42.0, 28.0, 70.0, 56.0), 1.0)
    image = np.zeros((168, 168, 3), np.uint8)
    words = (Expression("the red one", (0,), "colour"),)
    return DrawnScene(0, image, labels, (thing,), words, "a thing")


# ---------------------------------------------------------------- fast paths equal the engine


def test_plain_attention_agrees_with_the_fused_kernel():
    q, k, v = (torch.randn(2, 3, 20, 16) for _ in range(3))
    bias = torch.full((20, 20), -1e4).triu(1)
    exact = attention(q, k, v, bias)
    fast = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), bias)
    assert torch.allclose(exact, fast.float(), atol=0.05)


def test_patch_features_are_what_the_engine_reads():
    from litelvlm.models.dual_encoder import DualEncoder

    clip = build_dual_encoder(TINY.dual_encoder).eval()
    pixels = torch.randn(2, 3, 336, 336)
    with torch.no_grad():
        patches, pooled = clip_stage.patch_features(clip.visual, pixels)
        tokens = DualEncoder(clip).encode_image(pixels)
        assert torch.allclose(patches, tokens.hidden, atol=1e-5)
        assert torch.allclose(pooled, clip.encode_image(pixels), atol=1e-5)


def test_a_window_uses_its_own_part_of_the_position_table():
    clip = build_dual_encoder(TINY.dual_encoder).eval()
    pixels = torch.randn(2, 3, 168, 168)
    same = pixels[:1].expand(2, -1, -1, -1)
    with torch.no_grad():
        corners, _ = clip_stage.patch_features(clip.visual, same, torch.tensor([[0, 0], [12, 12]]))
    assert not torch.allclose(corners[0], corners[1], atol=1e-3)


def test_trimmed_texts_give_the_engine_s_embedding():
    from open_clip import tokenize

    clip = build_dual_encoder(TINY.dual_encoder).eval()
    ids = tokenize(["a dog", "the two red cars on the left"], context_length=32)
    with torch.no_grad():
        assert torch.allclose(clip_stage.text_features(clip, ids), clip.encode_text(ids), atol=1e-5)


def test_the_mask_branch_decodes_as_the_engine_does():
    from litelvlm.models.segmenter import Segmenter

    sam = build_segmenter(TINY.segmenter).eval()
    pixels, prompts = torch.randn(1, 3, 320, 320), torch.randn(3, 32)
    with torch.no_grad():
        embedding = mask_stage.encode(sam, pixels)
        ours, _ = mask_stage.decode(sam, embedding, prompts[None, :, None])
        theirs, _ = Segmenter(sam).decode(embedding, prompts)
    assert torch.allclose(ours[0], theirs, atol=1e-4)


@pytest.mark.parametrize("image_hw", [(120, 120), (90, 161), (333, 100)])
def test_pictures_stand_in_the_square_where_the_engine_puts_them(image_hw):
    from litelvlm.models.segmenter import Segmenter

    image = np.random.default_rng(0).integers(0, 256, (*image_hw, 3), np.uint8)
    segmenter = Segmenter(build_segmenter(TINY.segmenter), "middle")
    frames = torch.from_numpy(targets.sam_frame(image, 320))[None]
    ours = targets.sam_pixels(frames)
    assert torch.allclose(ours, segmenter.pixels(image), atol=1e-3)
    whole = torch.from_numpy(targets.low_mask(np.ones(image_hw, bool), 80)).float() - 127
    assert (probe.upscale(whole[None], 320, image_hw) > 0).all()
    assert (segmenter.frame(image_hw).upscale(whole[None]) > 0).all()


def test_phrases_of_a_rare_kind_are_not_crowded_out():
    kinds = ["position"] * 9 + ["ordinal", "name"]
    for seed in range(9):
        order = spread(np.random.default_rng(seed), kinds)
        assert sorted(order) == list(range(11))
        assert {kinds[i] for i in order[:3]} == {"position", "ordinal", "name"}


def _whole(model, prompt, patches):
    """A prompt with its image tokens as the language model would get it alone."""
    embed = model.llama.model.embed_tokens
    before, after = (embed(torch.tensor(part))[None] for part in (prompt.before, prompt.after))
    return torch.cat([before, model.projector(patches), after], 1)


def test_packed_turns_equal_each_turn_alone(trained):
    tokens = PromptTokens(trained / "tokenizer.json")
    model = Grounder(TINY, tokens, list(names())).eval()
    ids, _ = tokens.turns(["the red dog", "big cat on the left"], 40)
    patches = torch.randn(1, 37, TINY.dual_encoder["vision_cfg"]["width"])
    with torch.no_grad():
        _, final, span = model(patches, ids[None])
        start = span.stop + len(tokens.between)
        together = final[0, start:].reshape(2, 40, -1)
        for row, phrase in enumerate(("the red dog", "big cat on the left")):
            prompt = tokens.build(phrase)
            whole = _whole(model, prompt, patches)
            alone = model.llama.model(inputs_embeds=whole, use_cache=False).last_hidden_state[0]
            turn = alone[start:]
            assert torch.allclose(together[row, : len(turn)], turn, atol=1e-4)


def test_the_attention_that_is_taught_is_the_attention_that_acts(trained):
    tokens = PromptTokens(trained / "tokenizer.json")
    model = Grounder(TINY, tokens, list(names())).eval()
    ids, state = tokens.turns(["the red dog", "big cat on the left"], 40)
    patches = torch.randn(1, 9, TINY.dual_encoder["vision_cfg"]["width"])
    with torch.no_grad():
        states, final, _ = model(patches, ids[None])
        start = final.shape[1] - 80
        asked = start + torch.arange(2) * 40 + state
        taught = model.attended(1, states[1], asked[None], state[None])[0, 0, 1].exp()
        prompt = tokens.build("big cat on the left")
        whole = _whole(model, prompt, patches)
        model.llama.set_attn_implementation("eager")
        acts = model.llama.model(inputs_embeds=whole, use_cache=False, output_attentions=True)
    assert torch.allclose(taught, acts.attentions[1][0, 0, start + state[1], :start], atol=1e-5)


def test_the_projector_starts_with_what_the_dense_head_knows():
    head = clip_stage.DenseHead(64, len(names()))
    torch.nn.init.normal_(head.linear.weight)
    patches = torch.randn(2, 200, 64) * 3
    wide = replace(TINY, language=TINY.language | {"hidden_size": 256})
    model = Grounder(wide, _tokens(), list(names()))
    start_from_head(model, head, patches)
    with torch.no_grad():
        first = model.projector[0](patches).flatten(0, 1)
        truth = head(patches)[0].flatten(0, 1).argmax(-1)
        guess = first[:, : len(names()) + 1].argmax(-1)
    assert (guess == truth).float().mean() > 0.7


def test_the_seg_head_starts_as_the_prompt_token_of_the_box_in_its_state():
    prompt = mask_stage.PromptToken(32)
    model = Grounder(TINY, _tokens(), list(names()))
    start_from_prompt(model, prompt)
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.3, 0.3, 0.3, 0.3]])
    with torch.no_grad():
        state = prompt.waves(boxes) @ torch.linalg.pinv(model.helpers.compass).T
        assert torch.allclose(model.seg_head(state), prompt(boxes), atol=1e-5)


def test_a_turn_does_not_see_its_neighbour(trained):
    tokens = PromptTokens(trained / "tokenizer.json")
    model = Grounder(TINY, tokens, list(names())).eval()
    prefix, turns = torch.randn(1, 12, 64), torch.randn(1, 2, 5, 64)
    other = turns.clone()
    other[:, 1] = torch.randn(1, 5, 64)
    with torch.no_grad():
        first = packed(model.llama, prefix, turns)[1][:, :17]
        second = packed(model.llama, prefix, other)[1][:, :17]
    assert torch.equal(first, second)


# ---------------------------------------------------------------- targets


def test_patch_targets_name_the_object_under_a_patch():
    kind, colour, box, cover = targets.patch_targets(
        _scene(), {n: i for i, n in enumerate(names())}
    )
    grid = kind.reshape(12, 12)
    assert (grid[2:4, 3:5] == 4).all()
    assert (kind > 0).sum() == 4
    assert colour.reshape(12, 12)[2, 3] == targets.COLOURS.index("red")
    assert np.allclose(box.reshape(12, 12, 4)[2, 3], [-0.07, -0.07, 0.21, 0.21])
    assert np.isclose(cover[:, 1].sum(), 4.0)


def test_letterboxed_boxes_follow_the_pixels():
    scene = make_scene(5, replace(probe.VAL, canvas=(336, 448)))
    seen = targets.squared(scene, 336)
    for i, thing in enumerate(seen.objects):
        ys, xs = np.nonzero(seen.labels == i + 1)
        tight = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert np.abs(tight - thing.box).max() <= 2


def test_patches_and_phrases_agree_on_the_boxes_of_a_thing():
    phases = ((0, TINY.language_plan.phases[1][1], 2),)
    path = _tokens().path
    batch = LanguageBatches(phases, turns=4, length=40, tokenizer=path, sam_side=320, seed=3)(0)
    checked = 0
    for b, e in zip(*torch.nonzero(batch["real"], as_tuple=True), strict=True):
        for patch in torch.nonzero(batch["cover"][b, e] > 0.5)[:, 0]:
            assert torch.allclose(batch["frame_place"][b, patch], batch["frame_box"][b, e])
            assert torch.allclose(batch["place"][b, patch], batch["box"][b, e], atol=1e-5)
            assert batch["fits"][b, e, patch] > 0.5
            assert batch["landmark"][b, e, patch] < 0.5
            checked += 1
    assert checked > 10


def test_prompts_lie_on_their_masks():
    scene = make_scene(9, replace(probe.VAL, canvas=(336, 336)))
    boxes, masks = mask_stage.draw_prompts(scene, 12, 84, np.random.default_rng(0), points=1.0)
    for (x, y, _, _), mask in zip(boxes, masks, strict=True):
        near = mask[max(0, int(y * 84) - 1) : int(y * 84) + 2, max(0, int(x * 84) - 1) :][:, :3]
        assert near.any()


def test_box_outputs_are_ordered_corners():
    corners = to_corners(torch.randn(50, 4))
    assert (corners[:, 2:] > corners[:, :2]).all()
    assert torch.allclose(box_iou(corners, corners), torch.ones(50), atol=1e-3)


def test_a_picture_of_another_scene_with_the_same_thing_is_no_negative():
    image = torch.eye(2)
    text = torch.tensor([[1.0, 0.0]])
    wanted = torch.tensor([[True, False]])
    both = torch.tensor([[True, False], [True, False]])
    apart = torch.tensor([[True, False], [False, True]])
    args = (torch.tensor(10.0), torch.tensor([0]), wanted)
    loose = clip_stage.contrastive(image, text, *args, both)
    tight = clip_stage.contrastive(image, text * 0, *args, apart)
    assert loose < 0.01 < tight


def test_the_reversal_hinge_rests_once_the_referent_is_least_similar():
    inside = torch.tensor([[1.0, 0.0, 0.0]])
    reversed_ = clip_stage.reversal_loss(torch.tensor([[-0.5, 0.2, 0.2]]), inside, 0.1)
    forward = clip_stage.reversal_loss(torch.tensor([[0.5, 0.2, 0.2]]), inside, 0.1)
    assert reversed_ == 0
    assert forward > 0.3


# ---------------------------------------------------------------- schedule and stream


def test_the_learning_rate_warms_up_and_comes_down():
    rates = [schedule(step, 110, 10, hold=0.4) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[50] == 1.0
    assert rates[80] == pytest.approx(0.5)
    assert rates[110] == 0.0


def test_every_weight_has_one_optimiser_and_only_block_matrices_have_muon():
    clip = build_dual_encoder(TINY.dual_encoder)
    plain, muon = optimisers([clip], 1e-3, 0.05, 6.0)
    given = [p for o in (plain, muon) for g in o.param_groups for p in g["params"]]
    assert sorted(map(id, given)) == sorted(map(id, clip.parameters()))
    matrices = {id(p) for g in muon.param_groups for p in g["params"]}
    assert id(clip.visual.transformer.resblocks[0].mlp.c_fc.weight) in matrices
    assert id(clip.token_embedding.weight) not in matrices
    assert id(clip.visual.conv1.weight) not in matrices


def test_two_processes_train_as_one_with_both_batches(tmp_path, monkeypatch):
    """Gradients averaged over two processes equal those of one process that sees both halves."""
    script = tmp_path / "go.py"
    script.write_text(
        "import sys, torch\n"
        "from torch import nn\n"
        "from litelvlm.nano.train.common import Run, processes\n"
        "from pathlib import Path\n"
        "torch.manual_seed(0)\n"
        "layer = nn.Linear(3, 1)\n"
        "run = Run(Path(sys.argv[1]), 's', {'layer': layer},\n"
        "          [torch.optim.SGD(layer.parameters(), lr=0.1)], 3, 0.1, 1)\n"
        "size = int(sys.argv[2])\n"
        "def make(number):\n"
        "    xs = [torch.full((1, 3), float(number * size + i)) / 10 for i in range(size)]\n"
        "    return {'x': torch.cat(xs)}\n"
        "with processes('cpu') as device:\n"
        "    run.loop(make, lambda b: layer(b['x']).square().mean(), None, device, 0)\n"
    )
    both = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    both += ["--master_port", "29641", str(script), str(tmp_path / "two"), "1"]
    subprocess.run(both, check=True, capture_output=True, timeout=300)
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "one"), "2"])
    exec(script.read_text(), {})
    one, two = (torch.load(tmp_path / n / "s.pt")["modules"]["layer"] for n in ("one", "two"))
    assert torch.allclose(one["weight"], two["weight"], atol=1e-6)


def test_batches_do_not_depend_on_the_number_of_workers():
    def make(number):
        return {"x": torch.full((2,), number)}

    alone = [b["x"][0].item() for b in stream(make, 3, 9, 0)]
    apart = [b["x"][0].item() for b in stream(make, 3, 9, 2)]
    assert alone == apart == [3, 4, 5, 6, 7, 8]


# ---------------------------------------------------------------- stages


@pytest.mark.parametrize(("stage", "measure"), [("clip", "dense"), ("masks", "loss")])
def test_a_stage_learns_in_a_few_steps(trained, stage, measure):
    log = _log(trained, stage)
    assert log[-1][measure] < log[0][measure]


def test_the_language_stage_learns_in_a_few_steps(tmp_path, trained):
    for name in ("clip.pt", "masks.pt", "tokenizer.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    # One batch over and over: what is asked here is that the loss can be brought down.
    plan = replace(TINY.language_plan, phases=(TINY.language_plan.phases[0],), masks_from=99)
    changed = replace(TINY, language_plan=plan)
    train(changed, ("language",), tmp_path, probes=0, limit=2)
    train(changed, ("language",), tmp_path, resume=True, probes=0)
    log = _log(tmp_path, "language")
    assert log[-1]["loss"] < log[0]["loss"]


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    plan = replace(TINY, masks=replace(TINY.masks, steps=6, switch=4))
    train(plan, ("masks",), tmp_path / "whole", probes=0)
    train(plan, ("masks",), tmp_path / "parts", probes=0, limit=3)
    train(plan, ("masks",), tmp_path / "parts", probes=0, resume=True)
    states = [
        torch.load(tmp_path / name / "masks.pt", weights_only=False)["modules"]["sam"]
        for name in ("whole", "parts")
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_probes_report_shares(trained):
    scenes = probe.val_scenes(2)
    frozen = load_frozen(TINY, trained, "cpu")
    found = probe.probe_masks(frozen.sam, frozen.prompt, scenes)
    assert set(found) == {"v_box", "v_point"}
    assert all(0 <= value <= 1 for value in found.values())
    logged = _log(trained, "clip")[-1]
    assert all(0 <= logged[key] <= 1 for key in ("v_named", "v_auc", "v_low", "v_pair"))


def test_an_exported_model_loads_with_the_trained_weights(trained, tmp_path):
    import litelvlm
    from litelvlm.nano.train.export import collect, export

    target = export(TINY, trained, tmp_path / "model")
    pipe = litelvlm.load(str(target), device="cpu")
    stored = collect(trained)
    loaded = pipe.family.model.state_dict()
    for name, value in stored.items():
        assert torch.equal(loaded[name], value.half().float()), name
    scene = make_scene(3, replace(probe.VAL, canvas=(336, 336)))
    result = pipe(scene.image, ["the thing"], budget=64)[0]
    assert result.mask.shape == scene.labels.shape


def test_the_engine_gives_the_state_that_training_saw(trained, tmp_path):
    """The same prompt token from the training path and from the exported model."""
    import litelvlm
    from litelvlm.nano.train.export import export

    pipe = litelvlm.load(str(export(TINY, trained, tmp_path / "model")), device="cpu")
    tokens = PromptTokens(trained / "tokenizer.json")
    model = Grounder(TINY, tokens, list(names()))
    state = torch.load(trained / "language.pt", weights_only=False)["modules"]["grounder"]
    model.load_state_dict({k: v.half().float() for k, v in state.items()})
    patches = torch.randn(1, 576, 64)
    ids, place = tokens.turns(["the red dog"], 40)
    with torch.no_grad():
        ours, _ = model.answer(patches, ids[None], place[None])
        prompt = tokens.build("the red dog")
        image = pipe.family.model.projector(patches)
        sequences = pipe.family.language.assemble([prompt], image, None, 576)
        states = pipe.family.language.prefill(sequences)
        at = prompt.seg_states(tokens.ids["seg"], 576)[0]
        theirs = pipe.family.model.seg_head(states[:, at])
    assert torch.allclose(ours[0], theirs, atol=1e-3)


# ---------------------------------------------------------------- command


def test_the_command_trains_draws_curves_and_exports(tmp_path):
    from litelvlm.cli import train as command

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    options = ["--scale", "tiny", "--stage", "masks", "--limit", "2", "--probes", "0"]
    args = parser.parse_args([*options, "--out", str(tmp_path / "run"), "--device", "cpu"])
    assert command.run(args) == 0
    assert (tmp_path / "run" / "masks.pt").exists()
    assert (tmp_path / "run" / "curves.png").stat().st_size > 1000
    assert "masks: iou" in read_curves(tmp_path / "run")


def test_an_unknown_scale_is_named():
    with pytest.raises(InputError, match="huge"):
        recipe("huge")


def test_the_tokenizer_knows_every_class_name(trained):
    tokens = PromptTokens(trained / "tokenizer.json")
    assert tokens.tokenizer.decode(tokens.encode("a zebra, wow")) == "a zebra, wow"
    ids, place = tokens.turns(["a dog " * 40], 40)
    assert ids.shape == (1, 40)
    assert ids[0, place[0] + 1] == tokens.ids["seg"]
