"""Files of an evaluation: CSV, JSON, Markdown and curves.

results.csv, results.json   scores, the same whatever ran them and how often
items.csv                   one line an expression, method, budget and seed
costs.csv                   time and memory a stage
report.md                   all of it as tables, with the command that made it
curves.png                  gIoU over the budget; not of questions
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from litelvlm.evaluation.plan import UNPRUNED
from litelvlm.evaluation.questions import (
    AnswerRow,
    answer_table,
    part_table,
    summarise_answers,
)
from litelvlm.evaluation.records import Answered, Item, Unit, merge
from litelvlm.evaluation.summary import THRESHOLDS, CostRow, Row, summarise, summarise_costs
from litelvlm.tables import markdown_table

_INKS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#444444", "#8c6d31")


def write_report(
    folder: Path, units: Iterable[Unit], facts: Mapping[str, Any], command: str = ""
) -> list[Any]:
    """Write every file into `folder`.

    Args:
        folder: exists.
        units: of the whole run.
        facts: what the run was: model, data, protocol, ...; into results.json and report.md.
            `missing`: source -> names of missing pictures.
        command: the command line that repeats it.

    Returns:
        The rows of the table: `Row`s, or `AnswerRow`s of questions.
    """
    given = merge(units)
    asked = any(isinstance(item, Answered) for unit in given for item in unit.items)
    rows: list[Any] = summarise_answers(given) if asked else summarise(given)
    costs = summarise_costs(given)
    _write_csv(folder / "results.csv", [_flat(row) for row in rows])
    _write_csv(folder / "costs.csv", [asdict(row) for row in costs])
    _write_csv(folder / "items.csv", _items(given))
    failures = [
        {"source": u.source, "picture": u.picture, "variant": u.variant, "budget": u.budget,
         "seed": u.seed, "error": u.error}
        for u in given
        if u.error is not None
    ]  # fmt: skip
    document = {"run": dict(facts), "rows": [asdict(row) for row in rows], "failed": failures}
    (folder / "results.json").write_text(
        json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    text = markdown(rows, costs, facts, command, failures)
    (folder / "report.md").write_text(text, encoding="utf-8")
    if not asked:
        _draw_curves(folder, rows)
    return rows


def markdown(
    rows: Sequence[Any],
    costs: Sequence[CostRow],
    facts: Mapping[str, Any],
    command: str,
    failures: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The report as Markdown."""
    lines = [f"# Evaluation of {facts.get('model', 'a model')}", ""]
    plain = {key: value for key, value in facts.items() if key not in ("missing", "refused")}
    lines += [f"* {key}: {_plain(value)}" for key, value in plain.items()]
    if command:
        lines += ["", "```", command, "```"]
    asked = any(isinstance(row, AnswerRow) for row in rows)
    lines += _answer_part(rows) if asked else _mask_part(rows)
    each = "question" if asked else "expression"
    lines += ["", "## Cost", ""]
    lines += [
        f"Median milliseconds per {each}; encoders per picture, once for all rows.",
        "",
        *cost_table(costs),
    ]
    if failures:
        lines += ["", f"## Failed: {len(failures)}", ""]
        lines += [
            f"* {f['source']} {f['picture']} {f['variant']} {f['budget']}: {f['error']}"
            for f in failures[:50]
        ]
    for key, title in (("missing", "Missing pictures"), ("refused", "Refused expressions")):
        for source, names in facts.get(key, {}).items():
            if names:
                lines += ["", f"## {title} of {source}: {len(names)}", ""]
                lines += [f"* {name}" for name in names[:50]]
    return "\n".join(lines) + "\n"


def _mask_part(rows: Sequence[Row]) -> list[str]:
    lines = ["", "## cIoU %, in the form of the paper's table", "", *paper_table(rows)]
    for source in dict.fromkeys(row.source for row in rows):
        its = [row for row in rows if row.source == source]
        lines += ["", f"## {source}: {its[0].expressions} expressions", "", *score_table(its)]
    return [*lines, "", "![gIoU over the budget](curves.png)"]


