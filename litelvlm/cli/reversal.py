"""Measure whether similarity reversal holds for a CLIP, layer by layer and text by text.

    litelvlm reversal --model nano --data scenes --split val --out runs/reversal
    litelvlm reversal --clip ViT-B-16 --pretrained laion2b_s34b_b88k --data refcoco --root data ...
    litelvlm reversal --clip ViT-B-16-SigLIP --pretrained webli --data my/samples.jsonl --out ...

Writes reversal.md, reversal.json and a picture with the AUC of every layer and recall curves.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from litelvlm.cli.evaluate import add_data, sources_of
from litelvlm.cli.options import words
from litelvlm.config import TEXTS
from litelvlm.errors import InputError

HELP = "measure whether similarity reversal holds for a CLIP"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    group = parser.add_argument_group("model (one of --clip and --model)")
    group.add_argument("--clip", metavar="NAME", help="a model of open_clip, for example ViT-B-16")
    group.add_argument("--pretrained", help="its weights: a tag of open_clip, or a file")
    group.add_argument(
        "--random-weights",
        action="store_true",
        help="draw the weights instead: the run works, the numbers mean nothing",
    )
    group.add_argument("--model", help="preset or model folder whose CLIP is measured (nano)")
    group.add_argument("--device", default="cpu", help="cpu, cuda, ... (default cpu)")
    add_data(parser)
    parser.add_argument("--forms", nargs="+", help="phrase, question, templates (default all)")
    parser.add_argument(
        "--view", help="what CLIP sees: crop, letterbox or whole (default: the model's)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/reversal"),
        help="folder for the report (default runs/reversal)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Measure, write the report, print one line a split."""
    if args.clip and args.model:
        raise InputError("give --clip or --model, not both")
    sources = sources_of(args)
    import litelvlm
    from litelvlm.data.vqa import Questions
    from litelvlm.loading import check_device
    from litelvlm.reversal import load_tower, measure, tower_of_pipeline, write_report

    if any(isinstance(source, Questions) for source in sources):
        raise InputError(f"--data {args.data}: questions point at no target to measure against")
    device = check_device(args.device)
    view = args.view or "crop"
    if args.clip:
        tower = load_tower(args.clip, args.pretrained, random_weights=args.random_weights)
        tower.encoder.clip.to(device)
    else:
        pipe = litelvlm.load(args.model or "nano", device=device)
        view = args.view or pipe.family.defaults.view
        tower = tower_of_pipeline(pipe)
    command = shlex.join(["litelvlm", *sys.argv[1:]])
    for source in sources:
        forms = words(args.forms or ()) or TEXTS
        shown = not args.quiet
        found = measure(tower, source, forms=forms, view=view, limit=args.limit, progress=shown)
        folder = args.out if len(sources) == 1 else args.out / source.name.replace("/", "-")
        write_report(found, folder, command)
        row = found.used(forms[0])
        verdict = "reversed" if row.auc < 0.5 else "not reversed"
        print(
            f"{found.model} on {found.data}: AUC {row.auc:.3f} ± {row.auc_error:.3f} "
            f"in layer {row.layer} ({row.form}): {verdict}; {folder / 'reversal.md'}"
        )
    return 0
