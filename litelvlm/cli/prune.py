"""Ask any Hugging Face vision-language model with fewer image tokens.

examples:
  litelvlm prune --model llava-hf/llava-1.5-7b-hf --image photo.jpg \\
      --question "what is on the table?" --budget 192 --compare
  litelvlm prune --model Qwen/Qwen2.5-VL-3B-Instruct --image photo.jpg \\
      --question "what is on the table?" --budget 0.33 --method divprune
  litelvlm prune --models
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from litelvlm.cli import options
from litelvlm.errors import InputError

HELP = "prune image tokens inside a Hugging Face vision-language model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--model", metavar="NAME", help="model folder, or owner/name on the hub")
    parser.add_argument("--image", action="append", metavar="FILE", help="repeat for several")
    parser.add_argument("--question", metavar="TEXT", help="what to ask about the picture")
    parser.add_argument(
        "--budget", metavar="N", help="patches a picture: a number, or a share such as 0.33"
    )
    parser.add_argument("--method", default="litelvlm", help="see `litelvlm info` (litelvlm)")
    parser.add_argument(
        "--guide",
        metavar="NAME:WEIGHTS",
        help="a CLIP of open_clip that scores the picture, for example ViT-B-16:laion2b_s34b_b88k",
    )
    parser.add_argument("--clip", help="folder or hub name of the CLIP a LLaVA's tower came from")
    parser.add_argument("--positions", help="original or compact")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="of the answer (64)")
    parser.add_argument(
        "--compare", action="store_true", help="also ask without pruning, and print both"
    )
    parser.add_argument(
        "--paired", action="store_true", help="measure the plug-in itself, no answer"
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed turns (3)")
    parser.add_argument("--models", action="store_true", help="print the table of models and stop")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 (default: as stored)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")


def run(args: argparse.Namespace) -> int:
    """Ask, print; return 0."""
    if args.models:
        from litelvlm.plugin.families import table

        print(table())
        return 0
    for name in ("model", "image", "question"):
        if not getattr(args, name):
            raise InputError(f"--{name} is missing")
    options.at_least_one(args, "repeats", "max_new_tokens", "threads")
    import torch

    from litelvlm.images import read_image
    from litelvlm.plugin import Pruner
    from litelvlm.plugin.bench import load, measure, paired, prompt_for

    if args.threads:
        torch.set_num_threads(args.threads)
    pictures = [read_image(file) for file in args.image]  # bad input is told before a long load
    guide = _guide(args.guide)
    model, processor = load(
        args.model, device=args.device, dtype=args.dtype, revision=args.revision
    )
    pruner = Pruner(model, processor, args.method, guide, clip=args.clip)
    prompt = prompt_for(pruner, args.question, len(pictures))
    budget = options.number(args.budget)
    if args.paired:
        print(paired(pruner, pictures[0], prompt, budget, repeats=args.repeats))
        return 0
    runs = measure(
        pruner,
        pictures,
        prompt,
        [None, budget] if args.compare else [budget],
        question=args.question,
        positions=args.positions,
        repeats=args.repeats,
        max_new_tokens=args.max_new_tokens,
    )
    names = ["unpruned", args.method] if args.compare else [args.method]
    if args.json:
        print(json.dumps({name: one.to_json() for name, one in zip(names, runs, strict=True)}))
        return 0
    for name, one in zip(names, runs, strict=True):
        print(
            f"{name}: {one.image_tokens} image tokens, {one.prompt_tokens} in the prompt · "
            f"prefill {one.prefill_ms:.0f} ms, {one.peak_bytes / 2**20:.0f} MiB, "
            f"{one.flops / 1e9:.0f} GFLOP · prepare {one.prepare_ms:.0f} ms\n  {one.answer}"
        )
    return 0


def _guide(text: str | None) -> Any:
    """The open_clip model that NAME:WEIGHTS names; None without one."""
    if text is None:
        return None
    from litelvlm.reversal import load_tower

    name, _, weights = text.partition(":")
    if not weights:
        raise InputError(f"--guide is NAME:WEIGHTS, got {text!r}")
    return load_tower(name, weights).encoder.clip
