"""`litelvlm card`: the figures of a model's card, on the held-out scenes, by one command.

    litelvlm card --model nano --split test --out runs/card

Prints the table; with --out it writes card.md and card.json too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from litelvlm.cli.options import add_model, load_model

HELP = "measure the figures of a model card on the held-out scenes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add_model(parser)
    parser.add_argument(
        "--split", choices=("val", "test"), default="test", help="which half (default test)"
    )
    parser.add_argument("--limit", type=int, default=None, help="only the first so many scenes")
    parser.add_argument(
        "--photos", type=Path, default=None, help="folder with a val.jsonl: its photographs too"
    )
    parser.add_argument("--out", type=Path, default=None, help="folder for card.md and card.json")


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, write it where asked."""
    from litelvlm.evaluation.card import card_figures, card_table, write_card

    pipe = load_model(args)
    document = card_figures(pipe, args.split, args.limit, progress=True)
    print("\n".join(card_table(document)))
    if args.photos is None:
        print("No photographs measured: give a folder with --photos.")
    else:
        from litelvlm.evaluation.photos import photo_figures, photo_table

        print("\n".join(photo_table(photo_figures(pipe, args.photos, args.limit, True))))
    if args.out is not None:
        write_card(document, args.out)
    return 0
