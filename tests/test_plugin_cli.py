"""`litelvlm prune`: the table of models, answers beside each other, measured pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from tiny_vlm import fresh, picture, prompt, tiny

import litelvlm
from litelvlm.cli import main
from litelvlm.plugin import FAMILIES
from litelvlm.plugin.bench import paired, prompt_for

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Qwen2.5-VL folder and a picture."""
    place = tmp_path_factory.mktemp("qwen")
    model, processor = fresh("qwen2_5_vl")
    model.save_pretrained(place)
    processor.save_pretrained(place)
    Image.fromarray(picture()).save(place / "photo.png")
    return place


def ask(folder, *more):
    image, question = str(folder / "photo.png"), "what is the red apple"
    asked = ["prune", "--model", str(folder), "--image", image, "--question", question]
    return main([*asked, "--device", "cpu", "--max-new-tokens", "4", *more])


def test_the_tables_of_models_are_what_the_command_prints(capsys):
    assert main(["prune", "--models"]) == 0
    table = capsys.readouterr().out.strip()
    assert len(table.splitlines()) == 2 + len(FAMILIES)
    for file in ("README.md", "docs/plugin.md"):
        assert table in (ROOT / file).read_text(encoding="utf-8"), file


def test_pruned_beside_unpruned(folder, capsys):
    assert ask(folder, "--method", "divprune", "--budget", "0.5", "--compare", "--json") == 0
    runs = json.loads(capsys.readouterr().out)
    assert list(runs) == ["unpruned", "divprune"]
    full, half = runs.values()
    assert half["image_tokens"] == full["image_tokens"] / 2
    assert half["flops"] < full["flops"]
    assert half["peak_bytes"] < full["peak_bytes"]
    assert all(isinstance(run["answer"], str) for run in runs.values())
    assert ask(folder, "--method", "grid", "--budget", "2") == 0
    assert capsys.readouterr().out.startswith("grid: 2 image tokens, ")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--budget", "9999"], "budget must be"),
        (["--method", "litelvlm"], "give guide="),
        (["--guide", "ViT-B-16"], "NAME:WEIGHTS"),
        (["--max-new-tokens", "0"], "at least 1"),
        (["--model", "nowhere/at/all"], "cannot be loaded"),
        (["--image", "none.png"], "no such file"),
    ],
)
def test_bad_input_is_one_line(folder, capsys, more, told):
    method = [] if "--method" in more else ["--method", "grid"]
    assert ask(folder, *method, *more) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert told in error


@pytest.mark.parametrize("kind", ["llava", "gemma3", "florence2", "qwen3_vl"])
def test_pairs_are_measured_on_the_untouched_model(kind):
    pruner = litelvlm.Pruner(*tiny(kind), "grid")
    found = paired(pruner, picture(), prompt(kind), 4, repeats=2)
    assert found.flop_ratio < 1
    assert found.pruned.image_tokens < found.unpruned.image_tokens
    assert min(found.plain_ms, found.full_ms, found.prefill_ratio) > 0
    assert str(found).count("\n") == 2


@pytest.mark.parametrize("kind", ["llava", "paligemma", "florence2"])
def test_prompts_without_a_chat_template(kind):
    pruner = litelvlm.Pruner(*tiny(kind), "grid")
    text = prompt_for(pruner, "what is the apple")
    assert pruner.prepare(picture(), text, 4).record[0].tokens_kept in (4, 5)
