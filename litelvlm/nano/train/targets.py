"""Training targets read off a scene: what lies under each patch, masks at the decoder's size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from litelvlm.geometry import clip_square, sam_corner, sam_hw
from litelvlm.models.names import CLIP_MEAN, CLIP_STD, SAM_MEAN, SAM_STD
from litelvlm.nano.sprites import COLOURS

if TYPE_CHECKING:
    from litelvlm.nano.scenes import DrawnScene

IGNORE = -1


def squared(scene: DrawnScene, side: int) -> DrawnScene:
    """A scene as the image tower sees it: letterboxed into a square of `side` pixels.

    Pictures that are this square already come back as they are.
    """
    height, width = scene.labels.shape
    if height == width == side:
        return scene
    scale = side / max(height, width)
    small = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (side - small[0]) // 2, (side - small[1]) // 2
    labels = np.zeros((side, side), np.uint8)
    resized = Image.fromarray(scene.labels).resize(small, Image.Resampling.NEAREST)
    labels[top : top + small[1], left : left + small[0]] = np.asarray(resized)
    shift = (left, top, left, top)
    objects = tuple(
        replace(o, box=tuple(v * scale + d for v, d in zip(o.box, shift, strict=True)))
        for o in scene.objects
    )
    image = clip_square(scene.image, side, "letterbox")
    return replace(scene, image=image, labels=labels, objects=objects)


def patch_cover(labels: np.ndarray, patch: int, objects: int) -> np.ndarray:
    """Share of each patch that each label fills: (N, objects + 1) float32, rows summing to 1.

    `labels`: (H, W) uint8, 0 background, i + 1 object i; H and W multiples of `patch`, pixels.
    """
    height, width = labels.shape
    rows, cols = height // patch, width // patch
    cells = labels.reshape(rows, patch, cols, patch).transpose(0, 2, 1, 3)
    cells = cells.reshape(rows * cols, patch * patch).astype(np.int64)
    flat = cells + (objects + 1) * np.arange(rows * cols)[:, None]
    counts = np.bincount(flat.ravel(), minlength=rows * cols * (objects + 1))
    return (counts.reshape(rows * cols, objects + 1) / patch**2).astype(np.float32)


def patch_targets(
    scene: DrawnScene, names: dict[str, int], patch: int = 14
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What lies under each patch of a scene whose sides are multiples of `patch`.

    Args:
        scene: the scene.
        names: class name -> 0-based class number.
        patch: side of a patch, pixels.

    Returns:
        kind: (N,) int64, 0 background, c + 1 class c, -1 where neither fills enough (ignored);
        colour: (N,) int64, index into COLOURS of the object there, -1 where none is known;
        box: (N, 4) float32, left, top, right, bottom edge of that object's visible box measured
            from the patch's centre in units of 100 pixels, 0 where no object;
        cover: (N, objects + 1) float32, shares of the patch.
    """
    cover = patch_cover(scene.labels, patch, len(scene.objects))
    rows, cols = scene.labels.shape[0] // patch, scene.labels.shape[1] // patch
    best = cover[:, 1:].argmax(1) if len(scene.objects) else np.zeros(len(cover), np.int64)
    share = cover[:, 1:].max(1) if len(scene.objects) else np.zeros(len(cover), np.float32)
    classes = np.array([names[o.name] for o in scene.objects] or [0], np.int64)
    paints = [COLOURS.index(o.colour) if o.colour in COLOURS else IGNORE for o in scene.objects]
    boxes = np.array([o.box for o in scene.objects] or [(0, 0, 0, 0)], np.float32)

    inside = share >= 0.4
    kind = np.where(inside, classes[best] + 1, np.where(cover[:, 0] > 0.9, 0, IGNORE))
    colour = np.where(inside, np.array(paints or [IGNORE], np.int64)[best], IGNORE)
    y, x = np.divmod(np.arange(rows * cols), cols)
    centre = np.stack([x, y, x, y], 1).astype(np.float32) * patch + patch / 2
    box = np.where(inside[:, None], (boxes[best] - centre) / 100.0, 0.0).astype(np.float32)
    return kind, colour, box, cover


def chw(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) uint8 tensor."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def stacked(parts: Mapping[str, list[Any]]) -> dict[str, Tensor]:
    """A batch from what its pictures give: lists of arrays or tensors -> tensors, by name."""
    return {key: torch.stack([torch.as_tensor(x) for x in each]) for key, each in parts.items()}


def clip_pixels(images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 -> float32, normalised as for the image tower."""
    mean = torch.tensor(CLIP_MEAN, device=images.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(CLIP_STD, device=images.device).view(1, 3, 1, 1) * 255
    return (images.float() - mean) / std


def sam_place(image_hw: tuple[int, int], side: int) -> tuple[int, int, int, int]:
    """Where a picture stands in the SAM part's square of `side`: left, top, width, height.

    In the middle, as the image tower sees it. With the corner placement of the released SAM the
    language model has to learn a shift that depends on the shape of the picture; a small one
    does not: on tall pictures it then found 78 % of its referents, on square ones 90 %.
    """
    height, width = sam_hw(image_hw, side)
    left, top = sam_corner((height, width), side, "middle")
    return left, top, width, height


def sam_boxes(boxes: np.ndarray, image_hw: tuple[int, int], side: int) -> np.ndarray:
    """Boxes (..., 4) of a picture, in pixels of the SAM part's square of `side`."""
    left, top, _, _ = sam_place(image_hw, side)
    return boxes * (side / max(image_hw)) + np.array([left, top, left, top])


def sam_frame(image: np.ndarray, side: int) -> np.ndarray:
    """Resize so that the longest side is `side`, and put it into the square.

    Returns:
        (side, side, 3) int16; -1 marks padding, which becomes 0 after normalisation.
    """
    left, top, width, height = sam_place((image.shape[0], image.shape[1]), side)
    frame = np.full((side, side, 3), -1, np.int16)
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    frame[top : top + height, left : left + width] = np.asarray(small)
    return frame


def sam_pixels(frames: Tensor) -> Tensor:
    """(B, S, S, 3) int16 frames -> (B, 3, S, S) float32 normalised pixels, padding 0."""
    mean, std = (torch.tensor(three, device=frames.device) for three in (SAM_MEAN, SAM_STD))
    pixels = (frames.float() - mean) / std
    return pixels.masked_fill(frames[..., :1] < 0, 0.0).permute(0, 3, 1, 2)


def low_mask(mask: np.ndarray, side: int) -> np.ndarray:
    """A picture's mask at the decoder's size, a fourth of the square's: (H, W) bool -> (side,
    side) uint8, share x 255.
    """
    left, top, width, height = sam_place((mask.shape[0], mask.shape[1]), 4 * side)
    square = Image.new("L", (4 * side, 4 * side))
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    square.paste(image.resize((width, height), Image.Resampling.BOX), (left, top))
    return np.array(square.reduce(4))
