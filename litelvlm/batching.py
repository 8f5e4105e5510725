"""The way from questions to answers: about a picture, about many together, about a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
from torch import Tensor

from litelvlm.errors import InputError
from litelvlm.families.base import Family
from litelvlm.families.table import with_video
from litelvlm.profiling import Profiler, StageCost
from litelvlm.pruning import Selection
from litelvlm.question import Question
from litelvlm.recording import record
from litelvlm.result import ClipResult, GroundingResults, TextResult, TokenMap
from litelvlm.scene import EncodedImage
from litelvlm.selecting import check_method, select, token_map


def answer_together(
    family: Family,
    scenes: Sequence[EncodedImage],
    questions: Sequence[Question],
    weight_bytes: int,
) -> list[GroundingResults]:
    """Answer one question about each of B pictures, with one pass of each network.

    Args:
        family: the model.
        scenes: B pictures that it encoded.
        questions: one a picture; they may differ in their phrases only.
        weight_bytes: of the whole model.

    Returns:
        The answers picture by picture; each carries the cost of all.

    Raises:
        InputError: a bad question, or a picture of another model.
    """
    asked = [_settle(family, *pair) for pair in zip(scenes, questions, strict=True)]
    if not asked:
        return []
    profiler = Profiler(family.device, asked[0].profile)
    selections = _select(family, scenes, asked, profiler)
    rows = zip(scenes, asked, selections, strict=True)
    sequences = [family.sequence(*row, profiler) for row in rows]
    replies = family.answers(scenes, asked, sequences, profiler)
    stages = _summed(profiler.costs)
    return [
        record(family, *row, stages, weight_bytes)
        for row in zip(scenes, asked, selections, replies, strict=True)
    ]


def answer_clip(
    family: Family, frames: np.ndarray, question: Question, weight_bytes: int
) -> GroundingResults:
    """Answer a question about a clip; its first frames are pruned one by one.

    Args:
        family: the model.
        frames: (T, H, W, 3) uint8.
        question: its budget is of one key frame.
        weight_bytes: of the whole model.

    Raises:
        InputError: a model without video, or a bad question.
    """
    keys = family.capabilities.frames
    if not keys:
        able = ", ".join(with_video())
        raise InputError(f"{family.name} takes pictures only; these take clips: {able}")
    profiler = Profiler(family.device, question.profile)
    scenes = family.encode_frames(frames[:keys], profiler)
    asked = [_settle(family, scene, question) for scene in scenes]
    selections = _select(family, scenes, asked, profiler)
    reply, masks = family.follow(frames, scenes, asked[0], selections, profiler)
    stages = _summed(profiler.costs)
    first = record(family, scenes[0], asked[0], selections[0], reply, stages, weight_bytes)
    costs, many = first.costs, len(scenes)
    costs = replace(
        costs, tokens_total=many * costs.tokens_total, tokens_kept=many * costs.tokens_kept
    )
    chosen = list(zip(scenes, selections, strict=True))
    items = [
        ClipResult(
            **{field.name: getattr(item, field.name) for field in fields(TextResult)}
            | {"costs": costs},
            frames=frames,
            masks=masks[row],
            token_maps=tuple(token_map(scene.frame, each, row) for scene, each in chosen),
            quality=item.quality,
        )
        for row, item in enumerate(first)
    ]
    return replace(first, items=tuple(items), costs=costs)


def choose_tokens(family: Family, scene: EncodedImage, question: Question) -> list[TokenMap]:
    """The token map of each phrase, by a method that chooses before the language model.

    Raises:
        InputError: a bad question, or a method that prunes inside the language model.
    """
    asked = _settle(family, scene, family.capabilities.ask(question))
    if asked.rule.where == "inside" and asked.budget != scene.count:
        raise InputError(f"method {asked.method!r} chooses inside the language model: use ground")
    (selection,) = _select(family, [scene], [asked], Profiler(family.device, "off"))
    rows = [(0, i) if asked.joint else (i, 0) for i in range(len(asked.phrases))]
    return [token_map(scene.frame, selection, *row) for row in rows]


def _settle(family: Family, scene: EncodedImage, question: Question) -> Question:
    """The question with nothing left open, checked against the picture and the model."""
    if not isinstance(scene, EncodedImage):
        raise InputError(f"scene must come from pipe.encode, got {type(scene).__name__}")
    if scene.model != family.name:
        raise InputError(f"the picture was encoded by {scene.model!r}, this is {family.name!r}")
    asked = question.settle(scene.count, family.defaults)
    family.capabilities.check(asked, family.name)
    if asked.budget != scene.count:
        check_method(asked.rule, family.capabilities.scores, family.name)
    return asked


def _select(
    family: Family, scenes: Sequence[EncodedImage], asked: Sequence[Question], profiler: Profiler
) -> list[Selection | None]:
    """Score the tokens of each picture as far as the method asks, and let it choose."""

    def pruned(scene: EncodedImage, question: Question) -> bool:
        return question.budget != scene.count and question.rule.where == "before"

    pairs = list(zip(scenes, asked, strict=True))
    if not any(pruned(*pair) for pair in pairs):
        return [None] * len(pairs)
    needs = asked[0].rule.needs
    embeds = _embeddings(family, asked, profiler) if "similarity" in needs else [None] * len(pairs)

    def choose() -> list[Selection | None]:
        chosen: list[Selection | None] = []
        for (scene, question), own in zip(pairs, embeds, strict=True):
            rows = 1 if question.joint else len(question.phrases)
            view = family.view(scene, needs, own, rows) if pruned(scene, question) else None
            chosen.append(None if view is None else select(view, question))
        return chosen

    return profiler.run("select", choose)


def _embeddings(
    family: Family, asked: Sequence[Question], profiler: Profiler
) -> list[Tensor | None]:
    """(rows, T, E) of each question; a phrase that several ask for is embedded once."""
    first = asked[0]
    phrases = tuple(dict.fromkeys(phrase for each in asked for phrase in each.phrases))
    wording = first.wording[0] if first.wording else None
    found = profiler.run("clip_text", family.text_embeddings, phrases, first.text, wording)
    place = {phrase: number for number, phrase in enumerate(phrases)}
    own = [found[[place[phrase] for phrase in each.phrases]] for each in asked]  # (T, E) each
    return [  # (1, T, E), or (T, 1, E): a row a phrase
        part[None] if each.joint else part[:, None] for part, each in zip(own, asked, strict=True)
    ]


def _summed(costs: Sequence[StageCost]) -> tuple[StageCost, ...]:
    """One entry a stage, where a stage ran once a picture."""
    stages: dict[str, StageCost] = {}
    for cost in costs:
        known = stages.setdefault(cost.stage, cost)
        if known is not cost:
            stages[cost.stage] = replace(
                known,
                ms=known.ms + cost.ms,
                peak_bytes=None
                if known.peak_bytes is None
                else max(known.peak_bytes, cost.peak_bytes or 0),
                flops=None if known.flops is None else known.flops + (cost.flops or 0),
            )
    return tuple(stages.values())
