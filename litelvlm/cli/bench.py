"""Measure what a token budget saves: prefill time, activation memory, KV cache, whole answers.

The unpruned model is always measured too, and all budgets take turns in one process. With
--random-weights nothing is downloaded: time and memory do not depend on the weights.

examples:
  litelvlm bench --model glamm-refseg --random-weights --budgets 576,192,64
  litelvlm bench --model glamm-refseg --random-weights --bits 8 --write 16 --no-sam
  litelvlm bench --model nano --budgets 192,64 --markdown
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from litelvlm.cli import options
from litelvlm.errors import InputError

HELP = "measure time and memory at several token budgets"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "--budgets",
        nargs="+",
        default=["192", "64"],
        metavar="N",
        help="image tokens (default 192 64)",
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="timed turns of each budget (default 3)"
    )
    parser.add_argument("--picture", help="default: a generated one, 640 x 480")
    parser.add_argument(
        "--phrase",
        action="append",
        dest="phrases",
        metavar="TEXT",
        help="repeat for several; default: one of eight words",
    )
    parser.add_argument(
        "--write",
        type=int,
        metavar="N",
        help="let the model write up to N tokens (default: its answer is given, one prefill)",
    )
    parser.add_argument(
        "--no-sam",
        action="store_true",
        help="do not time SAM's encoder against transformers' own path",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="also write the JSON document to this file"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print a Markdown table")
    form.add_argument("--json", action="store_true", help="print one JSON document")
    options.add_selection(parser)
    options.add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and print; return 0."""
    from litelvlm.bench import bench
    from litelvlm.images import read_image

    budgets = options.numbers("--budgets", args.budgets)
    if not budgets:
        raise InputError("--budgets needs at least one number")
    if args.out and not args.out.parent.is_dir():  # told before minutes of measuring
        raise InputError(f"{args.out.parent}: no such folder")
    options.at_least_one(args, "write")
    written = {"mode": "generate", "max_new_tokens": args.write} if args.write else {}
    picture = read_image(args.picture) if args.picture else None
    phrases = args.phrases or ["the small red apple on the wooden table"]
    pipe = options.load_model(args)
    start = time.perf_counter()

    def note(step: str) -> None:
        print(f"{time.perf_counter() - start:6.0f} s  {step}", file=sys.stderr)

    report = bench(
        pipe,
        budgets,
        picture=picture,
        phrases=phrases,
        repeats=args.repeats,
        sam=not args.no_sam,
        random_weights=args.random_weights or args.model == "tiny-random",
        bits=args.bits,
        note=note,
        **written,
        **options.selection(args),
    )
    if args.out:
        try:
            args.out.write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
        except OSError as fault:
            raise InputError(f"{args.out}: cannot write ({fault.strerror or fault})") from None
    if args.json:
        print(json.dumps(report.to_json(), indent=1))
    else:
        print(report.markdown() if args.markdown else report.text())
    return 0
