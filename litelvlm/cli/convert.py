"""Rewrite a model as safetensors in this project's layout.

Reads GLaMM's original pickled shards (opened without running any code in them) or any other model
this project can load, with the dual encoder it names, and writes config.json, weights and tokenizer
into one folder that loads without a network.

examples:
  litelvlm convert MBZUAI/GLaMM-RefSeg models/glamm-refseg
  litelvlm convert ./GLaMM-RefSeg ./glamm-refseg && litelvlm ground ... --model ./glamm-refseg
"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "rewrite a checkpoint (GLaMM's .bin shards, ...) as safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("source", metavar="SRC", help="preset, model folder or hub id")
    parser.add_argument("target", metavar="DST", type=Path, help="new folder to write")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")


def run(args: argparse.Namespace) -> int:
    """Convert; return 0."""
    from tqdm import tqdm

    from litelvlm.loading import convert

    with tqdm(unit="B", unit_scale=True, desc="writing", leave=False, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        folder = convert(args.source, args.target, revision=args.revision, progress=progress)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{size / 2**30:.2f} GiB in {folder}")
    return 0