def _answer_part(rows: Sequence[AnswerRow]) -> list[str]:
    lines = ["", "## Scores", "", *answer_table(rows)]
    for source in dict.fromkeys(row.source for row in rows):
        its = [row for row in rows if row.source == source]
        lines += ["", f"## {source}: {its[0].questions} questions", "", *part_table(its)]
    return lines


def paper_table(rows: Sequence[Row]) -> list[str]:
    """cIoU % on every source, their mean, and the mean relative to the unpruned model."""
    sources = list(dict.fromkeys(row.source for row in rows))
    table = {(row.budget, row.variant, row.source): row for row in rows}
    pairs = list(dict.fromkeys((row.budget, row.variant) for row in rows))
    pairs.sort(key=lambda pair: -pair[0])
    averages = {
        pair: _average([table[(*pair, s)].ciou if (*pair, s) in table else None for s in sources])
        for pair in pairs
    }
    whole = next((averages[pair] for pair in pairs if pair[1] == UNPRUNED), None)
    lines = []
    for pair in pairs:
        peers = [averages[p] for p in pairs if p[0] == pair[0] and averages[p] is not None]
        best = len(peers) > 1 and averages[pair] == max(peers)  # type: ignore[type-var]
        cells = [
            _number(table[(*pair, s)].ciou, 100, 1) if (*pair, s) in table else "–" for s in sources
        ]
        title = next(row.title for row in rows if (row.budget, row.variant) == pair)
        own = averages[pair]
        relative = own / whole if own is not None and whole else None
        average = _number(own, 100, 1)
        average = f"**{average}**" if best else average
        lines.append([pair[0], title, *cells, average, _number(relative, 100, 1)])
    return markdown_table(["tokens", "method", *sources, "Avg", "Rel. %"], lines, (1,))


def score_table(rows: Sequence[Row]) -> list[str]:
    """All scores of one source; the best gIoU of each budget in bold.

    "same %": kept patches that two expressions of one picture with different targets share.
    """
    heads = ["tokens", "method", "gIoU", "± seeds", "± data", "cIoU"]
    heads += [f"Pr@{at}" for at in THRESHOLDS]
    heads += ["recall", "gIoU rel. %", "cIoU rel. %", "tokens, mean over layers", "attention KiB"]
    told = any(row.same is not None for row in rows)
    heads += ["same %"] if told else []
    cells = []
    for row in rows:
        peers = [other.giou for other in rows if other.budget == row.budget and other.giou]
        giou = _number(row.giou, 100, 1)
        cells.append(
            [
                row.budget,
                row.title,
                f"**{giou}**" if len(peers) > 1 and row.giou == max(peers) else giou,
                _number(row.giou_deviation, 100, 2),
                _number(row.giou_error, 100, 1),
                _number(row.ciou, 100, 1),
                *(_number(row.precision[f"{at}"], 100, 1) for at in THRESHOLDS),
                _number(row.recall, 100, 1),
                _number(row.giou_relative, 1, 1),
                _number(row.ciou_relative, 1, 1),
                f"{row.mean_tokens:.0f}",
                f"{row.attention_bytes / 1024:.0f}",
                *([_number(row.same, 100, 0)] if told else []),
            ]
        )
    lines = markdown_table(heads, cells, (1,))
    auc = next((row.auc for row in rows if row.auc is not None), None)
    if auc is not None:
        lines += ["", f"Reversal AUC {auc:.3f}: below 0.5, targets are *less* like their text."]
    return lines


