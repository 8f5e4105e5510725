"""Ground phrases in many pictures: masks as a Parquet table and a COCO file.

examples:
  litelvlm annotate pictures/ --phrases phrases.txt --budget 128 --out masks/
  litelvlm annotate table.jsonl --out masks/ --resume
  litelvlm annotate "s3://bucket/shards-{000..099}.tar" --phrases phrases.txt --out masks/
  litelvlm annotate table.parquet --ray --workers 2 --gpus-per-worker 1 --out masks/
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from litelvlm.cli import options
from litelvlm.errors import InputError

HELP = "ground phrases in folders, tables and shards of pictures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder of pictures; a table (.jsonl, .csv, .parquet) with columns picture and "
        "phrase or phrases; or WebDataset shards (.tar, * and {000..099}); s3:// and other "
        "addresses of fsspec",
    )
    parser.add_argument(
        "--phrases", type=Path, metavar="FILE", help="one phrase a line, asked of every picture"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="local folder")
    parser.add_argument("--budget", metavar="TOKENS", help="image tokens kept (default: all)")
    parser.add_argument("--view", help="what CLIP sees: crop, letterbox or whole (the model's own)")
    parser.add_argument(
        "--batch", type=int, default=8, help="pictures that run together (default 8)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run that --out holds")
    group = parser.add_argument_group("Ray")
    group.add_argument("--ray", action="store_true", help="run on a Ray cluster, or a local one")
    group.add_argument("--workers", type=int, default=1, help="copies of the model (default 1)")
    group.add_argument(
        "--gpus-per-worker", type=float, default=0, metavar="N", help="may be a fraction (0)"
    )
    options.add_selection(parser)
    options.add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Annotate, export, print the summary; return 0, or 1 if every phrase failed."""
    from tqdm import tqdm

    from litelvlm.annotate.export import write_coco, write_parquet
    from litelvlm.annotate.journal import Journal
    from litelvlm.annotate.runner import Summary
    from litelvlm.annotate.sources import read_tasks
    from litelvlm.question import Question

    options.at_least_one(args, "batch", "workers")
    chosen = options.selection(args) | {"budget": options.number(args.budget), "view": args.view}
    Question(("anything",), **chosen)  # bad options are told before the model is loaded
    phrases = _phrases(args.phrases) if args.phrases else ()
    count = sum(1 for _ in read_tasks(args.source, phrases))
    settings = {"source": args.source, "phrases": phrases, **options.model(args), **chosen}
    journal = Journal(args.out, settings, args.resume)
    try:
        before = len(journal.done)
        tasks = (t for t in read_tasks(args.source, phrases) if t.id not in journal.done)
        start = time.monotonic()
        with tqdm(total=count, initial=before, desc="annotating", unit="picture") as bar:
            for part in _parts(args, tasks, chosen) if before < count else ():
                journal.add(part)
                bar.update(len(part))
        seconds = time.monotonic() - start
    finally:
        journal.close()
    summary = Summary()
    for rows in journal.pictures():
        summary.add(rows)
    write_parquet(journal.pictures(), args.out / "annotations.parquet")
    write_coco(journal.pictures, args.out / "annotations.json")
    print(summary.told(seconds, len(journal.done) - before))
    print(f"annotations.parquet and annotations.json in {args.out}")
    return int(sum(summary.errors.values()) == summary.phrases)


def _parts(args: argparse.Namespace, tasks: Any, chosen: dict[str, Any]) -> Any:
    """The rows of the tasks, some pictures at a time."""
    from litelvlm.annotate import on_ray, runner
    from litelvlm.question import check_budget

    if not args.ray:
        pipe = options.load_model(args)
        if chosen["budget"] is not None:
            check_budget(chosen["budget"], pipe.tokens_total)
        return runner.run(pipe, tasks, args.batch, **chosen)
    return on_ray.run(
        tasks,
        options.model(args) | {"device": args.device},
        workers=args.workers,
        gpus=args.gpus_per_worker,
        batch=args.batch,
        threads=args.threads,
        **chosen,
    )


def _phrases(path: Path) -> tuple[str, ...]:
    """The lines of a file that are not empty."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8; save the file as UTF-8") from None
    phrases = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not phrases:
        raise InputError(f"{path}: no phrase; one a line is expected")
    return phrases
