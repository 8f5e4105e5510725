"""Readers of the benchmarks with text answers, on small files of the true layout."""

from __future__ import annotations

import base64
import csv
import io
import json

import pytest
import torch
from golden_files import llava_weights, write_llava_layout
from PIL import Image

import litelvlm
from litelvlm import cli
from litelvlm.data.vqa import LETTER, READERS, Questions, read
from litelvlm.errors import InputError
from litelvlm.evaluate import evaluate
from litelvlm.evaluation.questions import SCORES, summarise_answers, total
from litelvlm.evaluation.records import Answered, Unit
from litelvlm.methods import METHODS

Image.new("RGB", (32, 24), "red").save(drawn := io.BytesIO(), "PNG")
PICTURE = drawn.getvalue()
SHORT = "Answer the question using a single word or phrase."


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is PICTURE:
        path.write_bytes(content)
        return
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def root(tmp_path):
    """One question or two of each benchmark, in the files and fields of the originals."""
    ten = [{"answer": "red", "answer_confidence": "yes", "answer_id": i + 1} for i in range(10)]
    question = {"image_id": 42, "question": "What color?", "question_id": 42000}
    second = question | {"question": "Is it red?", "question_id": 42001}
    write(
        tmp_path / "vqav2/v2_OpenEnded_mscoco_val2014_questions.json",
        {"info": {}, "task_type": "Open-Ended", "questions": [question, second]},
    )
    told = {"question_type": "what", "multiple_choice_answer": "red", "answer_type": "other"}
    told |= {"answers": ten, "image_id": 42}
    write(
        tmp_path / "vqav2/v2_mscoco_val2014_annotations.json",
        {"annotations": [told | {"question_id": number} for number in (42000, 42001)]},
    )
    write(
        tmp_path / "gqa/testdev_balanced_questions.json",
        {"201307251": {"imageId": "n161313", "question": "Is it?", "answer": "no", "types": {}}},
    )
    text = {"question": "what brand?", "image_id": "003a8", "question_id": 34602, "set_name": "val"}
    write(
        tmp_path / "textvqa/TextVQA_0.5.1_val.json",
        {"dataset_type": "val", "data": [text | {"answers": ["nokia"] * 10}]},
    )
    line = {"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a car?"}
    for split, label in {"random": "yes", "popular": "no"}.items():
        lines = "\n" + json.dumps(line | {"label": label}) + "\n"
        write(tmp_path / f"pope/coco_pope_{split}.json", lines)
    pair = "Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n"
    write(tmp_path / "mme/color/0001.txt", pair)
    write(tmp_path / "mme/color/0001.jpg", PICTURE)
    write(tmp_path / "mme/posters/questions_answers_YN/a.txt", pair)
    write(tmp_path / "mme/posters/images/a.png", PICTURE)
    problem = {"question": "Which?", "choices": ["one", "two"], "answer": 1, "hint": "Look."}
    write(
        tmp_path / "scienceqa/problems.json",
        {"5": problem | {"image": "image.png"}, "6": problem | {"image": None}},
    )
    write(tmp_path / "scienceqa/pid_splits.json", {"train": [], "test": ["5", "6"]})
    picture = base64.b64encode(PICTURE).decode()
    write(
        tmp_path / "mmbench/mmbench_dev.tsv",
        "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tsplit\n"
        f"7\tWhich?\tnan\tcat\tdog\tcow\tnan\tC\tcoarse\t{picture}\tdev\n"
        f'8\tAnd?\t"Look.\n\nLook again."\tcat\tdog\tnan\tnan\tA\tcoarse\t{picture}\tdev\n',
    )
    for name in (
        "vqav2/val2014/COCO_val2014_000000000042.jpg",
        "gqa/images/n161313.jpg",
        "textvqa/train_images/003a8.jpg",
        "pope/val2014/COCO_val2014_000000310196.jpg",
        "scienceqa/images/test/5/image.png",
    ):
        write(tmp_path / name, PICTURE)
    return tmp_path


