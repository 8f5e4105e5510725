"""Options that several commands share, and how their text is read."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from litelvlm.errors import InputError

_MEANINGS = {
    "split": "share of the budget for low similarity, a fraction 0..1 or one of",
    "order": "order of the kept tokens",
    "positions": "rotary positions",
    "context": "context score",
    "text": "what the text tower reads",
}


def add_picture(parser: argparse.ArgumentParser) -> None:
    """The picture that is asked about."""
    from litelvlm.images import FORMATS

    told = f"a file: {', '.join(FORMATS)}, or HEIC with pillow-heif"
    parser.add_argument("picture", metavar="PICTURE", help=told)


def shipped_views() -> str:
    """Which part of a picture the models of this package see, and where to read of the others."""
    from litelvlm.families.table import PRESETS
    from litelvlm.resources import asset, read_json

    own = {
        name: read_json(asset(preset.folder) / "config.json", dict, InputError)["selection"]["view"]
        for name, preset in PRESETS.items()
        if preset.folder and (asset(preset.folder) / "config.json").is_file()
    }
    told = ", ".join(f"{view} for {name}" for name, view in own.items())
    return f"{told}; `litelvlm info` tells it of the others"


def add_model(parser: argparse.ArgumentParser, default: str = "nano") -> None:
    """Which model, and where and how it runs."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default=default,
        metavar="NAME",
        help="preset (see `litelvlm info`), model folder, or owner/name on the Hugging Face hub "
        f"(default {default})",
    )
    group.add_argument("--revision", help="branch, tag or commit on the hub")
    group.add_argument(
        "--tower",
        help='folder or hub id of the CLIP that scores tokens, or "none" (the model\'s own)',
    )
    group.add_argument(
        "--random-weights",
        action="store_true",
        help="draw the weights instead of reading them: costs are real, masks mean nothing",
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    group.add_argument(
        "--dtype",
        help="float32, bfloat16 or float16 (default: float32, bfloat16 for large models)",
    )
    group.add_argument(
        "--bits",
        type=int,
        help="8 or 4: language model in as many bits, for less memory (4 needs CUDA)",
    )
    group.add_argument(
        "--threads", type=int, help="CPU threads (default: all; fewer on a shared machine)"
    )


def add_selection(parser: argparse.ArgumentParser) -> None:
    """How tokens are chosen; what is left out is the model's own default."""
    from litelvlm.question import CHOICES

    group = parser.add_argument_group("token selection")
    group.add_argument(
        "--method", default="litelvlm", help="selection method, see `litelvlm info` (litelvlm)"
    )
    for name, meaning in _MEANINGS.items():
        group.add_argument(f"--{name}", help=f"{meaning}: {', '.join(CHOICES[name])}")
    group.add_argument("--seed", type=int, default=0, help="of methods that draw at random (0)")


def load_model(args: argparse.Namespace) -> Any:
    """The `Pipeline` that the options of `add_model` name."""
    import torch

    import litelvlm

    at_least_one(args, "threads")
    if args.threads:
        torch.set_num_threads(args.threads)
    return litelvlm.load(**model(args), device=args.device)


def model(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_model` that answers depend on, as keyword arguments of `load`."""
    names = ("model", "revision", "random_weights", "dtype", "bits", "tower")
    return {name: getattr(args, name) for name in names}


def selection(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_selection` as keyword arguments of `Pipeline.ground`."""
    return {
        "method": args.method,
        "seed": args.seed,
        **{name: getattr(args, name) for name in _MEANINGS},
    }


def at_least_one(args: argparse.Namespace, *names: str) -> None:
    """Raise `InputError` where one of these options is given and below 1."""
    for name in names:
        if (given := getattr(args, name)) is not None and given < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, got {given}")


def words(given: Iterable[str]) -> list[str]:
    """Items of a list that was given with commas, spaces or both.

    Options of a method stay with it: "a,b:x=1,y=2" is "a" and "b:x=1,y=2".
    """
    items: list[str] = []
    for part in filter(None, ",".join(given).split(",")):
        if "=" in part and ":" not in part and items:
            items[-1] += f",{part}"
        else:
            items.append(part.strip())
    return items


def numbers(name: str, given: Iterable[str]) -> list[int]:
    """Whole numbers from a list as in `words`, or `InputError` naming the option."""
    try:
        return [int(word) for word in words(given)]
    except ValueError:
        raise InputError(f"{name} takes whole numbers, got {' '.join(given)[:60]!r}") from None


def number(text: str | None) -> Any:
    """Text as a whole number or a fraction where it is one, else unchanged for a clear error."""
    if text is None:
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
