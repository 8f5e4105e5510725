"""Put the demo on Hugging Face Spaces.

    litelvlm space push USER/NAME                 assemble and upload
    litelvlm space push USER/NAME --dry-run DIR   write the folder only; nothing is sent

Spaces.md says what the hardware choices mean and cost.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

HELP = "put the demo on Hugging Face Spaces"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    push = actions.add_parser("push", help="assemble the Space and upload it")
    push.add_argument("name", metavar="USER/NAME", help="the Space")
    push.add_argument("--dry-run", metavar="DIR", type=Path, help="write the folder, send nothing")
    push.add_argument("--model", default="nano", help="the model that answers (default nano)")
    push.add_argument(
        "--hardware",
        default="cpu-basic",
        help="cpu-basic (default, free), zero (a GPU lent call by call) or gpu",
    )
    push.add_argument("--private", action="store_true", help="create the Space private")


def run(args: argparse.Namespace) -> int:
    """Assemble, and upload unless it is a dry run; return 0."""
    from litelvlm.space import Space, assemble, check_name, push

    check_name(args.name)
    space = Space(args.model, args.hardware)
    if args.dry_run is not None:
        files = assemble(args.dry_run, space, args.name)
        size = sum((args.dry_run / file).stat().st_size for file in files)
        print(f"{len(files)} files, {size / 1e6:.1f} MB in {args.dry_run}; nothing was sent")
        return 0
    with tempfile.TemporaryDirectory(prefix="litelvlm-space-") as folder:
        assemble(Path(folder) / "space", space, args.name)
        print(push(Path(folder) / "space", args.name, space, args.private))
    return 0
