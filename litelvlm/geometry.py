"""Where things lie: picture pixels, CLIP's patch grid, SAM's padded frame.

Coordinates are (x, y) in picture pixels with the origin at the top left corner; sizes are
(height, width). Boxes are x0, y0, x1, y1, half-open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from torch import Tensor
from torch.nn import functional as F

from litelvlm.errors import InputError

VIEWS = ("crop", "letterbox", "whole")
PLACES = ("corner", "middle")


@dataclass(frozen=True)
class PatchFrame:
    """The patch grid laid over a picture.

    CLIP sees a square. view="crop": the shortest side is resized to the square and the middle is
    cut out, so the ends of a long picture are not seen. view="letterbox": the longest side is
    resized and the rest is padded, so everything is seen, smaller. view="whole": both sides are
    resized to the square, so everything is seen, squeezed.

    Attributes:
        grid: (rows, columns) of patches.
        image_hw: (height, width) of the picture.
        view: of `VIEWS`.
    """

    grid: tuple[int, int]
    image_hw: tuple[int, int]
    view: str = "crop"

    def __post_init__(self) -> None:
        if self.view not in VIEWS:
            raise InputError(f"view must be one of {', '.join(VIEWS)}, got {self.view!r}")

    @property
    def count(self) -> int:
        """N, the number of patches."""
        return self.grid[0] * self.grid[1]

    @property
    def square(self) -> tuple[float, float, float, float]:
        """The square CLIP sees, in picture pixels; sticks out of the picture if letterboxed."""
        height, width = self.image_hw
        if self.view == "whole":
            return 0.0, 0.0, float(width), float(height)
        side = min(height, width) if self.view == "crop" else max(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side

    @property
    def seen_box(self) -> tuple[float, float, float, float]:
        """The part of the picture that patches cover."""
        height, width = self.image_hw
        left, top, right, bottom = self.square
        return max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))

    @property
    def patch_hw(self) -> tuple[float, float]:
        """(height, width) of a patch in picture pixels."""
        left, top, right, bottom = self.square
        return (bottom - top) / self.grid[0], (right - left) / self.grid[1]

    def boxes(self) -> np.ndarray:
        """(N, 4) float64, the box of every patch in raster order."""
        left, top, _, _ = self.square
        tall, wide = self.patch_hw
        rows, columns = np.divmod(np.arange(self.count), self.grid[1])
        corner = np.stack([left + columns * wide, top + rows * tall], axis=1)
        return np.concatenate([corner, corner + np.array([wide, tall])], axis=1)

    def paint(self, values: np.ndarray, fill: float = np.nan) -> np.ndarray:
        """Spread one value a patch over the picture, in blocks.

        Args:
            values: (N,), any real dtype.
            fill: value of pixels that no patch covers.

        Returns:
            (H, W) float32.
        """
        height, width = self.image_hw
        left, top, _, _ = self.square
        tall, wide = self.patch_hw
        columns = np.floor((np.arange(width) + 0.5 - left) / wide).astype(int)
        rows = np.floor((np.arange(height) + 0.5 - top) / tall).astype(int)
        seen_rows = (rows >= 0) & (rows < self.grid[0])
        seen_columns = (columns >= 0) & (columns < self.grid[1])
        painted = np.full((height, width), fill, np.float32)
        table = np.asarray(values, np.float32).reshape(self.grid)
        painted[np.ix_(seen_rows, seen_columns)] = table[
            np.ix_(rows[seen_rows], columns[seen_columns])
        ]
        return painted

    def coverage(self, mask: np.ndarray) -> np.ndarray:
        """Share of each patch under a mask: (H, W) bool -> (N,) float64 in 0..1.

        Area outside the picture (letterbox padding) counts as not under the mask.
        """
        if mask.shape != self.image_hw:
            raise InputError(f"mask is {mask.shape}, the picture is {self.image_hw}")
        # An integral image gives every patch's area at once; fractional edges are interpolated.
        total = cv2.integral(mask.astype(np.uint8)).astype(np.float64)  # (H + 1, W + 1)
        left, top, _, _ = self.square
        tall, wide = self.patch_hw
        xs = np.clip(left + np.arange(self.grid[1] + 1) * wide, 0, self.image_hw[1])
        ys = np.clip(top + np.arange(self.grid[0] + 1) * tall, 0, self.image_hw[0])
        corners = _bilinear(total, ys, xs)
        area = corners[1:, 1:] - corners[:-1, 1:] - corners[1:, :-1] + corners[:-1, :-1]
        return np.clip(area / (tall * wide), 0.0, 1.0).reshape(-1)


@dataclass(frozen=True)
class TiledFrame(PatchFrame):
    """Square tiles laid over the whole picture, then a small copy of all of it.

    `grid` stacks the tiles in the order in which their patches enter: all columns are a tile's.

    Attributes:
        tiles: (rows, columns) of tiles; with more than one the copy follows.
    """

    tiles: tuple[int, int] = (1, 1)

    def _parts(self) -> tuple[PatchFrame, PatchFrame]:
        """The patches of all tiles in raster order, and those of the copy."""
        (rows, columns), side = self.tiles, self.grid[1]
        tiled = PatchFrame((rows * side, columns * side), self.image_hw, "whole")
        return tiled, PatchFrame((side, side), self.image_hw, "whole")

    def _order(self) -> np.ndarray:
        """Number in raster order over all tiles of each patch of the tiles."""
        (rows, columns), side = self.tiles, self.grid[1]
        number = np.arange(rows * columns * side * side).reshape(rows, side, columns, side)
        return number.swapaxes(1, 2).reshape(-1)

    def _joined(self, of_tiles: np.ndarray, of_copy: np.ndarray) -> np.ndarray:
        of_tiles = of_tiles[self._order()]
        return of_tiles if self.tiles == (1, 1) else np.concatenate([of_tiles, of_copy])

    def boxes(self) -> np.ndarray:
        """(N, 4) float64, the box of every patch in the order in which they enter."""
        tiled, copy = self._parts()
        return self._joined(tiled.boxes(), copy.boxes())

    def paint(self, values: np.ndarray, fill: float = np.nan) -> np.ndarray:
        """As `PatchFrame.paint`; the values of the copy are not shown."""
        order = self._order()
        raster = np.empty(len(order), np.float32)
        raster[order] = np.asarray(values, np.float32)[: len(order)]
        return self._parts()[0].paint(raster, fill)

    def coverage(self, mask: np.ndarray) -> np.ndarray:
        """As `PatchFrame.coverage`."""
        tiled, copy = self._parts()
        return self._joined(tiled.coverage(mask), copy.coverage(mask))


@dataclass(frozen=True)
class MaskFrame:
    """Sizes needed to bring a low-resolution mask back onto its picture.

    Attributes:
        size: side of SAM's square input in pixels.
        resized_hw: size of the picture inside that square, the rest is padding.
        image_hw: size of the picture itself.
        corner: (left, top) of the picture inside the square.
    """

    size: int
    resized_hw: tuple[int, int]
    image_hw: tuple[int, int]
    corner: tuple[int, int] = (0, 0)

    def upscale(self, logits: Tensor) -> Tensor:
        """(P, h, w) mask logits of the padded square -> (P, H, W) float32 on the picture."""
        square = F.interpolate(
            logits.float()[:, None], (self.size, self.size), mode="bilinear", align_corners=False
        )
        (left, top), (height, width) = self.corner, self.resized_hw
        inside = square[..., top : top + height, left : left + width]
        return F.interpolate(inside, self.image_hw, mode="bilinear", align_corners=False)[:, 0]


def clip_square(image: np.ndarray, size: int, view: str = "crop") -> np.ndarray:
    """The square picture CLIP sees, as Hugging Face's CLIP processor makes it.

    Args:
        image: (H, W, 3) uint8.
        size: side of the square in pixels.
        view: "crop" (shortest side to `size`, centre crop), "letterbox" (longest side to `size`,
            grey padding) or "whole" (both sides to `size`).

    Returns:
        (size, size, 3) uint8, resampled by Pillow's bicubic filter.
    """
    from PIL import Image

    height, width = image.shape[:2]
    if view == "whole":
        return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
    if view == "letterbox":
        scale = size / max(height, width)
        small = max(1, round(width * scale)), max(1, round(height * scale))
        square = Image.new("RGB", (size, size), (122, 116, 104))  # CLIP's mean colour
        resized = Image.fromarray(image).resize(small, Image.Resampling.BICUBIC)
        square.paste(resized, ((size - small[0]) // 2, (size - small[1]) // 2))
        return np.asarray(square)
    short, long = min(height, width), max(height, width)
    if long > 8 * short:  # resizing all of a very long picture only to cut it would waste memory
        cut = (long - 3 * short) // 2
        image = image[:, cut : cut + 3 * short] if width > height else image[cut : cut + 3 * short]
        height, width = image.shape[:2]
        long = max(height, width)
    new_long = int(size * long / short)
    new_hw = (size, new_long) if height <= width else (new_long, size)
    resized = Image.fromarray(image).resize(new_hw[::-1], Image.Resampling.BICUBIC)
    top, left = (new_hw[0] - size) // 2, (new_hw[1] - size) // 2
    return np.asarray(resized)[top : top + size, left : left + size]


def fill_polygons(polygons: Sequence[Sequence[int]], image_hw: tuple[int, int]) -> np.ndarray:
    """(H, W) bool, the union of some polygons, each x, y, x, y, ... in pixels, outline included."""
    mask = np.zeros(image_hw, np.uint8)
    for corners in polygons:
        if len(corners) >= 6:  # fewer than three corners have no area
            cv2.fillPoly(mask, [np.asarray(corners, np.int32).reshape(-1, 1, 2)], (1,))
    return mask.astype(bool)


def sam_hw(image_hw: tuple[int, int], size: int) -> tuple[int, int]:
    """(height, width) of a picture whose longest side is resized to `size`, rounded half up."""
    scale = size / max(image_hw)
    return max(1, int(image_hw[0] * scale + 0.5)), max(1, int(image_hw[1] * scale + 0.5))


def sam_corner(resized_hw: tuple[int, int], size: int, place: str) -> tuple[int, int]:
    """(left, top) of a resized picture in SAM's square of `size`, by its `place`.

    "corner" is the released SAM's: at the top left. "middle" is where CLIP sees a letterboxed
    picture: a thing then has the same place in both squares, whatever the picture's shape.
    """
    if place not in PLACES:
        raise InputError(f"place must be one of {', '.join(PLACES)}, got {place!r}")
    height, width = resized_hw
    return (0, 0) if place == "corner" else ((size - width) // 2, (size - height) // 2)


def sam_resize(image: np.ndarray, size: int) -> np.ndarray:
    """Resize the longest side to `size`, bilinear (Pillow): (H, W, 3) uint8 -> (h, w, 3)."""
    from PIL import Image

    height, width = sam_hw((image.shape[0], image.shape[1]), size)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def _bilinear(table: np.ndarray, ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
    """Interpolate a table at the outer product of fractional rows and columns."""
    y0 = np.minimum(ys.astype(int), table.shape[0] - 2)
    x0 = np.minimum(xs.astype(int), table.shape[1] - 2)
    dy, dx = (ys - y0)[:, None], (xs - x0)[None, :]
    upper = table[np.ix_(y0, x0)] * (1 - dx) + table[np.ix_(y0, x0 + 1)] * dx
    lower = table[np.ix_(y0 + 1, x0)] * (1 - dx) + table[np.ix_(y0 + 1, x0 + 1)] * dx
    return upper * (1 - dy) + lower * dy
