"""Stage "masks": the class-agnostic SAM part, from points and boxes to masks.

It never sees a word or a class. Points and boxes enter as ONE learned token in the slot where
the language model's [SEG] token will stand, so that this part is used in the same way later;
the layer that makes those tokens is dropped after training.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litelvlm.models.segmenter import prompted_masks
from litelvlm.nano.train.builders import build_segmenter
from litelvlm.nano.train.common import Run, autocast, optimisers, rank_and_world, seed_everything
from litelvlm.nano.train.targets import low_mask, sam_boxes, sam_frame, sam_pixels, stacked

if TYPE_CHECKING:
    from litelvlm.nano.scenes import DrawnScene, SceneRecipe
    from litelvlm.nano.train.recipe import Recipe


class PromptToken(nn.Module):
    """A box or a point as one prompt token of a `width` (train-time only).

    Its two layers have the form of the [SEG] head, which starts as a copy (train/start.py): the
    language model then only has to write the waves of a box into its [SEG] state.
    """

    def __init__(self, width: int, octaves: int = 3) -> None:
        super().__init__()
        self.octaves = octaves
        self.net = nn.Sequential(
            nn.Linear(4 * (1 + 2 * octaves) + 1, 2 * width),
            nn.ReLU(),
            nn.Linear(2 * width, width),
        )

    def forward(self, boxes: Tensor) -> Tensor:
        """See the class."""
        return self.net(self.waves(boxes))

    def waves(self, boxes: Tensor) -> Tensor:
        """(..., 4) boxes -> (..., 4 (1 + 2 octaves) + 1), values within -2..2.

        Centre and size, their sines and cosines, and a mark of points.
        """
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2
        size = boxes[..., 2:] - boxes[..., :2]
        point = (size.amax(-1, keepdim=True) <= 0).float()
        base = torch.cat([centre * 2 - 1, size * 2], -1)
        turns = [base * math.pi * 2**k / 2 for k in range(self.octaves)]
        waves = [f(turn) for turn in turns for f in (torch.sin, torch.cos)]
        return torch.cat([base, *waves, point], -1)


def encode(sam: nn.Module, pixels: Tensor, window: Tensor | None = None) -> Tensor:
    """Image embedding: (B, 3, H, W) normalised pixels -> (B, C, h, w) float32.

    `window`, (B, 2) int64, is row and column of the picture's first patch in the position table,
    for pictures smaller than the model's square; None for full squares.
    """
    if window is None:
        return sam.vision_encoder(pixels).last_hidden_state.float()
    encoder = sam.vision_encoder
    x = encoder.patch_embed.projection(pixels).permute(0, 2, 3, 1)
    x = x + _cut(encoder.pos_embed.expand(len(x), -1, -1, -1), window, x.shape[1])
    for layer in encoder.layers:
        x = layer(x)
    return encoder.neck(x).float()


def _cut(table: Tensor, window: Tensor, side: int) -> Tensor:
    """(B, h, w, C) and (B, 2) corners -> (B, side, side, C), one window of each."""
    reach = torch.arange(side, device=table.device)
    rows = (window[:, 0, None] + reach)[:, :, None]
    cols = (window[:, 1, None] + reach)[:, None, :]
    return table[torch.arange(len(table), device=table.device)[:, None, None], rows, cols]


def decode(
    sam: nn.Module, embedding: Tensor, sparse: Tensor, window: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Masks from prompt tokens.

    Args:
        sam: from `build_segmenter`.
        embedding: (B, C, h, w), from `encode`.
        sparse: (B, P, 1, C), one token a prompt.
        window: see `encode`.

    Returns:
        Logits, (B, P, 4h, 4w) float32, and the predicted IoU, (B, P).
    """
    positions = sam.get_image_wide_positional_embeddings().expand(len(embedding), -1, -1, -1)
    if window is not None:
        table = positions.permute(0, 2, 3, 1)
        positions = _cut(table, window, embedding.shape[-1]).permute(0, 3, 1, 2)
    masks, quality = prompted_masks(sam, embedding, sparse, positions)
    return masks.float(), quality.float()


