"""Ask questions about a picture; the model answers in its own words.

examples:
  litelvlm ask photo.jpg "what is on the table?" --budget 192
  litelvlm ask photo.jpg "what is on the table?" "how many cups are there?" --compare
  litelvlm ask photo.jpg "what is on the table?" --json > answer.json
"""

from __future__ import annotations

import argparse

from litelvlm.cli import options
from litelvlm.cli.ground import add_answering, answer

HELP = "ask questions about a picture: answers, token maps and costs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    from litelvlm.question import ANSWER_TOKENS as MOST

    options.add_picture(parser)
    parser.add_argument("phrases", metavar="QUESTION", nargs="+", help="each is asked by itself")
    parser.add_argument("--max-new-tokens", type=int, default=MOST, help=f"of an answer ({MOST})")
    add_answering(parser)
    options.add_selection(parser)
    options.add_model(parser, default="llava-1.5-7b")


def run(args: argparse.Namespace) -> int:
    """Ask, print, write; return 0."""
    options.at_least_one(args, "max_new_tokens")
    return answer(args, mode="generate", max_new_tokens=args.max_new_tokens)
