"""Fewer bits: the layer's error, what a whole model says and weighs, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from golden_files import write_glamm_layout
from PIL import Image
from torch import nn
from torch.nn import functional as F

import litelvlm
from litelvlm.cli import main
from litelvlm.errors import InputError
from litelvlm.families.glamm import blocks, random_config
from litelvlm.loading import convert, open_folder
from litelvlm.models import quantised
from litelvlm.models.bundle import GroundingModel
from litelvlm.models.filling import fill_random, load_into
from litelvlm.models.quantised import Int8Linear, QuantisedLinear, quantise, to_int8


@pytest.fixture(scope="module")
def eight():
    torch.set_num_threads(1)
    return litelvlm.load("tiny-random", device="cpu", bits=8)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("rows", [(1,), (3, 17)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_layer_in_eight_bits_is_about_one_percent_off(rows, dtype, fast, monkeypatch):
    monkeypatch.setattr(quantised, "multiplies_int8", lambda device: fast)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(192, 256, generator=generator) / 16
    bias = torch.randn(192, generator=generator)
    x = torch.randn(*rows, 256, generator=generator)
    layer = nn.Linear(256, 192, device="meta")
    small = Int8Linear(layer)
    small.take(weight.to(dtype))
    small.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    got = small(x.to(dtype))
    want = F.linear(x, weight, bias)
    assert got.dtype == dtype
    assert got.shape == want.shape
    error = float((got.float() - want).norm() / want.norm())
    assert 0.002 < error < 0.02


def test_rows_are_whole_numbers_times_their_step_and_zeros_stay_zero():
    rows = torch.tensor([[1.0, -127.0, 3.0], [0.0, 0.0, 0.0], [1e-3, 0.0, -2e-3]])
    integers, scale = to_int8(rows)
    assert integers[0].tolist() == [1, -127, 3]
    assert integers[1].tolist() == [0, 0, 0]
    torch.testing.assert_close(integers * scale, rows, atol=1e-5, rtol=0)


def test_only_the_language_model_s_blocks_are_quantised(eight):
    found = {n for n, m in eight.family.model.named_modules() if isinstance(m, QuantisedLinear)}
    assert len(found) == 7 * 3
    assert all(name.startswith("language.model.layers.") for name in found)
    assert type(eight.family.model.language.lm_head) is nn.Linear


def test_the_weights_told_are_those_in_memory(pipe, eight):
    numbers = sum(p.numel() for p in pipe.family.model.language.model.layers.parameters())
    norms = sum(
        p.numel() for n, p in pipe.family.model.language.named_parameters() if "layernorm" in n
    )
    saved = pipe.weight_bytes - eight.weight_bytes
    steps = sum(m.scale.numel() for m in eight.family.model.modules() if isinstance(m, Int8Linear))
    assert saved == 3 * (numbers - norms) - 4 * steps


def test_a_model_in_eight_bits_says_nearly_the_same(pipe, eight, picture):
    full, small = (
        each(picture, ["a disc", "the red disc"], 16, method="grid") for each in (pipe, eight)
    )
    for one, other in zip(full, small, strict=True):
        assert one.token_map.indices.tolist() == other.token_map.indices.tolist()
        error = np.linalg.norm(one.logits - other.logits) / np.linalg.norm(one.logits)
        assert 0 < error < 0.1


@pytest.mark.parametrize("method", ["litelvlm", "fastv"])
def test_every_way_of_asking_works_in_eight_bits(eight, picture, method):
    assert eight(picture, "a disc", 16, method=method)[0].mask.shape == picture.shape[:2]
    eight(picture, "a disc", 64, mode="generate", max_new_tokens=3)
    assert eight.ask(eight.encode(picture), "what is it?", 16, max_new_tokens=2).text is not None


def test_a_checkpoint_is_quantised_while_it_is_read(tmp_path):
    folder = convert(write_glamm_layout(tmp_path / "glamm"), tmp_path / "ours")
    source = open_folder(folder)
    with torch.device("meta"):
        full, small = GroundingModel(source.config), GroundingModel(source.config)
    quantise(blocks(small), 8)
    load_into(full, source)
    load_into(small, source)
    layer = small.language.model.layers[1].mlp.down_proj
    weight = full.language.model.layers[1].mlp.down_proj.weight
    assert layer.weight is None
    error = (layer.integers * layer.scale[:, None] - weight).abs()
    assert bool((error <= layer.scale[:, None] * 0.51).all())


def test_drawn_weights_are_the_same_in_either_precision():
    with torch.device("meta"):
        full, small = (GroundingModel(random_config("tiny-random")) for _ in range(2))
    quantise(blocks(small), 8)
    fill_random(full, seed=3)
    fill_random(small, seed=3)
    want = to_int8(full.language.model.layers[2].self_attn.q_proj.weight)[0]
    assert torch.equal(small.language.model.layers[2].self_attn.q_proj.integers, want)
    assert torch.equal(small.language.lm_head.weight, full.language.lm_head.weight)


@pytest.mark.parametrize("fast", [True, False])
def test_flops_are_counted_in_eight_bits_too(pipe, eight, picture, fast, monkeypatch):
    monkeypatch.setattr(quantised, "multiplies_int8", lambda device: fast)

    def prefill(each):
        stages = each(picture, "a disc", 16, method="grid", profile="full").costs.stages
        return next(stage.flops for stage in stages if stage.stage == "llm_prefill")

    assert prefill(eight) == prefill(pipe)


@pytest.mark.parametrize("bits", [3, True, "8", 16])
def test_other_numbers_of_bits_are_refused(bits):
    with pytest.raises(InputError, match="bits must be 8 or 4"):
        litelvlm.load("tiny-random", device="cpu", bits=bits)


def test_four_bits_are_refused_without_cuda():
    with pytest.raises(InputError, match="bits=4 needs a CUDA device, not cpu"):
        litelvlm.load("tiny-random", device="cpu", bits=4)


def test_the_command_takes_bits(capsys, tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "x.png")
    assert (
        main(["ground", str(tmp_path / "x.png"), "a disc", "--model", "tiny-random", "--bits", "5"])
        == 2
    )
    assert "bits must be 8 or 4" in capsys.readouterr().err


def test_the_table_of_sizes_tells_what_a_loaded_model_weighs(capsys):
    assert main(["info", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["models"]["tiny-random"]
    pipes = [
        litelvlm.load("tiny-random", dtype="bfloat16", device="cpu", bits=b) for b in (None, 8)
    ]
    for key, pipe in zip(("bytes_16", "bytes_8"), pipes, strict=True):
        assert row[key] == pytest.approx(pipe.weight_bytes, rel=0.01)
    assert row["tokens"] == pipes[0].tokens_total