def mask_loss(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Balanced cross-entropy plus dice, and the IoU at this size.

    Args:
        logits: (M, h, w).
        target: (M, h, w), a share in 0..1.

    Returns:
        (M,) loss and (M,) IoU.
    """
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    probability = logits.sigmoid()
    area = target.sum((-1, -2))
    # Far background is easy and plentiful: the sum is measured in units of the object's area.
    bce = bce.sum((-1, -2)) / (area + 30.0)
    dice = 1 - (2 * (probability * target).sum((-1, -2)) + 1) / (
        probability.square().sum((-1, -2)) + target.square().sum((-1, -2)) + 1
    )
    hard, truth = logits > 0, target > 0.5
    union = (hard | truth).sum((-1, -2)).clamp(min=1)
    iou = (hard & truth).sum((-1, -2)) / union
    return bce + dice, iou.detach()


@dataclass(frozen=True)
class MaskBatches:
    """Makes batch `number` of the stage: pictures, prompts, masks; picklable for workers."""

    small: SceneRecipe
    full: SceneRecipe
    switch: int
    scenes: int
    scenes_full: int
    prompts: int
    side: int
    seed: int
    patch: int = 16

    def __call__(self, number: int) -> dict[str, Tensor]:
        """One batch; S is the model's side, half of it for the batches before `switch`.

        frames (B, S, S, 3) int16, boxes (B, P, 4) float32 in units of the model's side,
        masks (B, P, S / 4, S / 4) uint8, window (B, 2) int64 first patch of the picture.
        """
        from litelvlm.nano.scenes import make_scene

        rng = np.random.default_rng((self.seed, number))
        out: dict[str, list[Any]] = defaultdict(list)
        full = number >= self.switch
        side = self.side if full else self.side // 2
        recipe, count = (self.full, self.scenes_full) if full else (self.small, self.scenes)
        for i in range(count):
            scene = make_scene(self.seed + number * self.scenes + i, recipe)
            window = rng.integers(0, (self.side - side) // self.patch + 1, 2)
            out["frames"].append(sam_frame(scene.image, side))
            boxes, masks = draw_prompts(scene, self.prompts, side // 4, rng)
            corner = np.tile(window[::-1] * self.patch, 2)
            out["boxes"].append(((boxes * side + corner) / self.side).astype(np.float32))
            out["masks"].append(masks)
            out["window"].append(window)
        return stacked(out)


def draw_prompts(
    scene: DrawnScene,
    count: int,
    low: int,
    rng: np.random.Generator,
    points: float = 0.2,
    sloppy: float = 0.15,
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts for a scene's objects: jittered boxes and, a share `points` of them, inner points.

    Args:
        low: side of the masks, a fourth of the side of the SAM part's square.
        sloppy: most that an edge of a box is off, as a deviation in units of its side. A language
            model's boxes are rough: the mask branch has to find the thing that such a box means.

    Returns:
        Boxes, (count, 4) float32 in units of the square's side, and masks, (count, low, low) uint8.
    """
    visible = [i for i, o in enumerate(scene.objects) if (scene.labels == i + 1).any()]
    boxes = np.zeros((count, 4), np.float32)
    masks = np.zeros((count, low, low), np.uint8)
    cache: dict[int, np.ndarray] = {}
    for k in range(count):
        i = visible[int(rng.integers(len(visible)))]
        mask = scene.labels == i + 1
        if i not in cache:
            cache[i] = low_mask(mask, low)
        masks[k] = cache[i]
        x0, y0, x1, y1 = scene.objects[i].box
        if rng.random() < points:
            ys, xs = np.nonzero(mask)
            j = int(rng.integers(len(ys)))
            boxes[k] = np.array([xs[j], ys[j], xs[j], ys[j]]) + 0.5
        else:
            jitter = rng.normal(0, rng.uniform(0.02, sloppy), 4) * np.array([x1 - x0, y1 - y0] * 2)
            box = np.array([x0, y0, x1, y1]) + jitter
            boxes[k] = [box[0], box[1], max(box[2], box[0] + 2), max(box[3], box[1] + 2)]
    height, width = scene.labels.shape
    return sam_boxes(boxes, (height, width), 4 * low) / (4 * low), masks


def train_masks(
    recipe: Recipe,
    folder: Path,
    device: str = "cpu",
    resume: bool = False,
    probe: Callable[[nn.Module, nn.Module], dict[str, float]] | None = None,
    limit: int | None = None,
) -> nn.Module:
    """Train the SAM part; the checkpoint `masks.pt` holds `sam` and `prompt`."""
    seed_everything(recipe.seed)
    plan = recipe.masks
    sam = build_segmenter(recipe.segmenter).to(device)
    width = recipe.segmenter["prompt_encoder_config"]["hidden_size"]
    prompt = PromptToken(width).to(device)
    trained = optimisers([sam, prompt], plan.lr, plan.decay, plan.muon)
    modules = {"sam": sam, "prompt": prompt}
    run = Run(folder, "masks", modules, trained, plan.steps, plan.lr, plan.warmup)
    if resume:
        run.resume()
    side = recipe.segmenter["vision_config"]["image_size"]
    batches = MaskBatches(
        small=plan.small,
        full=plan.full,
        switch=plan.switch * rank_and_world()[1],
        scenes=plan.batch,
        scenes_full=plan.batch_full,
        prompts=plan.prompts,
        side=side,
        seed=recipe.seed + 10**8,
    )

    def learn(batch: dict[str, Any]) -> Tensor:
        with autocast(device, recipe.bf16):
            pixels = sam_pixels(batch["frames"])
            sparse = prompt(batch["boxes"])[:, :, None]
            sparse = sparse + plan.noise * sparse.detach().std() * torch.randn_like(sparse)
            embedding = encode(sam, pixels, batch["window"])
            logits, quality = decode(sam, embedding, sparse, batch["window"])
        loss, iou = mask_loss(logits.flatten(0, 1), batch["masks"].float().flatten(0, 1) / 255)
        run.track(loss=loss.mean(), iou=iou.mean())
        return loss.mean() + F.mse_loss(quality.flatten(), iou)

    check = partial(probe, sam, prompt) if probe else None
    run.loop(batches, learn, check, device, recipe.workers, plan.probe_every, limit)
    return sam
