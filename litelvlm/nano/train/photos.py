"""Stages "clip" and "masks" of the photograph model, on cached features of a frozen backbone.

The similarity is reversed by training, openly: the logit that a phrase is true of a patch is MINUS
the similarity that token selection ranks, `ln_post(H) @ proj` with the text embedding. So a
phrase's own patches score below the other things of the picture, and those not above the ground.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litelvlm.models.backbone import WIDTHS, Backbone, PatchStem, PyramidEncoder
from litelvlm.nano.train.clip import block, text_features
from litelvlm.nano.train.photos_data import GRID, SYNONYMS, Photo, Thing, mirrored, phrases

log = logging.getLogger(__name__)
STRIDES = (4, 8, 16, 32)
SIDE = 384


class Features:
    """Backbone features of photos in int8 on disk, by photo."""

    def __init__(self, cache: Path) -> None:
        order = json.loads((cache / "order.json").read_text())
        self.rows = {image: row for row, image in enumerate(order)}
        self.scales = torch.load(cache / "scales.pt")
        self.maps = []
        for stride, width in zip(STRIDES, WIDTHS, strict=True):
            side = SIDE // stride
            table = np.memmap(cache / f"s{stride}.i8", np.int8, "r")
            self.maps.append(table.reshape(-1, side, side, width))

    def __call__(self, images: list[str], strides: tuple[int, ...]) -> list[Tensor]:
        """(B, C, S / stride, S / stride) float32 a stride."""
        rows = [self.rows[image] for image in images]
        found = []
        for stride in strides:
            number = STRIDES.index(stride)
            value = torch.from_numpy(np.stack([self.maps[number][row] for row in rows]))
            found.append((value.float() * self.scales[number]).permute(0, 3, 1, 2))
        return found


def tower(visual: nn.Module, stem: Tensor, whole: bool = True) -> tuple[Tensor, Tensor | None]:
    """H (B, N, W) from patch embeddings (B, W, 24, 24), and the pooled embedding (B, E)."""
    x = stem.flatten(2).transpose(1, 2) + visual.positional_embedding[1:]
    first = (visual.class_embedding + visual.positional_embedding[0]).expand(len(x), 1, -1)
    x = visual.ln_pre(torch.cat([first, x], 1))
    blocks = visual.transformer.resblocks
    if not getattr(visual, "idle", False):
        for layer in blocks[:-1]:
            x = block(layer, x)
    pooled = visual.ln_post(block(blocks[-1], x))[:, 1:].mean(1) @ visual.proj if whole else None
    return x[:, 1:], pooled


@torch.no_grad()
def scale_inputs(conv: nn.Conv2d, spread: Tensor, total: int) -> None:
    """Draw the weights of a 1 x 1 convolution for inputs of deviations `spread` (C,)."""
    nn.init.normal_(conv.weight)
    conv.weight.mul_((1 / (spread * total**0.5)).view(1, -1, 1, 1))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def adam(modules: list[nn.Module], lr: float) -> list[torch.optim.Optimizer]:
    """AdamW alone: Muon's products in bfloat16 take seconds on processors without such units."""
    every = {id(p): p for m in modules for p in m.parameters() if p.requires_grad}
    return [torch.optim.AdamW(every.values(), lr=lr, betas=(0.9, 0.98), weight_decay=0.02)]


def cover_of(masks: np.ndarray, things: list[Thing]) -> Tensor:
    """(T, N) float32, share of each patch that each thing fills."""
    low = torch.from_numpy(np.stack([masks[t.row] for t in things])).float() / 255
    return F.avg_pool2d(low[None], 4)[0].flatten(1)


