"""Gates of the training stages, measured on scenes of the validation half.

The order matters: masks are not asked of the language model before the patch tokens name what
lies under them and the mask branch turns boxes into masks.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litelvlm.geometry import MaskFrame
from litelvlm.metrics import overlap, reversal_auc, token_recall
from litelvlm.models.prompt import plain
from litelvlm.nano.scenes import VAL, DrawnScene, make_scene, names
from litelvlm.nano.train import clip as clip_stage
from litelvlm.nano.train import masks as mask_stage
from litelvlm.nano.train.common import autocast
from litelvlm.nano.train.grounder import box_iou
from litelvlm.nano.train.targets import (
    chw,
    clip_pixels,
    patch_targets,
    sam_boxes,
    sam_frame,
    sam_pixels,
    sam_place,
    squared,
)
from litelvlm.pruning import text_similarity

if TYPE_CHECKING:
    from litelvlm.nano.train.frozen import Frozen
    from litelvlm.nano.train.grounder import Grounder

# Away from the seeds of the benchmark, which starts at 0.
SEED = 50_000


def val_scenes(count: int, **changes: Any) -> list[DrawnScene]:
    """Scenes of the validation half, other than the benchmark's."""
    return [make_scene(SEED + i, replace(VAL, **changes)) for i in range(count)]


