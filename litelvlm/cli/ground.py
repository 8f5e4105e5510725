"""Find what one or several phrases refer to in a picture or a clip.

Of a clip (at most 200 frames, 60 seconds, 1920 pixels a side; fewer frames with --fps) the first
five frames enter the language model, TOKENS of each, and the masks go on from there; --out gets
a mask for every frame, an overlay to play (MP4) and the token maps of the five frames.

examples:
  litelvlm ground photo.jpg "the red apple" --budget 192 --out found/
  litelvlm ground photo.jpg "the red apple" "the dog on the left" --compare
  litelvlm ground photo.jpg "the red apple" --json > found.json
  litelvlm ground clip.mp4 "the dog" --model sa2va-4b --budget 64 --out masks/
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litelvlm.cli import clip, options
from litelvlm.errors import InputError

if TYPE_CHECKING:
    from litelvlm.pipeline import Pipeline
    from litelvlm.result import GroundingResults, TextResult
    from litelvlm.scene import EncodedImage

HELP = "ground phrases in a picture or a clip: masks, token maps and costs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    options.add_picture(parser)
    parser.add_argument("phrases", metavar="PHRASE", nargs="+", help="what to look for")
    parser.add_argument(
        "--mode",
        default="forced",
        help="forced: the answer is given and only the mask is asked for (default); "
        "generate: the model writes its answer",
    )
    parser.add_argument(
        "--joint", action="store_true", help="all phrases in one prompt with one shared selection"
    )
    parser.add_argument("--fps", type=float, help="of a clip: frames a second to take (all)")
    add_answering(parser)
    options.add_selection(parser)
    options.add_model(parser)


def add_answering(parser: argparse.ArgumentParser) -> None:
    """How a question is answered and what is printed and written of it."""
    parser.add_argument(
        "--budget",
        metavar="TOKENS",
        help="image tokens that enter the language model (default: all, no pruning; with "
        "--compare a third)",
    )
    parser.add_argument(
        "--view",
        help="what the image tower sees: crop (the middle square), letterbox (everything, padded) "
        f"or whole (everything, squeezed); default: the model's own, {options.shipped_views()}",
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="also run without pruning, in turns after a warm-up, and print both with ratios",
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="timed turns of --compare (default 3)"
    )
    parser.add_argument(
        "--full-costs",
        action="store_true",
        help="also count FLOPs and peak memory (each stage runs twice); always on with --compare",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write masks, token maps and heat maps (PNG) and result.json here",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document to stdout and nothing else"
    )


def run(args: argparse.Namespace) -> int:
    """Ground, print, write; return 0."""
    from litelvlm.clips import is_clip

    if is_clip(args.picture):
        return clip.answer_clip(args)
    if args.fps is not None:
        raise InputError("--fps takes a clip, not a picture")
    return answer(args, mode=args.mode, joint=args.joint)


def answer(args: argparse.Namespace, **asked: Any) -> int:
    """Ask, print, write; return 0.

    Args:
        args: of `add_answering`, `add_selection` and `add_model`.
        **asked: the other fields of `question.Question`.
    """
    from litelvlm.images import read_image
    from litelvlm.question import Question

    chosen = options.selection(args) | asked
    profile = "full" if args.full_costs else "time"
    budget = options.number(args.budget)
    # Before the model: bad input is told at once.
    question = Question(args.phrases, budget, view=args.view, profile=profile, **chosen)
    image = read_image(args.picture)
    if args.out is not None and args.out.exists() and not args.out.is_dir():
        raise InputError(f"{args.out}: is a file, expected a folder")
    pipe = options.load_model(args)
    scene = pipe.encode(image, view=question.view, profile=question.profile)
    comparison = None
    if args.compare:
        from tqdm import tqdm

        from litelvlm.bench import compare

        if budget is None:
            budget = max(1, scene.count // 3)
        turns = 2 * (args.repeats + 1)
        with tqdm(total=turns, desc="comparing", leave=False, disable=None) as bar:
            comparison = compare(
                pipe,
                scene,
                question.phrases,
                budget,
                repeats=args.repeats,
                note=lambda _: bar.update(),
                **chosen,
            )
        results = comparison.pruned
    else:
        results = pipe.answer(scene, question)

    document, notes = _document(scene, results), [""] * len(results)
    if comparison is not None:
        document["unpruned"] = _document(scene, comparison.unpruned)
        document["comparison"] = comparison.to_json()
        pairs = zip(results, comparison.unpruned, document["results"], strict=True)
        for number, (item, full, row) in enumerate(pairs):
            score = item.agreement(full)
            row[f"agreement_with_unpruned_{item.measure.lower()}"] = round(score, 4)
            notes[number] = f"; agreement with all tokens ({item.measure}) {score:.2f}"
    files = _write(args.out, pipe, scene, results, document, args.text) if args.out else []
    if args.json:
        print(json.dumps(document))
        return 0
    for item, more in zip(results, notes, strict=True):
        print(clip.told(item, _found(item)) + more)
    if comparison is not None:
        print(comparison)
    else:
        for cost in scene.costs:
            print(f"  {cost}")
        print(results.costs)
    if files:
        print(f"{len(files)} files in {args.out}")
    return 0


def _document(scene: EncodedImage, results: GroundingResults) -> dict[str, Any]:
    """`results` as plain data, the costs of encoding the picture first."""
    document = results.to_json()
    document["costs"] = [asdict(cost) for cost in scene.costs] + document["costs"]
    document["image_hw"] = list(scene.image.shape[:2])
    return document


def _found(item: TextResult) -> str:
    """What was found for one phrase."""
    from litelvlm.result import GroundingResult

    if not isinstance(item, GroundingResult):
        return item.text
    return f"{item.area_fraction:.2%} of the picture" if item.found else "nothing found"


def _write(
    folder: Path,
    pipe: Pipeline,
    scene: EncodedImage,
    results: GroundingResults,
    document: dict[str, Any],
    text: str | None,
) -> list[Path]:
    """Masks (0 or 255); overlays, token maps and heat maps over the picture; result.json."""
    import numpy as np
    from PIL import Image

    from litelvlm.result import GroundingResult
    from litelvlm.viz import compose, heat_layer, mask_layer, token_layer

    form = text or pipe.family.defaults.text
    scores = pipe.similarity(scene, [item.phrase for item in results], form).cpu().numpy()
    files: dict[Path, Any] = {}
    for number, item in enumerate(results, 1):
        stem = folder / f"{number:02d}"
        frame = item.token_map.frame
        heat = heat_layer(scores[number - 1], frame, threshold=item.token_map.threshold)
        if isinstance(item, GroundingResult):
            files[Path(f"{stem}_mask.png")] = item.mask.astype(np.uint8) * 255
            layer = mask_layer([item.mask], scene.image.shape[:2])
            files[Path(f"{stem}_overlay.png")] = compose(scene.image, layer)
        files[Path(f"{stem}_tokens.png")] = compose(scene.image, token_layer(item.token_map))
        files[Path(f"{stem}_heatmap.png")] = compose(scene.image, heat)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, pixels in files.items():
            Image.fromarray(pixels).save(path)
        report = folder / "result.json"
        report.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    except OSError as fault:
        raise InputError(f"{folder}: cannot write ({fault.strerror or fault})") from None
    return [*files, report]
