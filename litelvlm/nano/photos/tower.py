"""Stage "clip" of the photograph model: the dual encoder on features of a frozen backbone.

The similarity is reversed by training, openly: the logit that a phrase is true of a patch is MINUS
the similarity that token selection ranks, `ln_post(H) @ proj` with the text embedding. So a
phrase's own patches score below the other things of the picture, and those not above the ground.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litelvlm.nano.photos.cache import Data
from litelvlm.nano.photos.data import GRID, Photo, mirrored, phrases
from litelvlm.nano.train.clip import block, text_features
from litelvlm.nano.train.common import Run, autocast, optimisers, seed_everything

PLACES = GRID * GRID
CALM = 0.15  # weight of the caption loss
DROP = 0.1  # share of the backbone's channels that a batch does not see


class Side(nn.Module):
    """What training needs beside the dual encoder: scale and shift of the logits, and the box and
    place of what lies under a patch, read linearly from H."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.box = nn.Linear(width, 6)
        self.scale = nn.Parameter(torch.tensor([1.0, -2.5]))


def tower(visual: Any, stem: Tensor) -> tuple[Tensor, Tensor]:
    """H (B, N, W) and the class token's embedding (B, E) from patch embeddings (B, W, h, w)."""
    x = stem.flatten(2).transpose(1, 2) + visual.positional_embedding[1:]
    first = (visual.class_embedding + visual.positional_embedding[0]).expand(len(x), 1, -1)
    x = visual.ln_pre(torch.cat([first, x], 1))
    *blocks, last = visual.transformer.resblocks
    for layer in blocks:
        x = block(layer, x)
    seen = last.ln_1(x)
    cls = x[:, :1] + last.attn(seen[:, :1], seen, seen, need_weights=False)[0]
    cls = cls + last.mlp(last.ln_2(cls))
    return x[:, 1:], visual.ln_post(cls[:, 0]) @ visual.proj


@torch.no_grad()
def hidden(clip: Any, sixteenth: Tensor, deepest: Tensor) -> Tensor:
    """H (B, N, W) float32 of cached features, without gradient."""
    return tower(clip.visual, clip.visual.conv1.fuse(sixteenth, deepest))[0].float()


