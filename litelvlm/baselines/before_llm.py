"""Methods that choose tokens before the language model, each a pure function of CLIP's tensors.

Every rule has the signature (view, budget, options) -> Selection and keeps exactly `budget`
tokens in raster order, unless its docstring says otherwise. Scores are float32, ties go to the
lower patch number, nothing is hard-coded for one grid. Each docstring names the paper and the
public code whose rule is restated here in our own words.
"""

from __future__ import annotations

import torch
from torch import Tensor

from litelvlm.baselines.ours import context_score
from litelvlm.baselines.view import (
    SelectionOptions,
    TokenView,
    best,
    check_budget,
    in_raster_order,
)
from litelvlm.pruning import Selection


def random(view: TokenView, budget: int, options: SelectionOptions) -> Selection:
    """Uniformly random patches: a permutation drawn from `options.seed`, its first K."""
    batch, count = view.hidden.shape[:2]
    check_budget(budget, count)
    # Drawn on the CPU, so that every device keeps the same patches.
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(options.seed))
    return in_raster_order(drawn[:budget].to(view.hidden.device).expand(batch, -1))


def grid(view: TokenView, budget: int, options: SelectionOptions) -> Selection:
    """A uniform grid: K patches spread evenly over rows and columns.

    The number of rows r is chosen so that r rows of K / r columns have nearly square gaps; where
    r does not divide K the first rows get one patch more. Rows and columns sit at the centres of
    equal intervals.
    """
    check_budget(budget, view.hidden.shape[1])
    numbers = torch.tensor(_grid_points(view.grid, budget), device=view.hidden.device)
    return in_raster_order(numbers.expand(view.hidden.shape[0], -1))


def most_similar(view: TokenView, budget: int, options: SelectionOptions) -> Selection:
    """The unreversed ranking: patches most like the phrase; several phrases take turns."""
    return _by_similarity(view, budget, -view.similarity.float())


def least_similar(view: TokenView, budget: int, options: SelectionOptions) -> Selection:
    """LiteLVLM's first step alone: patches least like the phrase; several phrases take turns."""
    return _by_similarity(view, budget, view.similarity.float())


def context(view: TokenView, budget: int, options: SelectionOptions) -> Selection:
    """LiteLVLM's second step alone: the highest context scores, blind to the phrase."""
    check_budget(budget, view.hidden.shape[1])
    score = context_score(view, options.context)
    selection = in_raster_order(best(score, budget))
    return Selection(selection.indices, selection.reason, None, score)


def _by_similarity(view: TokenView, budget: int, score: Tensor) -> Selection:
    """The K lowest of (B, T, N) scores. A patch ranks by its best place under any phrase."""
    check_budget(budget, score.shape[-1])
    rank = score.argsort(dim=-1, stable=True).argsort(dim=-1)
    selection = in_raster_order(best(-rank.amin(dim=1), budget))
    return Selection(selection.indices, selection.reason, view.similarity.float(), None)


def _grid_points(grid_hw: tuple[int, int], budget: int) -> list[int]:
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
