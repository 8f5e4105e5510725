"""Methods that drop image tokens inside the language model.

They run the public parts of a transformers `LlamaModel` one layer after another: `layers[i]`,
`rotary_emb`, `norm`. No class is patched, nothing is hooked, the model is unchanged afterwards.

Their scores need attention weights that fast kernels never write out. Each method computes the
few rows it reads from the layer's own `input_layernorm`, `q_proj` and `k_proj`; `attention_bytes`
counts them in float32. (The authors' codes switch the whole layer to plain attention and write all
rows.) `layer_tokens` tells how long the sequence really was in each layer, which is what a method
saves. The budget counts image tokens where a docstring says so; all start from all N patches.

"The last token" is the last real one that was given: in forced mode the end of the answer.
SparseVLM's text is all that follows the image.

Layer numbers of the papers are for 32 layers; other depths use the same fraction of the depth,
except for FastV, whose two layers are two layers everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from litelvlm.methods.view import InsideResult, best, check_budget


@dataclass(frozen=True)
class _State:
    """The sequence between two layers.

    Attributes:
        hidden: (P, S, L). mask: (P, S) bool. positions: (P, S). places: (P, S), original rows.
        numbers: (P, M), patch numbers of the image tokens left, -1 for merged ones.
        start: row of the first image token.
        cosine_sine: rotary tables for `positions`.
        layer_mask: what a layer takes as its mask; None where it is causal by itself.
    """

    hidden: Tensor
    mask: Tensor
    positions: Tensor
    places: Tensor
    numbers: Tensor
    start: int
    cosine_sine: tuple[Tensor, Tensor]
    layer_mask: Tensor | None

    @property
    def image(self) -> slice:
        """Rows of the image tokens left."""
        return slice(self.start, self.start + self.numbers.shape[1])


@dataclass
class _Trace:
    """What the run cost."""

    layer_tokens: list[int] = field(default_factory=list)
    attention_bytes: int = 0
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)


@dataclass(frozen=True)
class Inside:
    """A method as data: one loop over the layers runs them all.

    Attributes:
        schedule: (budget, N, number of layers) -> layer whose attention ranks the image tokens ->
            how many of them go on.
        by_text: ranked by the text tokens that rate, see `_raters`, not by the last token.
        after: dropped after the layer that ranks them, not before it.
        renumber: positions are renumbered after every drop; else the given ones stay.
        merge: the best of the dropped go on as the means of clusters.
    """

    schedule: Callable[[int, int, int], dict[int, int]]
    by_text: bool = False
    after: bool = True
    renumber: bool = True
    merge: bool = False

    def __call__(
        self,
        llama: Any,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        image_span: tuple[int, int],
        budget: int,
        **cache: Any,
    ) -> InsideResult:
        """Run the language model, dropping image tokens on the way.

        Args:
            llama: a transformers `LlamaModel`.
            inputs_embeds: (P, S, L), one row a phrase.
            attention_mask: (P, S), 1 = real, 0 = padding.
            position_ids: (P, S).
            image_span: (start, stop), rows of the N image tokens in the sequence.
            budget: 1..N.
            **cache: a key-value cache by the name that the layers have for it, or nothing.
        """
        state = _begin(llama, inputs_embeds, attention_mask, position_ids, image_span, budget)
        trace = _Trace()
        count = state.numbers.shape[1]
        left = self.schedule(budget, count, len(llama.layers))
        raters = _raters(state) if self.by_text else None
        for number, layer in enumerate(llama.layers):
            keep, order = left.get(number, count), None
            if keep < state.numbers.shape[1]:
                score = _score(state, layer, raters, trace)  # (P, M)
                order = best(score, state.numbers.shape[1])
            if order is not None and not self.after:
                state = self._drop(state, order, keep, llama)
            state = _step(state, layer, trace, cache)
            if order is not None and self.after:
                state = self._drop(state, order, keep, llama)
        return InsideResult(
            hidden=llama.norm(state.hidden),
            places=state.places,
            kept=state.numbers,
            layer_tokens=tuple(trace.layer_tokens),
            attention_bytes=trace.attention_bytes,
            layers=tuple(trace.layers),
        )

    def _drop(self, state: _State, order: Tensor, keep: int, llama: Any) -> _State:
        """Keep the first of (P, M) image tokens, best first, in the order of the sequence."""
        extra = None
        merged = order[:, keep:][:, : round(0.3 * (order.shape[1] - keep))]
        if self.merge and merged.shape[1]:
            extra = density_clusters(_pick(state.hidden[:, state.image], merged))
        chosen = order[:, :keep].sort(dim=-1).values
        return _drop(state, chosen, llama, renumber=self.renumber, extra=extra)


def fastv(budget: int, count: int, depth: int) -> dict[int, int]:
    """FastV (Chen et al., ECCV 2024; github.com/pkunlp-icler/FastV).

    After two layers, keep the `budget` image tokens that the last token attends to most in the
    second layer (mean of heads). Raster order and the given position ids stay.
    """
    return {min(2, depth - 1) - 1: budget}


def pyramiddrop(budget: int, count: int, depth: int) -> dict[int, int]:
    """PyramidDrop (Xing et al., CVPR 2025; github.com/Cooperx521/PyramidDrop).

    Before a quarter, half and three quarters of the layers, keep an equal fraction of the image
    tokens: those the last token attends to most (mean of heads, that layer's own queries and
    keys). The fraction is such that `budget` tokens reach the last quarter; the paper's one half
    makes that N / 8. Raster order; positions are renumbered after every drop.
    """
    return {
        min(_scaled(8 * stage, depth), depth - 1): round(count * (budget / count) ** (stage / 3))
        for stage in (1, 2, 3)
    }


def sparsevlm(budget: int, count: int, depth: int) -> dict[int, int]:
    """SparseVLM (Zhang et al., ICML 2025; github.com/Gumpest/SparseVLMs, first version).

    Raters: text tokens after the image to which the image tokens give more than the average
    (softmax of the dot products of their embeddings). In layers 2, 6 and 15 of 32 the mean
    attention of raters to image tokens ranks these, and only the best go on. Of the dropped, the
    best 30 % are clustered by density, one cluster per ten, and the means of the clusters follow
    the kept ones as merged tokens. Positions are renumbered after every drop.

    The counts after the three cuts are interpolated from the code's table; in 32 layers their
    average comes near `budget`, which is therefore not the number that reaches the last layer. The
    first layers see all tokens, so with a small budget or in a shallow model the average stays
    above it. Cuts that fall on the same layer become one, the later.
    """
    cuts = zip(
        (_scaled(cut, depth) for cut in (2, 6, 15)), stage_counts(budget, count), strict=True
    )
    # Nothing is dropped after the last layer: nobody would read it.
    return {layer: left for layer, left in cuts if layer < depth - 1}


FASTV = Inside(fastv, renumber=False)
PYRAMIDDROP = Inside(pyramiddrop, after=False)
SPARSEVLM = Inside(sparsevlm, by_text=True, merge=True)
SPARSEVLM_WITHOUT_MERGE = replace(SPARSEVLM, merge=False)


def _begin(
    llama: Any,
    inputs_embeds: Tensor,
    attention_mask: Tensor,
    position_ids: Tensor,
    image_span: tuple[int, int],
    budget: int,
) -> _State:
    start, stop = image_span
    phrases, length = inputs_embeds.shape[:2]
    if not 0 <= start < stop <= length:
        raise ValueError(f"image_span {image_span} does not lie in a sequence of {length}")
    check_budget(budget, stop - start)
    device = inputs_embeds.device
    position_ids = position_ids.expand(phrases, -1)
    mask = attention_mask.bool().expand(phrases, -1)
    # Fused kernels are causal by themselves, and nothing real looks ahead at padding on the right.
    # Asked once: the answer waits for the device, and dropping image tokens does not change it.
    fused = llama.config._attn_implementation.startswith(("sdpa", "flash"))
    bare = fused and not bool((mask[:, 1:] & ~mask[:, :-1]).any())
    return _State(
        hidden=inputs_embeds,
        mask=mask,
        positions=position_ids,
        places=torch.arange(length, device=device).expand(phrases, -1),
        numbers=torch.arange(stop - start, device=device).expand(phrases, -1),
        start=start,
        cosine_sine=llama.rotary_emb(inputs_embeds, position_ids=position_ids),
        layer_mask=None if bare else _layer_mask(inputs_embeds, mask, llama),
    )


def _step(state: _State, layer: Any, trace: _Trace, cache: dict[str, Any]) -> _State:
    """Run one layer."""
    trace.layer_tokens.append(state.hidden.shape[1])
    if trace.layers and trace.layers[-1][1] is state.mask:  # nothing was dropped since
        trace.layers.append(trace.layers[-1])
    else:
        trace.layers.append((state.positions.gather(1, _last(state))[:, 0], state.mask))
    hidden = layer(
        state.hidden,
        attention_mask=state.layer_mask,
        position_ids=state.positions,
        position_embeddings=state.cosine_sine,
        **cache,
    )
    return replace(state, hidden=hidden)


def _last(state: _State) -> Tensor:
    """(P, 1), number of the last real row."""
    rows = torch.arange(state.mask.shape[1], device=state.mask.device)
    return torch.where(state.mask, rows, -1).amax(dim=-1, keepdim=True)


def next_state(
    llama: Any, embeds: Tensor, outcome: InsideResult, written: int, **cache: Any
) -> Tensor:
    """One more token after a rule: each layer attends to the tokens that reached it.

    Args:
        llama: as given to the rule.
        embeds: (P, 1, L), the embedded token.
        outcome: of the rule, which was given the same cache.
        written: tokens since then, this one included.
        **cache: the cache, by the name that the layers have for it; it grows.

    Returns:
        (P, 1, L), its state after the last norm.
    """
    hidden, tables = embeds, None
    for number, layer in enumerate(llama.layers):
        last, mask = outcome.layers[number]
        if tables is None or outcome.layers[number] is not outcome.layers[number - 1]:
            positions = last[:, None] + written
            tables = llama.rotary_emb(hidden, position_ids=positions)
            seen = torch.cat([mask, mask.new_ones(len(mask), written)], dim=1)
            allowed = None if bool(seen.all()) else _layer_mask(hidden, seen, llama)
        hidden = layer(
            hidden,
            attention_mask=allowed,
            position_ids=positions,
            position_embeddings=tables,
            **cache,
        )
    return llama.norm(hidden)


def _layer_mask(hidden: Tensor, mask: Tensor, llama: Any) -> Tensor:
    """What a layer takes as its mask: (P, S) for flash kernels, else (P, 1, R, S) to be added."""
    if llama.config._attn_implementation.startswith("flash"):
        return mask
    rows, length = hidden.shape[1], mask.shape[1]
    causal = torch.ones(rows, length, dtype=torch.bool, device=hidden.device).tril(length - rows)
    allowed = causal & mask[:, None, None, :]
    least = torch.finfo(hidden.dtype).min
    return torch.zeros_like(allowed, dtype=hidden.dtype).masked_fill(~allowed, least)


def _score(state: _State, layer: Any, raters: Tensor | None, trace: _Trace) -> Tensor:
    """(P, M): attention to the image tokens in this layer, mean of heads.

    Args:
        raters: (P, text after the image) bool, whose mean attention it is; None for the last real
            token's.
    """
    if raters is None:
        return _attention(state, layer, _last(state), trace).squeeze(1)
    after = torch.arange(state.image.stop, state.hidden.shape[1], device=state.hidden.device)
    found = _attention(state, layer, after.expand(len(state.hidden), -1), trace)  # (P, text, M)
    weights = raters.float() / raters.sum(dim=-1, keepdim=True).clamp(min=1)
    return (weights.unsqueeze(1) @ found).squeeze(1)


def _attention(state: _State, layer: Any, rows: Tensor, trace: _Trace) -> Tensor:
    """(P, R) row numbers -> (P, R, M): what those rows attend to among the image tokens."""
    block, width = layer.self_attn, layer.self_attn.head_dim
    inputs = layer.input_layernorm(state.hidden)
    cosine, sine = (table.expand(len(inputs), -1, -1) for table in state.cosine_sine)
    keys = block.k_proj(inputs).unflatten(-1, (-1, width)).transpose(1, 2)
    queries = block.q_proj(_pick(inputs, rows)).unflatten(-1, (-1, width)).transpose(1, 2)
    keys = _rotate(keys, cosine, sine).float()  # (P, key heads, S, width)
    queries = _rotate(queries, _pick(cosine, rows), _pick(sine, rows)).float()
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
    logits = queries @ keys.transpose(-1, -2) * block.scaling  # (P, heads, R, S)
    columns = torch.arange(logits.shape[-1], device=logits.device)
    allowed = (columns <= rows.unsqueeze(-1)) & state.mask.unsqueeze(1)  # (P, R, S)
    weights = logits.masked_fill(~allowed.unsqueeze(1), torch.finfo(logits.dtype).min).softmax(-1)
    trace.attention_bytes += weights.numel() * weights.element_size()
    return weights[..., state.image].mean(dim=1)


def _rotate(values: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary position embedding (Su et al., arXiv 2104.09864), halves paired as in LLaMA."""
    first, second = values.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return values * cosine.unsqueeze(1) + turned * sine.unsqueeze(1)


