"""Compare selection methods over budgets on a data set, and write the report.

    litelvlm evaluate --data scenes --split test --methods all --budgets 192 64 --out runs/test
    litelvlm evaluate --data refcoco --root data --split val testA testB --out runs/refcoco
    litelvlm evaluate --data pope,mme --root data --model llava-1.5-7b --out runs/questions
    litelvlm evaluate --data my/samples.jsonl --methods litelvlm:order=released --out runs/my
    accelerate launch -m litelvlm evaluate ...             (one process a GPU; same scores)
    torchrun --nproc-per-node 2 -m litelvlm evaluate ...   (several processes on CPUs)

Every picture is encoded once for all methods and budgets. An interrupted run goes on where it
stopped when the same command is given again; failed pictures are tried again then. With several
machines the output folder must be shared by them.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litelvlm.cli.options import add_model, load_model, numbers, words
from litelvlm.errors import InputError

if TYPE_CHECKING:
    from litelvlm.data.samples import Source
    from litelvlm.pipeline import Pipeline

SHOWN = 60  # scenes of the split "train", which never end
HELP = "compare selection methods over budgets on a data set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add_model(parser)
    add_data(parser)
    runs = parser.add_argument_group("what is run")
    runs.add_argument(
        "--methods",
        nargs="+",
        default=["all"],
        metavar="METHOD",
        help="names, `all`, or NAME:OPTION=VALUE,... with options split, order, positions, "
        "context, text (default all)",
    )
    runs.add_argument(
        "--budgets",
        nargs="+",
        metavar="K",
        help="image tokens kept (default: all, 1/2, 1/3, 2/9, 1/9 and 1/18 of the model's)",
    )
    runs.add_argument(
        "--protocol",
        default="all",
        help="all: every expression on its own; released: at most 3 drawn from each picture, in "
        "one prompt, random wording (default all)",
    )
    runs.add_argument("--mode", help="forced or generate (default forced; generate for questions)")
    runs.add_argument("--seeds", nargs="+", default=["0"], help="of all that is random (default 0)")
    runs.add_argument(
        "--view", help="what CLIP sees: crop, letterbox or whole (default: the model's)"
    )
    runs.add_argument(
        "--batch", type=int, default=16, help="most expressions of a picture in one call (16)"
    )
    runs.add_argument(
        "--profile", default="time", help="time, or full for memory and FLOPs at twice the time"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/evaluate"),
        help="folder for records and report (default runs/evaluate)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def add_data(parser: argparse.ArgumentParser) -> None:
    """Which data set, and which part of it."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        default="scenes",
        help="scenes (built in), refcoco, refcoco+, refcocog, grefcoco (with /unc, /umd or "
        "/google if need be), a JSONL file or its folder; or benchmarks with text answers: vqav2, "
        "gqa, textvqa, pope, mme, scienceqa, mmbench (default scenes)",
    )
    data.add_argument(
        "--split",
        nargs="+",
        default=None,
        help="one or several splits (default: val; all lines of a JSONL file)",
    )
    data.add_argument(
        "--root",
        type=Path,
        help="folder of the RefCOCO files, or of a benchmark's, by name if several",
    )
    data.add_argument("--images", type=Path, help="folder of COCO train2014, if not under --root")
    data.add_argument("--limit", type=int, help="only the first so many pictures of each split")


def run(args: argparse.Namespace) -> int:
    """Evaluate; the first process writes the report. 1 if anything failed, else 0."""
    from litelvlm.evaluate import run as run_plan
    from litelvlm.evaluation.plan import Plan, default_budgets, variants_of
    from litelvlm.evaluation.records import Store
    from litelvlm.evaluation.report import write_report

    logging.basicConfig(format="%(message)s")
    variants = tuple(variants_of(words(args.methods)))
    budgets = tuple(numbers("--budgets", args.budgets or ()))
    seeds = tuple(numbers("--seeds", args.seeds))
    sources = sources_of(args)
    processes = _Processes(args.device)
    if args.device is None and processes.count > 1:
        args.device = str(processes.device)
    pipe = load_model(args)
    plan = Plan(
        variants=variants,
        budgets=budgets or default_budgets(pipe.tokens_total),
        protocol=args.protocol,
        mode=args.mode or ("generate" if _questions(args.data) else "forced"),
        seeds=seeds,
        view=args.view,
        batch=args.batch,
        profile=args.profile,
        limit=args.limit,
    )
    plan.check(pipe.tokens_total)
    fingerprint = {
        "model": pipe.name,
        "weights": _weights(pipe),
        "data": [source.name for source in sources],
        **plan.fingerprint(),
    }
    share = (processes.index, processes.count)
    with processes.first_goes_first():
        store = Store(args.out, fingerprint, share)
    shown = processes.index == 0 and not args.quiet
    own = []
    missing: dict[str, list[str]] = {}
    refused: dict[str, list[str]] = {}
    for source in sources:
        own += run_plan(pipe, source, plan, store, share=share, progress=shown)
        missing[source.name] = list(source.missing)
        refused[source.name] = list(source.refused)
    total, missing = processes.collect(len(own), missing)
    _, refused = processes.collect(0, refused)
    if processes.index:
        return 0
    if not total:
        raise InputError(f"{args.data}: nothing to evaluate")
    wanted = {(u[0].label, u[1], u[2]) for u in plan.units(pipe.tokens_total)}
    units = [unit for unit in store.read() if (unit.variant, unit.budget, unit.seed) in wanted]
    if len({unit.key for unit in units}) < total:
        raise InputError(f"{args.out} must be one folder that all processes share")
    facts = {
        "model": f"{pipe.name} ({fingerprint['weights']})",
        "data": fingerprint["data"],
        "protocol": f"{plan.protocol}, {plan.mode}",
        "seeds": list(plan.seeds),
        "device": f"{pipe.device}, {pipe.dtype}".replace("torch.", ""),
        "missing": missing,
        "refused": refused,
    }
    rows = write_report(args.out, units, facts, _command())
    failed = sum(row.failed for row in rows)
    left = sum(map(len, refused.values()))
    told = f", {left} expressions refused" if left else ""
    print(f"{args.out / 'report.md'}: {len(rows)} rows, {failed} failed pictures{told}")
    return 1 if failed or left else 0