def test_each_layout_is_read(root):
    vqa, second = read("vqav2", root / "vqav2")
    assert vqa.image == root / "vqav2/val2014/COCO_val2014_000000000042.jpg"
    assert (vqa.prompt, vqa.answers) == (f"What color?\n{SHORT}", ("red",) * 10)
    assert (second.id, second.text) == ("42001", "Is it red?")
    (gqa,) = read("gqa", root / "gqa")
    assert (gqa.id, gqa.image.name, gqa.answers) == ("201307251", "n161313.jpg", ("no",))
    (text,) = read("textvqa", root / "textvqa")
    assert (text.image.name, text.answers[0], len(text.answers)) == ("003a8.jpg", "nokia", 10)
    assert [(p.kind, p.answers) for p in read("pope", root / "pope")] == [
        ("popular", ("no",)),
        ("random", ("yes",)),
    ]
    mme = list(read("mme", root / "mme"))
    assert [item.kind for item in mme] == ["color"] * 2 + ["posters"] * 2
    assert mme[0].prompt == f"Is it red?\n{SHORT}"
    assert [item.answers[0] for item in mme] == ["yes", "no"] * 2
    assert mme[2].image == root / "mme/posters/images/a.png"
    (science,) = read("scienceqa", root / "scienceqa")  # the other has no picture
    assert science.prompt == f"Look.\nWhich?\nA. one\nB. two\n{LETTER}"
    assert science.answers == ("B",)
    turns = list(read("mmbench", root / "mmbench"))
    assert [turn.choices[0] for turn in turns] == ["cat", "dog", "cow", "cat", "dog"]
    assert [turn.answers[0] for turn in turns] == ["C", "B", "A", "A", "B"]
    assert [turn.kind for turn in turns] == ["7"] * 3 + ["8"] * 2
    assert turns[3].prompt == f"Look.\n\nLook again.\nAnd?\nA. cat\nB. dog\n{LETTER}"
    assert turns[0].image == PICTURE


@pytest.mark.parametrize(
    ("benchmark", "file", "old", "new", "told"),
    [
        ("vqav2", "v2_mscoco_val2014_annotations.json", "42000", "42002", "question 42000 has no"),
        ("vqav2", "v2_mscoco_val2014_annotations.json", '"answers"', '"answer"', "annotation 0"),
        ("gqa", "testdev_balanced_questions.json", "n161313", "../../etc/a", "outside the folder"),
        ("textvqa", "TextVQA_0.5.1_val.json", '"003a8"', "3", "'image_id' is int, expected str"),
        ("pope", "coco_pope_random.json", "yes", "maybe", "random.json, line 2: .* expected yes"),
        ("mme", "color/0001.txt", "\t", " ", "color/0001.txt, line 1"),
        ("scienceqa", "problems.json", '"answer": 1', '"answer": 2', "not one of 2 choices"),
        ("mmbench", "mmbench_dev.tsv", "\tC\t", "\tD\t", "mmbench_dev.tsv, line 2: answer 'D'"),
        ("mmbench", "mmbench_dev.tsv", "\tA\tcoarse", "\tB\t\x80", "dev.tsv, line 5: not UTF-8"),
        ("gqa", "testdev_balanced_questions.json", "{", "[", "cannot be read as JSON"),
    ],
)
def test_a_record_that_does_not_fit_is_named(root, benchmark, file, old, new, told):
    path = root / benchmark / file
    path.write_text(path.read_text().replace(old, new), encoding="latin-1")
    with pytest.raises(InputError, match=told):
        list(read(benchmark, root / benchmark))


def test_missing_files_are_named(tmp_path):
    for benchmark in ("vqav2", "gqa", "textvqa", "pope", "mme", "scienceqa", "mmbench"):
        with pytest.raises(InputError, match=str(tmp_path)):
            list(read(benchmark, tmp_path))
    with pytest.raises(InputError, match="unknown benchmark"):
        list(read("docvqa", tmp_path))
    with pytest.raises(InputError, match="no such folder"):
        list(read("gqa", tmp_path / "none"))


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    torch.set_num_threads(1)
    folder = write_llava_layout(tmp_path_factory.mktemp("llava"), llava_weights())
    return litelvlm.load(folder, device="cpu"), folder


def test_answers_are_what_python_gives_and_scored_by_the_benchmark(llava, root):
    pipe, _ = llava
    for name in READERS:
        source = Questions(name, root / name)
        units = evaluate(pipe, source, ["divprune"], [16], mode="generate", batch=1)
        assert [unit.error for unit in units] == [None] * len(units)
        items = {item.id: item for item in read(name, root / name)}
        for unit in units:
            assert unit.tokens == (64 if unit.variant == "none" else 16)
            for found in unit.items:
                item = items[found.id]
                answer = pipe.ask(
                    pipe.encode(item.read_image()), item.prompt, unit.budget,
                    method="divprune", max_new_tokens=32,
                )  # fmt: skip
                assert found.answer == answer.text
                assert found.score == SCORES[name](answer.text, item)


def test_the_text_tower_reads_the_question_alone(llava, root):
    pipe, _ = llava
    (item,) = read("gqa", root / "gqa")
    scene = pipe.encode(item.read_image())
    framed = pipe.ask(scene, item.text, 9, wording=(item.wording, ""))
    assert framed.token_map.similarity.tolist() == (
        pipe.ask(scene, item.text, 9).token_map.similarity.tolist()
    )
    assert pipe.ask(scene, item.text, wording=(item.wording, "")).text == (
        pipe.ask(scene, item.prompt).text
    )


