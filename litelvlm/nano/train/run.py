"""All stages of a recipe in their order, and the picture of their curves."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from litelvlm.errors import unknown
from litelvlm.nano.train import probe
from litelvlm.nano.train.clip import train_clip
from litelvlm.nano.train.language import train_language
from litelvlm.nano.train.masks import train_masks
from litelvlm.nano.train.recipe import Recipe
from litelvlm.nano.train.tokens import corpus, train_tokenizer

log = logging.getLogger(__name__)
# Stage -> what trains it, what measures it on validation scenes, and what its curve shows: the
# training measure, then the one on validation scenes.
STAGES: dict[str, tuple[Callable[..., Any], Callable[..., dict[str, float]], tuple[str, ...]]] = {
    "clip": (train_clip, probe.probe_clip, ("named", "v_named", "v_auc")),
    "masks": (train_masks, probe.probe_masks, ("iou", "v_box")),
    "language": (
        train_language,
        probe.probe_language,
        ("pointed", "box_iou", "giou", "v_giou"),
    ),
}


def train(
    recipe: Recipe,
    stages: Sequence[str],
    folder: Path,
    device: str = "cpu",
    resume: bool = False,
    probes: int = 40,
    limit: int | None = None,
) -> None:
    """Run stages of a recipe; each reads the checkpoints of those before it from `folder`.

    Args:
        probes: validation scenes a measurement; 0 for none.
        limit: stop each stage after so many steps; a later call with `resume` goes on.

    Raises:
        InputError: unknown stage.
    """
    for stage in stages:
        if stage not in STAGES:
            raise unknown("stage", stage, STAGES)
    scenes = probe.val_scenes(probes)
    for stage, (learn, measure, _) in STAGES.items():
        if stage not in stages:
            continue
        if stage == "language":
            ensure_tokenizer(recipe, folder)

        def check(*parts: Any, measure: Callable[..., dict[str, float]] = measure) -> Any:
            return measure(*parts, scenes, device, recipe.bf16)

        learn(recipe, folder, device, resume, check if probes else None, limit)


def ensure_tokenizer(recipe: Recipe, folder: Path, scenes: int = 4000) -> Path:
    """Train the tokenizer of a run if its folder has none yet."""
    path = folder / "tokenizer.json"
    if not path.exists():
        plan = recipe.language_plan
        count = 200 if recipe.scale == "tiny" else scenes
        sentences = corpus(count, plan.phases[-1][1], recipe.seed + 9 * 10**8)
        train_tokenizer(sentences, plan.vocabulary, path)
    return path


def read_curves(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Curves of a run, (hours, value) per measure, read from its logs."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for stage, (_, _, shown) in STAGES.items():
        path = folder / f"{stage}.jsonl"
        if not path.exists():
            continue
        lines = []
        for line in map(json.loads, path.read_text().splitlines()):
            # Steps that a resumed run did again count once.
            lines = [*(old for old in lines if old["step"] < line["step"]), line]
        for key in shown:
            points = [(line["seconds"] / 3600, line[key]) for line in lines if key in line]
            if points:
                curves[f"{stage}: {key.replace('v_', 'validation ')}"] = points
    return curves


def draw_curves(folder: Path, picture: Path) -> Path:
    """Draw the curves of a run to a picture file."""
    from litelvlm.viz import curve_figure

    figure = curve_figure(read_curves(folder), x_label="hours of the stage", y_label="share / IoU")
    for line in figure.axes[0].lines:
        line.set_marker("")
    figure.set_size_inches(8, 4.5)
    figure.savefig(picture, dpi=150)
    return picture