def sources_of(args: argparse.Namespace) -> Sequence[Source]:
    """The sources that the options of `add_data` name."""
    from litelvlm.data.folder import Folder
    from litelvlm.data.refcoco import SPLITS, RefCOCO
    from litelvlm.data.samples import SceneSource, training_scenes
    from litelvlm.data.vqa import READERS, Questions

    splits = words(args.split or ())
    if names := _questions(args.data):
        if args.root is None or splits:
            told = "has no splits" if splits else "needs --root, the folder of its files"
            raise InputError(f"--data {args.data} {told}")
        folders = [args.root / name if (args.root / name).is_dir() else args.root for name in names]
        return [Questions(*pair) for pair in zip(names, folders, strict=True)]
    families = {name.partition("/")[0] for name in SPLITS}
    if args.data == "scenes":
        return [
            training_scenes(SHOWN) if split == "train" else SceneSource(split)
            for split in splits or ["val"]
        ]
    if args.data.partition("/")[0] in families and (args.root or not Path(args.data).exists()):
        if args.root is None:
            raise InputError(f"--data {args.data} needs --root, the folder of its files")
        return [RefCOCO(args.root, args.data, split, args.images) for split in splits or ["val"]]
    if not Path(args.data).exists():
        known = ", ".join(["scenes", *sorted(families), *READERS])
        raise InputError(f"--data {args.data}: neither a file nor one of {known}")
    return [Folder(Path(args.data), split) for split in splits or [""]]


def _questions(data: str) -> list[str]:
    """The benchmarks with text answers that --data names; empty where it names something else."""
    from litelvlm.data.vqa import READERS

    names = words([data])
    return names if set(names) <= set(READERS) else []


class _Processes:
    """This process among those that `accelerate launch` or `torchrun` started; or alone."""

    def __init__(self, device: str | None) -> None:
        self._state: Any = None
        if {"RANK", "MASTER_ADDR"} <= set(os.environ) and os.environ.get("WORLD_SIZE") != "1":
            import torch
            from accelerate import PartialState

            # Without an accelerator, accelerate joins the processes only when told so.
            cpu = device == "cpu" or not torch.accelerator.is_available()
            self._state = PartialState(cpu=cpu)
        self.index: int = self._state.process_index if self._state else 0
        self.count: int = self._state.num_processes if self._state else 1

    @property
    def device(self) -> Any:
        """The device that was dealt to this process."""
        return self._state.device

    def first_goes_first(self) -> Any:
        """The first process enters before the others."""
        from contextlib import nullcontext

        return self._state.main_process_first() if self._state else nullcontext()

    def collect(
        self, count: int, missing: dict[str, list[str]]
    ) -> tuple[int, dict[str, list[str]]]:
        """Wait for all; sum of the counts, union of the missing pictures."""
        if self._state is None:
            return count, missing
        from accelerate.utils import gather_object

        self._state.wait_for_everyone()
        counts, lost = gather_object([count]), gather_object([missing])
        union = {name: sorted({each for part in lost for each in part[name]}) for name in missing}
        return sum(counts), union


def _weights(pipe: Pipeline) -> str:
    """A short mark of the weights: CRC-32 over a piece of every tensor, as hex."""
    import zlib

    import torch

    mark = 0
    for name, tensor in sorted(pipe.family.model.state_dict().items()):
        piece = tensor.flatten()[:64].detach().cpu().contiguous().view(torch.uint8)
        mark = zlib.crc32(piece.numpy().tobytes(), zlib.crc32(name.encode(), mark))
    return f"{mark:08x}"


def _command() -> str:
    return shlex.join(["litelvlm", *sys.argv[1:]])