def cost_table(costs: Sequence[CostRow]) -> list[str]:
    """Milliseconds a stage, one line a variant and budget; peak memory where measured."""
    stages = list(dict.fromkeys(row.stage for row in costs))
    ends = ["", " (MiB)"] if any(row.peak_bytes is not None for row in costs) else [""]
    heads = [stage + end for end in ends for stage in stages]
    lines = []
    groups: dict[tuple[str, int, str], dict[str, CostRow]] = {}
    for row in costs:
        groups.setdefault((row.source, row.budget, row.title), {})[row.stage] = row
    for (_, budget, title), its in groups.items():
        cells = [_number(its[s].ms, 1, 2) if s in its else "–" for s in stages]
        if len(ends) > 1:
            cells += [_number(its[s].peak_bytes, 2**-20, 1) if s in its else "–" for s in stages]
        lines.append([budget, title, *cells])
    return markdown_table(["tokens", "method", *heads], lines, (1,))


def _draw_curves(folder: Path, rows: Sequence[Row]) -> None:
    """gIoU over the budget, one panel a source; nothing without two budgets."""
    from matplotlib.figure import Figure

    sources = list(dict.fromkeys(row.source for row in rows))
    picture = Figure(figsize=(2.2 + 5.2 * len(sources), 4.6), layout="constrained")
    panels = picture.subplots(1, len(sources), squeeze=False)[0]
    titles = list(dict.fromkeys(row.title for row in rows if row.variant != UNPRUNED))
    for axes, source in zip(panels, sources, strict=True):
        its = [row for row in rows if row.source == source and row.giou is not None]
        for number, title in enumerate(titles):
            points = sorted((row.budget, row.giou) for row in its if row.title == title)
            whole = [(row.budget, row.giou) for row in its if row.variant == UNPRUNED]
            if not points:
                continue
            ours = title.startswith("LiteLVLM")
            axes.plot(
                *zip(*points, *whole, strict=True),
                ("-", "--", ":")[number // len(_INKS) % 3],
                color=_INKS[number % len(_INKS)],
                marker="osD^vPXd"[number % 8],
                ms=5 if ours else 3,
                lw=2.2 if ours else 1,
                label=title,
            )
        for row in its:
            if row.variant == UNPRUNED:
                axes.axhline(row.giou, color="#999999", lw=0.8, zorder=0)
        budgets = sorted({row.budget for row in its})
        axes.set_xscale("log", base=2)
        axes.set_xticks(budgets, [str(budget) for budget in budgets], minor=False)
        axes.set_xticks([], minor=True)
        axes.set(title=source, xlabel="image tokens kept", ylabel="gIoU")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, lw=0.6)
    if titles:
        handles = panels[0].get_legend_handles_labels()
        picture.legend(*handles, loc="outside right upper", frameon=False, fontsize=7)
    # The same rows give the same bytes.
    picture.savefig(folder / "curves.png", dpi=150)


def _items(units: Sequence[Unit]) -> list[dict[str, Any]]:
    return [
        {
            "source": unit.source,
            "picture": unit.picture,
            "method": unit.variant,
            "budget": unit.budget,
            "seed": unit.seed,
            "id": item.id,
            "kind": item.kind,
            "text": item.text,
            **_scored(item),
        }
        for unit in units
        for item in unit.items
    ]


def _scored(item: Item | Answered) -> dict[str, Any]:
    if isinstance(item, Answered):
        said = " ".join(item.answer.split())  # a line is a line
        return {"answer": said, "label": item.label, "score": round(item.score, 6)}
    return {
        "iou": round(item.iou, 6),
        "intersection": item.intersection,
        "union": item.union,
        "recall": item.recall,
        "auc": item.auc,
        "found": item.found,
    }


def _flat(row: Row | AnswerRow) -> dict[str, Any]:
    flat = asdict(row)
    if isinstance(row, AnswerRow):
        flat.pop("parts")  # in results.json
        return flat
    flat.pop("by_kind")
    precision = flat.pop("precision")
    return {**flat, **{f"precision_{at}": precision[f"{at}"] for at in THRESHOLDS}}


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        if rows:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def _number(value: float | None, scale: float, digits: int) -> str:
    return "–" if value is None else f"{value * scale:.{digits}f}"


def _average(values: Sequence[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return sum(given) / len(given) if given and len(given) == len(values) else None


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)
