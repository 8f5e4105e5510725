"""`litelvlm scenes`: render procedural scenes, or the held-out benchmark, to a folder."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litelvlm.errors import InputError

if TYPE_CHECKING:
    from litelvlm.nano.scenes import DrawnScene, Expression

HELP = "render procedural referring scenes or the held-out benchmark to a folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("out", type=Path, help="folder to write to; made if missing")
    parser.add_argument("--count", type=int, default=100, help="number of scenes (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first scene (default 0)")
    parser.add_argument(
        "--split",
        choices=("train", "val", "test"),
        default="train",
        help="whose photos and sprite variants to use (default train)",
    )
    parser.add_argument(
        "--benchmark",
        action="store_true",
        help="render the 500 pairs of --split val or test and print their hash",
    )
    parser.add_argument(
        "--level", type=int, default=3, help="0 names .. 3 all kinds of phrases (default 3)"
    )
    parser.add_argument(
        "--objects",
        type=int,
        nargs=2,
        default=(1, 7),
        metavar=("LEAST", "MOST"),
        help="number of objects (default 1 7)",
    )
    parser.add_argument(
        "--canvas",
        type=int,
        nargs=2,
        default=None,
        metavar=("HEIGHT", "WIDTH"),
        help="size in pixels (default: random shapes with a short side of 336)",
    )


def run(args: argparse.Namespace) -> int:
    """Write images/, labels/ (0 background, i + 1 object i) and scenes.jsonl; return 0.

    Each line of scenes.jsonl holds: image, labels (paths in the folder), seed, caption, objects,
    expressions. A benchmark line holds one expression.

    Raises:
        InputError: for options that do not fit, or a folder that cannot be written.
    """
    import cv2
    from tqdm import tqdm

    from litelvlm.nano.scenes import benchmark_hash

    if args.count < 1:
        raise InputError(f"--count {args.count}; expected at least 1")
    if args.seed < 0:
        raise InputError(f"--seed {args.seed}; expected 0 or more")
    if args.benchmark and args.split == "train":
        raise InputError("--benchmark has no train split; give --split val or --split test")
    total = 500 if args.benchmark else args.count
    out: Path = args.out
    try:
        for folder in ("images", "labels"):
            (out / folder).mkdir(parents=True, exist_ok=True)
        with (out / "scenes.jsonl").open("w", encoding="utf-8") as lines:
            for number, (scene, phrases) in enumerate(
                tqdm(_scenes(args), total=total, desc="scenes", unit="scene")
            ):
                paths = {name: f"{name}/{number:06d}.png" for name in ("images", "labels")}
                picture = cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
                for path, pixels in zip(paths.values(), (picture, scene.labels), strict=True):
                    if not cv2.imwrite(str(out / path), pixels):
                        raise OSError(f"{path} was not written")
                record = _record(scene, phrases, paths["images"], paths["labels"])
                lines.write(json.dumps(record) + "\n")
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error}") from error
    print(f"{total} scenes in {out}")
    if args.benchmark:
        print(f"sha256 {benchmark_hash(args.split)}")
    return 0


def _scenes(args: argparse.Namespace) -> Iterator[tuple[DrawnScene, tuple[Expression, ...]]]:
    """The scenes to write, each with the phrases to write about it."""
    from litelvlm.nano.scenes import SceneRecipe, benchmark, make_scene

    if args.benchmark:
        for scene, phrase in benchmark(args.split):
            yield scene, (phrase,)
        return
    recipe = SceneRecipe(
        canvas=tuple(args.canvas) if args.canvas else None,
        objects=tuple(args.objects),
        split=args.split,
        level=args.level,
    )
    for seed in range(args.seed, args.seed + args.count):
        scene = make_scene(seed, recipe)
        yield scene, scene.expressions


def _record(
    scene: DrawnScene, phrases: tuple[Expression, ...], image: str, labels: str
) -> dict[str, Any]:
    """One line of scenes.jsonl."""
    return {
        "image": image,
        "labels": labels,
        "seed": scene.seed,
        "caption": scene.caption,
        "objects": [asdict(thing) for thing in scene.objects],
        "expressions": [asdict(phrase) for phrase in phrases],
    }
