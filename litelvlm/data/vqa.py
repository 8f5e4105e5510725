"""Questions with text answers, from the benchmarks' own files.

    vqav2      v2_OpenEnded_mscoco_val2014_questions.json  v2_mscoco_val2014_annotations.json
               val2014/COCO_val2014_000000000042.jpg
    gqa        testdev_balanced_questions.json  images/n161313.jpg
    textvqa    TextVQA_0.5.1_val.json  train_images/003a8ae2ef43b901.jpg
    pope       coco_pope_adversarial.json, _popular, _random  val2014/COCO_val2014_....jpg
    mme        <task>/0001.txt beside 0001.jpg, or in questions_answers_YN/ and images/
    scienceqa  problems.json  pid_splits.json  images/test/5/image.png
    mmbench    mmbench_dev_20230712.tsv (or any *.tsv), pictures inside

Each file is read once and checked record by record; a record that does not fit ends in one sentence
that names the file and the record. The wording asked of the model is LLaVA-1.5's (Liu et al., CVPR
2024, appendix); TextVQA is asked without OCR tokens, ScienceQA in the words of MMBench.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from litelvlm.data.samples import check_share, nothing_left
from litelvlm.errors import InputError, one_line, unknown
from litelvlm.images import read_image
from litelvlm.resources import read_json, read_lines, read_text

SHORT = "{phrase}\nAnswer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class VqaItem:
    """One question about one picture.

    Attributes:
        id: unique within the benchmark.
        image: path of the picture, or the encoded picture itself.
        text: the question alone; a text tower reads it.
        wording: what is asked of the model, with the blank {phrase} for the question.
        answers: right answers: ten of annotators, one, or one letter.
        kind: what scores are gathered by: a task, a split of POPE, a question's rotations.
        choices: texts of the lettered choices, in order.
        picture: name of the picture; its questions share its encoding.
    """

    id: str
    image: Path | bytes
    text: str
    wording: str
    answers: tuple[str, ...]
    kind: str = ""
    choices: tuple[str, ...] = ()
    picture: str = ""

    @property
    def prompt(self) -> str:
        """The whole question, its instruction included."""
        return self.wording.replace("{phrase}", self.text)

    def read_image(self) -> np.ndarray:
        """The picture, (H, W, 3) uint8. Raises `InputError` if it cannot be read."""
        return read_image(io.BytesIO(self.image) if isinstance(self.image, bytes) else self.image)


def read(benchmark: str, root: str | Path) -> Iterator[VqaItem]:
    """The questions of a benchmark under a folder.

    Raises:
        InputError: an unknown benchmark, a file that is not there, or a record that does not fit.
    """
    if benchmark not in READERS:
        raise unknown("benchmark", benchmark, READERS)
    folder = Path(root)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    for item in READERS[benchmark](folder):
        inside = isinstance(item.image, Path)
        name = item.image.relative_to(folder).as_posix() if inside else item.kind  # type: ignore[union-attr]
        yield replace(item, picture=name)


@dataclass
class Questions:
    """A benchmark as a source (`data.samples.Source`).

    Attributes:
        name: of the benchmark.
        root: the folder of its files.
        missing, refused: see `Source`.
    """

    name: str
    root: Path
    missing: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    def samples(self, share: tuple[int, int] = (0, 1)) -> Iterator[VqaItem]:
        """See `Source`. Pictures come in the order of their first question."""
        index, count = check_share(share)
        groups: dict[str, list[VqaItem]] = {}
        for item in read(self.name, self.root):
            groups.setdefault(item.picture, []).append(item)
        self.missing = tuple(
            name
            for name, (item, *_) in groups.items()
            if isinstance(item.image, Path) and not item.image.is_file()
        )
        for name in self.missing:
            del groups[name]
        if not groups:
            raise nothing_left(self, [self.root])
        for group in islice(groups.values(), index, None, count):
            yield from group


def _get(record: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A field of a record, or `InputError` naming the place and what is missing."""
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(k.__name__ for k in kinds)
        raise InputError(f"{where}: {name!r} is {type(value).__name__}, expected {wanted}")
    return value