def cover_of(masks: np.ndarray, rows: list[int]) -> Tensor:
    """(T, N) float32, share of each patch that each stored mask fills."""
    low = torch.from_numpy(masks[rows]).float() / 255
    return F.avg_pool2d(low[None], low.shape[-1] // GRID)[0].flatten(1)


@dataclass(frozen=True)
class TowerBatches:
    """Makes batch `number`: cached features, names, phrases and what patch each is true of.

    pasted: share of photos with a thing of another photo laid over them, in the features.
    """

    data: Data
    context: int
    batch: int = 8
    several: int = 4
    pool: int = 64
    turns: int = 4
    pasted: float = 0.5
    seed: int = 1

    @cached_property
    def names(self) -> list[str]:
        """All names, in order."""
        return sorted(self.data.alike)

    @cached_property
    def shown(self) -> list[str]:
        """All photos without masks, in order."""
        return sorted(self.data.labelled)

    def __call__(self, number: int) -> dict[str, Any]:
        """B masked and C captioned photos, P names, Q phrases, T = P + Q + B + C texts.

        Returns sixteenth, deepest (B + C, ...) features; texts (T, context) ids; truth, care
        (B, N, P): share of a patch that a name fills, and how sure that is; real, sure (C, P)
        likewise of a whole photo; owner (Q,) and asked (Q, N) of the phrases; boxes (B, N, 4)
        edges from a patch's centre and on (B, N), where a single thing lies.
        """
        from open_clip import tokenize

        rng = np.random.default_rng((self.seed, number))
        flip = bool(rng.random() < 0.5)
        picks = rng.choice(len(self.data.photos), self.batch, p=self.data.weights)
        chosen = [self.data.photos[i] for i in picks]
        said = [self.shown[i] for i in rng.integers(0, len(self.shown), self.several)]
        sixteenth, deepest = self.data.features([p.image for p in chosen] + said, (16, 32))
        alike, masks = self.data.alike, self.data.masks
        covers = [cover_of(masks, [t.row for t in p.things]) for p in chosen]
        for i in range(self.batch):
            if rng.random() < self.pasted:
                maps = (sixteenth[i], deepest[i])
                chosen[i], covers[i] = self.paste(chosen[i], covers[i], maps, rng)
        covers = [turned(cover, flip) for cover in covers]

        have = [{t.name for t in p.things} for p in chosen]
        told = [self.data.labelled[image] for image in said]
        pool = sorted(set().union(*have, *told))
        extra = [self.names[i] for i in rng.permutation(len(self.names))[: self.pool]]
        pool += [name for name in extra if name not in pool][: max(0, self.pool - len(pool))]
        truth = torch.zeros(self.batch, PLACES, len(pool))
        care = torch.ones_like(truth)
        for i, photo in enumerate(chosen):
            rows = {n: [j for j, t in enumerate(photo.things) if t.name == n] for n in have[i]}
            masked = covers[i].amax(0) > 0.2
            for k, name in enumerate(pool):
                if name in rows:
                    truth[i, :, k] = covers[i][rows[name]].amax(0)
                elif any(name in alike.get(h, ()) for h in have[i]):
                    care[i, :, k] = 0.0
                else:  # without a mask it may still be there, elsewhere
                    care[i, :, k] = torch.where(masked, 1.0, 0.5)
        real = torch.tensor([[name in names for name in pool] for names in told]).float()
        unsure = [[any(n in alike.get(h, ()) for h in names) for n in pool] for names in told]
        sure = torch.where(real > 0, 4.0, 1.0 - torch.tensor(unsure).float())

        owner, asked, texts = [], [], []
        for i, photo in enumerate(chosen):
            lines = phrases(photo, rng)
            for k in rng.permutation(len(lines))[: self.turns]:
                texts.append(mirrored(lines[k].text) if flip else lines[k].text)
                owner.append(i)
                asked.append(covers[i][list(lines[k].targets)].amax(0))
        whole = ["a photo of " + ", ".join(sorted(names)) for names in have]
        whole += [
            str(rng.choice(self.data.captions[image]))
            if image in self.data.captions
            else f"a photo of a {next(iter(self.data.labelled[image]))}"
            for image in said
        ]
        whole = [mirrored(line) if flip else line for line in whole]
        boxes = torch.zeros(self.batch, PLACES, 4)
        on = torch.zeros(self.batch, PLACES, dtype=torch.bool)
        for i, photo in enumerate(chosen):
            single = [j for j, t in enumerate(photo.things) if t.single and t.area > 0.003]
            if single:
                box = torch.tensor([photo.things[j].box for j in single])
                box = mirror_boxes(box) if flip else box
                share, best = covers[i][single].max(0)
                on[i], boxes[i] = share > 0.5, box[best] - centres()
        if flip:
            sixteenth, deepest = sixteenth.flip(3), deepest.flip(3)
        lines = [f"the {name}" for name in pool] + texts + whole
        return {
            "sixteenth": sixteenth,
            "deepest": deepest,
            "texts": tokenize(lines, context_length=self.context),
            "truth": truth,
            "care": care,
            "real": real,
            "sure": sure,
            "owner": torch.tensor(owner, dtype=torch.int64),
            "asked": torch.stack(asked) if asked else torch.zeros(0, PLACES),
            "boxes": boxes,
            "on": on,
        }

    def paste(
        self, photo: Photo, cover: Tensor, maps: tuple[Tensor, ...], rng: np.random.Generator
    ) -> tuple[Photo, Tensor]:
        """Lay a thing of another photo over the features `maps` (C, h, w), in place.

        Returns the photo and the shares (T, N) of its things as they are then; a thing that is
        mostly hidden is none of them any more.
        """
        donor = self.data.photos[int(rng.choice(len(self.data.photos), p=self.data.weights))]
        things = [t for t in donor.things if t.single and 0.003 < t.area < 0.2]
        if not things or donor.source in ("ccp", "car_parts"):
            return photo, cover
        thing = things[int(rng.integers(len(things)))]
        shape = cover_of(self.data.masks, [thing.row]).view(GRID, GRID)
        given = self.data.features([donor.image], (16, 32))
        box = torch.tensor(thing.box)
        if rng.random() < 0.5:
            shape, given, box = shape.flip(1), [g.flip(3) for g in given], mirror_boxes(box)
        inside = shape > 0.4
        if not inside.any():
            return photo, cover
        ys, xs = (axis.tolist() for axis in torch.nonzero(inside, as_tuple=True))
        dy, dx = (int(rng.integers(-min(at), GRID - max(at))) for at in (ys, xs))
        shape, inside = (x.roll((dy, dx), (0, 1)) for x in (shape, inside))
        for own, other in zip(maps, given, strict=True):
            k = own.shape[-1] // GRID  # places a patch, along a side
            here = inside.repeat_interleave(k, 0).repeat_interleave(k, 1)
            own[:, here] = other[0].roll((dy * k, dx * k), (1, 2))[:, here]
        left = cover * ~inside.flatten()
        seen = (left.sum(1) > 0.4 * cover.sum(1)).tolist()
        edges = (box + torch.tensor([dx, dy, dx, dy]) / GRID).clamp(0, 1).tolist()
        new = replace(thing, box=tuple(edges))
        kept = [t for t, visible in zip(photo.things, seen, strict=True) if visible]
        shares = torch.cat([left[seen], (shape * inside).view(1, -1)])
        return replace(photo, things=(*kept, new)), shares


def turned(cover: Tensor, flip: bool) -> Tensor:
    """(T, N) shares of patches, of the mirrored picture where `flip`."""
    return cover.view(-1, GRID, GRID).flip(2).flatten(1) if flip else cover


def mirror_boxes(box: Tensor) -> Tensor:
    """Boxes (..., 4) x0, y0, x1, y1 in 0..1 as a mirror shows them."""
    return torch.stack([1 - box[..., 2], box[..., 1], 1 - box[..., 0], box[..., 3]], -1)


def centres() -> Tensor:
    """(N, 4) x, y, x, y of the patches' centres, 0..1."""
    y, x = np.divmod(np.arange(PLACES), GRID)
    return torch.tensor(np.stack([x, y, x, y], 1) + 0.5, dtype=torch.float32) / GRID


def tower_losses(clip: Any, side: Side, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The losses of a batch of `TowerBatches`."""
    count, pool = len(batch["truth"]), batch["truth"].shape[-1]
    seen = [F.dropout2d(batch[key], DROP) for key in ("sixteenth", "deepest")]
    stem = clip.visual.conv1.fuse(*seen)
    states, pooled = tower(clip.visual, stem)
    patches = clip.visual.ln_post(states) @ clip.visual.proj
    text = F.normalize(text_features(clip, batch["texts"]).float(), dim=-1)
    names, asked, whole = text.split(
        [pool, len(batch["owner"]), len(text) - pool - len(batch["owner"])]
    )
    scale, shift = side.scale[0].exp(), side.scale[1]
    logits = -scale * (patches.float() @ names.T) + shift  # (B + C, N, P)
    out: dict[str, Tensor] = {}

    z, truth, care = logits[:count], batch["truth"], batch["care"]
    bce = F.binary_cross_entropy_with_logits(z, truth, reduction="none") * care
    there = truth.sum(1) > 0.5
    out["dense"] = bce[there.unsqueeze(1).expand_as(bce)].mean() * 3 + bce.mean() * 3
    out["dice"] = dice(z.transpose(1, 2)[there], truth.transpose(1, 2)[there])
    on = truth.amax(-1) > 0.5
    rivals = z.masked_fill(care == 0, -1e4)[on]
    out["which"] = F.cross_entropy(rivals, truth[on].argmax(-1))
    with torch.no_grad():
        out["named"] = (rivals.argmax(-1) == truth[on].argmax(-1)).float().mean()
    if len(asked):
        own = patches[batch["owner"]].float()
        za = -scale * (own @ asked[:, :, None])[..., 0] + shift  # (Q, N)
        bce = F.binary_cross_entropy_with_logits(za, batch["asked"])
        out["asked"] = bce * 4 + dice(za, batch["asked"])
    best = logits[count:].topk(24, dim=1).values.mean(1)  # (C, P), several-instance learning
    bce = F.binary_cross_entropy_with_logits(best, batch["real"], reduction="none")
    out["several"] = (bce * batch["sure"]).sum() / batch["sure"].sum().clamp(min=1) * 2

    pair = clip.logit_scale.exp().clamp(max=30) * F.normalize(pooled.float(), dim=-1) @ whole.T
    same = torch.arange(len(pair))
    out["pair"] = (F.cross_entropy(pair, same) + F.cross_entropy(pair.T, same)) * CALM
    facts = side.box(side.norm(states.float()))
    place = centres()[:, :2].expand(len(facts), -1, -1)
    out["place"] = F.smooth_l1_loss(facts[..., 4:], place, beta=0.05) * 10
    if batch["on"].any():
        edges = facts[:count][batch["on"]][:, :4]
        out["edges"] = F.smooth_l1_loss(edges, batch["boxes"][batch["on"]], beta=0.05) * 10
    return out


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """Mean dice loss of (M, N) logits and shares."""
    found = logits.sigmoid()
    return (1 - (2 * (found * target).sum(1) + 1) / (found.sum(1) + target.sum(1) + 1)).mean()


def train_tower(
    clip: Any,
    side: Side,
    batches: TowerBatches,
    folder: Path,
    steps: int,
    resume: bool = False,
    probe: Callable[[Any, Side], dict[str, float]] | None = None,
    lr: float = 1e-3,
    probe_every: int = 250,
    limit: int | None = None,
) -> None:
    """Train the dual encoder; the checkpoint `clip.pt` holds `clip` and `side`."""
    seed_everything(batches.seed)
    clip.visual.conv1.backbone.requires_grad_(False)
    trained = optimisers([clip, side], lr, 0.05, 4.0)
    run = Run(folder, "clip", {"clip": clip, "side": side}, trained, steps, lr, 50)
    if resume:
        run.resume()

    def learn(batch: dict[str, Any]) -> Tensor:
        with autocast("cpu"):
            out = tower_losses(clip, side, batch)
        run.track(**out)
        return torch.stack([value for key, value in out.items() if key != "named"]).sum()

    def check() -> dict[str, float]:
        return probe(clip, side) if probe else {}

    run.loop(batches, learn, check, "cpu", 0, probe_every, limit)
