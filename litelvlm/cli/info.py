"""Show what is here: models and where their weights lie, selection methods, devices, versions."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import Any

HELP = "list models, selection methods, devices and versions"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "--memory", action="store_true", help="sizes of the models instead; takes some seconds"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Print; return 0."""
    facts = _sizes() if args.memory else _facts()
    if args.json:
        print(json.dumps(facts, indent=1))
        return 0
    if args.memory:
        print(f"{'model':<20}{'family':<8}{'tokens':>7}{'16 bits':>11}{'8 bits':>11}  licence")
        for name, row in facts.items():
            sixteen, eight = (f"{row[key] / 2**30:.2f} GiB" for key in ("bytes_16", "bytes_8"))
            licence = row["licence"] or "not stated"
            print(
                f"{name:<20}{row['family']:<8}{row['tokens']:>7}{sixteen:>11}{eight:>11}  {licence}"
            )
        return 0
    print("models")
    for name, preset in facts["models"].items():
        print(f"  {name:<14}{preset['note']}\n{'':16}weights: {preset['weights']}")
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


def _sizes() -> dict[str, Any]:
    """Of every model: tokens of a picture, and bytes of all weights at 16 and at 8 bits."""
    import torch

    from litelvlm.errors import ModelError
    from litelvlm.families.table import PRESETS, family
    from litelvlm.loading import open_model
    from litelvlm.models.quantised import stored_bytes

    sizes = {}
    for name, preset in PRESETS.items():
        kind = family(preset.family)
        try:
            config = open_model(name).config if preset.folder else kind.random_config(name)
        except ModelError:  # its folder is not there
            continue
        with torch.device("meta"):
            model = kind.build(config)
        sizes[name] = {
            "family": preset.family,
            "licence": preset.licence,
            "tokens": kind.tokens(config),
            "bytes_16": stored_bytes(model),
            "bytes_8": stored_bytes(model, kind.blocks(model)),
        }
    return sizes


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
        models[name] = {"note": preset.note, "weights": weights}
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
