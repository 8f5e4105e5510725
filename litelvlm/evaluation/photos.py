"""The figures of a card on photographs of the user's: a folder with a val.jsonl and its pictures.

A line of val.jsonl is one item, see `litelvlm.data.folder`; `class` and `kind` are needed here.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from litelvlm.data.folder import Folder
from litelvlm.data.samples import by_picture
from litelvlm.errors import InputError
from litelvlm.metrics import iou, reversal_auc
from litelvlm.tables import markdown_table

if TYPE_CHECKING:
    from litelvlm.pipeline import Pipeline
    from litelvlm.scene import EncodedImage

BUDGETS = (192, 128, 64)
BLIND = ("another picture's tokens", "one token", "29 random tokens")
RIVALS = ("random", "grid", "most-similar", "context")


@dataclass(frozen=True)
class Asked:
    """One item; mask (H, W) bool."""

    phrase: str
    name: str
    kind: str
    mask: np.ndarray


def photo_figures(
    pipe: Pipeline, folder: Path, limit: int | None = None, progress: bool = False
) -> dict[str, Any]:
    """Grounding, pruning, selection and confidence of a model on the photographs of a folder.

    Args:
        pipe: a model that answers with masks.
        folder: with a val.jsonl.
        limit: only the first so many photographs.
        progress: show a bar on stderr.

    Returns:
        `items`; `giou` unpruned, `kind` and `class` (gIoU, items) of each; `share` of it kept at
        each budget; `blind` share of it left when the picture is hidden; `at_64` gIoU of each
        method, and `ahead_64` (mean difference to LiteLVLM, its standard error over items);
        `same_64` share of kept tokens that phrases of different classes on one photo have in
        common; `auc_ground` and `auc_things`, the reversal AUC against patches under no listed
        mask and under masks of other classes; `known`, share of phrases without an unknown word;
        `called` verdict -> (share of items called so that are right, IoU > 0.5; items called so;
        share of absent names called so). A figure that nothing was measured for is None.
    """
    source = Folder(folder / "val.jsonl")
    pictures = list(by_picture(source.samples()))
    for fault in (*source.refused, *(f"{name}: no such picture" for name in source.missing)):
        raise InputError(fault)
    names = sorted({sample.name for samples in pictures for sample in samples})
    values: dict[Any, list[float]] = defaultdict(list)
    before: EncodedImage | None = None
    some = tqdm(pictures[:limit], unit="photo", disable=not progress)
    for number, samples in enumerate(some):
        scene = pipe.encode(samples[0].read_image())
        hw = scene.frame.image_hw
        items = [Asked(s.text, s.name, s.kind, s.read_mask(hw)) for s in samples]
        for item in items:
            _ask(pipe, scene, before, item, number, values)
        _select(pipe, scene, items, values)
        here = {item.name for item in items}
        absent = next((n for n in names[number % len(names) :] + names if n not in here), None)
        if absent is not None:
            values["absent", pipe.ground(scene, f"the {absent}")[0].verdict].append(1.0)
        before = scene
    full = _mean(values["litelvlm", None])
    ours = np.array(values["litelvlm", BUDGETS[-1]])
    ahead = {r: ours - np.array(values[r, BUDGETS[-1]]) for r in RIVALS}

    def group(key: str) -> dict[str, tuple[float | None, int]]:
        return {k[1]: (_mean(v), len(v)) for k, v in sorted(values.items(), key=str) if k[0] == key}

    def share(key: Any) -> float | None:
        mean = _mean(values[key])
        return None if mean is None or not full else mean / full

    asked = sum(count for _, count in group("absent").values())
    return {
        "items": len(values["litelvlm", None]),
        "giou": full,
        "kind": group("kind"),
        "class": group("class"),
        "share": {b: share(("litelvlm", b)) for b in BUDGETS},
        "blind": {name: share(("blind", name)) for name in BLIND},
        "at_64": {m: _mean(values[m, BUDGETS[-1]]) for m in ("litelvlm", *RIVALS)},
        "ahead_64": {
            r: (float(d.mean()), float(d.std(ddof=1) / len(d) ** 0.5))
            for r, d in ahead.items()
            if len(d) > 1
        },
        "same_64": _mean(values["same", 64]),
        "auc_ground": _mean(values["auc", "ground"]),
        "auc_things": _mean(values["auc", "things"]),
        "known": _mean(values["known", None]),
        "called": {
            verdict: (right, count, len(values["absent", verdict]) / asked if asked else None)
            for verdict, (right, count) in group("verdict").items()
        },
    }


def _ask(
    pipe: Pipeline,
    scene: EncodedImage,
    before: EncodedImage | None,
    item: Asked,
    number: int,
    values: dict[Any, list[float]],
) -> None:
    """Answers about one item: at all budgets, by the rivals, and with the picture hidden."""

    def answer(scene: EncodedImage = scene, budget: int | None = None, **options: Any) -> float:
        found = pipe.ground(scene, item.phrase, budget, **options)[0]
        return iou(found.mask, item.mask)

    whole = pipe.ground(scene, item.phrase)[0]
    value = iou(whole.mask, item.mask)
    for key in (("litelvlm", None), ("kind", item.kind), ("class", item.name)):
        values[key].append(value)
    values["verdict", whole.verdict].append(float(value > 0.5))
    values["known", None].append(float(not whole.unknown_words))
    for budget in BUDGETS:
        values["litelvlm", budget].append(answer(budget=budget))
    for rival in RIVALS:
        values[rival, BUDGETS[-1]].append(answer(budget=BUDGETS[-1], method=rival, seed=number))
    if before is not None:
        values["blind", BLIND[0]].append(answer(replace(scene, tokens=before.tokens)))
    values["blind", BLIND[1]].append(answer(budget=1, method="random", seed=number))
    values["blind", BLIND[2]].append(answer(budget=29, method="random", seed=number))


def _select(
    pipe: Pipeline,
    scene: EncodedImage,
    items: list[Asked],
    values: dict[Any, list[float]],
) -> None:
    """What is kept for the items of one photo, and how their similarity is reversed."""
    phrases = [item.phrase for item in items]
    scores = pipe.similarity(scene, phrases).cpu().numpy()
    covers = [scene.frame.coverage(item.mask) for item in items]
    listed = np.max(covers, 0)
    for item, cover, score in zip(items, covers, scores, strict=True):
        other = [c for c, o in zip(covers, items, strict=True) if o.name != item.name]
        ground = (cover >= 0.5) | (listed < 0.05)
        _add(values["auc", "ground"], reversal_auc(score[ground], cover[ground]))
        if other:
            things = (cover >= 0.5) | ((np.max(other, 0) >= 0.5) & (cover < 0.05))
            _add(values["auc", "things"], reversal_auc(score[things], cover[things]))
    kept = [set(s.indices.tolist()) for s in pipe.select(scene, phrases, BUDGETS[-1])]
    for (i, a), (k, b) in combinations(enumerate(kept), 2):
        if items[i].name != items[k].name:
            values["same", BUDGETS[-1]].append(len(a & b) / len(a))


def photo_table(figures: dict[str, Any]) -> list[str]:
    """The figures as lines of Markdown tables."""
    rows = [("items", figures["items"]), ("gIoU, unpruned", figures["giou"])]
    rows += [(f"gIoU of {k} ({n})", value) for k, (value, n) in figures["kind"].items()]
    rows += [(f"{b} tokens, share of unpruned", share) for b, share in figures["share"].items()]
    rows += [(f"blind, share of unpruned: {k}", share) for k, share in figures["blind"].items()]
    rows += [(f"gIoU at 64, {name}", value) for name, value in figures["at_64"].items()]
    rows += [
        (f"LiteLVLM ahead of {r} at 64", f"{d:+.3f} ± {e:.3f}")
        for r, (d, e) in figures["ahead_64"].items()
    ]
    rows += [
        ("same 64 tokens, phrases of different classes", figures["same_64"]),
        ("reversal AUC against ground", figures["auc_ground"]),
        ("reversal AUC against other things", figures["auc_things"]),
        ("phrases without an unknown word", figures["known"]),
    ]
    lines = markdown_table(("on photographs", ""), [(name, _told(value)) for name, value in rows])
    verdicts = [
        (verdict, count, _told(right), _told(absent))
        for verdict, (right, count, absent) in figures["called"].items()
    ]
    lines += ["", *markdown_table(("called", "items", "right", "absent names called so"), verdicts)]
    classes = sorted(figures["class"].items(), key=lambda entry: -(entry[1][0] or 0.0))
    told = ", ".join(f"{name} {_told(value)} ({count})" for name, (value, count) in classes)
    return [*lines, "", f"gIoU by class (items): {told}."]


def _told(value: Any) -> str:
    return "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _add(values: list[float], value: float | None) -> None:
    if value is not None:
        values.append(value)


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