def _drop(
    state: _State, chosen: Tensor, llama: Any, *, renumber: bool, extra: Tensor | None = None
) -> _State:
    """Keep the chosen image tokens (P, k), in order; `extra` (P, c, L) follows them."""
    phrases, merged = len(chosen), 0 if extra is None else extra.shape[1]

    def cut(values: Tensor, fill: Tensor | None) -> Tensor:
        image = _pick(values[:, state.image], chosen)
        middle = [] if fill is None else [fill]
        parts = [values[:, : state.start], image, *middle, values[:, state.image.stop :]]
        return torch.cat(parts, dim=1)

    def filled(values: Tensor, value: int) -> Tensor | None:
        return values.new_full((phrases, merged), value) if merged else None

    positions = cut(state.positions, filled(state.positions, 0))
    if renumber:
        # From the lowest number on, without gaps, text after the image included.
        first = state.positions.amin(dim=-1, keepdim=True)
        positions = torch.arange(positions.shape[1], device=positions.device) + first
    numbers = state.numbers.gather(1, chosen)
    if merged:
        numbers = torch.cat([numbers, numbers.new_full((phrases, merged), -1)], dim=1)
    hidden = cut(state.hidden, extra)
    mask = cut(state.mask, filled(state.mask, 1))
    return replace(
        state,
        hidden=hidden,
        mask=mask,
        positions=positions,
        places=cut(state.places, filled(state.places, -1)),
        numbers=numbers,
        cosine_sine=llama.rotary_emb(hidden, position_ids=positions),
        layer_mask=None if state.layer_mask is None else _layer_mask(hidden, mask, llama),
    )


