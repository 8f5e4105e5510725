"""Stage "language" of the photograph model: projector, LLaMA and [SEG] head on real phrases.

The loss is nano's (`train/grounder.py`). The mask branch learns on with it, from [SEG] tokens and
from boxes of the same things. Phrases of things that are not there teach the mask branch's own
estimate alone: it is to be low for them.
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
from torch import Tensor, nn

from litelvlm.nano.photos.cache import Data
from litelvlm.nano.photos.data import GRID, Photo, mirrored, phrases
from litelvlm.nano.photos.tower import cover_of, hidden, mirror_boxes, turned
from litelvlm.nano.train.common import Run, autocast, optimisers, seed_everything
from litelvlm.nano.train.frozen import Frozen
from litelvlm.nano.train.grounder import Grounder
from litelvlm.nano.train.language_batches import PER_TURN, spread
from litelvlm.nano.train.masks import decode, mask_loss
from litelvlm.nano.train.recipe import LanguagePlan
from litelvlm.nano.train.tokens import PromptTokens

USUAL = 0.06  # size of a weight that steps of the plain rate suit
COMPLETE = ("coco_union", "voc_aug", "mix")  # sets in which what has no mask is mostly ground


@dataclass(frozen=True)
class PhotoBatches:
    """Makes batch `number` in the form of `LanguageBatches`, features in place of pictures.

    called: stored mask -> another name of the thing under it, "woman" of a person, say.
    absent: turns of a photo, at most, that ask for what is not there.
    """

    data: Data
    tokens: PromptTokens
    called: dict[int, str]
    batch: int = 2
    turns: int = 8
    absent: int = 1
    length: int = 36
    seed: int = 3

    @cached_property
    def table(self) -> dict[str, int]:
        """Class -> its number, from 1 on."""
        return {name: number + 1 for number, name in enumerate(self.data.classes)}

    def __call__(self, number: int) -> dict[str, Any]:
        """`maps`, the features; the keys of `LanguageBatches`; and missing (B, E) bool."""
        rng = np.random.default_rng((self.seed, number))
        flip = bool(rng.random() < 0.5)
        rows: list[dict[str, Any]] = []
        names: list[str] = []
        while len(rows) < self.batch:
            photo = self.data.photos[int(rng.choice(len(self.data.photos), p=self.data.weights))]
            row = self.row(photo, flip, rng)
            if row is not None:
                names.append(photo.image)
                rows.append(row)
        maps = self.data.features(names)
        batch: dict[str, Any] = {key: torch.stack([r[key] for r in rows]) for key in rows[0]}
        longest = int((batch["ids"] != self.tokens.ids["pad"]).sum(-1).max())
        batch["ids"] = batch["ids"][..., :longest]
        most = int((batch["real"] | batch["missing"]).sum(-1).max())
        batch |= {key: batch[key][:, :most] for key in (*PER_TURN, "missing")}
        return batch | {"maps": [m.flip(3) for m in maps] if flip else maps, "sam_window": None}

    def row(self, photo: Photo, flip: bool, rng: np.random.Generator) -> dict[str, Any] | None:
        """One photo's part of a batch; None where nothing can be said of it."""
        lines = [s for s in phrases(photo, rng, self.called) if len(s.targets) == 1]
        if not lines:
            return None
        things = photo.things
        cover = turned(cover_of(self.data.masks, [t.row for t in things]), flip)  # (T, N)
        gone = [
            name
            for name in rng.permutation(self.data.classes)[:12]
            if not any(name in self.data.alike.get(t.name, ()) for t in things)
        ][: self.absent]
        order = spread(rng, [s.kind for s in lines])
        picked = [lines[k] for k in order][: self.turns - len(gone)]
        count = len(picked)
        texts = [mirrored(s.text) if flip else s.text for s in picked]
        texts += [f"the {name}" for name in gone]
        fill = self.turns - len(texts)
        texts += [texts[0]] * fill
        real = torch.arange(self.turns) < count
        missing = (torch.arange(self.turns) >= count) & (
            torch.arange(self.turns) < self.turns - fill
        )
        said = picked + [picked[0]] * (self.turns - count)
        ids, state = self.tokens.turns(texts, self.length)

        share, best = cover.max(0)
        kinds = torch.tensor([self.table.get(t.name, -1) for t in things])
        ground = 0 if photo.source in COMPLETE else -1
        kind = torch.where(share > 0.4, kinds[best], torch.where(share < 0.02, ground, -1))
        boxes = torch.tensor([t.box for t in things])
        boxes = mirror_boxes(boxes) if flip else boxes
        targets = [s.targets[0] for s in said]
        masks = torch.from_numpy(self.data.masks[[things[t].row for t in targets]])
        masks = masks.flip(2) if flip else masks
        none = torch.zeros(GRID * GRID)
        return {
            "ids": ids,
            "state": state,
            "kind": kind,
            "place": boxes[best],
            "frame_place": boxes[best],
            "cover": torch.stack([cover[t] for t in targets]),
            "fits": torch.stack([cover[list(s.fits)].amax(0) for s in said]),
            "landmark": torch.stack(
                [none if s.landmark is None else cover[s.landmark] for s in said]
            ),
            "box": boxes[targets],
            "frame_box": boxes[targets],
            "masks": masks,
            "real": real,
            "missing": missing,
        }


