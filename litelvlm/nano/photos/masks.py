"""Stage "masks" of the photograph model: SAM's decoder on the backbone's features, class-agnostic.

Boxes and points enter as one learned token, as in `train/masks.py`; no word or class is seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from litelvlm.nano.photos.cache import Data
from litelvlm.nano.photos.data import Photo
from litelvlm.nano.photos.tower import mirror_boxes
from litelvlm.nano.train.common import Run, autocast, optimisers, seed_everything
from litelvlm.nano.train.masks import PromptToken, decode, mask_loss

NOISE = 0.2  # of a prompt token's own deviation: [SEG] tokens never hit exactly


@dataclass(frozen=True)
class MaskBatches:
    """Makes batch `number`: features of B photos, P prompts each, and their masks."""

    data: Data
    batch: int = 4
    prompts: int = 6
    points: float = 0.1
    sloppy: float = 0.12
    seed: int = 2

    @cached_property
    def usable(self) -> list[Photo]:
        """Photos with a thing that is large enough; edges of composites are no edges."""
        some = [p for p in self.data.photos if p.source != "mix"]
        return [p for p in some if any(_whole(t) for t in p.things)]

    @cached_property
    def weights(self) -> np.ndarray:
        """How often each of them is drawn."""
        breadth = {"coco_union": 4.0, "ccp": 0.3, "car_parts": 0.3}
        raw = np.array([breadth.get(p.source, 1.0) for p in self.usable])
        return raw / raw.sum()

    def __call__(self, number: int) -> dict[str, Any]:
        """eighth, sixteenth, deepest features; boxes (B, P, 4) 0..1; masks (B, P, LOW, LOW)."""
        rng = np.random.default_rng((self.seed, number))
        chosen = [self.usable[i] for i in rng.choice(len(self.usable), self.batch, p=self.weights)]
        maps = self.data.features([p.image for p in chosen])
        rows, boxes = [], []
        for photo in chosen:
            things = [t for t in photo.things if _whole(t)]
            for _ in range(self.prompts):
                thing = things[int(rng.integers(len(things)))]
                rows.append(thing.row)
                boxes.append(self._prompt(thing.box, thing.row, rng))
        masks = torch.from_numpy(self.data.masks[rows]).unflatten(0, (self.batch, self.prompts))
        box = torch.tensor(np.stack(boxes), dtype=torch.float32).view(self.batch, self.prompts, 4)
        if rng.random() < 0.5:
            maps, masks, box = [m.flip(3) for m in maps], masks.flip(3), mirror_boxes(box)
        return {"maps": maps, "masks": masks, "boxes": box}

    def _prompt(self, box: tuple[float, ...], row: int, rng: np.random.Generator) -> np.ndarray:
        inside = self.data.masks[row] > 200
        if rng.random() < self.points and inside.any():
            ys, xs = np.nonzero(inside)
            j = int(rng.integers(len(ys)))
            return (np.array([xs[j], ys[j], xs[j], ys[j]]) + 0.5) / len(inside)
        edge = np.array(box)
        edge = edge + rng.normal(0, rng.uniform(0, self.sloppy), 4) * np.tile(
            edge[2:] - edge[:2], 2
        )
        return np.array([*edge[:2], max(edge[2], edge[0] + 0.01), max(edge[3], edge[1] + 0.01)])


def _whole(thing: Any) -> bool:
    return thing.single and thing.area > 0.002


def train_masks(
    sam: Any,
    prompt: PromptToken,
    batches: MaskBatches,
    folder: Path,
    steps: int,
    resume: bool = False,
    probe: Callable[[Any, PromptToken], dict[str, float]] | None = None,
    lr: float = 1e-3,
    probe_every: int = 250,
    limit: int | None = None,
) -> None:
    """Train the mask branch; the checkpoint `masks.pt` holds `sam` and `prompt`."""
    seed_everything(batches.seed)
    sam.vision_encoder.backbone.requires_grad_(False)
    trained = optimisers([sam, prompt], lr, 0.02, 2.0)
    run = Run(folder, "masks", {"sam": sam, "prompt": prompt}, trained, steps, lr, 50)
    if resume:
        run.resume()

    def learn(batch: dict[str, Any]) -> Tensor:
        with autocast("cpu"):
            embedding = sam.vision_encoder.fuse(*batch["maps"]).float()
            sparse = prompt(batch["boxes"])[:, :, None]
            sparse = sparse + NOISE * sparse.detach().std() * torch.randn_like(sparse)
            logits, quality = decode(sam, embedding, sparse)
        target = batch["masks"].flatten(0, 1).float() / 255
        loss, iou = mask_loss(logits.flatten(0, 1), target)
        run.track(loss=loss.mean(), iou=iou.mean())
        return loss.mean() + F.mse_loss(quality.flatten(), iou)

    def check() -> dict[str, float]:
        return probe(sam, prompt) if probe else {}

    run.loop(batches, learn, check, "cpu", 0, probe_every, limit)
