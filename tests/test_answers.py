"""Scores of text answers, on cases worked by hand from the benchmarks' definitions."""

from __future__ import annotations

import pytest

from litelvlm.answers import (
    circular_accuracy,
    exact,
    letter,
    mme_scores,
    normalise_vqa,
    pope_scores,
    textvqa_accuracy,
    vqa_accuracy,
    yes_no_other,
    yes_or_no,
)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Two dogs.", "2 dogs"),
        ("The red apple", "red apple"),
        ("none", "0"),
        ("1,000", "1000"),  # a comma between digits is taken out
        ("black/white", "black white"),  # a mark between letters becomes a space
        ("black, white", "black white"),  # beside a space it is taken out
        ("3.5", "3.5"),
        ("It's 5 p.m.", "it's 5 pm"),
        ("dont know", "don't know"),
        ("shouldnt've", "shouldn't've"),
        ("hed", "he'd"),
        ("its", "its"),
        ("well", "well"),
        ("somebody'd", "somebodyd"),  # as the official table has it
        ("an\n  orange\t", "orange"),
    ],
)
def test_vqa_normalisation(text, normal):
    assert normalise_vqa(text) == normal


@pytest.mark.parametrize(("same", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0)])
def test_vqa_accuracy_leaves_each_annotator_out_in_turn(same, score):
    answers = ["red"] * same + [f"other {i}" for i in range(10 - same)]
    assert vqa_accuracy("Red.", answers) == pytest.approx(score)


def test_vqa_accuracy_takes_annotators_who_all_agree_to_the_letter():
    assert vqa_accuracy("Yes.", ["yes"] * 10) == 1
    assert vqa_accuracy("the dog", ["the dog"] * 10) == 0  # sic
    assert vqa_accuracy("the dog", ["the dog"] * 9 + ["cat"]) == 1


def test_textvqa_normalises_always():
    assert textvqa_accuracy("Coca, Cola?", ["coca cola"] * 10) == 1
    assert textvqa_accuracy("the bank", ["bank"] * 2 + ["shop"] * 8) == pytest.approx(0.6)


def test_gqa_is_exact():
    assert exact("Left.", ["left"]) == 1
    assert exact("the left", ["left"]) == 0


def test_yes_and_no():
    assert yes_or_no("There is no dog. Yes.") == "no"
    assert yes_or_no("Not sure") == "yes"  # capital Not is no word of the list
    assert yes_or_no("No, there is not") == "no"
    assert yes_or_no("It is there") == "yes"
    assert [yes_no_other(t) for t in ("Yes, it is", "NO", "It is no", "")] == [
        "yes",
        "no",
        "other",
        "other",
    ]


def test_pope_counts_by_hand():
    scores = pope_scores(["Yes", "Yes", "No", "No"], ["yes", "no", "yes", "no"])
    assert scores == {"accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5, "yes": 0.5}
    assert pope_scores(["No"], ["yes"])["f1"] == 0


def test_mme_adds_pairs_that_are_right_twice():
    rows = [
        ("count", "a", "Yes", "Yes"),
        ("count", "a", "No", "No"),
        ("count", "b", "Yes", "Yes"),
        ("count", "b", "Yes", "No"),
        ("OCR", "c", "maybe", "Yes"),
    ]
    assert mme_scores(rows) == {"count": 100 * (3 / 4 + 1 / 2), "OCR": 0.0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"),
        ("B. a cat", "B"),
        ("(C)", "C"),
        ("The answer is B.", "B"),
        ("A dog", None),
        ("a cat", "B"),
        ("A cat.", "B"),
        ("D", None),  # there are three choices
        ("perhaps", None),
    ],
)
def test_letters(text, expected):
    assert letter(text, ["a dog runs", "a cat", "a bird"]) == expected


def test_circular_accuracy_wants_every_rotation():
    assert circular_accuracy([("1", True), ("1", False), ("2", True), ("2", True)]) == 0.5
