"""Makes the tables of results.md: run what is missing, then put the tables between their marks.

    python docs/make_results.py            # run everything under runs/results, then write the page
    python docs/make_results.py --no-run   # only write the page from what is there
    python docs/make_results.py --only photos --photos DIR   # DIR holds a val.jsonl

Everything between `<!-- NAME -->` and `<!-- /NAME -->` in results.md is replaced; the words around
the tables are written by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from litelvlm.evaluation.report import cost_table, score_table
from litelvlm.evaluation.summary import CostRow, Row
from litelvlm.methods import METHODS
from litelvlm.tables import markdown_table

DOCS = Path(__file__).parent
RUNS = Path("runs/results")
BUDGETS = "288 192 128 64 32"

# Name of the mark -> the command, its --out left out.
COMMANDS = {
    "main": (
        f"evaluate --data scenes --split test --methods all --budgets {BUDGETS} --seeds 0 1 2"
    ),
    "positions": (
        "evaluate --data scenes --split test --limit 250 --budgets 192 128 64 32 --methods "
        "litelvlm:positions=compact litelvlm-released:positions=compact "
        "most-similar:positions=compact random:positions=compact grid:positions=compact "
        "visionzip:positions=compact class-attention:positions=compact "
        "divprune:positions=compact nuwa:positions=compact litelvlm+:positions=compact"
    ),
    "half": (
        "evaluate --data scenes --split test --budgets 192 128 64 --methods "
        "litelvlm:positions=compact most-similar:positions=compact "
        "random:positions=compact grid:positions=compact"
    ),
    "order": (
        "evaluate --data scenes --split val-b --budgets 192 64 --methods "
        "litelvlm:order=raster,positions=compact litelvlm:order=raster,positions=original "
        "litelvlm:order=released,positions=compact litelvlm:order=released,positions=original"
    ),
    "split": "evaluate --data scenes --split val-b --budgets 192 64 --methods "
    + " ".join(
        f"litelvlm:split={split},context={context}"
        for split in ("paper", "released", "0.25", "0.75")
        for context in ("released", "attention")
    ),
    "text": (
        "evaluate --data scenes --split val-b --budgets 192 64 --methods "
        "litelvlm:text=phrase litelvlm:text=question litelvlm:text=templates"
    ),
    "reversal": "reversal --model nano --data scenes --split test --limit 250",
    "same": "evaluate --data scenes --split train --limit 20 --methods all --budgets 192 64",
    "photos": "evaluate --model photo --data DIR/val.jsonl --methods all --budgets 192 128 64",
}


def main() -> int:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-run", action="store_true", help="only write the page")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, help="only these runs")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="photographs, for that run")
    args = parser.parse_args()
    for name, command in COMMANDS.items():
        if "DIR" in command and args.photos is None:
            continue
        if not args.no_run and (not args.only or name in args.only):
            given = command.replace("DIR", str(args.photos))
            words = [*shlex.split(given), "--out", str(RUNS / name)]
            subprocess.run([sys.executable, "-m", "litelvlm", *words], check=False)
    page = DOCS / "results.md"
    text = page.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        folder = RUNS / name.partition("-")[0]
        if (folder / "results.json").is_file() or (folder / "reversal.json").is_file():
            text = put(text, name, "\n".join(table(folder)))
    text = put(text, "methods", "\n".join(methods_table()))
    page.write_text(text, encoding="utf-8")
    for source, target in (
        (RUNS / "main/curves.png", "results-curves.png"),
        (RUNS / "reversal/reversal.png", "results-reversal.png"),
    ):
        if source.is_file():
            shutil.copyfile(source, DOCS / target)
    return 0


def put(text: str, name: str, table: str) -> str:
    """Replace what stands between the marks of `name`."""
    marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not marks.search(text):
        raise SystemExit(f"results.md has no marks for {name}")
    return marks.sub(lambda found: f"{found[1]}{table}\n{found[2]}", text)


def scores(folder: Path) -> list[str]:
    """The score table of a run and how it was made."""
    document = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    rows = [Row(**row) for row in document["rows"]]
    return [*score_table(rows), "", *origin(folder.name, document["run"], rows[0].expressions)]


def origin(name: str, run: dict[str, Any], expressions: int) -> list[str]:
    """The command under a table."""
    seeds = ", ".join(map(str, run["seeds"]))
    return [
        f"{expressions} expressions; {run['model']}; seeds {seeds}; {run['device']}.",
        "",
        f"```\nlitelvlm {COMMANDS[name]} --out {RUNS / name}\n```",
    ]


def same(folder: Path) -> list[str]:
    """How much of what each method keeps is the same for another phrase, % at each budget."""
    document = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    rows = [Row(**row) for row in document["rows"]]
    budgets = sorted({row.budget for row in rows if row.same is not None}, reverse=True)
    found = {(row.title, row.budget): row.same for row in rows if row.same is not None}
    cells = [
        [title, *(f"{100 * found[title, budget]:.0f}" for budget in budgets)]
        for title in dict.fromkeys(title for title, _ in found)
    ]
    lines = markdown_table(["method", *(f"{budget} tokens" for budget in budgets)], cells)
    return [*lines, "", *origin(folder.name, document["run"], rows[0].expressions)]


def costs(folder: Path) -> list[str]:
    """Time a stage."""
    import csv

    with (folder / "costs.csv").open(encoding="utf-8") as file:
        rows = [
            CostRow(
                source=row["source"],
                variant=row["variant"],
                title=row["title"],
                budget=int(row["budget"]),
                stage=row["stage"],
                ms=float(row["ms"]),
                peak_bytes=int(row["peak_bytes"]) if row["peak_bytes"] else None,
                flops=float(row["flops"]) if row["flops"] else None,
            )
            for row in csv.DictReader(file)
        ]
    return cost_table([row for row in rows if row.budget in (576, 192, 64)])


def kinds(folder: Path) -> list[str]:
    """gIoU % by kind of expression, for some methods."""
    document = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    rows = [Row(**row) for row in document["rows"]]
    chosen = [
        row
        for row in rows
        if row.variant == "none"
        or (row.variant in ("litelvlm", "litelvlm+", "random", "grid") and row.budget in (192, 64))
    ]
    names = sorted(rows[0].by_kind)
    lines = [
        f"| tokens | method | {' | '.join(names)} |",
        "| ---: | --- |" + " ---: |" * len(names),
    ]
    for row in chosen:
        values = [row.by_kind.get(name) for name in names]
        cells = ["–" if value is None else f"{100 * value:.1f}" for value in values]
        lines.append(f"| {row.budget} | {row.title} | {' | '.join(cells)} |")
    return lines


def reversal(folder: Path) -> list[str]:
    """The table of the reversal report, and its command."""
    text = (folder / "reversal.md").read_text(encoding="utf-8")
    body = text.partition("```\n\n")[2].partition("![")[0].strip()
    return [*body.splitlines(), "", f"```\nlitelvlm {COMMANDS['reversal']} --out {folder}\n```"]


def methods_table() -> list[str]:
    """What each method does and where it comes from."""
    lines = ["| name | rule | source |", "| --- | --- | --- |"]
    lines += [
        f"| `{method.name}` | {method.rule_text} | {method.source} |" for method in METHODS.values()
    ]
    return lines


TABLES: dict[str, Callable[[Path], list[str]]] = {
    "main": scores,
    "main-kinds": kinds,
    "main-costs": costs,
    "positions": scores,
    "half": scores,
    "order": scores,
    "split": scores,
    "text": scores,
    "same": same,
    "photos": scores,
    "photos-kinds": kinds,
    "reversal": reversal,
}

if __name__ == "__main__":
    sys.exit(main())
