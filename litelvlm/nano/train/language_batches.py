"""Batches of the stage "language": pictures, expressions and their targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from litelvlm.nano.scene_recipe import SceneRecipe
from litelvlm.nano.scenes import make_scene, names
from litelvlm.nano.train.targets import (
    chw,
    low_mask,
    patch_targets,
    sam_boxes,
    sam_frame,
    squared,
    stacked,
)
from litelvlm.nano.train.tokens import PromptTokens

PER_TURN = ("ids", "state", "cover", "fits", "landmark", "box", "frame_box", "masks", "real")


@dataclass(frozen=True)
class LanguageBatches:
    """Makes a batch by its number: pictures, expressions, targets; picklable for workers.

    Attributes:
        phases: (first batch, scene recipe, scenes a batch), in order of first batch.
        turns, length: expressions of a picture, token ids of each.
        sam_side: side of the mask branch's square, pixels.
        grid, patch: patches a side of a full picture, pixels a side of a patch.
    """

    phases: tuple[tuple[int, SceneRecipe, int], ...]
    turns: int
    length: int
    tokenizer: Path
    sam_side: int
    seed: int
    grid: int = 24
    patch: int = 14

    def __call__(self, number: int) -> dict[str, Any]:
        """One batch of B scenes with E turns; N patches, S = the SAM part's side.

        images (B, 3, H, W) uint8; window (B, 2); frames (B, S', S', 3) int16 (half of S for
        half-size pictures); kind (B, N); place (B, N, 4), the box of what lies under a patch;
        ids (B, E, L), state (B, E); cover (B, E, N); box (B, E, 4) x0, y0, x1, y1 and frame_box
        likewise, in units of the full picture's side; frame_place (B, N, 4) as frame_box, of what
        lies under a patch; fits and landmark (B, E, N) as cover, of all that the noun fits and of
        a relation's landmark; masks (B, E, S' / 4, S' / 4) uint8;
        sam_window (B, 2); real (B, E) bool, false for repeats that fill the batch.
        """
        prompt = PromptTokens(self.tokenizer)
        table = {n: i for i, n in enumerate(names())}
        rng = np.random.default_rng((self.seed, number))
        _, recipe, count = [p for p in self.phases if p[0] <= number][-1]
        out: dict[str, list[Any]] = {}
        full = self.grid * self.patch
        made = 0
        attempt = 0
        while made < count:
            seed = self.seed + (number * 4 + attempt // count) * 64 + attempt % count
            scene = make_scene(seed, recipe)
            attempt += 1
            usable = [e for e in scene.expressions if len(e.targets) == 1]
            if not usable:
                continue
            made += 1
            side = full if max(scene.labels.shape) > full // 2 else full // 2
            seen = squared(scene, side)
            kind, _, edges, cover = patch_targets(seen, table, self.patch)
            picks = spread(rng, [e.kind for e in usable])[: self.turns]
            chosen = [usable[j] for j in picks]
            real = len(chosen)
            chosen += [chosen[0]] * (self.turns - real)
            ids, state = prompt.turns([e.text for e in chosen], self.length)
            # A half-size picture stands on a window of both towers' position tables; a quarter of
            # the side is a whole number of patches in both, so the windows agree exactly. Where
            # phrases speak of places it stands in the middle: left stays left of the middle.
            quarter = [0, 0] if side == full else [1, 1]
            if side < full and recipe.level < 2:
                quarter = rng.integers(0, 3, 2)
            window = np.array(quarter) * (self.grid // 4)
            sam_side = self.sam_side * side // full
            sam_window = np.array(quarter) * (self.sam_side // 64)
            y, x = np.divmod(np.arange(len(kind)), side // self.patch)
            centre = np.stack([x, y, x, y], 1) * self.patch + self.patch / 2
            place = (centre + edges * 100 + np.tile(window[::-1] * self.patch, 2)) / full
            height, width = scene.labels.shape
            corner = np.tile(sam_window[::-1] * 16, 2)
            things = np.array([o.box for o in scene.objects], np.float32)
            things = (sam_boxes(things, (height, width), sam_side) + corner) / self.sam_side
            masks, boxes, frame = {}, [], []
            for e in chosen:
                t = e.targets[0]
                if t not in masks:
                    masks[t] = low_mask(scene.labels == t + 1, sam_side // 4)
                box = np.array(seen.objects[t].box, np.float32)
                boxes.append((box + np.tile(window[::-1] * self.patch, 2)) / full)
                frame.append(things[t])
            about = [() if e.landmark is None else (e.landmark,) for e in chosen]
            row = {
                "images": chw(seen.image),
                "window": window,
                "sam_window": sam_window,
                "frames": sam_frame(scene.image, sam_side),
                "kind": kind,
                "place": place.astype(np.float32),
                "frame_place": things[cover[:, 1:].argmax(1)].astype(np.float32),
                "ids": ids,
                "state": state,
                "cover": np.stack([_share(cover, e.targets) for e in chosen]),
                "fits": np.stack([_share(cover, e.fits) for e in chosen]),
                "landmark": np.stack([_share(cover, landmark) for landmark in about]),
                "box": np.stack(boxes).astype(np.float32),
                "frame_box": np.stack(frame).astype(np.float32),
                "masks": np.stack([masks[e.targets[0]] for e in chosen]),
                "real": np.arange(self.turns) < real,
            }
            for key, value in row.items():
                out.setdefault(key, []).append(value)
        batch = stacked(out)
        longest = int((batch["ids"] != prompt.ids["pad"]).sum(-1).max())
        batch["ids"] = batch["ids"][..., :longest]
        most = int(batch["real"].sum(-1).max())
        for key in PER_TURN:
            batch[key] = batch[key][:, :most]
        return batch


def spread(rng: np.random.Generator, kinds: Sequence[str]) -> np.ndarray:
    """A random order of phrases in which each kind's first comes before any kind's second.

    Kinds that fit few scenes, such as ordinals, are then not crowded out by places.
    """
    order = rng.permutation(len(kinds))
    met: dict[str, int] = {}
    rank = np.zeros(len(kinds))
    for i in order:
        rank[i] = met[kinds[i]] = met.get(kinds[i], 0) + 1
    return order[np.argsort(rank[order], kind="stable")]


def _share(cover: np.ndarray, objects: Sequence[int]) -> np.ndarray:
    """Share of each patch that some objects fill together: (N, objects + 1) -> (N,) float32."""
    return cover[:, [i + 1 for i in objects]].sum(1).astype(np.float32)
