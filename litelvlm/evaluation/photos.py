"""The figures of a card on photographs of the user's: a folder with a val.jsonl and its pictures.

A line of val.jsonl is one item: `image` (path in the folder), `phrase`, `class`, `kind`
and `mask` (COCO run-length code, `size` [h, w]).
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from litelvlm.errors import InputError
from litelvlm.metrics import reversal_auc

if TYPE_CHECKING:
    from litelvlm.pipeline import Pipeline

BUDGETS = (192, 128, 64)
RIVALS = ("random", "grid", "most-similar", "context")


def read_items(folder: Path) -> list[dict[str, Any]]:
    """The items of val.jsonl, masks decoded to (H, W) bool.

    Raises:
        InputError: no such file, or a line that lacks something.
    """
    from pycocotools import mask as rle

    path = folder / "val.jsonl"
    items = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            item = json.loads(line)
            code = item["mask"]
            size = [int(side) for side in code["size"]]
            mask = rle.decode({"size": size, "counts": code["counts"].encode()}).astype(bool)
            items.append(
                {k: item[k] for k in ("image", "phrase", "class", "kind")} | {"mask": mask}
            )
    except OSError as fault:
        raise InputError(f"{path}: cannot be read ({fault})") from None
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        raise InputError(f"{path}: line {len(items) + 1} is no item ({fault!r})") from None
    return items


def iou(found: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union of two masks, 1 where both are empty."""
    union = int((found | truth).sum())
    return float((found & truth).sum() / union) if union else 1.0


def photo_figures(pipe: Pipeline, folder: Path, limit: int | None = None) -> dict[str, Any]:
    """Grounding, pruning and selection of a model on the photographs of a folder.

    Returns:
        `items`; `giou` unpruned, and by `kind`; `share` of it kept at each budget;
        `at_64` gIoU of each method, and `ahead_64` (mean difference to LiteLVLM, its standard
        error over items); `same_64` share of kept tokens that phrases of different classes on
        one photo have in common; `auc_ground` and `auc_things`, the reversal AUC against
        patches under no listed mask and under masks of other classes; `known`, share of phrases
        without an unknown word. A figure that nothing was measured for is None.
    """
    by_image: dict[str, list[dict[str, Any]]] = {}
    for item in read_items(folder):
        by_image.setdefault(item["image"], []).append(item)
    values: dict[Any, list[float]] = defaultdict(list)
    same, ground, things, known = [], [], [], []
    for image, items in list(by_image.items())[:limit]:
        scene = pipe.encode(folder / image)
        kept = []
        covers = [scene.frame.coverage(item["mask"]) for item in items]
        for item, cover in zip(items, covers, strict=True):
            phrase, truth = [item["phrase"]], item["mask"]
            for budget in (None, *BUDGETS):
                found = pipe.ground(scene, phrase, budget)[0]
                values[budget].append(iou(found.mask, truth))
                if budget is None:
                    values["kind", item["kind"]].append(values[None][-1])
                    known.append(not found.unknown_words)
            kept.append((item["class"], set(found.token_map.indices.tolist())))
            for rival in RIVALS:
                other = pipe.ground(scene, phrase, BUDGETS[-1], method=rival)[0]
                values["rival", rival].append(iou(other.mask, truth))
            score = found.token_map.similarity
            if score is None:
                continue
            listed = np.max(covers, 0)
            rest = [
                c for c, other in zip(covers, items, strict=True) if other["class"] != item["class"]
            ]
            seen = (cover >= 0.5) | (listed < 0.05)
            ground.append(reversal_auc(score[seen], cover[seen]))
            if rest:
                seen = (cover >= 0.5) | ((np.max(rest, 0) >= 0.5) & (cover < 0.05))
                things.append(reversal_auc(score[seen], cover[seen]))
        same += [
            len(a & b) / len(a) for n, (p, a) in enumerate(kept) for q, b in kept[n + 1 :] if p != q
        ]
    full = _mean(values[None])
    ours = np.array(values[BUDGETS[-1]])
    ahead = {r: ours - np.array(values["rival", r]) for r in RIVALS} if len(ours) else {}
    return {
        "items": len(values[None]),
        "giou": full,
        "kind": {
            key[1]: (_mean(v), len(v))
            for key, v in values.items()
            if isinstance(key, tuple) and key[0] == "kind"
        },
        "share": {b: (_mean(values[b]) or 0.0) / full if full else None for b in BUDGETS},
        "at_64": {"litelvlm": _mean(values[64])} | {r: _mean(values["rival", r]) for r in RIVALS},
        "ahead_64": {
            r: (float(d.mean()), float(d.std(ddof=1) / len(d) ** 0.5))
            for r, d in ahead.items()
            if len(d) > 1
        },
        "same_64": _mean(same),
        "auc_ground": _mean([a for a in ground if a is not None]),
        "auc_things": _mean([a for a in things if a is not None]),
        "known": _mean(known),
    }


def photo_table(figures: dict[str, Any]) -> list[str]:
    """The figures as lines of a Markdown table."""
    rows = [("items", figures["items"]), ("gIoU, unpruned", figures["giou"])]
    rows += [(f"gIoU of {k} ({n})", value) for k, (value, n) in figures["kind"].items()]
    rows += [(f"{b} tokens, share of unpruned", share) for b, share in figures["share"].items()]
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
    told = [
        (k, f"{v:.3f}" if isinstance(v, float) else "–" if v is None else str(v)) for k, v in rows
    ]
    return ["| on photographs | |", "| --- | ---: |", *(f"| {k} | {v} |" for k, v in told)]


def _mean(values: list[Any]) -> float | None:
    return float(np.mean(values)) if values else None