def test_every_method_answers_every_question(llava, root):
    pipe, _ = llava
    source = Questions("mme", root / "mme")
    units = evaluate(pipe, source, ["all"], [16], mode="generate")
    assert {unit.variant for unit in units if unit.error is None} == {"none", *METHODS}
    rows = summarise_answers(units)
    assert [row.questions for row in rows] == [4] * (1 + len(METHODS))


def test_one_command_from_files_to_report_goes_on_where_it_stopped(
    llava, root, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "out"
    given = ["evaluate", "--data", ",".join(READERS), "--root", str(root), "--out", str(out)]
    given += ["--model", str(llava[1]), "--device", "cpu", "--quiet"]
    given += ["--methods", "litelvlm,fastv", "--budgets", "16,4"]
    assert cli.main(given) == 0
    report = (out / "report.md").read_text()
    assert f"| tokens | method | {' | '.join(sorted(READERS))} | Rel. % |" in report
    assert "## mmbench: 5 questions" in report
    assert "random f1" in report
    with (out / "items.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * (2 + 1 + 1 + 2 + 4 + 1 + 5)
    assert {row["label"] for row in rows if row["source"] == "mmbench"} == {"A", "B", "C"}
    capsys.readouterr()

    (units,) = out.glob("units-*.jsonl")
    lines = units.read_text().splitlines()
    units.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    asked = []
    ground = litelvlm.Pipeline.ground
    monkeypatch.setattr(
        litelvlm.Pipeline, "ground", lambda *a, **k: asked.append(1) or ground(*a, **k)
    )
    scores = (out / "results.csv").read_text()
    assert cli.main(given) == 0
    assert 0 < len(asked) <= 3
    assert (out / "results.csv").read_text() == scores


def test_scores_of_whole_benchmarks_are_the_hand_worked_ones():
    def units(*rows):
        return [
            Unit("any", picture, "none", 64, 0, (Answered(f"{n}", "?", kind, said, label, score),))
            for n, (picture, kind, said, label, score) in enumerate(rows)
        ]

    # random: 1 hit, 1 false alarm: F1 2/3; popular: nothing right: 0
    pope = units(
        ("a", "random", "Yes", "yes", 1), ("a", "random", "yes", "no", 0),
        ("b", "popular", "No", "yes", 0),
    )  # fmt: skip
    score, parts = total("pope", pope)
    assert score == pytest.approx(100 / 3)
    assert parts["random accuracy"] == 50
    # color: 3 of 4 right, one picture of two wholly: 125; code_reasoning: 200, not of the sum
    mme = units(
        ("a", "color", "Yes", "yes", 1), ("a", "color", "No", "no", 1),
        ("b", "color", "Yes", "yes", 1), ("b", "color", "Yes", "no", 0),
        ("c", "code_reasoning", "no.", "no", 1),
    )  # fmt: skip
    score, parts = total("mme", mme)
    assert (score, parts["cognition"]) == (125, 200)
    turns = units(("a", "7", "A", "A", 1), ("a", "7", "B", "C", 0), ("b", "8", "B", "B", 1))
    assert total("mmbench", turns)[0] == 50
    assert total("vqav2", units(("a", "", "x", "y", 0.9), ("b", "", "x", "y", 0.3)))[0] == 60


def test_a_picture_that_is_not_there_is_told(root):
    (root / "pope/val2014/COCO_val2014_000000310196.jpg").unlink()
    with pytest.raises(InputError, match="1 pictures missing"):
        list(Questions("pope", root / "pope").samples())


def test_reversal_needs_targets(root, tmp_path, capsys):
    given = ["reversal", "--data", "gqa", "--root", str(root), "--out", str(tmp_path / "out")]
    assert cli.main(given) == 2
    assert "no target to measure against" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--data", "gqa"], "needs --root"),
        (["--data", "gqa,pope", "--root", ".", "--split", "val"], "has no splits"),
        (["--data", "gqa,refcoco", "--root", "."], "neither a file nor one of"),
        (["--data", "gqa", "--root", ".", "--model", "LLAVA", "--mode", "forced"], "use ask"),
    ],
)
def test_bad_options_end_in_one_line(llava, root, tmp_path, capsys, monkeypatch, more, told):
    monkeypatch.chdir(root)
    more = [str(llava[1]) if word == "LLAVA" else word for word in more]
    given = ["evaluate", *more, "--out", str(tmp_path / "out"), "--quiet", "--device", "cpu"]
    assert cli.main(given) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
