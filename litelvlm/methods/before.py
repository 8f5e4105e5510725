"""Methods that choose tokens before the language model, each a pure function of CLIP's tensors.

Every rule has the signature (view, budget, options) -> Selection and keeps exactly `budget`
tokens in raster order, unless its docstring says otherwise. Scores are float32, ties go to the
lower patch number, nothing is hard-coded for one grid. Each docstring names the paper and the
public code whose rule is restated here in our own words.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from litelvlm.methods.litelvlm import context_score
from litelvlm.methods.view import (
    Block,
    SelectionOptions,
    TokenView,
    best,
    check_budget,
    grid_points,
    in_raster_order,
    mask_of,
    numbers_of,
    place_under_any,
    place_within,
    windows_of,
)
from litelvlm.pruning import Reason, Selection, gather_tokens


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
    numbers = torch.tensor(grid_points(view.grid, budget), device=view.hidden.device)
    return in_raster_order(numbers.expand(view.hidden.shape[0], -1))


def most_similar(view: TokenView, budget: int, options: SelectionOptions) -> Selection:
    """The unreversed ranking: patches most like the phrase; several phrases take turns."""
    return _by_similarity(view, budget, -view.need("similarity").float())


def least_similar(view: TokenView, budget: int, options: SelectionOptions) -> Selection:
    """LiteLVLM's first step alone: patches least like the phrase; several phrases take turns."""
    return _by_similarity(view, budget, view.need("similarity").float())


def context(view: TokenView, budget: int, options: SelectionOptions) -> Selection:
    """LiteLVLM's second step alone: the highest context scores, blind to the phrase."""
    check_budget(budget, view.hidden.shape[1])
    score = context_score(view, options.context)
    selection = in_raster_order(best(score, budget))
    return Selection(selection.indices, selection.reason, None, score)


def trim(view: TokenView, budget: int, options: SelectionOptions) -> Selection:
    """TRIM (Song et al., COLING 2025; github.com/FreedomIntelligence/TRIM), sign as released.

    The code negates the dot product of projected patch and text before its softmax and top-k, so
    it keeps the patches *least* like the text: K - 1 of them in raster order, then one token that
    is the mean of all others. Several phrases take turns. The code's own count (an outlier rule)
    is replaced by the budget.
    """
    check_budget(budget, view.hidden.shape[1])
    kept = best(-place_under_any(view.need("similarity").float()), budget - 1).sort(dim=-1).values
    dropped = ~mask_of(kept, view.hidden.shape[1])
    weights = dropped.float() / dropped.sum(dim=-1, keepdim=True)
    mean = weights.unsqueeze(1) @ view.hidden.float()  # (B, 1, D)
    selection = _with_extra(view.hidden, kept, view.hidden, mean)
    return Selection(
        selection.indices, selection.reason, view.need("similarity").float(), None, selection.tokens
    )


def class_attention(view: TokenView, budget: int, options: SelectionOptions) -> Selection:
    """Most attended by the class token in the last block but one, mean of the heads.

    FasterVLM's rule (Zhang et al., arXiv 2412.01818; github.com/Theia-4869/FasterVLM).
    """
    check_budget(budget, view.hidden.shape[1])
    return in_raster_order(best(_attended(view), budget))


