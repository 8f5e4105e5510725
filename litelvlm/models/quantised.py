"""Linear layers in eight or four bits, which take their weight while a checkpoint is read.

    quantise(language, 8)          # on the meta device, before `filling.load_into`

Eight bits: int8 weights with a scale a row, int8 activations with a scale a token, multiplied by
`torch._int_mm` and scaled back in float32 (Dettmers et al., LLM.int8(), NeurIPS 2022, section 2,
without the outlier part). Four bits: NF4 by bitsandbytes (Dettmers et al., QLoRA, NeurIPS 2023).
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from litelvlm.errors import InputError

BITS = (8, 4)
_ROWS = 256  # quantised together
_LEAST_ROWS = 32  # cuBLAS multiplies int8 only from 17 rows on


class QuantisedLinear(nn.Module):
    """A linear layer that stores its weight in fewer bits from the moment it is given.

    Until then `weight` is the parameter of the layer it replaces, so that names, shapes and counts
    are those of the full model; it is None afterwards.

    Args:
        linear: the layer it replaces, on the meta device.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight: Any = linear.weight
        self.bias = linear.bias

    def take(self, weight: Tensor) -> None:
        """Quantise an (out, in) floating-point weight where it lies, and keep the result."""
        raise NotImplementedError


class Int8Linear(QuantisedLinear):
    """Eight bits for weights and activations."""

    integers: Tensor
    scale: Tensor

    def take(self, weight: Tensor) -> None:  # noqa: D102
        self.weight = None
        self.register_buffer("integers", torch.empty_like(weight, dtype=torch.int8))
        self.register_buffer("scale", weight.new_empty(len(weight), dtype=torch.float32))
        # A few rows at a time: the float32 quotient of all would take four times the result.
        parts = (each.split(_ROWS) for each in (weight, self.integers, self.scale))
        for rows, integers, scale in zip(*parts, strict=True):
            whole, step = to_int8(rows)
            integers.copy_(whole)
            scale.copy_(step.squeeze(-1))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the dtype of `x`."""
        if not multiplies_int8(x.device):  # weights alone in eight bits, widened for the product
            y = F.linear(x, self.integers.to(x.dtype)) * self.scale.to(x.dtype)
            return y if self.bias is None else y + self.bias
        integers, scale = to_int8(x.flatten(0, -2))
        rows = len(integers)
        if x.is_cuda and rows < _LEAST_ROWS:
            integers = F.pad(integers, (0, 0, 0, _LEAST_ROWS - rows))
        product = torch._int_mm(integers, self.integers.t())[:rows]
        y = (product * scale).mul_(self.scale)
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype).unflatten(0, x.shape[:-1])


class Nf4Linear(QuantisedLinear):
    """Four bits a weight, in blocks of 64; activations stay as they are."""

    packed: Tensor
    state: Any

    def take(self, weight: Tensor) -> None:  # noqa: D102
        from bitsandbytes.functional import quantize_4bit

        packed, self.state = quantize_4bit(weight.contiguous(), quant_type="nf4")
        self.weight = None
        self.register_buffer("packed", packed)
        self.register_buffer("scale", self.state.absmax)  # the state's own, so that it is counted

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the dtype of `x`."""
        from bitsandbytes import matmul_4bit

        return matmul_4bit(x, self.packed.t(), quant_state=self.state, bias=self.bias)


def multiplies_int8(device: torch.device) -> bool:
    """Whether `torch._int_mm` has a fast kernel: on CPU without AVX-512 it is a plain loop."""
    return device.type == "cuda" or torch.backends.cpu.get_cpu_capability() == "AVX512"


def to_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Each row as whole numbers in -127..127 and their (R, 1) float32 step."""
    scale = rows.abs().amax(-1, keepdim=True).float().clamp_min(1e-12) / 127
    return (rows / scale).round_().to(torch.int8), scale


def stored_bytes(root: nn.Module, blocks: nn.Module | None = None) -> int:
    """Bytes of a model on the meta device at 16 bits a number, as `Pipeline.weight_bytes` counts.

    Args:
        root: the model.
        blocks: the part of it whose linear layers are counted at 8 bits; None for no such part.
    """
    total = 2 * sum(tensor.numel() for tensor in [*root.parameters(), *root.buffers()])
    for module in blocks.modules() if blocks is not None else ():
        if type(module) is nn.Linear:
            total += 4 * module.out_features - module.weight.numel()  # steps, and a byte less
    return total


def check_bits(bits: Any, device: torch.device) -> int | None:
    """8, 4 or None (full precision), or `InputError` where they are unknown or cannot run."""
    if bits is None:
        return None
    if isinstance(bits, bool) or bits not in BITS:
        raise InputError(f"bits must be 8 or 4, or None for full precision, got {str(bits)[:40]!r}")
    if bits == 8 and device.type not in ("cpu", "cuda"):
        raise InputError(f"bits=8 runs on cpu and cuda, not on {device.type}")
    if bits == 4 and device.type != "cuda":
        raise InputError(f"bits=4 needs a CUDA device, not {device.type}; bits=8 runs here")
    if bits == 4 and find_spec("bitsandbytes") is None:
        raise InputError("bits=4 needs bitsandbytes: pip install bitsandbytes")
    return int(bits)


def quantise(root: nn.Module, bits: int) -> None:
    """Replace every linear layer below a module that has no weights yet.

    Args:
        root: on the meta device; only its children are replaced, so leave out what stays.
        bits: 8 or 4.
    """
    kind = {8: Int8Linear, 4: Nf4Linear}[bits]
    for module in list(root.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, kind(child))
