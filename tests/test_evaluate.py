"""Evaluation: one command from data to report, resumable, the same on any number of processes."""

from __future__ import annotations

import csv
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import litelvlm
from litelvlm.cli import main
from litelvlm.data.folder import Folder
from litelvlm.data.samples import Sample, SampleList, SceneSource, training_scenes
from litelvlm.errors import InputError
from litelvlm.evaluate import evaluate, run, summarise
from litelvlm.evaluation.plan import Plan, Variant, default_budgets, picture_seed
from litelvlm.evaluation.records import Item, Memory, Store, Unit, merge
from litelvlm.evaluation.report import paper_table, score_table
from litelvlm.evaluation.summary import summarise_costs
from litelvlm.methods import METHODS
from litelvlm.nano import scenes

HW = (60, 80)


@pytest.fixture(scope="module")
def pipe():
    return litelvlm.load("tiny-random", device="cpu")


def sample(number: int, picture: str, text: str = "the red square") -> Sample:
    draw = np.random.default_rng(number)
    image = draw.integers(0, 255, (*HW, 3), dtype=np.uint8)
    mask = np.zeros(HW, bool)
    mask[10:40, 20:60] = True
    return Sample(f"s{number}", picture, text, image, mask)


@pytest.fixture
def samples() -> list[Sample]:
    texts = ["the red square", "a dog", "the left one", "it"]
    return [sample(n, f"p{n // 2}", texts[n]) for n in range(4)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures, seven expressions, on disk."""
    draw = np.random.default_rng(0)
    mask = np.zeros(HW, np.uint8)
    mask[10:40, 20:60] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    rows = []
    for number in range(5):
        pixels = draw.integers(0, 255, (*HW, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "text": f"the square {number}", "mask": "mask.png"})
    rows += [{**rows[0], "text": "the dog", "mask": None}, {**rows[3], "text": "another"}]
    (tmp_path / "samples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_every_method_and_budget_is_scored_once(pipe, samples):
    units = evaluate(pipe, samples, ["all"], [16, 4])
    keys = {(unit.picture, unit.variant, unit.budget) for unit in units}
    assert len(keys) == len(units) == 2 * (1 + 2 * len(METHODS))
    assert all(unit.error is None and len(unit.items) == 2 for unit in units)


def test_pictures_are_encoded_once_for_all_methods_and_budgets(pipe, samples, monkeypatch):
    seen = []
    encode = pipe.encode
    monkeypatch.setattr(pipe, "encode", lambda *a, **k: seen.append(1) or encode(*a, **k))
    evaluate(pipe, samples, ["litelvlm", "random"], [16, 8, 4], seeds=(0, 1))
    assert len(seen) == 2


def test_scores_equal_those_of_a_call_by_hand(pipe, samples):
    units = evaluate(pipe, samples[:1], ["litelvlm"], [16])
    scene = pipe.encode(samples[0].image)
    result = pipe.ground(scene, samples[0].text, 16)[0]
    item = next(unit for unit in units if unit.budget == 16).items[0]
    assert item.intersection == np.count_nonzero(result.mask & samples[0].mask)
    assert item.union == np.count_nonzero(result.mask | samples[0].mask)
    share = scene.frame.coverage(samples[0].mask)
    kept = result.token_map.kept()
    assert item.recall == pytest.approx(share[kept].sum() / share.sum())


def test_only_what_is_random_runs_once_per_seed(pipe, samples):
    units = evaluate(pipe, samples, ["litelvlm", "random"], [16], seeds=(0, 1, 2))
    seeds = {name: {u.seed for u in units if u.variant == name} for name in ("litelvlm", "random")}
    assert seeds == {"litelvlm": {0}, "random": {0, 1, 2}}


def test_pictures_draw_apart_and_runs_agree(pipe, samples):
    first = evaluate(pipe, samples, ["random"], [16], seeds=(0, 1))
    again = evaluate(pipe, samples, ["random"], [16], seeds=(0, 1))
    assert [unit.items for unit in first] == [unit.items for unit in again]
    assert len({picture_seed(seed, p) for seed in (0, 1) for p in ("a", "b")}) == 4


def test_the_released_protocol_draws_at_most_three_and_shares_a_selection(pipe):
    many = [sample(n, "p", f"thing {n}") for n in range(6)]
    units = evaluate(pipe, many, ["litelvlm"], [16], protocol="released", seeds=(0, 1, 2, 3))
    assert {unit.seed for unit in units if unit.variant == "litelvlm"} == {0, 1, 2, 3}
    drawn = {unit.seed: [item.id for item in unit.items] for unit in units if unit.budget == 16}
    assert all(len(set(ids)) == 3 for ids in drawn.values())
    assert len({tuple(ids) for ids in drawn.values()}) > 1
    unpruned = {u.seed: [item.id for item in u.items] for u in units if u.variant == "none"}
    assert unpruned == drawn


def test_generated_answers_are_scored_too(pipe, samples):
    units = evaluate(pipe, samples[:1], ["litelvlm"], [16], mode="generate")
    assert all(unit.error is None for unit in units)
    assert "llm_decode" in units[0].stages


def test_a_failed_picture_is_recorded_and_the_rest_goes_on(pipe, samples):
    broken = replace(samples[0], picture="broken", image=Path("/nowhere.png"))
    units = evaluate(pipe, [broken, samples[2]], ["litelvlm"], [16])
    failed = [unit for unit in units if unit.error]
    assert {unit.picture for unit in failed} == {"broken"}
    assert "no such file" in failed[0].error
    rows = summarise(units)
    assert [(row.failed, row.expressions) for row in rows] == [(1, 1), (1, 1)]


def test_a_mask_that_does_not_fit_is_a_failure_of_its_picture(pipe, samples):
    wrong = replace(samples[0], mask=np.zeros((3, 3), bool))
    units = evaluate(pipe, [wrong], ["litelvlm"], [16])
    assert all("mask is (3, 3)" in unit.error for unit in units)


def test_an_interrupted_run_goes_on_where_it_stopped(pipe, samples, tmp_path, monkeypatch):
    plan = Plan((Variant("litelvlm"),), (16,))
    source = SampleList("list", samples)
    whole = run(pipe, source, plan, Store(tmp_path / "whole", {}))
    half = tmp_path / "half"
    run(pipe, SampleList("list", samples[:2]), plan, Store(half, {}))
    path = next(half.glob("units-*.jsonl"))
    lines = path.read_text().splitlines()
    path.write_text(lines[0] + "\n" + lines[1][: len(lines[1]) // 2])  # cut off in mid-line

    calls = []
    ground = pipe.ground
    monkeypatch.setattr(pipe, "ground", lambda *a, **k: calls.append(1) or ground(*a, **k))
    resumed = run(pipe, source, plan, Store(half, {}))
    assert len(calls) == 3  # four units, one was done
    assert [(u.key, u.items) for u in resumed] == [(u.key, u.items) for u in whole]
    assert not [unit for unit in Store(half, {}).read() if unit.error]


def test_failed_units_are_tried_again(pipe, samples, tmp_path):
    plan = Plan((Variant("litelvlm"),), (16,))
    broken = SampleList("list", [replace(samples[0], image=Path("/nowhere.png"))])
    assert all(unit.error for unit in run(pipe, broken, plan, Store(tmp_path, {})))
    units = run(pipe, SampleList("list", samples[:1]), plan, Store(tmp_path, {}))
    assert not any(unit.error for unit in units)
    assert not any(unit.error for unit in merge(Store(tmp_path, {}).read()))


def test_a_folder_with_another_run_is_refused(tmp_path):
    Store(tmp_path, {"model": "a", "data": ["x"]})
    Store(tmp_path, {"model": "a", "data": ["x"]})
    with pytest.raises(InputError, match="holds a run with model 'a', not 'b'"):
        Store(tmp_path, {"model": "b", "data": ["x"]})


def test_shares_cover_the_whole_and_agree_with_one_process(pipe, folder):
    source = Folder(folder)
    whole = evaluate(pipe, source, ["litelvlm", "random"], [16])
    parts = [
        unit
        for index in range(3)
        for unit in evaluate(pipe, source, ["litelvlm", "random"], [16], share=(index, 3))
    ]
    assert [(u.key, u.items) for u in merge(parts)] == [(u.key, u.items) for u in merge(whole)]


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("limit", [1, 2, 4, 9])
def test_a_limit_takes_the_same_pictures_whatever_the_number_of_processes(pipe, processes, limit):
    source = SampleList("list", [sample(n, f"p{n}") for n in range(5)])
    plan = Plan((), (), limit=limit)
    done = []
    for index in range(processes):
        done += run(pipe, source, plan, Memory(), share=(index, processes))
    assert sorted(unit.picture for unit in done) == [f"p{n}" for n in range(min(limit, 5))]


def item(intersection: int, union: int, **more) -> Item:
    fields = {"recall": 0.5, "auc": None, "found": True, "kind": "", **more}
    return Item("id", "text", intersection=intersection, union=union, **fields)


def test_rows_are_the_hand_worked_scores():
    units = [
        Unit("d", "p", "none", 9, 0, (item(8, 10, auc=0.2), item(2, 10, auc=0.4)), 9, 9.0),
        Unit("d", "p", "random", 4, 0, (item(5, 10), item(0, 10)), 4, 4.0),
        Unit("d", "p", "random", 4, 1, (item(3, 10), item(0, 0)), 4, 4.0),
    ]
    whole, drawn = summarise(units)
    assert (whole.giou, whole.ciou, whole.auc) == pytest.approx((0.5, 0.5, 0.3))
    assert whole.giou_deviation is None
    assert drawn.giou == pytest.approx((0.25 + 0.65) / 2)
    assert drawn.giou_deviation == pytest.approx(np.std([0.25, 0.65], ddof=1))
    assert drawn.ciou == pytest.approx((0.25 + 0.3) / 2)
    assert drawn.giou_relative == pytest.approx(90.0)
    assert drawn.precision["0.5"] == pytest.approx((0.5 + 0.5) / 2)
    assert drawn.precision["0.9"] == pytest.approx((0.0 + 0.5) / 2)
    assert drawn.seeds == 2


def test_the_papers_table_averages_the_splits_and_relates_them_to_the_unpruned():
    units = [
        Unit(source, "p", variant, budget, 0, (item(both, 10),), budget, budget)
        for source, variant, budget, both in (
            ("d/val", "none", 9, 8),
            ("d/test", "none", 9, 4),
            ("d/val", "litelvlm", 4, 6),
            ("d/test", "litelvlm", 4, 3),
            ("d/val", "random", 4, 2),
            ("d/test", "random", 4, 2),
        )
    ]
    rows = summarise(units)
    assert paper_table(rows) == [
        "| tokens | method | d/test | d/val | Avg | Rel. % |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
        "| 9 | Unpruned | 40.0 | 80.0 | 60.0 | 100.0 |",
        "| 4 | LiteLVLM | 30.0 | 60.0 | **45.0** | 75.0 |",
        "| 4 | Random | 20.0 | 20.0 | 20.0 | 33.3 |",
    ]
    assert "**30.0**" in "\n".join(score_table([row for row in rows if row.source == "d/test"]))


def test_costs_are_per_expression_and_encoders_per_picture():
    stages = {"clip_image": (10.0, 100, 7), "select": (8.0, None, 4)}
    unit = Unit("d", "p", "none", 9, 0, (item(1, 2), item(1, 2)), 9, 9.0, stages)
    rows = {row.stage: row for row in summarise_costs([unit])}
    assert (rows["clip_image"].ms, rows["clip_image"].peak_bytes) == (10.0, 100)
    assert (rows["select"].ms, rows["select"].peak_bytes, rows["select"].flops) == (4.0, None, 2.0)


def test_variants_read_back_and_name_their_options():
    variant = Variant.parse("litelvlm:split=0.25,order=released")
    assert Variant.parse(variant.label) == variant
    assert variant.title == "LiteLVLM (order released, split 0.25)"
    assert dict(variant.options) == {"order": "released", "split": 0.25}


@pytest.mark.parametrize(
    "text",
    ["nothing", "litelvlm:order", "litelvlm:order=sideways", "litelvlm:x=1", "random:split=2"],
)
def test_a_wrong_variant_is_refused(text):
    with pytest.raises(InputError, match=r"unknown|must be one of"):
        Variant.parse(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "none"}, "unknown protocol"),
        ({"mode": "free"}, "mode must be one of"),
        ({"seeds": ()}, "seeds"),
        ({"seeds": (1, 1)}, "seeds"),
        ({"batch": 0}, "batch"),
        ({"limit": 0}, "limit"),
        ({"mode": "generate", "protocol": "released"}, "mode forced"),
    ],
)
def test_a_wrong_plan_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Plan((Variant("litelvlm"),), (4,), **settings)


def test_methods_inside_the_model_generate_too(pipe, samples):
    units = evaluate(pipe, samples[:2], ["fastv", "sparsevlm"], [16], mode="generate")
    assert [unit.error for unit in units] == [None] * 3
    assert units[0].tokens == 16


def test_budgets_are_checked_before_anything_runs(pipe, samples):
    with pytest.raises(InputError, match="budget must be a whole number from 1 to 64, got 65"):
        evaluate(pipe, samples, ["litelvlm"], [65])
    with pytest.raises(InputError, match="below the 3 expressions"):
        evaluate(pipe, samples, ["litelvlm"], [2], protocol="released")


def test_default_budgets_are_the_papers_fractions():
    assert default_budgets(576) == (576, 288, 192, 128, 64, 32)
    assert default_budgets(64) == (64, 32, 21, 14, 7, 4)


def test_the_benchmarks_halves_are_disjoint_and_shares_complete(monkeypatch):
    # Its length, of one scene: drawing 500 is not what is asked here.
    pairs = [next(scenes.benchmark("val"))] * 500
    monkeypatch.setattr(scenes, "benchmark", lambda split: iter(pairs))
    halves = [{s.id for s in SceneSource(f"val-{half}").samples((0, 25))} for half in "ab"]
    assert not halves[0] & halves[1]
    assert len(halves[0]) == len(halves[1]) == 10
    with pytest.raises(InputError, match="splits"):
        SceneSource("train")


def test_training_scenes_are_drawn_when_asked_for():
    source = training_scenes(2)
    first = next(source.samples())
    image = first.read_image()
    assert first.read_mask(image.shape[:2]).shape == image.shape[:2]


# --- the command


def command(folder: Path, out: Path, *more: str) -> list[str]:
    fixed = ["evaluate", "--model", "tiny-random", "--device", "cpu", "--data", str(folder)]
    return [*fixed, "--out", str(out), "--quiet", "--threads", "1", *more]


def test_the_command_writes_every_file_and_two_runs_write_the_same(folder, tmp_path, capsys):
    options = ["--methods", "litelvlm", "random", "sparsevlm", "--budgets", "64", "16", "4"]
    for name in ("one", "two"):
        assert main(command(folder, tmp_path / name, *options, "--seeds", "0", "1")) == 0
    assert "0 failed" in capsys.readouterr().out
    one, two = tmp_path / "one", tmp_path / "two"
    for name in ("results.csv", "results.json", "items.csv", "curves.png"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert (one / "curves.png").stat().st_size > 10_000
    with (one / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["budget"], row["variant"], row["seeds"]) for row in rows] == [
        ("64", "none", "1"),
        ("16", "litelvlm", "1"),
        ("16", "random", "2"),
        ("16", "sparsevlm", "1"),
        ("4", "litelvlm", "1"),
        ("4", "random", "2"),
        ("4", "sparsevlm", "1"),
    ]
    assert all(row["expressions"] == "7" for row in rows)
    report = (one / "report.md").read_text()
    assert "## cIoU %, in the form of the paper's table" in report
    assert "Rel. %" in report


def test_memory_and_flops_are_reported_when_asked_for(folder, tmp_path):
    options = ["--methods", "litelvlm", "--budgets", "16", "--profile", "full", "--limit", "1"]
    assert main(command(folder, tmp_path / "full", *options)) == 0
    assert "llm_prefill (MiB)" in (tmp_path / "full/report.md").read_text()


def test_failures_are_told_and_set_the_exit_code(folder, tmp_path, capsys):
    (folder / "2.png").write_bytes(b"not a picture")
    (folder / "4.png").unlink()
    out = tmp_path / "out"
    assert main(command(folder, out, "--methods", "litelvlm", "--budgets", "16")) == 1
    report = (out / "report.md").read_text()
    assert "## Failed: 2" in report
    assert "Missing pictures of" in report
    assert "* 4.png" in report


def test_the_refcoco_path_runs_from_files_to_report(tmp_path):
    root = tmp_path / "data"
    (root / "refcoco").mkdir(parents=True)
    (root / "images/train2014").mkdir(parents=True)
    references, images, annotations = [], [], []
    for number in range(3):
        name = f"COCO_train2014_{number:012d}.jpg"
        pixels = np.random.default_rng(number).integers(0, 255, (*HW, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images/train2014" / name)
        images.append({"id": number, "file_name": name, "height": HW[0], "width": HW[1]})
        outline = [[10.0, 10.0, 50.0, 10.0, 50.0, 40.0, 10.0, 40.0]]
        annotations.append({"id": number, "image_id": number, "segmentation": outline})
        references.append(
            {
                "ref_id": number,
                "ann_id": number,
                "image_id": number,
                "category_id": 1,
                "split": "testA" if number == 2 else "val",
                "file_name": name,
                "sent_ids": [number],
                "sentences": [
                    {"sent_id": number, "sent": "the box", "raw": "the box", "tokens": ["the"]}
                ],
            }
        )
    (root / "refcoco/refs(unc).p").write_bytes(pickle.dumps(references, protocol=0))
    document = {"images": images, "annotations": annotations, "categories": []}
    (root / "refcoco/instances.json").write_text(json.dumps(document))
    out = tmp_path / "out"
    arguments = command(Path("refcoco"), out, "--root", str(root), "--split", "val", "testA")
    assert main([*arguments, "--methods", "litelvlm", "grid", "--budgets", "16"]) == 0
    report = (out / "report.md").read_text()
    assert "refcoco/unc/testA | refcoco/unc/val | Avg | Rel. %" in report
    assert "## refcoco/unc/val: 2 expressions" in report


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "refcoco"], "needs --root"),
        (["--data", "nowhere"], "neither a file nor one of scenes"),
        (["--methods", "magic"], "unknown method 'magic'"),
        (["--budgets", "0"], "budget must be a whole number"),
        (["--protocol", "x"], "unknown protocol"),
    ],
)
def test_bad_options_end_in_one_line(folder, tmp_path, capsys, more, message):
    assert main([*command(folder, tmp_path / "out"), *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_two_processes_give_the_result_of_one(folder, tmp_path):
    options = [
        "--methods",
        "litelvlm",
        "random",
        "visionzip",
        "--budgets",
        "16",
        "--seeds",
        "0",
        "1",
    ]
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    assert main(command(folder, tmp_path / "one", *options)) == 0
    two = [sys.executable, "-m", *launch, "-m", "litelvlm"]
    two += command(folder, tmp_path / "two", *options)
    two = [word for word in two if word not in ("--device", "cpu")]  # found out without being told
    done = subprocess.run(
        two, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    shares = sorted(path.name for path in (tmp_path / "two").glob("units-*"))
    assert shares == ["units-00000-of-00002.jsonl", "units-00001-of-00002.jsonl"]
    for name in ("results.csv", "results.json", "items.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


# ---------------------------------------------------------------- figures of a card


def test_card_figures_agree_with_the_evaluation_and_blind_controls_see_another_picture():
    from litelvlm.evaluation.card import AIMS, BUDGETS, RULES, card_figures, card_table

    nano = litelvlm.load("nano", device="cpu")
    document = card_figures(nano, "val", limit=3)
    figures = document["figures"]
    units = evaluate(nano, SceneSource("val"), ["litelvlm:split=paper"], [192], limit=3)
    rows = {row.variant: row for row in summarise(units)}
    whole = rows["none"]
    assert document["scenes"] == whole.expressions == 3
    assert figures["gIoU"] == pytest.approx(whole.giou)
    assert figures["cIoU"] == pytest.approx(whole.ciou)
    assert figures["reversal AUC"] == pytest.approx(whole.auc)
    assert figures["litelvlm @ 192"] == pytest.approx(
        rows["litelvlm:split=paper"].giou_relative / 100
    )
    assert set(AIMS) <= set(figures)
    assert {f"{rule} @ {budget}" for rule in RULES for budget in BUDGETS} <= set(figures)
    # Scenes one and two hold one and two things; the first picture's answer is the single one.
    first = next(item for unit in units if unit.variant == "none" for item in unit.items)
    assert figures["gIoU, one object"] == pytest.approx(first.intersection / first.union)
    assert sum("missed" in line or "✓" in line for line in card_table(document)) == len(AIMS)


def test_a_card_needs_two_scenes(pipe):
    from litelvlm.evaluation.card import card_figures

    with pytest.raises(InputError, match="two scenes"):
        card_figures(pipe, "val", limit=1)


def test_the_share_of_tokens_that_other_phrases_keep_is_told(pipe):
    scene = next(training_scenes(1).samples())
    image = scene.read_image()
    half = np.zeros(image.shape[:2], bool)
    half[:, : half.shape[1] // 2] = True
    given = [Sample(str(n), "one", text, image, mask) for n, (text, mask) in enumerate(
        [("the disc", half), ("the square", ~half), ("a disc", half)])]  # fmt: skip
    units = evaluate(pipe, SampleList("pair", given), ["litelvlm", "grid"], [16])
    same = {unit.variant: unit.same for unit in units}
    kept = [
        found.token_map.kept()
        for found in pipe.ground(pipe.encode(image), [s.text for s in given], 16)
    ]
    pairs = [(kept[a] & kept[b]).sum() / 16 for a, b in ((0, 1), (1, 2))]
    assert same["litelvlm"] == pytest.approx(np.mean(pairs))
    assert same["grid"] == 1.0
    assert same["none"] is None
    assert "same %" in "\n".join(score_table(summarise(units)))
    alone = evaluate(pipe, SampleList("one", given[:1]), ["grid"], [16])
    assert {unit.same for unit in alone} == {None}
    assert "same %" not in "\n".join(score_table(summarise(alone)))


def test_a_line_may_call_its_expression_a_phrase(tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    row = {"image": "a.png", "phrase": "the cat", "class": "cat", "kind": "unique", "mask": None}
    (tmp_path / "val.jsonl").write_text(json.dumps(row) + "\n")
    (sample,) = Folder(tmp_path / "val.jsonl").samples()
    assert (sample.text, sample.name, sample.kind) == ("the cat", "cat", "unique")