def visionzip(view: TokenView, budget: int, options: SelectionOptions) -> Selection:
    """VisionZip (Yang et al., CVPR 2025; github.com/dvlab-research/VisionZip).

    Dominant tokens: most attended by the class token in the last block but one. Contextual
    tokens: evenly spaced targets among the rest; every other token joins the target with the
    nearest key (cosine, keys averaged over heads), and the target becomes itself plus the mean of
    those that joined. Dominant first, then contextual, each in raster order. The paper's 54 + 10
    of 64 sets the shares. The code also keeps the class token; a patch takes its place here.
    """
    batch, count, _ = view.hidden.shape
    check_budget(budget, count)
    contextual = (budget * 10 + 32) // 64
    dominant = best(_attended(view), budget - contextual).sort(dim=-1).values
    if not contextual:
        return in_raster_order(dominant)
    rest = numbers_of(~mask_of(dominant, count))  # (B, R)
    step = max(1, rest.shape[1] // contextual)
    places = torch.arange(0, rest.shape[1], step, device=rest.device)[:contextual]

    block = view.need("penultimate")
    keys = block.keys.float().view(batch, count, view.heads, -1).mean(dim=2)
    keys = F.normalize(gather_tokens(keys, rest), dim=-1)
    tokens = gather_tokens(view.hidden.float(), rest)
    joins = F.one_hot((keys @ keys[:, places].transpose(1, 2)).argmax(-1), contextual).float()
    joins[:, places] = 0  # targets join nobody
    # (B, R, contextual) turned, times (B, R, D): the mean of those that joined each target
    joined = joins.transpose(1, 2) @ tokens / joins.sum(1).clamp(min=1).unsqueeze(-1)
    merged = (tokens[:, places] + joined).to(view.hidden.dtype)

    indices = torch.cat([dominant, rest[:, places]], dim=1)
    reason = torch.full_like(indices, int(Reason.RULE), dtype=torch.uint8)
    reason[:, dominant.shape[1] :] = int(Reason.MERGED)
    kept = gather_tokens(view.hidden, dominant)
    return Selection(indices, reason, tokens=torch.cat([kept, merged], dim=1))


def prumerge_plus(view: TokenView, budget: int, options: SelectionOptions) -> Selection:
    """LLaVA-PruMerge+ (Shang et al., ICCV 2025; github.com/42Shawn/LLaVA-PruMerge).

    Scores: softmax of the class query over the keys of the last block, heads not split. Kept:
    the best, then evenly spaced ones among the rest, one to three as in the code (there an
    outlier rule sets the count, here the budget). Each kept token adds the score-weighted sum of
    its 32 nearest others by key cosine; one last token is the score-weighted sum of all patches
    not kept. Order: by score, then spaced, then the extra one. The softmax runs over the patches
    only, so the class token's own share is left out.
    """
    batch, count, width = view.hidden.shape
    check_budget(budget, count)
    last: Block = view.need("last")
    keys = last.keys.float()
    score = (keys @ last.query.float().unsqueeze(-1)).squeeze(-1) / width**0.5
    score = score.softmax(dim=-1)  # (B, N)
    first = best(score, -(-(budget - 1) // 4))
    rest = numbers_of(~mask_of(first, count))
    spaced = budget - 1 - first.shape[1]
    places = torch.arange(spaced, device=rest.device) * rest.shape[1] // max(spaced, 1)
    kept = torch.cat([first, rest[:, places]], dim=1)  # (B, K - 1)

    tokens = view.hidden.float()
    unit = F.normalize(keys, dim=-1)
    near = gather_tokens(unit, kept) @ unit.transpose(1, 2)  # (B, K - 1, N)
    near.scatter_(2, kept.unsqueeze(-1), -torch.inf)  # not itself
    near = near.argsort(dim=-1, descending=True, stable=True)[..., : min(32, count - 1)]
    weights = torch.zeros(batch, kept.shape[1], count, device=tokens.device)
    weights.scatter_(2, near, 1.0)  # (B, K - 1, N)
    merged = gather_tokens(tokens, kept) + (weights * score.unsqueeze(1)) @ tokens
    others = score.masked_fill(mask_of(kept, count), 0.0).unsqueeze(1) @ tokens
    selection = _with_extra(view.hidden, kept, merged, others, gathered=True)
    return selection


def vispruner(view: TokenView, budget: int, options: SelectionOptions) -> Selection:
    """VisPruner (Zhang et al., ICCV 2025; github.com/Theia-4869/VisPruner).

    Half the budget: most attended by the class token in the last block but one (mean of heads).
    The rest, sorted by that score, loses duplicates: tokens at even places are matched with those
    at odd places, and the 8 with the most similar partner (cosine) are dropped; again, until the
    other half of the budget is left.
    """
    check_budget(budget, view.hidden.shape[1])
    order = best(_attended(view), view.hidden.shape[1])
    important, rest = order[:, : budget // 2], order[:, budget // 2 :]
    unit = F.normalize(view.hidden.float(), dim=-1)
    cosine = unit @ unit.transpose(1, 2)  # once for all rounds
    while surplus := rest.shape[1] - (budget - budget // 2):
        even, odd = rest[:, ::2], rest[:, 1::2]
        # (B, R/2, N) -> (B, R/2, R/2): cosine of each even with each odd one
        pairs = gather_tokens(cosine, even).gather(
            2, odd.unsqueeze(1).expand(-1, even.shape[1], -1)
        )
        partner = pairs.amax(dim=-1)
        distinct = partner.argsort(dim=-1, descending=True, stable=True)[:, min(8, surplus) :]
        rest = torch.cat([even.gather(1, distinct), odd], dim=1)
    return in_raster_order(torch.cat([important, rest], dim=1))


def cdpruner(view: TokenView, budget: int, options: SelectionOptions) -> Selection:
    """CDPruner (Zhang et al., arXiv 2506.10967; github.com/Theia-4869/CDPruner).

    A determinantal point process over kernel r_i r_j cos(i, j): cosine of the tokens as the
    language model sees them, relevance r = the *negated* mean cosine of patch and text, scaled to
    0..1. Greedy maximisation of the determinant picks K.
    """
    check_budget(budget, view.hidden.shape[1])
    cosine = F.normalize(view.need("text").float(), dim=-1) @ F.normalize(
        view.need("projected").float(), dim=-1
    ).transpose(1, 2)
    relevance = -cosine.mean(dim=1)  # (B, N)
    low, high = relevance.amin(-1, keepdim=True), relevance.amax(-1, keepdim=True)
    relevance = _precise((relevance - low + 1e-6) / (high - low).clamp(min=1e-6))
    unit = _precise(F.normalize(view.need("llm").float(), dim=-1))
    # (B, N, 1) * (B, N, N) * (B, 1, N)
    kernel = relevance.unsqueeze(2) * (unit @ unit.transpose(1, 2)) * relevance.unsqueeze(1)
    return in_raster_order(_greedy_determinant(kernel, budget))


def divprune(view: TokenView, budget: int, options: SelectionOptions) -> Selection:
    """DivPrune (Alvar et al., CVPR 2025; github.com/vbdi/divprune), blind to the text.

    Greedy max-min diversity of the tokens as the language model sees them: start with the token
    farthest from its nearest other (distance 1 - cosine), then add the token farthest from all
    those chosen.
    """
    check_budget(budget, view.hidden.shape[1])
    unit = F.normalize(view.need("llm").float(), dim=-1)
    distance = 1 - unit @ unit.transpose(1, 2)  # (B, N, N)
    distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    nearest = distance.amin(dim=-1)  # (B, N)
    distance.diagonal(dim1=1, dim2=2).zero_()
    rows = torch.arange(unit.shape[0], device=unit.device)
    chosen = [_first_best(nearest)]
    nearest = distance[rows, chosen[0]].clone()
    nearest[rows, chosen[0]] = -torch.inf
    for _ in range(budget - 1):
        chosen.append(_first_best(nearest))
        nearest = torch.minimum(nearest, distance[rows, chosen[-1]])
        nearest[rows, chosen[-1]] = -torch.inf
    return in_raster_order(torch.stack(chosen, dim=1))


def scope(view: TokenView, budget: int, options: SelectionOptions) -> Selection:
    """SCOPE (Deng et al., 2025; github.com/kinredon/SCOPE): coverage times saliency, greedily.

    gain_j = a_j * sum_i max(0, cos(i, j) - c_i), with a the attention of the class token in the
    last block but one and c_i how well patch i is covered by those chosen; the best gain joins.
    """
    check_budget(budget, view.hidden.shape[1])
    unit = F.normalize(view.hidden.float(), dim=-1)
    cosine = unit @ unit.transpose(1, 2)  # (B, N, N)
    attended = _attended(view) * view.heads  # their sum over heads
    cover = torch.zeros_like(attended)
    taken = torch.zeros_like(attended, dtype=torch.bool)
    rows = torch.arange(unit.shape[0], device=unit.device)
    chosen = []
    for _ in range(budget):
        gain = (cosine - cover.unsqueeze(1)).clamp(min=0).sum(dim=-1) * attended
        chosen.append(_first_best(gain.masked_fill(taken, -torch.inf)))
        taken[rows, chosen[-1]] = True
        cover = torch.maximum(cover, cosine[rows, chosen[-1]])
    return in_raster_order(torch.stack(chosen, dim=1))  # (B, K)


def vscan_encoder(view: TokenView, budget: int, options: SelectionOptions) -> Selection:
    """VScan, encoder stage (Zhang et al., TMLR 2026; Tencent/SelfEvolvingAgent, VScan).

    Half the budget, global: most attended by the class token in the last block but one. The other
    half, local: best attended in an early block within each window, windows in turn; a window is
    a quarter of the grid a side (6 x 6 of 24 x 24). Every dropped token is averaged into the
    nearest kept one (cosine). A patch chosen globally is not chosen again locally.
    """
    count = view.hidden.shape[1]
    check_budget(budget, count)
    whole = best(_attended(view), budget // 2)
    local = view.need("early").attention.float().mean(dim=1)
    taken = mask_of(whole, count)
    local = local.masked_fill(taken, -torch.inf)
    height, width = view.grid
    windows = windows_of(view.grid, -(-height // 4), -(-width // 4)).to(local.device)
    turn = place_within(local, windows).masked_fill(taken, count)
    # Turn first, score second: two stable sorts, the weaker key first.
    by_score = best(local, count)
    by_turn = turn.gather(1, by_score).argsort(dim=-1, stable=True)
    indices = by_score.gather(1, by_turn)[:, : budget - budget // 2]
    return _merge_nearest(view.hidden, torch.cat([whole, indices], dim=1).sort(dim=-1).values)


def nuwa_cells(view: TokenView, budget: int, options: SelectionOptions) -> Selection:
    """Nüwa's per-cell selection (arXiv 2602.02951, ICLR 2026; github.com/Man-PaperRejected/Nuwa).

    Cells of 2 x 2 patches put forward their n best by class attention in the last block but one,
    n the least that suffices; the K best of those are kept. Its aggregation of neighbours and its
    cut inside the language model are not part of this rule. Original positions, as in its code.
    """
    check_budget(budget, view.hidden.shape[1])
    score = _attended(view)
    cells = windows_of(view.grid, 2, 2).to(score.device)
    place = place_within(score, cells)
    # The least n with at least K patches put forward; border cells may hold fewer than four.
    least = next(n for n in range(1, 5) if int((place[0] < n).sum()) >= budget)
    candidates = place < least
    return in_raster_order(best(score.masked_fill(~candidates, -torch.inf), budget))


def _attended(view: TokenView) -> Tensor:
    """(B, N), attention of the class token in the last block but one, mean of the heads."""
    return view.need("penultimate").attention.float().mean(dim=1)


def _precise(values: Tensor) -> Tensor:
    """float64 where the device has it: long greedy chains amplify rounding."""
    return values.float() if values.device.type == "mps" else values.double()


def _first_best(score: Tensor) -> Tensor:
    """(B,), place of the highest score of each row, the lower one on a tie."""
    return score.argsort(dim=-1, descending=True, stable=True)[:, 0]


def _greedy_determinant(kernel: Tensor, budget: int) -> Tensor:
    """(B, N, N) -> (B, K): greedy MAP of a determinantal point process.

    Incremental Cholesky (Chen et al., NeurIPS 2018, arXiv 1709.05135): `gain` holds what each
    item would add, the squared pivot. Once the rank is spent all gains are zero and the lowest
    numbers fill up.
    """
    batch, count = kernel.shape[:2]
    rows = torch.arange(batch, device=kernel.device)
    gain = kernel.diagonal(dim1=1, dim2=2).clone()
    floor = gain.amax(dim=-1, keepdim=True) * 1e-9
    factors = kernel.new_zeros(batch, budget, count)
    taken = torch.zeros_like(gain, dtype=torch.bool)
    chosen = []
    for step in range(budget):
        usable = torch.where(gain > floor, gain, 0.0)
        chosen.append(_first_best(usable.masked_fill(taken, -torch.inf)))
        taken[rows, chosen[-1]] = True
        pivot = gain[rows, chosen[-1]].unsqueeze(-1)
        past = factors[:, :step]
        row = kernel[rows, chosen[-1]] - (past[rows, :, chosen[-1]].unsqueeze(1) @ past).squeeze(1)
        row = torch.where(pivot > floor, row / pivot.clamp(min=1e-30).sqrt(), 0.0)
        factors[:, step] = row
        gain = gain - row**2
    return torch.stack(chosen, dim=1)


def _merge_nearest(hidden: Tensor, kept: Tensor) -> Selection:
    """Average every dropped token into the nearest kept one (cosine)."""
    tokens = hidden.float()
    unit = F.normalize(tokens, dim=-1)
    nearest = (unit @ gather_tokens(unit, kept).transpose(1, 2)).argmax(dim=-1)  # (B, N)
    own = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
    joins = F.one_hot(nearest.scatter(1, kept, own), kept.shape[1]).float()  # (B, N, K)
    members = joins.sum(dim=1)  # (B, K)
    merged = joins.transpose(1, 2) @ tokens / members.unsqueeze(-1)
    reason = torch.where(members > 1, int(Reason.MERGED), int(Reason.RULE)).to(torch.uint8)
    return Selection(kept, reason, tokens=merged.to(hidden.dtype))


def _with_extra(
    hidden: Tensor, kept: Tensor, tokens: Tensor, extra: Tensor, *, gathered: bool = False
) -> Selection:
    """Tokens of `kept` followed by one that stands for no patch (number -1)."""
    own = tokens if gathered else gather_tokens(tokens, kept)
    indices = F.pad(kept, (0, 1), value=-1)
    reason = torch.full_like(
        indices, int(Reason.MERGED if gathered else Reason.RULE), dtype=torch.uint8
    )
    reason[:, -1] = int(Reason.MERGED)
    both = torch.cat([own.to(hidden.dtype), extra.to(hidden.dtype)], dim=1)
    return Selection(indices, reason, tokens=both)


def _by_similarity(view: TokenView, budget: int, score: Tensor) -> Selection:
    """The K lowest of (B, T, N) scores. A patch ranks by its best place under any phrase."""
    check_budget(budget, score.shape[-1])
    selection = in_raster_order(best(-place_under_any(score), budget))
    return Selection(selection.indices, selection.reason, view.need("similarity").float(), None)