def train_tower(
    clip: nn.Module,
    features: Features,
    photos: list[Photo],
    masks: np.ndarray,
    captions: list[dict[str, Any]],
    nouns: dict[str, set[str]],
    folder: Path,
    minutes: float,
    probe: Any = None,
    batch: int = 8,
    seed: int = 1,
    start: dict[str, Any] | None = None,
) -> nn.Module:
    """Train the dual encoder; the checkpoint `tower.pt` holds `clip`, `where` and `bias`.

    `nouns`: image of a captioned or named photo -> names of what it shows.
    """
    from open_clip import tokenize

    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    visual = clip.visual
    width = visual.conv1.out_channels
    where = nn.Linear(width, 6)  # box edges from the patch's centre, and its place
    bias = nn.Parameter(torch.tensor([1.0, -2.5]))  # log scale and shift of the logits
    clip.bias_and_scale = bias
    if start is not None:
        clip.load_state_dict(start["clip"])
        where.load_state_dict(start["where"])
    learning = [p for p in clip.parameters() if p.requires_grad]
    names = sorted({t.name for p in photos for t in p.things})
    others = sorted({n for v in nouns.values() for n in v} - set(names))
    bank = names + others
    alike = {n: {n, *SYNONYMS.get(n, ())} for n in names}
    person = {
        "man",
        "woman",
        "boy",
        "girl",
        "people",
        "child",
        "lady",
        "guy",
        "player",
        "kid",
        "men",
        "women",
        "group",
        "skier",
        "surfer",
        "rider",
    }
    alike["person"] |= person
    for n in ("hair", "skin", "shoes", "pants", "dress", "coat", "jacket", "shirt"):
        alike.setdefault(n, set()).add("person")
    alike["person"] |= {"hair", "skin", "shoes", "pants", "dress", "coat", "jacket", "shirt"}
    counts: dict[str, int] = {}
    for p in photos:
        for n in {t.name for t in p.things}:
            counts[n] = counts.get(n, 0) + 1
    weight = np.array(
        [max((counts[t.name] ** -0.5 for t in p.things), default=0.0) for p in photos]
    )
    breadth = np.array(
        [
            3.0 if p.source == "coco_union" else 0.25 if p.source in ("ccp", "car_parts") else 1.0
            for p in photos
        ]
    )
    weight = weight * breadth / (weight * breadth).sum()
    labelled = [r for r in captions if nouns.get(r["image"])]
    ids = {n: tokenize([f"the {n}"], context_length=clip.context_length)[0] for n in bank}
    trained = adam([clip, where], 1e-3)
    y, x = np.divmod(np.arange(GRID * GRID), GRID)
    centre = torch.tensor(np.stack([x, y, x, y], 1), dtype=torch.float32) / GRID + 0.5 / GRID
    begun, saved, step, sums = time.time(), time.time(), 0, {}
    while (done := (time.time() - begun) / (60 * minutes)) < 1:
        rate = min(1.0, (step + 1) / 25, (1 - done) / 0.75) * 1e-3
        for o in trained:
            for g in o.param_groups:
                g["lr"] = rate * g.get("scale", 1.0)
        chosen = [photos[i] for i in rng.choice(len(photos), batch, p=weight)]
        said = [labelled[i] for i in rng.integers(0, len(labelled), batch // 2)]
        images = [p.image for p in chosen] + [r["image"] for r in said]
        A, B = features(images, (16, 32))
        flip = rng.random() < 0.5
        if flip:
            A, B = A.flip(3), B.flip(3)
        H, pooled = tower(visual, visual.conv1.fuse(A, B), whole=False)
        patches = visual.ln_post(H) @ visual.proj

        # Texts: all classes of the batch, as many others, phrases, one caption a picture.
        have = [{t.name for t in p.things} for p in chosen]
        shown = [nouns[r["image"]] for r in said]
        pool = sorted(set().union(*have, *shown))
        pool += [bank[i] for i in rng.choice(len(bank), 40, replace=False) if bank[i] not in pool]
        asked, owner, goal = [], [], []
        covers = []
        for i, p in enumerate(chosen):
            cover = cover_of(masks, list(p.things)) if p.things else torch.zeros(0, GRID * GRID)
            if flip:
                cover = cover.view(-1, GRID, GRID).flip(2).flatten(1)
            covers.append(cover)
            told = [s for s in phrases(p, rng)]
            for k in rng.permutation(len(told))[:4]:
                s = told[k]
                asked.append(mirrored(s.text) if flip else s.text)
                owner.append(i)
                goal.append(cover[list(s.targets)].amax(0))
        lines = [(asked[owner.index(i)] if i in owner else "a picture") for i in range(batch)]
        lines += [
            str(rng.choice(r["captions"])) if "captions" in r else f"a photo of a {r['name']}"
            for r in said
        ]
        if flip:
            lines = [mirrored(t) for t in lines]
        texts = torch.stack([ids[n] for n in pool])
        texts = torch.cat([texts, tokenize(asked + lines, context_length=clip.context_length)])
        t = F.normalize(text_features(clip, texts), dim=-1)
        t_pool, t_asked, t_lines = t.split([len(pool), len(asked), len(lines)])
        scale = bias[0].exp()
        logits = -scale * (patches @ t_pool.T) + bias[1]  # (B, N, P)

        losses: dict[str, Tensor] = {}
        truth = torch.zeros(batch, GRID * GRID, len(pool))
        care = torch.ones(batch, GRID * GRID, len(pool))
        for i, p in enumerate(chosen):
            anything = (
                covers[i].amax(0) > 0.2
                if len(covers[i])
                else torch.zeros(GRID * GRID, dtype=torch.bool)
            )
            for k, n in enumerate(pool):
                own = [j for j, th in enumerate(p.things) if th.name == n]
                if own:
                    truth[i, :, k] = covers[i][own].amax(0)
                elif any(n in alike.get(h, ()) for h in have[i]):
                    care[i, :, k] = 0.0
                else:  # elsewhere in the picture it may be there without a mask
                    care[i, :, k] = torch.where(
                        anything, 1.0, 1.0 if p.source == "coco_union" and n in names else 0.5
                    )
        z = logits[:batch]
        bce = F.binary_cross_entropy_with_logits(z, truth, reduction="none") * care
        there = truth.sum(1) > 0.5
        losses["dense"] = bce[there.unsqueeze(1).expand_as(bce)].mean() * 3 + bce.mean() * 3
        prob = z.sigmoid()
        dice = 1 - (2 * (prob * truth).sum(1) + 1) / (prob.sum(1) + truth.sum(1) + 1)
        losses["dice"] = dice[there].mean()
        # Which of the names: across names at the patches of things.
        on = truth.amax(-1) > 0.5
        choose = z.masked_fill(care == 0, -1e4)
        losses["which"] = F.cross_entropy(choose[on], truth[on].argmax(-1))
        if asked:
            g = torch.stack(goal)
            own = patches[owner]
            za = -scale * (own @ t_asked[:, :, None])[..., 0] + bias[1]
            pa = za.sigmoid()
            losses["asked"] = (
                F.binary_cross_entropy_with_logits(za, g) * 4
                + (1 - (2 * (pa * g).sum(1) + 1) / (pa.sum(1) + g.sum(1) + 1)).mean()
            )
        zc = logits[batch:].topk(24, dim=1).values.mean(1)  # (b, P)
        real = torch.tensor([[n in s for n in pool] for s in shown]).float()
        unsure = torch.tensor(
            [
                [any(n in alike.get(h, ()) or h in alike.get(n, ()) for h in s) for n in pool]
                for s in shown
            ]
        )
        weigh = torch.where(real > 0, 4.0, torch.where(unsure, 0.0, 1.0))
        losses["several"] = (
            (F.binary_cross_entropy_with_logits(zc, real, reduction="none") * weigh).sum()
            / weigh.sum()
            * 2
        )
        pooled = (visual.ln_post(H).mean(1) @ visual.proj).negative()
        pair = clip.logit_scale.exp().clamp(max=30) * F.normalize(pooled, dim=-1) @ t_lines.T
        same = torch.arange(len(pair))
        losses["pair"] = (F.cross_entropy(pair, same) + F.cross_entropy(pair.T, same)) * 0.15
        facts = where(F.layer_norm(H, (width,)))
        losses["place"] = (
            F.smooth_l1_loss(facts[..., 4:], centre[:, :2].expand(len(H), -1, -1), beta=0.05) * 10
        )
        edges = []
        for i, p in enumerate(chosen):
            singles = [j for j, th in enumerate(p.things) if th.single and th.area > 0.003]
            if singles:
                c_s = covers[i][singles]
                best = c_s.argmax(0)
                hit = c_s.amax(0) > 0.5
                box = torch.tensor([p.things[j].box for j in singles])
                if flip:
                    box = torch.stack([1 - box[:, 2], box[:, 1], 1 - box[:, 0], box[:, 3]], 1)
                edges.append(
                    F.smooth_l1_loss(facts[i, hit, :4], (box[best] - centre)[hit], beta=0.05) * 10
                    if hit.any()
                    else facts.sum() * 0
                )
        if edges:
            losses["edges"] = torch.stack(edges).mean()
        loss = torch.stack(list(losses.values())).sum()
        for o in trained:
            o.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        for o in trained:
            o.step()
        step += 1
        for key, value in losses.items():
            sums.setdefault(key, []).append(float(value))
        last = (time.time() - begun) / (60 * minutes) >= 1
        if step % 50 == 0 or last:
            line = {k: round(sum(v) / len(v), 3) for k, v in sums.items()}
            sums = {}
            print(step, round(time.time() - begun), line, flush=True)
        if time.time() - saved > 90 or last:
            saved = time.time()
            torch.save(
                {"clip": clip.state_dict(), "where": where.state_dict()}, folder / "tower.pt"
            )
            if probe:
                print(step, probe(clip), flush=True)
    return clip


def build_stem(clip: nn.Module, backbone: Backbone, features: Features) -> nn.Module:
    """Put the backbone where the patch embedding of a CLIP stands."""
    width = clip.visual.conv1.out_channels
    stem = PatchStem(backbone, width)
    spread = [s * 127 / 6 for s in features.scales]
    scale_inputs(stem.fine, spread[2], 2 * WIDTHS[2])
    scale_inputs(stem.coarse, spread[3], 4 * WIDTHS[3])
    scale_inputs(stem.top, torch.full((1280,), 0.6), 4 * 1280)
    clip.visual.conv1 = stem
    backbone.requires_grad_(False)
    # The context of a patch is gathered at stride 32, in the stem; the blocks begin as identities.
    for layer in clip.visual.transformer.resblocks:
        nn.init.zeros_(layer.attn.out_proj.weight)
        nn.init.zeros_(layer.mlp.c_proj.weight)
        nn.init.zeros_(layer.attn.out_proj.bias)
        nn.init.zeros_(layer.mlp.c_proj.bias)
        layer.requires_grad_(False)
    clip.visual.idle = True
    return clip


def train_pyramid(
    sam: nn.Module,
    prompt: nn.Module,
    features: Features,
    photos: list[Photo],
    masks: np.ndarray,
    folder: Path,
    minutes: float,
    probe: Any = None,
    batch: int = 6,
    prompts: int = 4,
    seed: int = 2,
) -> None:
    """Train the class-agnostic mask branch from boxes and points; checkpoint `pyramid.pt`."""
    from litelvlm.nano.train.masks import decode, mask_loss

    rng = np.random.default_rng(seed)
    usable = [p for p in photos if any(t.single and t.area > 0.002 for t in p.things)]
    weight = np.array(
        [
            3.0 if p.source == "coco_union" else 0.3 if p.source in ("ccp", "car_parts") else 1.0
            for p in usable
        ]
    )
    weight /= weight.sum()
    trained = adam([sam, prompt], 1e-3)
    learning = [p for p in (*sam.parameters(), *prompt.parameters()) if p.requires_grad]
    start, saved, step, sums = time.time(), time.time(), 0, []
    while (done := (time.time() - start) / (60 * minutes)) < 1:
        rate = min(1.0, (step + 1) / 25, (1 - done) / 0.75) * 1e-3
        for o in trained:
            for g in o.param_groups:
                g["lr"] = rate * g.get("scale", 1.0)
        chosen = [usable[i] for i in rng.choice(len(usable), batch, p=weight)]
        flip = rng.random() < 0.5
        found = features([p.image for p in chosen], STRIDES)
        boxes, goals = (
            np.zeros((batch, prompts, 4), np.float32),
            np.zeros((batch, prompts, 96, 96), np.uint8),
        )
        for i, p in enumerate(chosen):
            things = [t for t in p.things if t.single and t.area > 0.002]
            for k in range(prompts):
                t = things[int(rng.integers(len(things)))]
                goals[i, k] = masks[t.row]
                if rng.random() < 0.1 and (masks[t.row] > 200).any():
                    ys, xs = np.nonzero(masks[t.row] > 200)
                    j = int(rng.integers(len(ys)))
                    boxes[i, k] = np.array([xs[j], ys[j], xs[j], ys[j]]) / 96 + 0.5 / 96
                else:
                    box = np.array(t.box)
                    size = np.tile(box[2:] - box[:2], 2)
                    box = box + rng.normal(0, rng.uniform(0.0, 0.12), 4) * size
                    boxes[i, k] = [
                        box[0],
                        box[1],
                        max(box[2], box[0] + 0.01),
                        max(box[3], box[1] + 0.01),
                    ]
        b, y = torch.from_numpy(boxes), torch.from_numpy(goals).float() / 255
        if flip:
            found = [f.flip(3) for f in found]
            y = y.flip(3)
            b = torch.stack([1 - b[..., 2], b[..., 1], 1 - b[..., 0], b[..., 3]], -1)
        sparse = prompt(b)[:, :, None]
        sparse = sparse + 0.15 * sparse.detach().std() * torch.randn_like(sparse)
        logits, quality = decode(sam, sam.vision_encoder.fuse(found), sparse)
        loss, iou = mask_loss(logits.flatten(0, 1), y.flatten(0, 1))
        total = loss.mean() + F.mse_loss(quality.flatten(), iou)
        for o in trained:
            o.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        for o in trained:
            o.step()
        step += 1
        sums.append(float(iou.mean()))
        last = (time.time() - start) / (60 * minutes) >= 1
        if step % 50 == 0 or last:
            print(step, round(time.time() - start), round(sum(sums) / len(sums), 4), flush=True)
            sums = []
        if time.time() - saved > 90 or last:
            saved = time.time()
            torch.save(
                {"sam": sam.state_dict(), "prompt": prompt.state_dict()}, folder / "pyramid.pt"
            )
            if probe:
                print(step, probe(), flush=True)


def build_pyramid(sam: nn.Module, backbone: Backbone, features: Features) -> nn.Module:
    """Put a feature pyramid on the shared backbone where SAM's image encoder stands."""
    width = sam.config.vision_config.output_channels
    encoder = PyramidEncoder(backbone, width)
    spread = [s * 127 / 6 for s in features.scales]
    parts = [spread[0].repeat_interleave(16), spread[1].repeat_interleave(4), spread[2]]
    scale_inputs(encoder.fine, torch.cat(parts), 16 * WIDTHS[0] + 4 * WIDTHS[1] + WIDTHS[2])
    scale_inputs(encoder.coarse, spread[3], 2 * WIDTHS[3])
    sam.vision_encoder = encoder
    return sam
