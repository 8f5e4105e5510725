"""Text answers against a benchmark's own: normalised and scored as each benchmark defines it.

Pure functions of text. Every score of one answer lies in 0..1.

    VQAv2      Antol et al., ICCV 2015; the evaluation code's normalisation, its slips included
    TextVQA    Singh et al., CVPR 2019; ten answers, one left out in turn
    GQA        Hudson & Manning, CVPR 2019; the one answer exactly
    POPE       Li et al., EMNLP 2023; yes or no
    MME        Fu et al., arXiv 2306.13394; yes or no, and both questions of a picture
    ScienceQA  Lu et al., NeurIPS 2022; the letter of a choice
    MMBench    Liu et al., ECCV 2024; the letter of a choice, under every rotation of the choices
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_DIGITS = {word: str(value) for value, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
# Written without (one of) their apostrophes they get them back. The official table also holds
# forms with a capital, which never occur in lower-cased text, and pairs that change nothing.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't shan't she'd've should've shouldn't
shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all you'd you'd've you'll you're you've
"""


def _without_one_apostrophe(word: str) -> Iterable[str]:
    return (word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'")


_CONTRACTIONS = {
    bare: word for word in _CONTRACTED.split() for bare in _without_one_apostrophe(word)
} | {
    "somebody'd": "somebodyd",  # sic
    "ow's'at": "'ow's'at", "'ows'at": "'ow's'at", "'ow'sat": "'ow's'at",
    "yall'll": "y'all'll", "y'allll": "y'all'll",
    "yall'd've": "y'all'd've", "y'alld've": "y'all'd've", "y'all'dve": "y'all'd've",
}  # fmt: skip


def normalise_vqa(text: str) -> str:
    """An answer as VQAv2's evaluation compares it: no marks, digits for numbers, no articles."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    stripped = text
    thousands = re.search(r"\d,\d", text) is not None
    for mark in _MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if beside_space or thousands else " ")
    stripped = re.sub(r"\.(?!\d)", "", stripped, count=32)  # the official code stops at 32
    words = [_DIGITS.get(word, word) for word in stripped.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, answers: Sequence[str]) -> float:
    """VQAv2: mean over the annotators of min(1, how many *others* said so / 3).

    The model's answer is normalised in any case, as LLaVA's authors and lmms-eval do before the
    evaluation; the annotators' answers where they are not all the same, as the evaluation does.
    """
    if len(set(answers)) > 1:
        answers = [normalise_vqa(one) for one in answers]
    return _of_ten(normalise_vqa(answer), answers)


def textvqa_accuracy(answer: str, answers: Sequence[str]) -> float:
    """TextVQA: the same mean, everything normalised, commas, question marks and 's apart."""
    return _of_ten(_textvqa(answer), [_textvqa(one) for one in answers])


def _of_ten(answer: str, answers: Sequence[str]) -> float:
    said = answers.count(answer)
    return sum(min(1.0, (said - (one == answer)) / 3) for one in answers) / len(answers)


def _textvqa(text: str) -> str:
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalise_vqa(text)


def exact(answer: str, answers: Sequence[str]) -> float:
    """GQA: the answer itself, but for case and a full stop at the end."""
    return float(answer.strip().rstrip(".").lower() == answers[0].strip().lower())


def yes_or_no(answer: str) -> str:
    """POPE's reading: "no" where the first sentence has the word no or not, else "yes"."""
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def yes_no_other(answer: str) -> str:
    """MME's reading: by the first four characters; "other" where neither is there."""
    start = answer.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def letter(answer: str, choices: Sequence[str] = (), letters: str = "ABCDEFGHIJ") -> str | None:
    """The letter of a choice: alone, "B. ...", "(B)", "The answer is B", or the choice itself."""
    text = answer.strip()
    found = re.match(r"\(?([A-Z])(?:[).:,\s]|$)", text)
    if found and found[1] in letters[: len(choices) or None] and not _is_article(text):
        return found[1]
    named = re.findall(r"[Tt]he answer is \(?([A-Z])\b", text)
    if len(named) == 1:
        return named[0]
    same = [
        i for i, choice in enumerate(choices) if choice.strip().lower() == text.lower().rstrip(".")
    ]
    return letters[same[0]] if len(same) == 1 else None


def _is_article(text: str) -> bool:
    """Whether a leading "A" is a word of a sentence, as in "A dog sits"."""
    return re.match(r"A [a-z]", text) is not None


def pope_scores(answers: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Accuracy, precision, recall, F1 and the share of yes; "yes" counts as positive."""
    said = [yes_or_no(answer) == "yes" for answer in answers]
    true = [label.strip().lower() == "yes" for label in labels]
    hits = sum(s and t for s, t in zip(said, true, strict=True))
    precision, recall = hits / max(1, sum(said)), hits / max(1, sum(true))
    return {
        "accuracy": sum(s == t for s, t in zip(said, true, strict=True)) / len(true),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if hits else 0.0,
        "yes": sum(said) / len(said),
    }


def mme_scores(rows: Iterable[tuple[str, str, str, str]]) -> dict[str, float]:
    """Score of each task, 0..200: accuracy plus the share of pictures with both answers right.

    Args:
        rows: (task, picture, answer, label).
    """
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for task, picture, answer, label in rows:
        right[task][picture].append(yes_no_other(answer) == label.strip().lower())
    scores = {}
    for task, pictures in right.items():
        single = [one for both in pictures.values() for one in both]
        pairs = [all(both) for both in pictures.values()]
        scores[task] = 100 * (sum(single) / len(single) + sum(pairs) / len(pairs))
    return scores


def circular_accuracy(rows: Iterable[tuple[str, bool]]) -> float:
    """MMBench: share of questions answered rightly under every rotation of their choices.

    Args:
        rows: (question, whether this rotation was right); rotations share the question's name.
    """
    every: dict[str, bool] = {}
    for name, right in rows:
        every[name] = every.get(name, True) and right
    return sum(every.values()) / len(every)
