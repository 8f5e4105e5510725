"""Pictures of what happened to the image tokens: arrays and records in, pictures out.

    layer = token_layer(result.token_map, image.shape[:2])   # (H, W, 4), see-through
    picture = compose(image, layer)                          # (H, W, 3)
    figure(results).savefig("figure.svg")                    # one row a phrase, for a paper
    show(results)                                            # the same, in a window or a notebook

A *layer* is (H, W, 4) uint8 RGBA with straight alpha, so that the same drawing can be laid over
the photo here, in a browser or in an editor. Layers may be drawn at any size: patches and masks
are scaled from the picture they were computed on. The colours stay apart for colour-blind eyes
(Okabe & Ito, "Color Universal Design", 2008), and every distinction is carried by brightness or
outline as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import cv2
import numpy as np

from litelvlm.pruning import Reason
from litelvlm.result import GroundingResult, TextResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from litelvlm.geometry import PatchFrame
    from litelvlm.result import TokenMap

Colour = tuple[int, int, int]

PHRASE_COLOURS: tuple[Colour, ...] = (
    (86, 180, 233),  # sky blue
    (213, 94, 0),  # vermilion
    (240, 228, 66),  # yellow
    (0, 158, 115),  # bluish green
    (204, 121, 167),  # reddish purple
    (0, 114, 178),  # blue
)
REASON_COLOURS: dict[int, Colour] = {
    Reason.SIMILARITY: (86, 180, 233),
    Reason.CONTEXT: (230, 159, 0),
    Reason.RULE: (204, 121, 167),
    Reason.MERGED: (0, 158, 115),
}
REASON_NAMES: dict[int, str] = {
    Reason.SIMILARITY: "low similarity",
    Reason.CONTEXT: "recovered context",
    Reason.RULE: "the method's own score",
    Reason.MERGED: "merged tokens",
}
_DIMMED = (13, 17, 27, 172)  # dropped tokens: dark, the photo still readable
_UNSEEN = (120, 124, 134)
_DIVERGING = np.array(  # low, middle, high: blue, off-white, red
    [(18, 70, 140), (84, 153, 206), (243, 243, 240), (232, 139, 93), (156, 34, 30)], float
)


# ------------------------------------------------------------------------------------- layers
def compose(image: np.ndarray, *layers: np.ndarray) -> np.ndarray:
    """Lay layers over a picture.

    Args:
        image: (H, W, 3) uint8 RGB.
        layers: (H, W, 4) uint8 RGBA, straight alpha, bottom first.

    Returns:
        (H, W, 3) uint8 RGB, a new array.
    """
    out = image.astype(np.float32)
    for layer in layers:
        alpha = layer[..., 3:].astype(np.float32) / 255.0
        out += (layer[..., :3] - out) * alpha
    return np.rint(out).astype(np.uint8)


def mask_layer(
    masks: Sequence[np.ndarray],
    size: tuple[int, int] | None = None,
    *,
    colours: Sequence[Colour] = PHRASE_COLOURS,
    fill: float = 0.5,
) -> np.ndarray:
    """One colour a mask: a see-through fill and a solid outline with a dark rim.

    Args:
        masks: each (H, W) bool, all of one size; an empty mask draws nothing.
        size: (height, width) of the layer, pixels; None for that of the masks.
        colours: taken in turn, RGB 0..255.
        fill: opacity inside, 0..1.

    Returns:
        (height, width, 4) uint8. Outlines lie above all fills, so overlapping masks stay legible.
    """
    if not len(masks):
        raise ValueError("mask_layer needs at least one mask")
    height, width = size or masks[0].shape
    layer = np.zeros((height, width, 4), np.uint8)
    shapes = [_resize_mask(np.asarray(mask, bool), (height, width)) for mask in masks]
    for number, shape in enumerate(shapes):
        layer[shape] = (*colours[number % len(colours)], round(255 * fill))
    line = max(1, round(min(height, width) / 170))
    for number, shape in enumerate(shapes):
        shape = shape.astype(np.uint8)
        inner = cv2.erode(shape, _disc(line), borderType=cv2.BORDER_CONSTANT, borderValue=0)
        rim = cv2.dilate(shape, _disc(line)) > shape
        layer[rim] = (10, 12, 18, 150)
        layer[(shape > inner)] = (*colours[number % len(colours)], 255)
    return layer


def token_layer(tokens: TokenMap, size: tuple[int, int] | None = None) -> np.ndarray:
    """Which patches were kept, and why: dropped ones darkened, kept ones framed in a colour.

    Tokens kept for low similarity also carry a dot in the middle, so that the two kinds differ
    without colour. Parts of the picture that the patches do not cover are hatched.

    Args:
        tokens: the token map of one phrase.
        size: (height, width) of the layer, pixels; None for that of the picture.

    Returns:
        (height, width, 4) uint8.
    """
    height, width = size or tokens.frame.image_hw
    layer = np.zeros((height, width, 4), np.uint8)
    boxes = _pixel_boxes(tokens.frame, (height, width))
    reasons = np.full(tokens.frame.count, -1)
    reasons[tokens.indices] = tokens.reason
    for reason, (x0, y0, x1, y1) in zip(reasons.tolist(), boxes.tolist(), strict=True):
        if x1 <= x0 or y1 <= y0:
            continue
        if reason < 0:
            layer[y0:y1, x0:x1] = _DIMMED
            continue
        colour, edge = REASON_COLOURS[reason], 1 if min(x1 - x0, y1 - y0) < 18 else 2
        layer[y0:y1, x0:x1] = (*colour, 235)
        layer[y0 + edge : y1 - edge, x0 + edge : x1 - edge] = (*colour, 58)
        if reason == Reason.SIMILARITY:
            dot = max(1, round(min(x1 - x0, y1 - y0) / 8))
            middle = ((x0 + x1) // 2, (y0 + y1) // 2)
            cv2.circle(layer, middle, dot, (*colour, 255), -1, cv2.LINE_8)
    return _hatch_unseen(layer, tokens.frame)


def heat_layer(
    values: np.ndarray,
    frame: PatchFrame,
    size: tuple[int, int] | None = None,
    *,
    threshold: float | None = None,
    opacity: float = 0.72,
) -> np.ndarray:
    """A signed score over the picture, one flat colour a patch (see `colour_scale`).

    Args:
        values: (N,) float, one score a patch, any sign.
        frame: where the patches lie.
        size: (height, width) of the layer, pixels; None for that of the picture.
        threshold: patches at or below it get a dark outline where they border on others.
        opacity: 0..1.

    Returns:
        (height, width, 4) uint8; parts the patches do not cover are hatched.
    """
    height, width = size or frame.image_hw
    layer = np.zeros((height, width, 4), np.uint8)
    boxes = _pixel_boxes(frame, (height, width))
    colours = colour_scale(np.asarray(values)[seen_patches(frame)]).rgb(values)
    for colour, (x0, y0, x1, y1) in zip(colours.tolist(), boxes.tolist(), strict=True):
        layer[y0:y1, x0:x1] = (*colour, round(255 * opacity))
    if threshold is not None:
        rows, columns = frame.grid
        below = (np.asarray(values) <= threshold).reshape(rows, columns)
        line = max(1, round(min(height, width) / 260))
        grid = boxes.reshape(rows, columns, 4)
        for row, column in np.argwhere(below[:, 1:] != below[:, :-1]).tolist():
            _, y0, x, y1 = grid[row, column]
            layer[y0:y1, max(x - line, 0) : x + line] = (16, 18, 26, 255)
        for row, column in np.argwhere(below[1:] != below[:-1]).tolist():
            x0, _, x1, y = grid[row, column]
            layer[max(y - line, 0) : y + line, x0:x1] = (16, 18, 26, 255)
    return _hatch_unseen(layer, frame)


def seen_patches(frame: PatchFrame) -> np.ndarray:
    """(N,) bool: patches that lie in the picture at least in part, not wholly in the padding."""
    boxes, (height, width) = frame.boxes(), frame.image_hw
    across = (boxes[:, 2] > 0) & (boxes[:, 0] < width)
    return across & (boxes[:, 3] > 0) & (boxes[:, 1] < height)


# ------------------------------------------------------------------------------------- colour
@dataclass(frozen=True)
class ColourScale:
    """A diverging scale with the same slope on both sides of its middle.

    Attributes:
        low, high: range of the values drawn.
        centre: the value drawn off-white.
        signed: True where the centre is zero; otherwise it is the middle of the range, because
            zero lies outside the values or so near their end that one side would vanish.
    """

    low: float
    high: float
    centre: float
    signed: bool

    @property
    def reach(self) -> float:
        """Distance from the centre to either end of the colours."""
        return max(self.high - self.centre, self.centre - self.low) or 1.0

    def rgb(self, values: np.ndarray) -> np.ndarray:
        """(...) float -> (..., 3) uint8."""
        place = (np.asarray(values, float) - self.centre) / self.reach  # -1..1
        place = np.clip(np.nan_to_num(place), -1.0, 1.0) * 2.0 + 2.0
        stops = np.arange(len(_DIVERGING))
        channels = [np.interp(place, stops, _DIVERGING[:, channel]) for channel in range(3)]
        return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def colour_scale(values: np.ndarray) -> ColourScale:
    """The colour scale of these values.

    `heat_layer` uses that of the patches it draws: `colour_scale(values[seen_patches(frame)])`.
    """
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    signed = low < 0.0 < high and min(-low, high) >= 0.1 * (high - low)
    return ColourScale(low, high, 0.0 if signed else (low + high) / 2.0, signed)


# ------------------------------------------------------------------------------------ figures
def figure(results: Sequence[TextResult] | TextResult) -> Figure:
    """The figure for a paper: per phrase a row of mask or answer, token map and similarity.

    Args:
        results: one result or several; each becomes a row.

    Returns:
        A matplotlib figure that belongs to no window; `.savefig` writes PNG, SVG or PDF.
    """
    from matplotlib.figure import Figure as Canvas

    rows = _rows(results)
    return _draw(Canvas(figsize=_size(rows), layout="constrained"), rows)


def show(results: Sequence[TextResult] | TextResult, save: str | Path | None = None) -> None:
    """Show `figure(results)` in a window or a notebook, or write it to a file.

    Args:
        results: one result or several; each becomes a row.
        save: file to write in place of showing; the ending names the format (png, svg, pdf).
    """
    if save is not None:
        figure(results).savefig(save, dpi=200)
        return
    from matplotlib import pyplot

    rows = _rows(results)
    _draw(pyplot.figure(figsize=_size(rows), layout="constrained"), rows)
    pyplot.show()


def curve_figure(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str = "image tokens kept",
    y_label: str = "agreement with the unpruned answer",
) -> Figure:
    """Lines over the token budget, one a method, told apart by colour, dash and marker.

    Args:
        curves: name of the line -> (x, y) points in drawing order.
        x_label, y_label: axis titles.

    Returns:
        A matplotlib figure that belongs to no window.
    """
    from matplotlib.figure import Figure as Canvas

    picture = Canvas(figsize=(5.2, 3.4), layout="constrained")
    axes = picture.subplots()
    inks = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#444444")
    for number, (name, points) in enumerate(curves.items()):
        axes.plot(
            *zip(*points, strict=True),
            ("-", "--", ":")[number % 3],
            label=name,
            color=inks[number % len(inks)],
            marker="osD^vPX"[number % 7],
            ms=4,
        )
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, lw=0.6)
    if curves:
        axes.legend(frameon=False, fontsize=8)
    return picture


def methods_figure(
    columns: Mapping[str, Sequence[TextResult]], whole: Sequence[TextResult]
) -> Figure:
    """Answers side by side: per phrase a row of token maps above a row of masks or texts.

    Args:
        columns: title -> the answers to the same phrases.
        whole: the answers without pruning, outlined in white.

    Returns:
        A matplotlib figure that belongs to no window. Each answer is headed by its agreement with
        the unpruned one.
    """
    from matplotlib.figure import Figure as Canvas

    height, width = whole[0].image.shape[:2]
    tall = len(whole) * min(max(5.2 * height / width + 0.8, 2.0), 9.0)
    picture = Canvas(figsize=(2.6 * len(columns) + 0.2, tall), layout="constrained")
    grid = picture.subplots(2 * len(whole), len(columns), squeeze=False)
    for places, (title, results) in zip(grid.T, columns.items(), strict=True):
        for number, (item, full) in enumerate(zip(results, whole, strict=True)):
            ink = PHRASE_COLOURS[number % len(PHRASE_COLOURS)]
            line = mask_layer([full.region], colours=[(255, 255, 255)], fill=0.0)
            upper, lower = places[2 * number : 2 * number + 2]
            upper.imshow(compose(item.image, token_layer(item.token_map)))
            lower.imshow(compose(item.image, mask_layer([item.region], colours=[ink]), line))
            phrase, told = " ".join(item.phrase.split())[:30], _told(item, 30)
            text = f"“{phrase}”: agreement {item.agreement(full):.2f}{told}"
            lower.set_title(text, fontsize=8, parse_math=False)
        for place in places:
            place.set_axis_off()
        places[0].set_title(title, fontsize=9)
    return picture


# ------------------------------------------------------------------------------------ details
def _draw(picture: Figure, rows: Sequence[TextResult]) -> Figure:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.patches import Patch

    colours = LinearSegmentedColormap.from_list("litelvlm", _DIVERGING / 255.0)
    grid = picture.subplots(len(rows), 3, squeeze=False)
    for number, (row, axes) in enumerate(zip(rows, grid, strict=True)):
        tokens, ink = row.token_map, PHRASE_COLOURS[number % len(PHRASE_COLOURS)]
        views = [compose(row.image, mask_layer([row.region], colours=[ink]))]
        views.append(compose(row.image, token_layer(tokens)))
        if tokens.similarity is not None:
            heat = heat_layer(tokens.similarity, tokens.frame, threshold=tokens.threshold)
            # Over a grey photo, so that every colour seen is one of the scale's.
            grey = cv2.cvtColor(cv2.cvtColor(row.image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            views.append(compose(grey, heat))
        for place, view in zip(axes, views, strict=False):
            place.imshow(view, interpolation="nearest")
        for place in axes:
            place.set_axis_off()
        # A phrase is the user's text: no mathematics, one line.
        phrase = " ".join(row.phrase.split())[:60]
        axes[0].set_title(f"“{phrase}”{_told(row, 44)}", fontsize=9, parse_math=False)
        kept = {int(reason): int((tokens.reason == reason).sum()) for reason in set(tokens.reason)}
        axes[1].set_title(f"{len(tokens.order)} of {tokens.frame.count} image tokens", fontsize=9)
        inks = {reason: _fraction(REASON_COLOURS[reason]) for reason in kept}
        keys = [Patch(color=inks[r], label=f"{REASON_NAMES[r]} {n}") for r, n in kept.items()]
        keys.append(Patch(color=_fraction(_DIMMED[:3]), label="dropped"))
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "frameon": False}
        axes[1].legend(handles=keys, fontsize=6.5, ncols=len(keys), handlelength=1, **below)
        if tokens.similarity is None:
            axes[2].text(0.5, 0.5, "no similarity in this model", ha="center", fontsize=8)
            continue
        scale = colour_scale(tokens.similarity[seen_patches(tokens.frame)])
        norm = Normalize(scale.centre - scale.reach, scale.centre + scale.reach)
        bar = picture.colorbar(ScalarMappable(norm, colours), ax=axes[2], fraction=0.046, pad=0.02)
        bar.ax.set_ylim(scale.low, scale.high if scale.high > scale.low else scale.low + 1)
        bar.ax.tick_params(labelsize=7)
        bar.set_label("patch · phrase (raw dot product)", fontsize=7)
        if tokens.threshold is not None:
            bar.ax.axhline(tokens.threshold, color="black", lw=1.6)
        axes[2].set_title("CLIP similarity, outlined: kept as least similar", fontsize=9)
    return picture


def _told(item: TextResult, width: int) -> str:
    """What is written beside a phrase: an answer in text, or that there is no mask."""
    if isinstance(item, GroundingResult):
        return "" if item.found else " (nothing found)"
    return "\n" + fill(" ".join(item.text.split())[:160], width)


def _fraction(colour: Colour) -> tuple[float, float, float]:
    """RGB 0..255 -> 0..1, as matplotlib wants it."""
    return colour[0] / 255, colour[1] / 255, colour[2] / 255


def _rows(results: Sequence[TextResult] | TextResult) -> list[TextResult]:
    rows = list(results) if isinstance(results, Sequence) else [results]
    if not rows:
        raise ValueError("nothing to show: no results")
    return rows


def _size(rows: Sequence[TextResult]) -> tuple[float, float]:
    height, width = rows[0].image.shape[:2]
    return 10.0, len(rows) * min(max(3.2 * height / width + 0.6, 1.6), 6.0)


def _resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if mask.shape == tuple(size):
        return mask
    height, width = size
    return cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _pixel_boxes(frame: PatchFrame, size: tuple[int, int]) -> np.ndarray:
    """(N, 4) int xyxy of every patch in a layer of this size, cut off at its edges."""
    (height, width), (rows, columns) = size, frame.image_hw
    stretch = np.array([width / columns, height / rows] * 2)
    boxes = np.rint(frame.boxes() * stretch).astype(int)
    return boxes.clip(0, [width, height, width, height])


def _hatch_unseen(layer: np.ndarray, frame: PatchFrame) -> np.ndarray:
    """Darken and hatch, in place, what lies outside the box the patches cover."""
    (height, width), (rows, columns) = layer.shape[:2], frame.image_hw
    x0, y0, x1, y1 = frame.seen_box
    x0, x1 = (round(x * width / columns) for x in (x0, x1))
    y0, y1 = (round(y * height / rows) for y in (y0, y1))
    unseen = np.ones((height, width), bool)
    unseen[max(y0, 0) : y1, max(x0, 0) : x1] = False
    if unseen.any():
        period = max(6, min(height, width) // 40)
        down, across = np.ogrid[:height, :width]
        stripe = (down + across) % period < max(1, period // 5)
        layer[unseen] = (13, 17, 27, 205)
        layer[unseen & stripe] = (*_UNSEEN, 220)
    return layer
