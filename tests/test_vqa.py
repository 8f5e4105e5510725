"""Readers of the benchmarks with text answers, on small files of the true layout."""

from __future__ import annotations

import base64
import json

import pytest

from litelvlm.data.vqa import LETTER, read
from litelvlm.errors import InputError

SHORT = "Answer the question using a single word or phrase."


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def root(tmp_path):
    """One question or two of each benchmark, in the files and fields of the originals."""
    ten = [{"answer": "red", "answer_confidence": "yes", "answer_id": i + 1} for i in range(10)]
    question = {"image_id": 42, "question": "What color?", "question_id": 42000}
    write(
        tmp_path / "vqav2/v2_OpenEnded_mscoco_val2014_questions.json",
        {"info": {}, "task_type": "Open-Ended", "questions": [question]},
    )
    told = {"question_type": "what", "multiple_choice_answer": "red", "answer_type": "other"}
    write(
        tmp_path / "vqav2/v2_mscoco_val2014_annotations.json",
        {"annotations": [told | {"answers": ten, "image_id": 42, "question_id": 42000}]},
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
        write(tmp_path / f"pope/coco_pope_{split}.json", json.dumps(line | {"label": label}) + "\n")
    pair = "Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n"
    write(tmp_path / "mme/color/0001.txt", pair)
    write(tmp_path / "mme/color/0001.jpg", "")
    write(tmp_path / "mme/posters/questions_answers_YN/a.txt", pair)
    write(tmp_path / "mme/posters/images/a.png", "")
    problem = {"question": "Which?", "choices": ["one", "two"], "answer": 1, "hint": "Look."}
    write(
        tmp_path / "scienceqa/problems.json",
        {"5": problem | {"image": "image.png"}, "6": problem | {"image": None}},
    )
    write(tmp_path / "scienceqa/pid_splits.json", {"train": [], "test": ["5", "6"]})
    picture = base64.b64encode(b"picture").decode()
    write(
        tmp_path / "mmbench/mmbench_dev.tsv",
        "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tsplit\n"
        f"7\tWhich?\tnan\tcat\tdog\tcow\tnan\tC\tcoarse\t{picture}\tdev\n",
    )
    return tmp_path


def test_each_layout_is_read(root):
    (vqa,) = read("vqav2", root / "vqav2")
    assert vqa.image == root / "vqav2/val2014/COCO_val2014_000000000042.jpg"
    assert (vqa.prompt, vqa.answers) == (f"What color?\n{SHORT}", ("red",) * 10)
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
    assert [turn.choices[0] for turn in turns] == ["cat", "dog", "cow"]
    assert [turn.answers[0] for turn in turns] == ["C", "B", "A"]
    assert {turn.kind for turn in turns} == {"7"}
    assert turns[0].image == b"picture"


@pytest.mark.parametrize(
    ("benchmark", "file", "old", "new", "told"),
    [
        ("vqav2", "v2_mscoco_val2014_annotations.json", "42000", "42001", "no annotation"),
        ("vqav2", "v2_mscoco_val2014_annotations.json", '"answers"', '"answer"', "annotation 0"),
        ("gqa", "testdev_balanced_questions.json", "n161313", "../../etc/a", "outside the folder"),
        ("textvqa", "TextVQA_0.5.1_val.json", '"003a8"', "3", "'image_id' is int, expected str"),
        ("pope", "coco_pope_random.json", "yes", "maybe", "expected yes or no"),
        ("mme", "color/0001.txt", "\t", " ", "color/0001.txt, line 1"),
        ("scienceqa", "problems.json", '"answer": 1', '"answer": 2', "not one of 2 choices"),
        ("mmbench", "mmbench_dev.tsv", "\tC\t", "\tD\t", "index 7: answer 'D'"),
        ("gqa", "testdev_balanced_questions.json", "{", "[", "cannot be read as JSON"),
    ],
)
def test_a_record_that_does_not_fit_is_named(root, benchmark, file, old, new, told):
    path = root / benchmark / file
    path.write_text(path.read_text().replace(old, new))
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
