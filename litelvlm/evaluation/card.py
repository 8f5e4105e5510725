"""The figures that a model card states: scores on the held-out scenes and blind controls.

A blind control hides the picture from the language model, wholly or nearly. A model that still
scores gives answers that the phrase or the mask branch gives away, and pruning would look free.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from litelvlm.errors import InputError
from litelvlm.metrics import mean_iou, overlap, reversal_auc, token_recall, total_iou
from litelvlm.nano.scenes import benchmark
from litelvlm.tables import markdown_table

if TYPE_CHECKING:
    from litelvlm.pipeline import Pipeline
    from litelvlm.scene import EncodedImage

BUDGETS = (192, 128, 64)
RULES = ("litelvlm", "most-similar", "random", "grid")
# What is asked of the embedded model: name -> (bound, whether it is a lower bound).
AIMS = {
    "gIoU": (0.75, True),
    "cIoU": (0.75, True),
    "gIoU, one object": (0.85, True),
    "reversal AUC": (0.40, False),
    "referent in the least similar third": (0.60, True),
    "blind: another picture's tokens": (0.40, False),
    "blind: one token": (0.40, False),
    "blind: 29 random tokens": (0.85, False),
    "litelvlm @ 192": (0.90, True),
    "litelvlm @ 128": (0.86, True),
    "litelvlm @ 64": (0.79, True),
}


def card_figures(
    pipe: Pipeline, split: str, limit: int | None = None, progress: bool = False
) -> dict[str, Any]:
    """Ground the held-out scenes of a split in all the ways that a card reports.

    Args:
        pipe: a model of 576 patch tokens or more.
        split: "val" or "test".
        limit: only the first so many scenes.
        progress: show a bar on stderr.

    Returns:
        "model", "split", "scenes", and "figures": name -> value. IoUs are shares of 1; blind
        controls and "<rule> @ <budget>" are shares of the unpruned gIoU; "gIoU, <kind>" are the
        unpruned gIoU of a kind of phrase.

    Raises:
        InputError: unknown split, or fewer than two scenes.
    """
    if limit is not None and limit < 2:
        raise InputError(f"limit {limit}; the blind control needs at least two scenes")
    found: dict[str, list[tuple[int, int]]] = {}
    aucs: list[float | None] = []
    recalls: list[float | None] = []
    for name, value in _pairs(pipe, split, limit, progress):
        if name == "auc":
            aucs.append(value)
        elif name == "recall":
            recalls.append(value)
        else:
            found.setdefault(name, []).append(value)
    whole = mean_iou(found["gIoU"])
    figures: dict[str, float | None] = {"gIoU": whole, "cIoU": total_iou(found["gIoU"])}
    figures["reversal AUC"] = _mean(aucs)
    figures["referent in the least similar third"] = _mean(recalls)
    for name, pairs in found.items():
        relative = name.startswith("blind") or "@" in name
        if name != "gIoU":
            figures[name] = mean_iou(pairs) / whole if relative and whole else mean_iou(pairs)
    return {"model": pipe.name, "split": split, "scenes": len(found["gIoU"]), "figures": figures}


def _pairs(
    pipe: Pipeline, split: str, limit: int | None, progress: bool
) -> Iterator[tuple[str, Any]]:
    """(name, pixels of intersection and union) of every answer, and two patch measures."""
    total = 500 if limit is None else limit
    held = tqdm(islice(benchmark(split), total), total=total, unit="scene", disable=not progress)
    before: EncodedImage | None = None
    for number, (drawn, phrase) in enumerate(held):
        target = drawn.mask(phrase.targets)
        scene = pipe.encode(drawn.image)
        answer = partial(_answer, pipe, phrase.text, target)
        whole = answer(scene)
        yield "gIoU", whole
        if len(drawn.objects) == 1:
            yield "gIoU, one object", whole
        yield f"gIoU, {phrase.kind}", whole
        share = scene.frame.coverage(target)
        similarity = pipe.similarity(scene, [phrase.text])[0].cpu().numpy()
        yield "auc", reversal_auc(similarity, share)
        low = np.zeros(len(share), bool)
        low[np.argsort(similarity, kind="stable")[: len(share) // 3]] = True
        yield "recall", token_recall(low, share)
        yield "blind: one token", answer(scene, budget=1, method="random", seed=number)
        yield "blind: 29 random tokens", answer(scene, budget=29, method="random", seed=number)
        if before is None:
            first, ask_first = scene, answer
        else:
            yield "blind: another picture's tokens", answer(replace(scene, tokens=before.tokens))
        before = scene
        for budget in BUDGETS:
            for rule in RULES:
                options: dict[str, Any] = {"split": "paper"} if rule == "litelvlm" else {}
                pair = answer(scene, budget=budget, method=rule, seed=number, **options)
                yield f"{rule} @ {budget}", pair
    if before is not None:
        yield "blind: another picture's tokens", ask_first(replace(first, tokens=before.tokens))


def _answer(
    pipe: Pipeline, text: str, target: np.ndarray, scene: EncodedImage, **options: Any
) -> tuple[int, int]:
    """Pixels of intersection and union of the answer about a scene and the target."""
    return overlap(pipe.ground(scene, text, **options)[0].mask, target)


def card_table(document: dict[str, Any]) -> list[str]:
    """Markdown of `card_figures`: measure, value, what is asked."""
    rows = []
    figures = document["figures"]
    names = [name for name in AIMS if name in figures]
    names += sorted(name for name in figures if name not in AIMS)
    for name in names:
        value = figures[name]
        cell = "–" if value is None else f"{value:.3f}"
        aim = ""
        if name in AIMS:
            bound, least = AIMS[name]
            met = value is not None and (value >= bound if least else value < bound)
            aim = f"{'≥' if least else '<'} {bound:.2f} {'✓' if met else 'missed'}"
        rows.append((name, cell, aim))
    lines = markdown_table(("measure", "value", "asked"), rows)
    lines += ["", f"{document['scenes']} scenes, split {document['split']}, {document['model']}."]
    return lines


def write_card(document: dict[str, Any], folder: Path) -> None:
    """Write card.md and card.json to a folder, made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "card.md").write_text("\n".join(card_table(document)) + "\n", encoding="utf-8")
    (folder / "card.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
