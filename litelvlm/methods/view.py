"""What a selection method sees and hands back. Pure tensors; axis letters as in `pruning`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from litelvlm.pruning import Reason, Selection


class Block(Protocol):
    """One attention block of the image tower, as far as the methods ask about it.

    Attributes:
        query: (B, D), query of the class token, heads side by side.
        keys: (B, N, D), keys of the patches.
        values: (B, N, D), values of the patches.
        attention: (B, heads, N), what the class token attends to: its softmax row, columns of
            the patches. The class token's own column counts in the softmax but is left out.
    """

    @property
    def query(self) -> Tensor: ...  # noqa: D102
    @property
    def keys(self) -> Tensor: ...  # noqa: D102
    @property
    def values(self) -> Tensor: ...  # noqa: D102
    @property
    def attention(self) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True)
class BlockView:
    """A `Block` whose attention is at hand."""

    query: Tensor
    keys: Tensor
    values: Tensor
    attention: Tensor


@dataclass(frozen=True)
class TokenView:
    """The tensors a method that runs before the language model may use.

    Only `hidden`, `grid` and `heads` are always there; the rest is filled where a method's `needs`
    names it, if the model has it.

    Attributes:
        hidden: (B, N, D), the patch tokens that would enter the language model.
        grid: (rows, columns), rows * columns = N.
        heads: attention heads of the image tower.
        similarity: (B, T, N), dot product of patches and phrases in the space they share; comes
            with `text`, (B, T, E), and `projected`, (B, N, E), the two sides of it.
        last: the last block; its inputs are `hidden`.
        penultimate: the block before.
        early: a block about a fifth of the way up.
        llm: (B, N, L), the patches after the projector.
    """

    hidden: Tensor
    grid: tuple[int, int]
    heads: int = 1
    similarity: Tensor | None = None
    text: Tensor | None = None
    projected: Tensor | None = None
    last: Block | None = None
    penultimate: Block | None = None
    early: Block | None = None
    llm: Tensor | None = None

    def need(self, name: str) -> Any:
        """A field that may be empty, or a ValueError naming it."""
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"this method needs TokenView.{name}, which was not filled")
        return value


@dataclass(frozen=True)
class SelectionOptions:
    """The choices a caller may make; a method ignores those that mean nothing to it.

    Attributes:
        split: "paper", "released" or a fraction in 0..1 (see `litelvlm.pruning`).
        order: "raster" or "released".
        context: "released" (in effect the norm of the values) or "attention" (per head).
        seed: for methods that draw at random; the same seed gives the same patch numbers to every
            picture, so give each picture its own.
    """

    split: str | float = "paper"
    order: str = "raster"
    context: str = "released"
    seed: int = 0


@dataclass(frozen=True)
class InsideResult:
    """What a method that prunes inside the language model hands back.

    Attributes:
        hidden: (P, S', L), final states (after the last norm) of the rows kept.
        places: (P, S') int64, number of each row in the sequence that was given; -1: merged.
        kept: (P, K) int64, patch numbers that reached the last layer, in sequence; -1: merged.
        layer_tokens: length of the sequence in each layer.
        attention_bytes: bytes of the attention weights the method had to write out.
        layers: (P,) position of the last real token and (P, S) bool, True = real, in each layer.
    """

    hidden: Tensor
    places: Tensor
    kept: Tensor
    layer_tokens: tuple[int, ...]
    attention_bytes: int
    layers: tuple[tuple[Tensor, Tensor], ...] = ()


@dataclass(frozen=True)
class Method:
    """One way to choose tokens.

    Attributes:
        name: as typed by users.
        title: as printed in tables.
        source: paper and public code it follows.
        rule_text: the rule in one sentence.
        where: "before" or "inside" the language model.
        needs: what it reads of a model: fields of `TokenView` ("similarity" stands for `text` and
            `projected` too), or "layers", those of the language model.
        rule: before: (TokenView, budget, SelectionOptions) -> Selection. inside: (LlamaModel,
            inputs_embeds, attention_mask, position_ids, image_span, budget) -> InsideResult.
        positions: "compact" or "original" where that is part of the rule; None leaves the choice
            to the caller (the authors' codes of these number the kept tokens anew, "compact").
        seeded: whether `SelectionOptions.seed` changes what is kept.
    """

    name: str
    title: str
    source: str
    rule_text: str
    where: str
    needs: frozenset[str]
    rule: Callable[..., Selection | InsideResult]
    positions: str | None = None
    seeded: bool = False


def check_budget(budget: int, count: int) -> None:
    """Raise ValueError unless `budget` is a whole number in 1..count."""
    if isinstance(budget, bool) or not isinstance(budget, int) or not 1 <= budget <= count:
        raise ValueError(f"budget must be a whole number in 1..{count}, got {budget!r}")


def best(score: Tensor, budget: int) -> Tensor:
    """(B, N) scores -> (B, K) patch numbers, best first; ties go to the lower patch number."""
    return score.float().argsort(dim=-1, descending=True, stable=True)[:, :budget]


def in_raster_order(indices: Tensor) -> Selection:
    """A selection of whole patches, kept by a method's own rule, in raster order."""
    indices = indices.sort(dim=-1).values
    return Selection(indices, torch.full_like(indices, int(Reason.RULE), dtype=torch.uint8))


def mask_of(indices: Tensor, count: int) -> Tensor:
    """(B, K) patch numbers -> (B, N) bool."""
    kept = torch.zeros(indices.shape[0], count, dtype=torch.bool, device=indices.device)
    return kept.scatter_(1, indices, True)


def numbers_of(kept: Tensor) -> Tensor:
    """(B, N) bool with the same count K in each row -> (B, K) patch numbers, ascending."""
    return kept.nonzero()[:, 1].view(kept.shape[0], -1)


def grid_points(grid_hw: tuple[int, int], budget: int) -> list[int]:
    """K distinct patch numbers on an even lattice."""
    height, width = grid_hw
    least = -(-budget // width)  # fewer rows could not hold K patches
    rows = min(max(round((budget * height / width) ** 0.5), least, 1), height, budget)
    share, extra = divmod(budget, rows)
    points = []
    for row in range(rows):
        columns = share + (row < extra)
        y = int((row + 0.5) * height / rows)
        points += [y * width + int((x + 0.5) * width / columns) for x in range(columns)]
    return points


def windows_of(grid_hw: tuple[int, int], height: int, width: int) -> Tensor:
    """(N,), number of the window of height x width patches that each patch lies in."""
    rows, columns = torch.arange(grid_hw[0]) // height, torch.arange(grid_hw[1]) // width
    return (rows.unsqueeze(1) * (grid_hw[1] // width + 1) + columns).flatten()


def place_within(score: Tensor, groups: Tensor) -> Tensor:
    """(B, N) scores, (N,) group numbers -> (B, N): 0 for the best of its group, 1 for the next."""
    order = best(score, score.shape[1])  # ties: the lower patch number is better
    rank = order.argsort(dim=-1)
    better = rank.unsqueeze(1) < rank.unsqueeze(2)  # [b, i, j]: j is better than i
    return (better & (groups.unsqueeze(0) == groups.unsqueeze(1))).sum(dim=-1)


def place_under_any(score: Tensor) -> Tensor:
    """(B, T, N) -> (B, N): best place of each patch under any phrase, lowest score = place 0."""
    return score.argsort(dim=-1, stable=True).argsort(dim=-1).amin(dim=1)
