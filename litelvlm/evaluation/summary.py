"""From units to rows of a table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from litelvlm.evaluation.plan import UNPRUNED, Variant
from litelvlm.evaluation.records import Item, Unit, merge
from litelvlm.metrics import ious, mean_and_deviation, mean_iou, share_above, total_iou

THRESHOLDS = (0.5, 0.7, 0.9)


@dataclass(frozen=True)
class UnitsRow:
    """The units behind a row: of one variant at one budget on one source.

    Attributes:
        source, variant, title, budget: which.
        tokens: image tokens that reach the last layer, mean over pictures.
        mean_tokens: the same, mean over the layers of the language model.
        failed: pictures that failed, all seeds together.
        seeds: number of seeds.
    """

    source: str
    variant: str
    title: str
    budget: int
    tokens: float
    mean_tokens: float
    failed: int
    seeds: int


@dataclass(frozen=True)
class Row(UnitsRow):
    """Scores of masks.

    Attributes:
        attention_bytes: attention weights written out per expression, mean over pictures.
        expressions: expressions scored per seed.
        giou, ciou: 0..1, mean over the seeds.
        giou_deviation, ciou_deviation: sample deviation over the seeds; None for one seed.
        giou_error: standard error of gIoU over the expressions (first seed).
        precision: threshold -> share of expressions at or above it.
        recall: mean share of the target covered by kept patches, where any patch covers it.
        auc: mean reversal AUC; unpruned row only.
        giou_relative, ciou_relative: percent of the unpruned row; None without one.
        by_kind: kind of expression -> gIoU.
        same: mean of `Unit.same` over pictures.
    """

    attention_bytes: float
    expressions: int
    giou: float | None
    giou_deviation: float | None
    giou_error: float | None
    ciou: float | None
    ciou_deviation: float | None
    precision: dict[str, float | None] = field(default_factory=dict)
    recall: float | None = None
    auc: float | None = None
    giou_relative: float | None = None
    ciou_relative: float | None = None
    by_kind: dict[str, float | None] = field(default_factory=dict)
    same: float | None = None


@dataclass(frozen=True)
class CostRow:
    """Cost of one stage under one variant and budget on one source.

    Attributes:
        source, variant, title, budget, stage: which.
        ms: median over the pictures of the time per expression (encoders: per picture).
        peak_bytes: highest peak of activations; None where not measured.
        flops: median per expression (encoders: per picture); None where not measured.
    """

    source: str
    variant: str
    title: str
    budget: int
    stage: str
    ms: float
    peak_bytes: int | None
    flops: float | None


def summarise(units: Iterable[Unit]) -> list[Row]:
    """One row for each source, variant and budget: unpruned first, then by budget, as run."""
    rows: list[Row] = []
    whole: dict[str, tuple[float | None, float | None]] = {}
    for (source, variant, _), its in grouped(units).items():
        if variant == UNPRUNED:
            whole[source] = _scores(its)
        rows.append(_row(its, whole.get(source, (None, None))))
    return rows


def summarise_costs(units: Iterable[Unit]) -> list[CostRow]:
    """One row for each source, variant, budget and stage."""
    rows = []
    for (source, variant, budget), its in grouped(units).items():
        stages = dict.fromkeys(stage for unit in its for stage in unit.stages)
        for stage in stages:
            seen = [(unit.stages[stage], len(unit.items)) for unit in its if stage in unit.stages]
            per = [1 if stage.endswith("_image") else max(count, 1) for _, count in seen]
            peaks = [cost[1] for cost, _ in seen if cost[1] is not None]
            works = [
                cost[2] / n for (cost, _), n in zip(seen, per, strict=True) if cost[2] is not None
            ]
            rows.append(
                CostRow(
                    source,
                    variant,
                    Variant.parse_label(variant).title,
                    budget,
                    stage,
                    float(np.median([cost[0] / n for (cost, _), n in zip(seen, per, strict=True)])),
                    max(peaks) if peaks else None,
                    float(np.median(works)) if works else None,
                )
            )
    return rows


def grouped(units: Iterable[Unit]) -> dict[tuple[str, str, int], list[Unit]]:
    """(source, variant, budget) -> units, in table order; the unpruned ones of a source first."""
    groups: dict[tuple[str, str, int], list[Unit]] = defaultdict(list)
    given = list(units)
    order = {label: place for place, label in enumerate(_labels(given))}
    for unit in merge(given):
        groups[unit.source, unit.variant, unit.budget].append(unit)
    keys = sorted(groups, key=lambda key: (key[0], -key[2], order[key[1]]))
    return {key: groups[key] for key in keys}


def _labels(units: Sequence[Unit]) -> list[str]:
    """Variants in the order of the registry, options of one method by name."""
    from litelvlm.methods import METHODS

    names = [UNPRUNED, *METHODS]
    labels = {unit.variant for unit in units}
    return sorted(labels, key=lambda label: (names.index(label.partition(":")[0]), label))


def units_facts(units: Sequence[Unit]) -> dict[str, Any]:
    """The fields of `UnitsRow`, from the units of one variant and budget on one source."""
    good = [unit for unit in units if unit.error is None]
    first = units[0]
    return {
        "source": first.source,
        "variant": first.variant,
        "title": Variant.parse_label(first.variant).title,
        "budget": first.budget,
        "tokens": mean(unit.tokens for unit in good) or 0.0,
        "mean_tokens": mean(unit.mean_tokens for unit in good) or 0.0,
        "failed": len(units) - len(good),
        "seeds": len({unit.seed for unit in units}),
    }


def _row(units: list[Unit], whole: tuple[float | None, ...]) -> Row:
    seeds = _by_seed(units)
    giou, giou_deviation = mean_and_deviation([mean_iou(map(_counts, its)) for its in seeds])
    ciou, ciou_deviation = mean_and_deviation([total_iou(map(_counts, its)) for its in seeds])
    kinds = sorted({item.kind for items in seeds for item in items} - {""})
    first = ious(map(_counts, seeds[0])) if seeds else np.zeros(0)
    return Row(
        **units_facts(units),
        attention_bytes=mean(u.attention_bytes for u in units if u.error is None) or 0.0,
        expressions=len(first),
        giou=giou,
        giou_deviation=giou_deviation,
        giou_error=float(first.std(ddof=1) / len(first) ** 0.5) if len(first) > 1 else None,
        ciou=ciou,
        ciou_deviation=ciou_deviation,
        precision={
            f"{at}": mean(share_above(map(_counts, items), at) for items in seeds)
            for at in THRESHOLDS
        },
        recall=mean(mean([item.recall for item in items]) for items in seeds),
        auc=mean(mean([item.auc for item in items]) for items in seeds),
        giou_relative=percent(giou, whole[0]),
        ciou_relative=percent(ciou, whole[1]),
        by_kind={
            kind: mean(mean_iou(_counts(i) for i in items if i.kind == kind) for items in seeds)
            for kind in kinds
        },
        same=mean(unit.same for unit in units),
    )


def _by_seed(units: list[Unit]) -> list[list[Item]]:
    """The items of each seed that has any."""
    items: dict[int, list[Item]] = defaultdict(list)
    for unit in units:
        items[unit.seed] += unit.items
    return [each for each in items.values() if each]


def _scores(units: list[Unit]) -> tuple[float | None, float | None]:
    seeds = [list(map(_counts, items)) for items in _by_seed(units)]
    return (
        mean_and_deviation([mean_iou(items) for items in seeds])[0],
        mean_and_deviation([total_iou(items) for items in seeds])[0],
    )


def _counts(item: Item) -> tuple[int, int]:
    return item.intersection, item.union


def mean(values: Iterable[float | None]) -> float | None:
    """Of the values that are there; None without any."""
    return mean_and_deviation(list(values))[0]


def percent(value: float | None, whole: float | None) -> float | None:
    """One score in percent of another; None where either is missing or there is nothing."""
    return 100 * value / whole if value is not None and whole else None
