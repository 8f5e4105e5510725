"""`litelvlm train`: train an embedded model stage by stage, and export it.

Without `--photos` it is nano, from nothing; with it `photo`, from the weights of a model folder on.

Several GPUs or cores: `torchrun --nproc_per_node=2 -m litelvlm train ... --threads 1`.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from litelvlm.errors import InputError

HELP = "train the embedded model on procedural scenes, or go on with photo on photographs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "--stage",
        choices=("clip", "masks", "language", "all", "export"),
        default="all",
        help="one stage, all three in order, or only the export (default all)",
    )
    parser.add_argument(
        "--scale",
        choices=("tiny", "small", "full"),
        default="small",
        help="tiny: a test, seconds; small: 2 CPU cores, hours; full: a GPU (default small)",
    )
    parser.add_argument(
        "--photos",
        type=Path,
        default=None,
        metavar="DIR",
        help="folder of photographs (train.jsonl with masks; captions.jsonl, names.jsonl and "
        "val.jsonl if there are any): train the model of --start on it instead of nano",
    )
    parser.add_argument(
        "--start", default="photo", help="with --photos: model folder to go on from (default photo)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and logs")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoints")
    parser.add_argument("--device", default=None, help="cpu, cuda, ...; default: a GPU if present")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's choice")
    parser.add_argument("--seed", type=int, default=1, help="seed of weights and scenes")
    parser.add_argument("--probes", type=int, default=40, help="validation scenes per measurement")
    parser.add_argument(
        "--limit", type=int, default=None, help="stop each stage after so many steps"
    )
    parser.add_argument(
        "--export", type=Path, default=None, help="model folder to write when training ends"
    )


def run(args: argparse.Namespace) -> int:
    """Train; the checkpoints, logs and curves are left in ``--out``."""
    from dataclasses import replace

    import torch

    from litelvlm.nano.train.common import processes, rank_and_world
    from litelvlm.nano.train.export import export
    from litelvlm.nano.train.recipe import recipe
    from litelvlm.nano.train.run import STAGES, draw_curves, train
    from litelvlm.question import check_seed

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    check_seed(args.seed)
    if args.threads < 0 or args.seed < 0 or args.probes < 0:
        raise InputError("--threads, --seed and --probes must not be negative")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    plan = replace(recipe(args.scale), seed=args.seed)
    stages = (
        tuple(STAGES) if args.stage == "all" else () if args.stage == "export" else (args.stage,)
    )
    if args.stage == "export" and args.export is None:
        raise InputError("--stage export needs --export FOLDER")
    if args.photos is not None:
        return _on_photos(args, stages)
    with processes(device) as own:
        train(plan, stages, args.out, own, args.resume, args.probes, args.limit)
        rank = rank_and_world()[0]
    if rank > 0:
        return 0
    if stages:
        draw_curves(args.out, args.out / "curves.png")
    if args.export is not None:
        export(plan, args.out, args.export)
    return 0


def _on_photos(args: argparse.Namespace, stages: tuple[str, ...]) -> int:
    from litelvlm.nano.photos import run
    from litelvlm.resources import asset

    if args.scale == "full" or args.device not in (None, "cpu"):
        raise InputError("--photos trains on the CPU, at --scale small or tiny")
    start = asset("photo") if args.start == "photo" else Path(args.start)
    plan = run.TINY if args.scale == "tiny" else run.PhotoPlan()
    model = run.train(
        args.photos, args.out, start, stages, plan, args.resume, args.probes, args.limit
    )
    if args.export is not None:
        run.export(model, start, args.export)
    return 0
