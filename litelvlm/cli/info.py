"""Show what is here: models and where their weights lie, selection methods, devices, versions."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import Any

HELP = "list models, selection methods, devices and versions"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Print; return 0."""
    facts = _facts()
    if args.json:
        print(json.dumps(facts, indent=1))
        return 0
    columns = ("model", "family", "view", "tokens", "16 bits", "8 bits", "licence")
    rows = [columns, *(_row(name, model) for name, model in facts["models"].items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, about in zip(rows, [None, *facts["models"].values()], strict=True):
        left = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[3:6], widths[3:6], strict=True)]
        print("  ".join([*left, *right, row[6]]))
        if about:
            print(f"    {about['note']}\n    weights: {about['weights']}")
    print("selection methods")
    for name, method in facts["methods"].items():
        rule = textwrap.fill(method["rule"], 96, initial_indent=" " * 6, subsequent_indent=" " * 6)
        print(f"  {name:<18}{method['title']} ({method['source']}), {method['where']}\n{rule}")
    print("devices")
    for device in facts["devices"]:
        print(f"  {device}")
    print("versions")
    print("  " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    return 0


def _row(name: str, model: dict[str, Any]) -> tuple[str, ...]:
    sizes = (model[key] for key in ("bytes_16", "bytes_8"))
    memory = ("–" if size is None else f"{size / 2**30:.2f} GiB" for size in sizes)
    tokens = "–" if model["tokens"] is None else str(model["tokens"])
    view = model["view"] or "–"
    return name, model["family"], view, tokens, *memory, model["licence"] or "not stated"


def _sizes(name: str) -> dict[str, Any]:
    """View and tokens of a picture, bytes of all weights at 16 and 8 bits; None: no such folder."""
    import torch

    from litelvlm.errors import ModelError
    from litelvlm.families.table import PRESETS, family
    from litelvlm.loading import open_model
    from litelvlm.models.quantised import stored_bytes

    preset = PRESETS[name]
    kind = family(preset.family)
    try:
        config = open_model(name).config if preset.folder else kind.random_config(name)
    except ModelError:
        return {"view": None, "tokens": None, "bytes_16": None, "bytes_8": None}
    with torch.device("meta"):
        model = kind.build(config)
    return {
        "view": config.selection.view,
        "tokens": kind.tokens(config),
        "bytes_16": stored_bytes(model),
        "bytes_8": stored_bytes(model, kind.blocks(model)),
    }


def _facts() -> dict[str, Any]:
    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    from litelvlm.bench import machine, versions
    from litelvlm.families.table import PRESETS
    from litelvlm.methods import METHODS
    from litelvlm.resources import asset

    models = {}
    for name, preset in PRESETS.items():
        if preset.hub:
            weights = (
                f"{preset.hub} and {preset.tower} on the Hugging Face hub, cache {HF_HUB_CACHE}"
            )
        elif preset.folder:
            folder = asset(preset.folder)
            weights = f"{folder}" + ("" if (folder / "config.json").is_file() else " (not there)")
        else:
            weights = "drawn at load"
        models[name] = {
            "note": preset.note,
            "weights": weights,
            "family": preset.family,
            "licence": preset.licence,
            **_sizes(name),
        }
    where = {"before": "before the language model", "inside": "inside the language model"}
    cpu = torch.device("cpu")
    return {
        "models": models,
        "methods": {
            name: {
                "title": method.title,
                "source": method.source,
                "where": where[method.where],
                "rule": method.rule_text,
            }
            for name, method in METHODS.items()
        },
        "devices": [
            f"cpu: {machine(cpu)}, {torch.get_num_threads()} threads",
            *(
                f"cuda:{index}: {torch.cuda.get_device_name(index)}"
                for index in range(torch.cuda.device_count())
            ),
        ],
        "versions": versions(),
    }
