"""SAM's image encoder on a CPU, faster: same weights, same numbers, another order of work.

`encode` runs the modules of transformers' `SamVisionEncoder` with four changes:

* The relative positions enter through longer queries and keys. SAM's logit of query i and key j is
  s q_i k_j + h_i[row j] + w_i[column j]. With query [s q_i, h_i, w_i] and key
  [k_j, onehot(row j), onehot(column j)] one matrix product gives all three terms, so no table of
  biases is ever made (one entry per pair of tokens and head: half a gigabyte at full size).
* Attention goes head by head over blocks of queries whose logits stay in the processor's cache.
* Windows are padded after the query, key and value projection, where a padded token is just the
  bias, so that no projection is spent on padding.
* The tokens are brought into memory order once, not at every norm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 2**21  # logits held at once: 4 MiB in half precision
ROWS = 1024  # tokens that go through a perceptron together


def encode(encoder: Any, pixels: Tensor) -> Tensor:
    """The embedding of pictures, as `encoder(pixels).last_hidden_state` has it. No gradients.

    Args:
        encoder: a transformers `SamVisionEncoder` in evaluation mode.
        pixels: (B, 3, S, S), normalised and padded, in the encoder's dtype.

    Returns:
        (B, C, h, w).
    """
    states = encoder.patch_embed(pixels)  # (B, h, w, D)
    if encoder.pos_embed is not None:
        states = states + encoder.pos_embed
    # The patch projection leaves channels outermost in memory, and sums would keep them there.
    states = states.contiguous()
    for layer in encoder.layers:
        states = states + _attend(layer.attn, layer.layer_norm1(states), layer.window_size)
        states = states + _perceptron(layer.mlp, layer.layer_norm2(states))
    return encoder.neck(states)


def _attend(attention: Any, states: Tensor, window: int) -> Tensor:
    """(B, h, w, D) -> (B, h, w, D): attention in windows, or over everything if `window` is 0."""
    batch, height, width, dim = states.shape
    heads = attention.num_attention_heads
    qkv = attention.qkv(states)  # (B, h, w, 3D)
    size = window or height
    down, across = -(-height // size), -(-width // size)  # number of windows
    side = size if window else width
    if (down * size, across * side) != (height, width):
        padded = qkv.new_empty(batch, down * size, across * side, 3 * dim)
        padded[:, :height, :width] = qkv
        filling = 0 if attention.qkv.bias is None else attention.qkv.bias
        padded[:, height:] = filling
        padded[:, :height, width:] = filling
        qkv = padded
    # (3, B, down, across, heads, rows, columns, d)
    split = (batch, down, size, across, side, 3, heads, dim // heads)
    query, key, value = qkv.view(split).permute(5, 0, 1, 3, 6, 2, 4, 7).unbind(0)
    query, key = _with_positions(attention, query, key)
    value = value.reshape(-1, size * side, dim // heads)  # (G, S, d)
    mixed = _softmax_attention(query, key, value)  # (G, S, d)
    # (B, down, across, heads, rows, columns, d) -> (B, down, rows, across, columns, heads, d)
    mixed = mixed.view(batch, down, across, heads, size, side, -1).permute(0, 1, 4, 2, 5, 3, 6)
    mixed = mixed.reshape(batch, down * size, across * side, dim)  # (B, h, w, D), padded
    # Contiguous: a linear layer falls back to a slow batched product otherwise.
    return attention.proj(mixed[:, :height, :width].contiguous())


def _with_positions(attention: Any, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys (..., rows, columns, d) -> (G, rows * columns, d + rows + columns).

    G runs over pictures, windows and heads.
    """
    rows, columns, dim = query.shape[-3:]
    extra = rows + columns if attention.use_rel_pos else 0
    groups = query.shape[:-3].numel()
    shape = (groups, rows, columns, dim + extra)
    long_query, long_key = query.new_empty(shape), key.new_empty(shape)
    long_query[..., :dim] = query.reshape(groups, rows, columns, dim)
    long_key[..., :dim] = key.reshape(groups, rows, columns, dim)
    if extra:
        by_row = attention.get_rel_pos(rows, rows, attention.rel_pos_h)  # (rows, rows, d)
        by_column = attention.get_rel_pos(columns, columns, attention.rel_pos_w)
        plain = long_query[..., :dim]
        long_query[..., dim : dim + rows] = torch.einsum("grcd,rkd->grck", plain, by_row)
        long_query[..., dim + rows :] = torch.einsum("grcd,ckd->grck", plain, by_column)
        one = torch.eye(rows, dtype=key.dtype, device=key.device)[:, None]
        long_key[..., dim : dim + rows] = one
        one = torch.eye(columns, dtype=key.dtype, device=key.device)
        long_key[..., dim + rows :] = one
    long_query[..., :dim] *= attention.scale  # after the positions, which read it unscaled
    return long_query.flatten(1, 2), long_key.flatten(1, 2)  # rows and columns become S


def _softmax_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(query key^T) value over (G, S, .), in blocks of groups or of queries."""
    groups, length, _ = query.shape
    mixed = value.new_empty(groups, length, value.shape[-1])
    many = max(1, BLOCK // length**2)  # groups a block
    span = min(length, max(1, BLOCK // length))  # queries a block
    for group in range(0, groups, many):
        chosen = slice(group, group + many)
        turned = key[chosen].transpose(1, 2).contiguous()  # else copied once a block of queries
        for start in range(0, length, span):
            part = slice(start, start + span)
            logits = query[chosen, part] @ turned  # (many, span, S)
            mixed[chosen, part] = logits.softmax(-1) @ value[chosen]
    return mixed


def _perceptron(mlp: nn.Module, states: Tensor) -> Tensor:
    """A perceptron in blocks of tokens, whose hidden layer stays in the cache."""
    flat = states.flatten(0, -2)  # (B h w, D)
    if len(flat) <= ROWS:
        return mlp(states)
    return torch.cat([mlp(part) for part in flat.split(ROWS)]).view_as(states)
