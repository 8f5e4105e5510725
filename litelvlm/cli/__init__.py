"""The command line: `litelvlm COMMAND ...`, also `python -m litelvlm COMMAND ...`.

Each command is a module of this package with HELP, add_arguments(parser) and run(args) -> exit
code; only the module of the command that is asked for is imported. Exit codes: 0 done, 1 failed,
2 bad input (one line on stderr), 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from litelvlm._version import __version__
from litelvlm.errors import InputError, unknown

COMMANDS = (
    "demo",
    "ground",
    "prune",
    "bench",
    "info",
    "convert",
    "evaluate",
    "reversal",
    "card",
    "scenes",
    "train",
    "space",
)


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments after the program's name; None takes the process's own.

    Returns:
        The exit code. `--help`, `--version` and wrong options end in SystemExit, as in argparse.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    asked = next((word for word in given if not word.startswith("-")), None)
    if asked is not None and asked not in COMMANDS:
        print(f"litelvlm: {unknown('command', asked, COMMANDS)}", file=sys.stderr)
        return 2
    parser = _Parser(
        prog="litelvlm",
        description="Ground phrases in pictures with a fraction of the image tokens.",
    )
    parser.add_argument("--version", action="version", version=f"litelvlm {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in [asked] if asked else COMMANDS:
        module = import_module(f"litelvlm.cli.{name}")
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=(module.__doc__ or module.HELP).strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    args = parser.parse_args(given)
    try:
        return args.run(args)
    except InputError as fault:
        print(f"litelvlm: {' '.join(str(fault).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("litelvlm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, for example `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
