"""What `litelvlm ground` does with a clip."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litelvlm.cli import options
from litelvlm.errors import InputError

if TYPE_CHECKING:
    from litelvlm.clips import Clip
    from litelvlm.result import ClipResult, TextResult


def answer_clip(args: argparse.Namespace) -> int:
    """Ask about a clip, print, write; return 0."""
    from litelvlm.clips import read_clip
    from litelvlm.question import Question

    if args.compare or args.view:
        raise InputError(f"--{'compare' if args.compare else 'view'} takes a picture, not a clip")
    asked = options.selection(args) | {"mode": args.mode, "joint": args.joint}
    asked["profile"] = "full" if args.full_costs else "time"
    budget = options.number(args.budget)
    Question(args.phrases, budget, **asked)  # before the model: bad input is told at once
    clip = read_clip(args.picture, args.fps)
    results = options.load_model(args).follow(clip, args.phrases, budget, **asked)
    document = results.to_json() | {"image_hw": list(clip.frames.shape[1:3]), "fps": clip.fps}
    files = [] if args.out is None else _write(args.out, clip, list(results), document)
    if args.json:
        print(json.dumps(document))
        return 0
    for item in results:
        there = item.masks.any((1, 2))
        found = "nothing found"
        if item.found:
            share = item.masks[there].mean()
            found = f"in {there.sum()} of {len(there)} frames, {share:.2%} of the picture there"
        print(told(item, found))
    print(results.costs)
    if files:
        print(f"{len(files)} files in {args.out}")
    return 0


def told(item: TextResult, found: str) -> str:
    """One line about one phrase."""
    notes = [*item.warnings]
    if item.unknown_words:
        notes.append(f"words the model does not know: {', '.join(item.unknown_words)}")
    return f"{item.phrase}: {found}" + "".join(f"; {note}" for note in notes)


def _write(
    folder: Path, clip: Clip, results: Sequence[ClipResult], document: dict[str, Any]
) -> list[Path]:
    """Masks (0 or 255) a frame, overlays as MP4, token maps of the key frames; result.json."""
    import numpy as np
    from PIL import Image

    from litelvlm.clips import write_clip
    from litelvlm.viz import compose, mask_layer, token_layer

    files: list[Path] = []

    def save(name: str, pixels: np.ndarray) -> None:
        files.append(folder / name)
        Image.fromarray(pixels).save(files[-1])

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, item in enumerate(results, 1):
            for time, mask in enumerate(item.masks):
                save(f"{number:02d}_mask_{time:04d}.png", mask.astype(np.uint8) * 255)
            for time, tokens in enumerate(item.token_maps):
                shown = compose(clip.frames[time], token_layer(tokens))
                save(f"{number:02d}_tokens_{time:04d}.png", shown)
            files.append(folder / f"{number:02d}_overlay.mp4")
            pairs = zip(clip.frames, item.masks, strict=True)
            shown_all = (compose(frame, mask_layer([mask])) for frame, mask in pairs)
            write_clip(files[-1], shown_all, clip.fps)
        files.append(folder / "result.json")
        files[-1].write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    except OSError as fault:
        raise InputError(f"{folder}: cannot write ({fault.strerror or fault})") from None
    return files
