"""The command line, run in this process; a few runs of the real program at the end."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

import litelvlm
from litelvlm import cli
from litelvlm.metrics import iou

TINY = ["--model", "tiny-random", "--device", "cpu"]


@pytest.fixture(autouse=True)
def one_model(pipe, monkeypatch):
    """The shared toy model in place of a fresh one for every command."""
    load = litelvlm.load

    def cached(model="nano", **options):
        return pipe if model == "tiny-random" else load(model, **options)

    monkeypatch.setattr(litelvlm, "load", cached, raising=False)


@pytest.fixture
def photo(picture, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(picture).save(path)
    return str(path)


def run(capsys, *arguments):
    """(exit code, stdout, stderr) of one command."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    return code, out, err


def decode(rle):
    from pycocotools import mask

    return mask.decode({"size": rle["size"], "counts": rle["counts"].encode()}).astype(bool)


# --- ground ----------------------------------------------------------------------------------


def test_ground_tells_each_phrase_and_the_costs(capsys, photo):
    code, out, _ = run(capsys, "ground", photo, "a disc", "the noise", "--budget", 16, *TINY)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("a disc: ")
    assert lines[1].startswith("the noise: ")
    assert "16 of 64 image tokens" in out
    assert "llm_prefill" in out
    assert "sam_image" in out


def test_json_is_one_document_with_the_promised_keys(capsys, photo):
    code, out, _ = run(capsys, "ground", photo, "a disc", "--budget", 16, "--json", *TINY)
    document = json.loads(out)
    assert code == 0
    expected = {"model", "device", "dtype", "tokens_total", "tokens_kept", "llm_tokens"}
    assert expected <= set(document)
    (item,) = document["results"]
    expected = {"phrase", "mask_rle", "area_fraction", "similarity_tokens", "context_tokens"}
    assert expected <= set(item)
    assert item["similarity_tokens"] + item["context_tokens"] == document["tokens_kept"] == 16
    stages = [cost["stage"] for cost in document["costs"]]
    assert stages == [
        "clip_image",
        "sam_image",
        "clip_text",
        "select",
        "project",
        "llm_prefill",
        "mask_decode",
    ]
    assert all(set(cost) == {"stage", "ms", "peak_bytes", "flops"} for cost in document["costs"])
    assert "unpruned" not in document


def test_the_command_gives_the_mask_the_python_call_gives(capsys, photo, pipe, picture):
    _, out, _ = run(capsys, "ground", photo, "a disc", "--budget", 16, "--json", *TINY)
    mask = decode(json.loads(out)["results"][0]["mask_rle"])
    assert (mask == pipe(picture, "a disc", 16)[0].mask).all()


def test_without_a_budget_nothing_is_pruned(capsys, photo):
    _, out, _ = run(capsys, "ground", photo, "a disc", "--json", *TINY)
    document = json.loads(out)
    assert document["tokens_kept"] == document["tokens_total"] == 64
    assert document["settings"]["method"] == "none"


def test_full_costs_fill_in_work_and_memory(capsys, photo):
    _, out, _ = run(capsys, "ground", photo, "a disc", "--full-costs", "--json", *TINY)
    assert all(c["flops"] is not None and c["peak_bytes"] for c in json.loads(out)["costs"])


def test_every_option_reaches_the_model(capsys, photo):
    chosen = {
        "budget": 8,
        "method": "litelvlm",
        "split": 0.25,
        "order": "released",
        "positions": "original",
        "context": "attention",
        "text": "question",
        "mode": "generate",
        "seed": 3,
        "view": "letterbox",
    }
    words = [part for name, value in chosen.items() for part in (f"--{name}", value)]
    _, out, _ = run(capsys, "ground", photo, "a disc", *words, "--json", *TINY)
    settings = json.loads(out)["settings"]
    assert {name: settings[name] for name in chosen} == chosen


def test_phrases_can_be_asked_together(capsys, photo):
    command = ["ground", photo, "a disc", "the noise", "--budget", 9, "--joint", "--json"]
    _, out, _ = run(capsys, *command, *TINY)
    first, second = json.loads(out)["results"]
    assert first["tokens"] == second["tokens"]


def test_compare_prints_both_with_ratios(capsys, photo):
    command = ["ground", photo, "a disc", "--budget", 16, "--compare", "--repeats", 1]
    code, out, _ = run(capsys, *command, *TINY)
    assert code == 0
    assert "64 tokens" in out
    assert "16 tokens" in out
    assert out.count("x\n") >= 4
    assert "agreement with all tokens (IoU)" in out


