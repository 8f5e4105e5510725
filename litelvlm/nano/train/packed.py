"""LLaMA over packed sequences: one image prefix, several turns that see it and themselves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDE = -1e4  # a logit that takes no part


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (B, heads, L, d) by (1, 1, L, d) tables."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def packed(
    llama: nn.Module, prefix: Tensor, turns: Tensor, chunks: int = 4
) -> tuple[list[Tensor], Tensor]:
    """Run the decoder over one prefix and several independent turns after it.

    Each turn sees the prefix and itself, and its positions start at P, as if it stood alone: what
    `llama.model` gives for each (prefix, turn).

    Args:
        prefix: (B, P, W); it attends in so many `chunks`.
        turns: (B, E, L, W).

    Returns:
        The inputs of every layer and the final state before the last norm, each (B, P + E L, W);
        and the normed final state.
    """
    b, p, w = prefix.shape
    e, n = turns.shape[1:3]
    x = torch.cat([prefix, turns.reshape(b, e * n, w)], 1)  # (B, P + E L, W)
    device = x.device
    position = torch.arange(p, device=device)
    place = torch.cat([position, (p + torch.arange(n, device=device)).repeat(e)])[
        None
    ]  # (1, P + E L)
    heads = llama.config.num_attention_heads
    causal_turn = torch.full((n, n), HIDE, device=device).triu(1)
    size = -(-p // chunks)
    causal_chunk = torch.full((size, size), HIDE, device=device).triu(1)
    states = []
    cos = sin = None
    for layer in llama.model.layers:
        states.append(x)
        attention = layer.self_attn
        h = rms_norm(layer.input_layernorm, x)
        shape = (b, -1, heads, w // heads)
        q = attention.q_proj(h).view(shape).transpose(1, 2)
        k = attention.k_proj(h).view(shape).transpose(1, 2)
        v = attention.v_proj(h).view(shape).transpose(1, 2)  # q, k, v (B, heads, P + E L, d)
        if cos is None:
            cos, sin = llama.model.rotary_emb(q.detach().float(), place)
            cos, sin = cos[:, None].to(q.dtype), sin[:, None].to(q.dtype)
        q = rotate(q, cos, sin) * (w // heads) ** -0.5
        k = rotate(k, cos, sin)
        out = []
        for start in range(0, p, size):
            stop = min(p, start + size)
            logits = q[:, :, start:stop] @ k[:, :, :stop].transpose(
                -1, -2
            )  # (B, heads, chunk, stop)
            mask = causal_chunk[: stop - start, : stop - start].to(logits.dtype)
            logits = torch.cat([logits[..., :start], logits[..., start:] + mask], -1)
            out.append(logits.softmax(-1) @ v[:, :, :stop])  # (B, heads, chunk, d)
        qt, kt, vt = q[:, :, p:], k[:, :, p:], v[:, :, p:]  # (B, heads, E L, d)
        five = (b, heads, e, n, w // heads)
        own = qt.reshape(five) @ kt.reshape(five).transpose(-1, -2)  # (B, heads, E, L, L)
        own = (own + causal_turn.to(own.dtype)).reshape(b, heads, e * n, n)
        weights = torch.cat([qt @ k[:, :, :p].transpose(-1, -2), own], -1).softmax(-1)  # P + L
        mixed = weights[..., :p] @ v[:, :, :p]  # (B, heads, E L, d)
        local = weights[..., p:].reshape(b, heads, e, n, n) @ vt.reshape(five)  # within a turn
        out.append(mixed + local.reshape(b, heads, e * n, w // heads))
        merged = torch.cat(out, 2).transpose(1, 2).reshape(b, -1, w)  # (B, P + E L, W)
        x = x + attention.o_proj(merged)
        x = x + layer.mlp(rms_norm(layer.post_attention_layernorm, x))
    states.append(x)
    return states, rms_norm(llama.model.norm, x)


def rms_norm(module: nn.Module, x: Tensor) -> Tensor:
    """LLaMA's norm of (..., W), in float32."""
    return F.rms_norm(x.float(), x.shape[-1:], module.weight, module.variance_epsilon)
