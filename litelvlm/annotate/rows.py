"""The core of annotation: tasks (id, picture, phrases) -> rows, one a picture and phrase.

    for rows in annotate(pipe, [Task("a.jpg", "a.jpg", ("the red cup",))], budget=128): ...

Nothing here knows where tasks come from, where rows go, or on which machine this runs. What is
wrong with a task becomes the `error` of its rows.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from litelvlm.errors import InputError, one_line
from litelvlm.images import read_image
from litelvlm.question import read_phrases

if TYPE_CHECKING:
    from litelvlm.pipeline import Pipeline
    from litelvlm.result import GroundingResult
    from litelvlm.scene import EncodedImage

MAX_BYTES = 200_000_000  # of a picture file
ROWS = 64  # prompts that enter the language model together

Row = dict[str, Any]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """One picture and what to find in it.

    Attributes:
        id: unique within a run, the same in every run.
        picture: path or address (anything fsspec opens), the bytes of a file, (H, W, 3) uint8
            RGB, or the fault that keeps it from being read.
        phrases: one or more.
    """

    id: str
    picture: str | bytes | np.ndarray | InputError
    phrases: tuple[str, ...]


def decoded(task: Task) -> Task:
    """The task with its picture as an array, or as the fault that was met."""
    given = task.picture
    try:
        if isinstance(given, str):
            given = _fetched(given)
        if isinstance(given, bytes):
            file = io.BytesIO(given)
            file.name = task.id  # what an error calls it
            given = read_image(file)
    except InputError as fault:
        given = fault
    except Exception as fault:  # whatever a file system raises costs one picture
        given = InputError(f"{type(fault).__name__}: {one_line(fault)}")
    return replace(task, picture=given)


def annotate(
    pipe: Pipeline,
    tasks: Sequence[Task],
    budget: int | None = None,
    view: str | None = None,
    **options: Any,
) -> list[list[Row]]:
    """Ground the phrases of several pictures, in as few passes as possible.

    Args:
        pipe: a model that answers with masks.
        tasks: held in memory together.
        budget: image tokens that enter the language model; None: all.
        view: see `Pipeline.encode`.
        **options: of `Pipeline.ground`.

    Returns:
        Per task its rows, one a phrase in order. Keys: id, number (of the phrase, from 0), phrase,
        width, height, found, area (pixels), box ([x, y, width, height], None where nothing was
        found), rle ({"size": [H, W], "counts": str}), unknown_words, confidence (the model's own
        estimate of the mask's IoU, about 0..1; None without a mask), verdict ("found", "unsure" or
        "not found"; None for a model without a calibration), tokens_kept, tokens_total, model,
        error (None, or a sentence; then what is not known is None).
    """
    rows: list[list[Row]] = []
    wanted: list[tuple[int, int]] = []  # (task, phrase) still to be answered
    ready = [decoded(task) for task in tasks]
    for place, task in enumerate(ready):
        own = [_row(task, number) for number in range(len(task.phrases))]
        rows.append(own)
        for number, row in enumerate(own):
            row["model"] = pipe.name
            try:
                if isinstance(task.picture, InputError):
                    raise task.picture
                read_phrases(task.phrases[number])
                wanted.append((place, number))
            except InputError as fault:
                row["error"] = str(fault)
    scenes = _scenes(pipe, ready, sorted({place for place, _ in wanted}), view)
    for place, number in wanted:
        scene = scenes[place]
        if isinstance(scene, Exception):
            rows[place][number]["error"] = _told(scene)
    wanted = [pair for pair in wanted if not isinstance(scenes[pair[0]], Exception)]
    options = {"profile": "off", "share": True, **options}
    for start in range(0, len(wanted), ROWS):
        part = wanted[start : start + ROWS]
        for (place, number), answer in _answers(pipe, ready, scenes, part, budget, options):
            rows[place][number] |= answer
    return rows


def _row(task: Task, number: int) -> Row:
    """A row of which only the question is known."""
    hw = task.picture.shape[:2] if isinstance(task.picture, np.ndarray) else (None, None)
    return {
        "id": task.id,
        "number": number,
        "phrase": task.phrases[number],
        "width": hw[1],
        "height": hw[0],
        "found": None,
        "area": None,
        "box": None,
        "rle": None,
        "unknown_words": None,
        "confidence": None,
        "verdict": None,
        "tokens_kept": None,
        "tokens_total": None,
        "model": None,
        "error": None,
    }


def _scenes(
    pipe: Pipeline, tasks: Sequence[Task], places: list[int], view: str | None
) -> dict[int, EncodedImage | Exception]:
    """The encoded pictures at some places; where all together fail, one by one."""
    if not places:
        return {}
    try:
        given = [tasks[place].picture for place in places]
        return dict(zip(places, pipe.encode(given, view=view, profile="off"), strict=True))
    except Exception as fault:
        if len(places) == 1:
            return {places[0]: fault}
    found: dict[int, EncodedImage | Exception] = {}
    for place in places:
        found |= _scenes(pipe, tasks, [place], view)
    return found


def _answers(
    pipe: Pipeline,
    tasks: Sequence[Task],
    scenes: dict[int, Any],
    wanted: list[tuple[int, int]],
    budget: int | None,
    options: dict[str, Any],
) -> Iterator[tuple[tuple[int, int], Row]]:
    """What is learnt about each (task, phrase); where all together fail, one by one."""
    groups: dict[int, list[int]] = {}
    for place, number in wanted:
        groups.setdefault(place, []).append(number)
    phrases = [[tasks[place].phrases[n] for n in numbers] for place, numbers in groups.items()]
    try:
        results = pipe.ground([scenes[place] for place in groups], phrases, budget, **options)
    except Exception as fault:
        if len(wanted) == 1:
            yield wanted[0], {"error": _told(fault)}
            return
        for pair in wanted:
            yield from _answers(pipe, tasks, scenes, [pair], budget, options)
        return
    for (place, numbers), found in zip(groups.items(), results, strict=True):
        costs = {"tokens_kept": found.costs.tokens_kept, "tokens_total": found.costs.tokens_total}
        for number, result in zip(numbers, found, strict=True):
            yield (place, number), costs | _measured(result)


def _measured(result: GroundingResult) -> Row:
    """What a result says, as plain data."""
    from pycocotools import mask as coco

    rle = result.mask_rle
    box = [int(value) for value in coco.toBbox(rle)] if result.found else None
    return {
        "found": result.found,
        "area": int(coco.area(rle)),
        "box": box,
        "rle": rle,
        "unknown_words": list(result.unknown_words),
        "confidence": result.quality,
        "verdict": result.verdict,
    }


def _told(fault: Exception) -> str:
    """A fault as the sentence of a row; one that is not the input's goes to the log too."""
    if isinstance(fault, InputError):
        return str(fault)
    log.warning("%s", fault, exc_info=fault)
    return f"{type(fault).__name__}: {one_line(fault)}"


def _fetched(path: str) -> bytes:
    """The bytes of a file on any file system, if there are not too many."""
    import fsspec

    try:
        with fsspec.open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"{path[-80:]}: no such file") from None
    if len(content) > MAX_BYTES:
        raise InputError(f"{path[-80:]}: more than {MAX_BYTES // 10**6} MB")
    return content