def read_out(states: Tensor, waves: Tensor, ridge: float = 1.0) -> Tensor:
    """(waves, W): the linear map from [SEG] states (M, W) to waves of boxes (M, waves)."""
    gram = states.T @ states / len(states)
    gram = gram + ridge * gram.diagonal().mean() * 1e-3 * torch.eye(len(gram))
    return torch.linalg.solve(gram, states.T @ waves / len(states)).T


def frozen_features(clip: Any, sam: Any, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
    """H (B, N, W), without gradient, and the mask branch's embedding (B, C, h, w)."""
    return hidden(clip, *maps[1:]), sam.vision_encoder.fuse(*maps).float()


def boxed_loss(
    frozen: Frozen, embedding: Tensor, batch: dict[str, Any], turns: int = 2
) -> tuple[Tensor, Tensor]:
    """Mask loss and IoU of the first turns' things from jittered boxes."""
    box = batch["frame_box"][:, :turns]
    side = (box[..., 2:] - box[..., :2]).repeat(1, 1, 2)
    sparse = frozen.prompt(box + torch.randn_like(box) * side * 0.05)[:, :, None]
    logits, _ = decode(frozen.sam, embedding, sparse)
    masks = batch["masks"][:, :turns].flatten(0, 1).float() / 255
    loss, iou = mask_loss(logits.flatten(0, 1), masks)
    return loss.mean(), iou.mean()


def paced(module: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups whose steps are in proportion to the size of their weights.

    H and image tokens have scales of their own: a plain rate destroys a projector between them.
    """
    return [
        {
            "params": [part],
            "weight_decay": 0.0,
            "scale": max(float(part.detach().square().mean().sqrt()), 1e-3) / USUAL,
        }
        for part in module.parameters()
    ]


def fit_projector(
    projector: nn.Module, states: Tensor, tokens: Tensor, steps: int = 400, rows: int = 4096
) -> float:
    """Fit a projector so that H, `states` (M, W), gives the image tokens (M, V) that are known.

    Returns the share of their variance that it explains.
    """
    learner = torch.optim.AdamW(paced(projector), 2e-3)
    spread = tokens.var(0).mean()
    loss = spread
    for step in range(steps):
        for group in learner.param_groups:
            group["lr"] = 2e-3 * (1 - step / steps) * group["scale"]
        rows_now = torch.randint(len(states), (rows,))
        loss = F.mse_loss(projector(states[rows_now]), tokens[rows_now].float()) / spread
        learner.zero_grad()
        loss.backward()
        learner.step()
    return 1 - float(loss.detach())


def train_language(
    grounder: Grounder,
    frozen: Frozen,
    batches: PhotoBatches,
    plan: LanguagePlan,
    folder: Path,
    resume: bool = False,
    probe: Callable[[Grounder, Frozen], dict[str, float]] | None = None,
    limit: int | None = None,
) -> None:
    """Train; the checkpoint `language.pt` holds `grounder`, `sam` and `prompt`."""
    seed_everything(batches.seed)
    sam, prompt = frozen.sam, frozen.prompt
    for module in (sam, prompt):
        module.requires_grad_(True)
    sam.vision_encoder.backbone.requires_grad_(False)
    learning = [grounder.llama, grounder.seg_head, grounder.helpers]
    trained = optimisers(learning, plan.lr, plan.decay, plan.muon)
    for group in paced(grounder.projector):
        trained[0].add_param_group(group)
    drawn_parts = [p for m in (sam, prompt) for p in m.parameters() if p.requires_grad]
    group = {"params": drawn_parts, "weight_decay": 0.0, "scale": plan.decoder}
    trained[0].add_param_group(group)
    modules = {"grounder": grounder, "sam": sam, "prompt": prompt}
    run = Run(folder, "language", modules, trained, plan.steps, plan.lr, plan.warmup)
    if resume:
        run.resume()

    def learn(batch: dict[str, Any]) -> Tensor:
        for parameter in drawn_parts:
            parameter.requires_grad_(run.step >= plan.decoder_from)
        with autocast("cpu"):
            patches, embedding = frozen_features(frozen.clip, sam, batch["maps"])
            drawn = embedding if run.step >= plan.masks_from else None
            out = grounder.losses(frozen, patches, drawn, batch, plan)
            if run.step >= plan.decoder_from:
                out["boxed"], out["box_giou"] = boxed_loss(frozen, embedding, batch)
                out["loss"] = out["loss"] + out["boxed"]
        run.track(**out)
        return out["loss"]

    def check() -> dict[str, float]:
        return probe(grounder, frozen) if probe else {}

    run.loop(batches, learn, check, "cpu", 0, plan.probe_every, limit)