@torch.no_grad()
def probe_clip(
    clip: nn.Module,
    head: nn.Module,
    scenes: list[DrawnScene],
    device: str = "cpu",
    bf16: bool = True,
) -> dict[str, float]:
    """What the dual encoder's patch tokens know, and whether the similarity is reversed.

    Returns:
        v_named: share of patches on an object whose class the linear head names;
        v_clear: share of background patches that it calls background;
        v_hue: share of patches on a coloured object whose colour it names;
        v_auc: reversal AUC over phrases (0.5 no relation, below reversed);
        v_auc_all: the same, all objects against the background;
        v_low: share of the referent among the third of patches with the lowest similarity;
        v_pair: share of captions nearest to their own picture, among these scenes.
    """
    from open_clip import tokenize

    table = {n: i for i, n in enumerate(names())}
    side = clip.visual.image_size[0]
    sums: dict[str, list[float]] = {}
    images, texts = [], []

    def add(key: str, value: float | None) -> None:
        if value is not None:
            sums.setdefault(key, []).append(float(value))

    for scene in scenes:
        seen = squared(scene, side)
        kind, colour, _, cover = patch_targets(seen, table)
        pixels = clip_pixels(chw(seen.image)[None].to(device))
        said = [e for e in scene.expressions if len(e.targets) == 1]
        phrases = [plain(e.text) for e in said]
        ids = tokenize([scene.caption, *phrases], context_length=clip.context_length).to(device)
        with autocast(device, bf16):
            patches, pooled = clip_stage.patch_features(clip.visual, pixels)
            guess, paint, _, _ = head(patches)
            shared = clip_stage.projected(clip.visual, patches)
            text = clip.encode_text(ids)
        images.append(F.normalize(pooled.float(), dim=-1))
        texts.append(F.normalize(text[:1].float(), dim=-1))
        guessed = guess[0].argmax(-1).cpu().numpy()
        hues = paint[0].argmax(-1).cpu().numpy()
        on, off, painted = kind > 0, kind == 0, colour >= 0
        add("v_named", (guessed[on] == kind[on]).mean() if on.any() else None)
        add("v_clear", (guessed[off] == 0).mean() if off.any() else None)
        add("v_hue", (hues[painted] == colour[painted]).mean() if painted.any() else None)
        similarity = text_similarity(shared, text[1:])[0].cpu().numpy()
        anything = 1 - cover[:, 0]
        for row, expression in zip(similarity, said, strict=True):
            own = cover[:, expression.targets[0] + 1]
            add("v_auc", reversal_auc(row, own))
            add("v_auc_all", reversal_auc(row, anything))
            low = np.zeros(len(row), bool)
            low[np.argsort(row)[: len(row) // 3]] = True
            add("v_low", token_recall(low, own))
    match = torch.cat(texts) @ torch.cat(images).T
    truth = torch.arange(len(match), device=match.device)
    add("v_pair", (match.argmax(1) == truth).float().mean())
    return {key: float(np.mean(values)) for key, values in sums.items()}


@torch.no_grad()
def probe_masks(
    sam: nn.Module,
    prompt: nn.Module,
    scenes: list[DrawnScene],
    device: str = "cpu",
    bf16: bool = True,
) -> dict[str, float]:
    """IoU of the mask branch at the picture's own size.

    Returns:
        v_box: from exact boxes of every object;
        v_point: from one point inside each (the visible pixel nearest to its centre of mass).
    """
    side = sam.config.vision_config.image_size
    found: dict[str, list[float]] = {"v_box": [], "v_point": []}
    for scene in scenes:
        height, width = scene.labels.shape
        frame = torch.from_numpy(sam_frame(scene.image, side))[None].to(device)
        prompts = []
        for i, thing in enumerate(scene.objects):
            ys, xs = np.nonzero(scene.labels == i + 1)
            near = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)
            prompts.append(thing.box)
            prompts.append((xs[near] + 0.5, ys[near] + 0.5) * 2)
        scaled = sam_boxes(np.array(prompts), (height, width), side) / side
        boxes = torch.tensor(scaled, dtype=torch.float32, device=device)[None]
        with autocast(device, bf16):
            embedding = mask_stage.encode(sam, sam_pixels(frame))
            logits, _ = mask_stage.decode(sam, embedding, prompt(boxes)[:, :, None])
        masks = upscale(logits[0], side, (height, width)).cpu().numpy() > 0
        for k, mask in enumerate(masks):
            both, either = overlap(mask, scene.labels == k // 2 + 1)
            found["v_point" if k % 2 else "v_box"].append(both / max(1, either))
    return {key: float(np.mean(values)) for key, values in found.items()}


def upscale(logits: Tensor, side: int, size: tuple[int, int]) -> Tensor:
    """(P, h, w) logits of the padded square of `side` pixels -> (P, H, W) on the picture."""
    left, top, width, height = sam_place(size, side)
    return MaskFrame(side, (height, width), size, (left, top)).upscale(logits)


@torch.no_grad()
def probe_language(
    grounder: Grounder,
    frozen: Frozen,
    scenes: list[DrawnScene],
    device: str = "cpu",
    bf16: bool = True,
    keep: int | None = None,
    other: bool = False,
) -> dict[str, float]:
    """Grounding on expressions with one target, at the picture's own size.

    Args:
        keep: show only so many random image tokens (a blind control).
        other: show the image tokens of another picture.

    Returns:
        v_giou, v_ciou, v_box (IoU of the box helper), and v_giou_<kind> of each kind of expression.
    """
    side = frozen.sam.config.vision_config.image_size
    clip_side = frozen.clip.visual.image_size[0]
    rng = torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = defaultdict(list)
    inter = union = 0.0
    tokens: list[Tensor] = []
    for scene in scenes:
        pixels = clip_pixels(chw(squared(scene, clip_side).image)[None].to(device))
        with autocast(device, bf16):
            tokens.append(clip_stage.patch_features(frozen.clip.visual, pixels)[0].float())
    for number, scene in enumerate(scenes):
        said = [e for e in scene.expressions if len(e.targets) == 1]
        if not said:
            continue
        height, width = scene.labels.shape
        patches = tokens[(number + 1) % len(scenes) if other else number]
        if keep is not None:
            kept = torch.randperm(patches.shape[1], generator=rng)[:keep].sort().values
            patches = patches[:, kept.to(patches.device)]
        ids, state = grounder.tokens.turns([e.text for e in said], 48)
        ids, state = ids[None].to(device), state[None].to(device)
        frame = torch.from_numpy(sam_frame(scene.image, side))[None].to(device)
        with autocast(device, bf16):
            sparse, box = grounder.answer(patches, ids, state)
            embedding = mask_stage.encode(frozen.sam, sam_pixels(frame))
            logits, _ = mask_stage.decode(frozen.sam, embedding, sparse[:, :, None])
        masks = upscale(logits[0], side, (height, width)).cpu().numpy() > 0
        scale = max(height, width)
        shift = np.array([scale - width, scale - height] * 2) / 2
        boxes = box[0].float().cpu().numpy() * scale - shift
        for mask, guess, expression in zip(masks, boxes, said, strict=True):
            a, b = overlap(mask, scene.mask(expression.targets))
            inter, union = inter + a, union + b
            single = ["v_giou_single"] if len(scene.objects) == 1 else []
            for key in ("v_giou", f"v_giou_{expression.kind}", *single):
                found[key].append(a / max(1, b))
            real = torch.tensor(scene.objects[expression.targets[0]].box)
            found["v_box"].append(float(box_iou(torch.from_numpy(guess), real)))
    out = {key: float(np.mean(values)) for key, values in found.items()}
    return out | {"v_ciou": inter / max(1.0, union)}