def _pick(values: Tensor, rows: Tensor) -> Tensor:
    """(P, S) or (P, S, L), row numbers (P, R) -> those rows."""
    if values.ndim == 2:
        return values.gather(1, rows)
    return values.gather(1, rows.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def _raters(state: _State) -> Tensor:
    """(P, text after the image) bool, the text tokens whose attention ranks image tokens."""
    image = state.hidden[:, state.image].float()
    text = state.hidden[:, state.image.stop :].float()
    real = state.mask[:, state.image.stop :]
    if not text.shape[1]:
        raise ValueError("SparseVLM needs text after the image")
    # (P, M, L) @ (P, L, text) -> (P, M, text)
    logits = (image @ text.transpose(1, 2)).masked_fill(~real.unsqueeze(1), -torch.inf)
    weight = logits.softmax(dim=-1).mean(dim=1)  # (P, text)
    average = weight.sum(-1, keepdim=True) / real.sum(-1, keepdim=True).clamp(min=1)
    # "At least" rather than "more than": with equal weights everybody rates.
    return (weight >= average * (1 - 1e-6)) & real


def stage_counts(budget: int, count: int) -> tuple[int, int, int]:
    """Image tokens after the three cuts, from the code's table for 576 patches, interpolated."""
    table = [(0, 0, 0, 0), (64, 66, 30, 17), (96, 238, 48, 26), (128, 303, 110, 36)]
    table += [(192, 300, 200, 110), (576, 576, 576, 576)]
    wanted = budget * 576 / count
    for low, high in pairwise(table):
        if wanted <= high[0]:
            part = (wanted - low[0]) / (high[0] - low[0])
            stages = (a + part * (b - a) for a, b in zip(low[1:], high[1:], strict=True))
            first, second, third = (max(1, round(stage * count / 576)) for stage in stages)
            return first, second, third
    raise ValueError(f"budget {budget} exceeds {count}")


def _scaled(layer: int, depth: int) -> int:
    """A layer number of 32, at the same fraction of `depth`; at least 1."""
    return max(1, round(layer * depth / 32))


def density_clusters(tokens: Tensor) -> Tensor:
    """(P, n, L) -> (P, c, L): means of density-peak clusters (Du et al., 2016), c = n // 10 + 1.

    Density: exp of minus the mean squared distance to the c nearest. Centres: the largest product
    of density and distance to the nearest denser token. Everybody joins the nearest centre.
    """
    values = tokens.float()
    phrases, count, width = values.shape
    clusters = count // 10 + 1
    distance = torch.cdist(values, values) / width**0.5  # (P, n, n)
    near = distance.topk(clusters, dim=-1, largest=False).values
    density = (-near.square().mean(dim=-1)).exp()  # (P, n)
    rank = best(density, count).argsort(dim=-1)  # ties: the lower number counts as denser
    denser = rank.unsqueeze(1) < rank.unsqueeze(2)  # [p, i, j]: j is denser than i
    far = distance.amax(dim=(1, 2), keepdim=True)
    gap = torch.where(denser, distance, far).amin(dim=-1)
    centres = best(gap * density, clusters)  # (P, c)
    nearest = _pick(distance, centres).argmin(dim=1)  # (P, n)
    own = torch.arange(clusters, device=tokens.device).expand(phrases, -1)
    joins = torch.nn.functional.one_hot(nearest.scatter(1, centres, own), clusters).float()
    return (joins.transpose(1, 2) @ values / joins.sum(1).unsqueeze(-1)).to(tokens.dtype)
