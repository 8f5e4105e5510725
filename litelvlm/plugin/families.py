"""The models the plug-in knows: one row each, and how its image tokens lie over the picture.

A picture enters a language model as a run of tokens, in one or several pieces: the whole picture,
tiles of it, rows closed by a newline token. A layout names the pieces in the order in which their
tokens come, so that a selection rule sees one grid at a time and every kept token has a place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from litelvlm.errors import ModelError
from litelvlm.geometry import PatchFrame
from litelvlm.tables import markdown_table

WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Piece:
    """A rectangle of patches among the image tokens of one picture, in raster order.

    Attributes:
        grid: (rows, columns) of patches; no columns: a single token that shows no place.
        box: x0, y0, x1, y1 of what it shows, as shares of the picture's width and height; sticks
            out of 0..1 where the model pads the picture.
        newline: whether a token that ends the row follows each row.
    """

    grid: tuple[int, int]
    box: tuple[float, float, float, float] = WHOLE
    newline: bool = False

    @property
    def patches(self) -> int:
        """N, tokens that show a place of the picture."""
        return self.grid[0] * self.grid[1]

    @property
    def count(self) -> int:
        """All tokens, those that end rows included."""
        return self.patches + self.grid[0] * self.newline

    @property
    def patch_offsets(self) -> Tensor:
        """(N,) int64, where each patch stands among the `count` tokens."""
        columns = self.grid[1]
        number = torch.arange(self.patches)
        return number + (number // max(columns, 1) if self.newline else 0)


SINGLE = Piece((1, 0), newline=True)  # one token without a place, never dropped


@dataclass(frozen=True)
class Shown:
    """What a layout may look at: one call's pictures after the processor and the vision tower.

    Attributes:
        config: the model's configuration.
        processor: the model's processor.
        encoded: the processor's output.
        sizes: (height, width) of each picture.
        features: (M, L), the tokens of all pictures.
        entries: number of tokens in each entry the vision tower handed out.
        runs: number of placeholders in each unbroken run of the prompts.
        newline: (L,), the embedding that ends a row; None where the model has none.
    """

    config: Any
    processor: Any
    encoded: Mapping[str, Any]
    sizes: Sequence[tuple[int, int]]
    features: Tensor
    entries: Sequence[int]
    runs: Sequence[int]
    newline: Tensor | None = None


Layout = Sequence[tuple[Piece, ...]]  # the pieces of each picture


def _square(count: int) -> tuple[int, int]:
    side = math.isqrt(count)
    if side * side != count:
        raise ModelError(f"{count} image tokens do not make a square grid")
    return side, side


def _view_box(processor: Any, hw: tuple[int, int]) -> tuple[float, float, float, float]:
    """What a CLIP image processor leaves of a picture, as shares of its sides."""
    settings = processor.image_processor
    if getattr(settings, "do_pad", False):
        view = "letterbox"
    elif getattr(settings, "do_center_crop", False):
        view = "crop"
    else:
        return WHOLE
    left, top, right, bottom = PatchFrame((1, 1), hw, view).square
    return left / hw[1], top / hw[0], right / hw[1], bottom / hw[0]


def _tiles(rows: int, columns: int, grid: tuple[int, int]) -> tuple[Piece, ...]:
    """Tiles of a picture in raster order, then the whole of it."""
    pieces = [
        Piece(grid, (c / columns, r / rows, (c + 1) / columns, (r + 1) / rows))
        for r in range(rows)
        for c in range(columns)
    ]
    return (*pieces, Piece(grid))


def _clip_square(shown: Shown) -> Layout:
    """LLaVA-1.5: one square, cut from the middle or padded."""
    vision = shown.config.vision_config
    if vision.model_type != "clip_vision_model":
        raise ModelError(f"LLaVA with a {vision.model_type} tower has no tested token layout")
    side = vision.image_size // vision.patch_size
    whole = shown.config.vision_feature_select_strategy == "full"  # the class token comes first
    head = (SINGLE,) if whole else ()
    return [(*head, Piece((side, side), _view_box(shown.processor, hw))) for hw in shown.sizes]


def _anyres(shown: Shown) -> Layout:
    """LLaVA-NeXT, OneVision: the whole picture, then its joined tiles with a newline a row."""
    vision = shown.config.vision_config
    side = vision.image_size // vision.patch_size
    base = side * side
    assert shown.newline is not None
    ends = torch.eq(shown.features, shown.newline).all(-1)  # exact: the newline is copied in
    layout: list[tuple[Piece, ...]] = []
    start = 0
    for length in shown.entries:
        rest = ends[start + base : start + length]
        rows = int(rest.sum())
        if rows == len(rest) == 1:
            layout.append((Piece((side, side)), SINGLE))
        elif rows and len(rest) % rows == 0 and bool(rest.view(rows, -1)[:, -1].all()):
            tiles = Piece((rows, len(rest) // rows - 1), newline=True)
            layout.append((Piece((side, side)), tiles))
        else:
            raise ModelError(f"{length} image tokens do not end in rows of equal length")
        start += length
    return layout


def _merged_grid(shown: Shown) -> Layout:
    """Qwen-VL: the whole picture at its own shape, 2 x 2 patches a token."""
    merge = shown.config.vision_config.spatial_merge_size
    grids = shown.encoded["image_grid_thw"].tolist()
    return [(Piece((height // merge, width // merge)),) for _, height, width in grids]


def _internvl(shown: Shown) -> Layout:
    """InternVL: tiles on a lattice near the picture's shape, then a thumbnail of all of it."""
    grid = _square(shown.entries[0])
    layout: list[tuple[Piece, ...]] = []
    for run, (height, width) in zip(shown.runs, shown.sizes, strict=True):
        tiles = run // shown.entries[0] - 1
        if not tiles:
            layout.append((Piece(grid),))
            continue
        lattices = [(tiles // c, c) for c in range(1, tiles + 1) if tiles % c == 0]
        rows, columns = min(lattices, key=lambda rc: abs(width / height - rc[1] / rc[0]))
        layout.append(_tiles(rows, columns, grid))
    return layout


def _idefics(shown: Shown) -> Layout:
    """SmolVLM, Idefics3: tiles in raster order, each a run of its own, then the whole picture."""
    grid = _square(shown.runs[0])
    layout = []
    for height, width in shown.sizes:
        _, rows, columns = shown.processor.image_processor.get_number_of_image_patches(
            height, width
        )
        layout.append(_tiles(rows, columns, grid))
    return layout


def _one_square(shown: Shown) -> Layout:
    """Gemma 3, PaliGemma: the whole picture as a square."""
    return [(Piece(_square(count)),) for count in shown.entries]


def _mean_first(shown: Shown) -> Layout:
    """Florence-2: the mean of all patches, then the patches."""
    return [(SINGLE, Piece(_square(count - 1))) for count in shown.entries]


@dataclass(frozen=True)
class Family:
    """A kind of model and what the plug-in must know about it.

    Attributes:
        name: as printed.
        model_types: `config.model_type` of its models.
        layout: where the image tokens of each picture lie.
        tokens: its image tokens, in words.
        score: what scores them without a guide, in words.
        axes: position numbers of a token: 1, or 4 (text, time, row, column) for M-RoPE; 0: the
            encoder numbers what it gets, so only "compact" positions exist.
        prompt: a prompt for one picture where the processor has no chat template.
        nested: the processor takes a list of pictures for each prompt.
        placed: the processor puts the placeholder in front of the text itself.
    """

    name: str
    model_types: tuple[str, ...]
    layout: Callable[[Shown], Layout]
    tokens: str
    score: str = "tokens alone"
    axes: int = 1
    prompt: str = "USER: {image}\n{question} ASSISTANT:"
    nested: bool = False
    placed: bool = False


_QWEN = "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>{question}<|im_end|>\n"
_QWEN += "<|im_start|>assistant\n"

FAMILIES: tuple[Family, ...] = (
    Family(
        "LLaVA-1.5",
        ("llava",),
        _clip_square,
        "576 in a square",
        "its own CLIP; for the text the CLIP file the tower came from",
    ),
    Family(
        "LLaVA-NeXT",
        ("llava_next",),
        _anyres,
        "576 and up to 2,304 of joined tiles; newlines follow their row",
    ),
    Family(
        "LLaVA-OneVision",
        ("llava_onevision",),
        _anyres,
        "729 and up to 6,561 of joined tiles; newlines follow their row",
        prompt="<|im_start|>user {image}\n{question}<|im_end|><|im_start|>assistant\n",
    ),
    Family("Qwen2-VL", ("qwen2_vl",), _merged_grid, "any grid", axes=4, prompt=_QWEN),
    Family("Qwen2.5-VL", ("qwen2_5_vl",), _merged_grid, "any grid", axes=4, prompt=_QWEN),
    Family(
        "Qwen3-VL",
        ("qwen3_vl",),
        _merged_grid,
        "any grid; DeepStack features are pruned alike",
        axes=4,
        prompt=_QWEN,
    ),
    Family(
        "InternVL",
        ("internvl",),
        _internvl,
        "256 a tile, up to 12 tiles and a thumbnail",
        prompt="<|im_start|>user\n{image}\n{question}<|im_end|>\n<|im_start|>assistant\n",
    ),
    Family(
        "Gemma 3",
        ("gemma3",),
        _one_square,
        "256 in a square, one bidirectional block; no pan-and-scan",
        nested=True,
        prompt="<start_of_turn>user\n{image}{question}<end_of_turn>\n<start_of_turn>model\n",
    ),
    Family(
        "PaliGemma 2",
        ("paligemma",),
        _one_square,
        "256, 1,024 or 4,096 in a square",
        prompt="{image}{question}",
    ),
    Family(
        "SmolVLM, Idefics3",
        ("smolvlm", "idefics3"),
        _idefics,
        "64 to 169 a tile, up to 16 tiles and the whole",
        nested=True,
        prompt="<|im_start|>User:{image}{question}<end_of_utterance>\nAssistant:",
    ),
    Family(
        "Florence-2",
        ("florence2",),
        _mean_first,
        "576 and their mean, which stays; encoder-decoder, positions compact",
        axes=0,
        prompt="{question}",
        placed=True,
    ),
)

# Why some well-known models are not in the table.
REFUSED: dict[str, str] = {
    "mllama": "its language model reads pictures by cross-attention, no image token enters it",
    "blip-2": "its Q-Former hands over 32 tokens that show no place",
    "instructblip": "its Q-Former hands over 32 tokens that show no place",
    "idefics2": "its resampler hands over 64 tokens that show no place",
    "fuyu": "it has no vision tower, patches enter the language model as they are",
    "chameleon": "its pictures are words of the vocabulary",
    "emu3": "its pictures are words of the vocabulary",
    "video_llava": "its picture tokens carry the class token and no tested layout",
}


def family_of(model_type: str) -> Family:
    """The row of a model type, or `ModelError` with the reason why there is none."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    reason = REFUSED.get(model_type, "how its image tokens lie is not known here")
    known = ", ".join(family.name for family in FAMILIES)
    raise ModelError(f"{model_type} cannot be pruned: {reason}; models that can: {known}")


def table() -> str:
    """The models as a Markdown table."""
    heads = ["model", "`model_type`", "image tokens", "score without a guide", "positions"]
    positions = {0: "compact", 1: "original, compact", 4: "original, compact (M-RoPE)"}
    rows = [
        [
            row.name,
            ", ".join(f"`{name}`" for name in row.model_types),
            row.tokens,
            row.score,
            positions[row.axes],
        ]
        for row in FAMILIES
    ]
    return "\n".join(markdown_table(heads, rows, range(len(heads))))
