"""The command line: `litelvlm COMMAND ...`, also `python -m litelvlm COMMAND ...`.

Each command is a module of this package with HELP, add_arguments(parser) and run(args) -> exit
code; only the module of the command that is asked for is imported. Exit codes: 0 done, 1 failed,
2 bad input (one line on stderr), 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from litelvlm._version import __version__
from litelvlm.errors import InputError, one_line, unknown

COMMANDS = (
    "demo",
    "ground",
    "ask",
    "annotate",
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
    _plain_streams()
    os.environ["MPLBACKEND"] = "agg"  # commands draw into files only
    for name, level in (("OPENCV_FFMPEG_LOGLEVEL", "-8"), ("OPENCV_LOG_LEVEL", "OFF")):
        os.environ.setdefault(name, level)  # a broken clip is told in one line
    try:
        args = parser.parse_args(given)
        for name in ("out", "export", "target"):
            path = getattr(args, name, None)
            if isinstance(path, Path):
                try_folder(path.parent if args.command == "bench" else path)
        code = args.run(args)
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        return code
    except InputError as fault:
        return _told(fault, 2)
    except KeyboardInterrupt:
        return _told("interrupted", 130)
    except BrokenPipeError:  # the reader, for example `head`, has gone
        _drop_stdout()
        return 1
    except OSError as fault:
        _drop_stdout()
        where = f"{fault.filename}: " if fault.filename else ""
        return _told(f"{where}{fault.strerror or fault}", 2)


def try_folder(folder: Path) -> None:
    """See, before anything is measured, that files can be written to a folder that may yet be made.

    Raises:
        InputError: it is a file, cannot be made or written, or its disk is full.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"{there}: is a file, expected a folder")
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(4096))
    except OSError as fault:
        raise InputError(f"{folder}: cannot be written ({fault.strerror or fault})") from None


def _told(fault: object, code: int) -> int:
    """Print one line on stderr; the exit code."""
    print(f"litelvlm: {one_line(fault, 500)}", file=sys.stderr)
    return code


def _plain_streams() -> None:
    """Let characters that the terminal does not have come out as "?"."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _drop_stdout() -> None:
    """Send what cannot be flushed nowhere, or the interpreter would fail when it ends."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