def _inside(folder: Path, name: str, where: str) -> Path:
    """A picture's path, or `InputError` for a name that leads out of the folder."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise InputError(f"{where}: picture {name[:60]!r} lies outside the folder")
    return folder / name


def _ten(record: Any, where: str) -> tuple[str, ...]:
    answers = _get(record, "answers", list, where)
    texts = [one if isinstance(one, str) else _get(one, "answer", str, where) for one in answers]
    if not texts:
        raise InputError(f"{where}: no answers")
    return tuple(texts)


def _vqav2(root: Path) -> Iterator[VqaItem]:
    asked = root / "v2_OpenEnded_mscoco_val2014_questions.json"
    told = root / "v2_mscoco_val2014_annotations.json"
    answers = {}
    for number, record in enumerate(_get(read_json(told), "annotations", list, told.name)):
        where = f"{told.name}, annotation {number}"
        answers[_get(record, "question_id", int, where)] = _ten(record, where)
    for number, record in enumerate(_get(read_json(asked), "questions", list, asked.name)):
        where = f"{asked.name}, question {number}"
        key, picture = (_get(record, name, int, where) for name in ("question_id", "image_id"))
        if key not in answers:
            raise InputError(f"{where}: question {key} has no annotation")
        image = root / "val2014" / f"COCO_val2014_{picture:012d}.jpg"
        question = _get(record, "question", str, where)
        yield VqaItem(str(key), image, question, SHORT, answers[key])


def _gqa(root: Path) -> Iterator[VqaItem]:
    path = root / "testdev_balanced_questions.json"
    for key, record in read_json(path, dict).items():
        where = f"{path.name}, question {key}"
        picture = _get(record, "imageId", str, where)
        yield VqaItem(
            key,
            _inside(root / "images", f"{picture}.jpg", where),
            _get(record, "question", str, where),
            SHORT,
            (_get(record, "answer", str, where),),
        )


def _textvqa(root: Path) -> Iterator[VqaItem]:
    path = root / "TextVQA_0.5.1_val.json"
    for number, record in enumerate(_get(read_json(path), "data", list, path.name)):
        where = f"{path.name}, question {number}"
        picture = _get(record, "image_id", str, where)
        yield VqaItem(
            str(_get(record, "question_id", (int, str), where)),
            _inside(root / "train_images", f"{picture}.jpg", where),
            _get(record, "question", str, where),
            SHORT,
            _ten(record, where),
        )


def _pope(root: Path) -> Iterator[VqaItem]:
    files = sorted(root.glob("coco_pope_*.json"))
    if not files:
        raise InputError(f"{root}: no coco_pope_*.json")
    for path in files:
        split = path.stem.removeprefix("coco_pope_")
        for number, line in read_lines(path):
            where = f"{path.name}, line {number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as fault:
                raise InputError(f"{where}: not JSON ({one_line(fault, 60)})") from None
            label = _get(record, "label", str, where).lower()
            if label not in ("yes", "no"):
                raise InputError(f"{where}: 'label' is {label[:20]!r}, expected yes or no")
            yield VqaItem(
                f"{split}/{_get(record, 'question_id', int, where)}",
                _inside(root / "val2014", _get(record, "image", str, where), where),
                _get(record, "text", str, where),
                SHORT,
                (label,),
                split,
            )


def _mme(root: Path) -> Iterator[VqaItem]:
    tasks = sorted(folder for folder in root.iterdir() if folder.is_dir())
    found = False
    for task in tasks:
        texts = task / "questions_answers_YN"
        pictures = task / "images" if texts.is_dir() else task
        for path in sorted((texts if texts.is_dir() else task).glob("*.txt")):
            found = True
            image = next(
                (p for s in (".jpg", ".png") if (p := pictures / f"{path.stem}{s}").is_file()), None
            )
            if image is None:
                raise InputError(f"{path}: no picture {path.stem}.jpg or .png in {pictures}")
            for number, line in read_lines(path):
                question, _, label = line.rpartition("\t")
                where = f"{task.name}/{path.name}, line {number}"
                if not question or label.strip().lower() not in ("yes", "no"):
                    raise InputError(f"{where}: expected a question, a tab, and Yes or No")
                # The question carries MME's own instruction, which LLaVA-1.5 takes out.
                asked = question.replace("Please answer yes or no.", "").strip()
                key = f"{task.name}/{path.stem}/{number}"
                yield VqaItem(key, image, asked, SHORT, (label.strip().lower(),), task.name)
    if not found:
        raise InputError(f"{root}: no task folder with question files (*.txt)")


def _scienceqa(root: Path) -> Iterator[VqaItem]:
    problems, splits = read_json(root / "problems.json"), read_json(root / "pid_splits.json")
    for key in _get(splits, "test", list, "pid_splits.json"):
        where = f"problems.json, problem {key}"
        record = _get(problems, str(key), dict, "problems.json")
        if record.get("image") is None:  # the IMG subset: problems with a picture
            continue
        choices = tuple(_get(record, "choices", list, where))
        answer = _get(record, "answer", int, where)
        if not all(isinstance(c, str) for c in choices) or not 0 <= answer < len(choices):
            raise InputError(f"{where}: answer {answer} is not one of {len(choices)} choices")
        hint = str(record.get("hint") or "").strip()
        image = _inside(
            root / "images" / "test" / str(key), _get(record, "image", str, where), where
        )
        question, wording = _get(record, "question", str, where), _lettered(hint, choices)
        yield VqaItem(str(key), image, question, wording, (LETTERS[answer],), choices=choices)


def _lettered(hint: str, choices: tuple[str, ...]) -> str:
    options = [f"{name}. {text}" for name, text in zip(LETTERS, choices, strict=False)]
    return "\n".join([*([hint] if hint else []), "{phrase}", *options, LETTER])


def _mmbench(root: Path) -> Iterator[VqaItem]:
    """Each question once a rotation of its choices; the rotations share a group."""
    files = sorted(root.glob("*.tsv"))
    if len(files) != 1:
        raise InputError(f"{root}: {len(files)} files *.tsv, expected one")
    csv.field_size_limit(1 << 30)  # a field holds a picture
    records = csv.DictReader(io.StringIO(read_text(files[0]), newline=""), delimiter="\t")
    for record in records:
        where = f"{files[0].name}, line {records.line_num}"
        key = _get(record, "index", str, where)
        choices = tuple(c for name in "ABCD" if (c := record.get(name)) and c != "nan")
        answer = "ABCD".find(_get(record, "answer", str, where).strip() or "?")
        if not 0 <= answer < len(choices):
            raise InputError(f"{where}: answer {record['answer']!r} is not one of its choices")
        try:
            image = base64.b64decode(_get(record, "image", str, where), validate=True)
        except (binascii.Error, ValueError):
            raise InputError(f"{where}: the picture is not base64") from None
        hint = record.get("hint") or ""
        question = _get(record, "question", str, where)
        for turn in range(len(choices)):
            turned = choices[turn:] + choices[:turn]
            yield VqaItem(
                f"{key}/{turn}",
                image,
                question,
                _lettered("" if hint == "nan" else hint.strip(), turned),
                (LETTERS[(answer - turn) % len(choices)],),
                key,
                turned,
            )


READERS: dict[str, Callable[[Path], Iterator[VqaItem]]] = {
    "vqav2": _vqav2,
    "gqa": _gqa,
    "textvqa": _textvqa,
    "pope": _pope,
    "mme": _mme,
    "scienceqa": _scienceqa,
    "mmbench": _mmbench,
}