def test_compare_adds_the_unpruned_run_to_the_json(capsys, photo):
    command = ["ground", photo, "a disc", "--budget", 16, "--compare", "--repeats", 1, "--json"]
    _, out, _ = run(capsys, *command, *TINY)
    document = json.loads(out)
    assert document["tokens_kept"] == 16
    assert document["unpruned"]["tokens_kept"] == 64
    assert document["unpruned"]["results"][0]["mask_rle"]["size"] == [90, 120]
    assert document["comparison"]["stages"]["llm_prefill"]["ratio"] > 0
    masks = [
        rle.decode(side["results"][0]["mask_rle"]) for side in (document, document["unpruned"])
    ]
    agreement = document["results"][0]["agreement_with_unpruned_iou"]
    assert agreement == pytest.approx(iou(*masks), abs=1e-4)


def test_compare_without_a_budget_takes_a_third(capsys, photo):
    _, out, _ = run(capsys, "ground", photo, "x", "--compare", "--repeats", 1, "--json", *TINY)
    assert json.loads(out)["tokens_kept"] == 21


def test_out_holds_masks_maps_heat_and_the_result(capsys, photo, tmp_path, pipe, picture):
    out = tmp_path / "deep" / "found"
    command = ["ground", photo, "a disc", "../../etc/x <b>", "--budget", 16, "--out", out]
    code, _, _ = run(capsys, *command, *TINY)
    assert code == 0
    names = {path.name for path in out.iterdir()}
    parts = {
        f"{i:02d}_{kind}.png" for i in (1, 2) for kind in ("mask", "overlay", "tokens", "heatmap")
    }
    assert names == parts | {"result.json"}
    mask = np.array(Image.open(out / "01_mask.png"))
    assert ((mask == 255) == pipe(picture, "a disc", 16)[0].mask).all()
    assert set(np.unique(mask)) <= {0, 255}
    for kind in ("overlay", "tokens", "heatmap"):
        assert Image.open(out / f"01_{kind}.png").size == (120, 90)
    assert json.loads((out / "result.json").read_text())["tokens_kept"] == 16


def test_an_unpruned_run_has_a_heat_map_too(capsys, photo, tmp_path):
    code, _, _ = run(capsys, "ground", photo, "a disc", "--out", tmp_path / "o", *TINY)
    assert code == 0
    assert (tmp_path / "o" / "01_heatmap.png").is_file()


def test_json_and_files_together_keep_stdout_clean(capsys, photo, tmp_path):
    command = ["ground", photo, "a disc", "--budget", 16, "--out", tmp_path / "o", "--json"]
    _, out, _ = run(capsys, *command, *TINY)
    assert json.loads(out) == json.loads((tmp_path / "o" / "result.json").read_text())


# --- the other commands ----------------------------------------------------------------------


def test_bench_prints_a_table(capsys):
    code, out, _ = run(capsys, "bench", "--budgets", "32,16", "--repeats", 1, *TINY)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if line[:1].isdigit()] == [
        "64",
        "32",
        "16",
    ]


def test_bench_prints_markdown(capsys):
    _, out, _ = run(capsys, "bench", "--repeats", 1, "--budgets", 8, "--markdown", *TINY)
    assert "| 8 |" in out


def test_bench_prints_json_and_takes_a_picture_and_phrases(capsys, photo):
    command = ["bench", "--budgets", "8", "--repeats", 1, "--json", "--no-sam"]
    command += ["--picture", photo, "--phrase", "a disc", "--phrase", "the noise"]
    _, out, _ = run(capsys, *command, *TINY)
    report = json.loads(out)
    assert report["phrases"] == 2
    assert report["sam"] is None
    assert report["random_weights"]


def test_bench_can_keep_its_numbers(capsys, tmp_path):
    file = tmp_path / "numbers.json"
    command = ["bench", "--budgets", "8", "--repeats", 1, "--json", "--no-sam", "--out", file]
    _, out, _ = run(capsys, *command, "--write", 2, "--bits", 8, *TINY)
    report = json.loads(out)
    assert json.loads(file.read_text()) == report
    assert report["bits"] == 8
    assert all(row["decode"]["median"] > 0 for row in report["rows"])


def test_info_lists_models_methods_devices_and_versions(capsys, pipe):
    code, out, _ = run(capsys, "info", "--json")
    facts = json.loads(out)
    assert code == 0
    assert {"nano", "glamm-refseg", "tiny-random"} <= set(facts["models"])
    assert set(facts["methods"]) == set(pipe.methods)
    assert facts["devices"][0].startswith("cpu")
    assert facts["versions"]["litelvlm"] == litelvlm.__version__
    _, text, _ = run(capsys, "info")
    for name in (*facts["models"], *facts["methods"]):
        assert name in text
    head, *rows = [
        line for line in text.split("selection methods")[0].splitlines() if line[0] > " "
    ]
    assert len(rows) == len(facts["models"])
    for row in rows:  # every column lies under its title
        name, family, view, tokens, *_ = row.split()
        assert head.index("family") == row.index(f" {family}") + 1
        assert head.index("view") == row.index(f" {view} ") + 1
        assert head.index("tokens") + len("tokens") == row.index(f" {tokens} ") + 1 + len(tokens)


def test_the_help_and_info_tell_the_view_of_each_model(capsys):
    for command in ("ground", "ask"):
        _, told, _ = run(capsys, command, "--help")
        assert "default: the model's own, letterbox for nano" in " ".join(told.split())
    assert litelvlm.load("nano").family.defaults.view == "letterbox"
    _, out, _ = run(capsys, "info", "--json")
    views = {name: model["view"] for name, model in json.loads(out)["models"].items()}
    assert views["nano"] == "letterbox"
    assert views["glamm-refseg"] == "crop"
    assert views["florence-2-base-ft"] == "whole"


def test_convert_rewrites_a_checkpoint_that_then_grounds(capsys, tmp_path, photo):
    from golden_files import write_glamm_layout

    from litelvlm.families.glamm_files import tiny_tokenizer

    source = write_glamm_layout(tmp_path / "glamm")
    tiny_tokenizer().save(str(source / "tokenizer.json"))
    target = tmp_path / "converted"
    code, out, _ = run(capsys, "convert", source, target)
    assert code == 0
    assert str(target) in out
    command = ["ground", photo, "a disc", "--budget", 16, "--json", "--device", "cpu"]
    before = json.loads(run(capsys, *command, "--model", source)[1])
    after = json.loads(run(capsys, *command, "--model", target)[1])
    assert after["results"] == before["results"]


# --- help and errors -------------------------------------------------------------------------


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert f"usage: litelvlm {command}" in out
    assert len(out.splitlines()) > 5


def test_the_help_lists_every_command(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for command in cli.COMMANDS:
        assert f"\n    {command} " in out


def test_the_version_is_told(capsys):
    assert run(capsys, "--version")[:2] == (0, f"litelvlm {litelvlm.__version__}\n")


@pytest.mark.parametrize(
    "words",
    [
        ["grund"],
        [],
        ["ground"],
        ["ground", "photo.png"],
        ["ground", "photo.png", "a", "--colour", "red"],
        ["ground", "photo.png", "a", "--seed", "many"],
        ["ground", "nowhere.png", "a disc", *TINY],
        ["ground", "PHOTO", "", *TINY],
        ["ground", "PHOTO", "a", "--model", "nanu"],
        ["ground", "PHOTO", "a", "--budget", "0", *TINY],
        ["ground", "PHOTO", "a", "--budget", "nan", *TINY],
        ["ground", "PHOTO", "a", "--method", "magic", *TINY],
        ["ground", "PHOTO", "a", "--budget", "8", "--compare", "--repeats", "0", *TINY],
        ["ground", "PHOTO", "a", "--threads", "0", *TINY],
        ["ground", "PHOTO", "a", "--out", "PHOTO", *TINY],
        ["bench", "--budgets", "many", *TINY],
        ["bench", "--budgets", ",", *TINY],
        ["bench", "--budgets", "8", "--markdown", "--json", *TINY],
        ["bench", "--out", "nowhere/numbers.json", *TINY],
        ["convert", "nowhere", "out"],
        ["convert", "only-one"],
        ["info", "extra"],
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line_on_stderr_and_exit_code_2(capsys, photo, words):
    words = [photo if word == "PHOTO" else word for word in words]
    code, out, err = run(capsys, *words)
    assert code == 2
    assert out == ""
    assert err.startswith("litelvlm")
    assert err.count("\n") == 1


def test_an_interruption_is_no_traceback(capsys, photo, monkeypatch, pipe):
    def stop(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(pipe), "encode", stop)
    code, _, err = run(capsys, "ground", photo, "a", *TINY)
    assert (code, err) == (130, "litelvlm: interrupted\n")


def test_python_m_litelvlm_is_the_same_program():
    command = [sys.executable, "-m", "litelvlm", "ground", "nowhere.png", "a disc"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "litelvlm: nowhere.png: no such file\n"


def test_a_command_imports_no_other_command_and_no_gradio():
    code = (
        "import sys; from litelvlm.cli import main; main(['ground', 'nowhere.png', 'a']); "
        "print([n for n in sys.modules if n.split('.')[0] == 'gradio' or n in "
        "('litelvlm.cli.train', 'litelvlm.cli.demo', 'litelvlm.ui')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n"
