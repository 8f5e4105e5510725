"""Modules built on the meta device, filled with the weights of a checkpoint or with random ones.

with torch.device("meta"):                     # build without memory ...
    model = GroundingModel(source.config)
load_into(model, source, torch.bfloat16, "cuda")     # ... and fill, strictly
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from litelvlm.errors import ModelError
from litelvlm.models.files import ModelSource, Progress, read_all
from litelvlm.models.quantised import QuantisedLinear


def load_into(
    root: nn.Module,
    source: ModelSource,
    dtype: torch.dtype | Mapping[str, torch.dtype] = torch.float32,
    device: str | torch.device = "cpu",
    *,
    progress: Progress | None = None,
) -> None:
    """Fill a module with the weights of a source, strictly.

    Args:
        root: parameter names as in our layout (`bundle.GroundingModel`), usually built under
            `torch.device("meta")`. Parameters are replaced, not copied into.
        source: from `open_model`.
        dtype: of all floating-point weights, or by prefix.
        device: where they go.
        progress: called with (bytes read, bytes in all) after every tensor.

    Raises:
        ModelError: a weight is missing, unexpected or has another shape (the first eight of each
            are named); a file cannot be read. Nothing has been loaded in the first case.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in root.state_dict().items()}
    groups = _tied(root)
    _compare(source, wanted, groups)
    done = 0
    for entry, tensor in read_all(source.entries.values()):
        if tensor.is_floating_point():
            kind = dtype if isinstance(dtype, torch.dtype) else dtype[entry.name.split(".")[0]]
        else:
            kind = tensor.dtype
        # A view that is kept would keep the file mapped for as long as the model lives.
        value = tensor.to(
            device=device,
            dtype=kind,
            copy=not _quantises(root, entry.name),
            memory_format=torch.contiguous_format,
        )
        _assign(root, groups.get(entry.name, (entry.name,)), value)
        done += entry.bytes
        if progress:
            progress(done, source.bytes)
    fill_buffers(root, device)


def fill_random(
    root: nn.Module,
    dtype: torch.dtype | Mapping[str, torch.dtype] = torch.float32,
    device: str | torch.device = "cpu",
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Fill a module with cheap seeded random weights, one tensor at a time, in the target dtype.

    Scales keep activations finite through any depth: matrices are uniform with standard deviation
    1 / sqrt(fan-in), norms near one, biases and all else small. Tensors over a million numbers are
    tiled from one block, because seven thousand million draws would take minutes; the block's
    length is a prime, so that rows differ. The same seed gives the same weights on every device.
    """
    groups = _tied(root)
    generator = torch.Generator().manual_seed(seed)
    block = torch.rand(1_000_003, generator=generator) * 2 - 1  # -1..1
    blocks: dict[torch.dtype, Tensor] = {}
    names = list(root.state_dict())
    total = sum(parameter.numel() for parameter in root.parameters())
    done = 0
    for name in names:
        if name in groups and groups[name][0] != name:
            continue  # shares the tensor of an earlier name
        old = root.get_parameter(name) if _is_parameter(root, name) else root.get_buffer(name)
        kind = dtype if isinstance(dtype, torch.dtype) else dtype[name.split(".")[0]]
        count, shape = old.numel(), tuple(old.shape)
        if not old.is_floating_point():
            continue
        if count > len(block):
            unit = blocks.setdefault(kind, block.to(kind))
            start = int(torch.randint(len(block), (1,), generator=generator))
            value = torch.empty(count, dtype=kind)
            value[: len(unit) - start] = unit[start:]
            tail = value[len(unit) - start :]
            whole = len(tail) // len(unit)
            tail[: whole * len(unit)].view(whole, len(unit))[:] = unit  # a row a whole block
            tail[whole * len(unit) :] = unit[: len(tail) - whole * len(unit)]
        else:
            value = (torch.rand(count, generator=generator) * 2 - 1).to(kind)
        value = value.view(shape)  # (count,) -> as the module has it
        if name.endswith("shared_image_embedding.positional_embedding"):
            pass  # SAM's random frequencies, of order one
        elif name.endswith(("pos_embed", "positional_embedding")):
            value.mul_(0.1)
        elif len(shape) >= 2:
            fan_in = old[0].numel()
            value.mul_(3**0.5 / fan_in**0.5)  # uniform on -a..a has deviation a / sqrt(3)
        elif "norm" in name or ".ln_" in name:
            value.mul_(0.1).add_(1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("logit_scale"):
            value.fill_(4.6)
        else:
            value.mul_(0.1)
        _assign(root, groups.get(name, (name,)), value.to(device))
        done += count
        if progress:
            progress(done, total)
    fill_buffers(root, device)


def fill_buffers(root: nn.Module, device: str | torch.device) -> None:
    """Compute the buffers that no checkpoint holds: rotary frequencies, places, CLIP's causal mask.

    Raises:
        RuntimeError: a buffer or parameter is still on the meta device, which is a fault of ours.
    """
    for module in root.modules():
        own = dict(module.named_buffers(recurse=False))
        if not any(buffer.is_meta for buffer in own.values()):
            for name, buffer in own.items():
                setattr(module, name, buffer.to(device))
        elif "inv_freq" in own:  # transformers' rotary embedding is made from its configuration
            with torch.device("cpu"):
                fresh = type(module)(module.config)  # type: ignore[call-arg]
            for name, buffer in fresh.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))
        elif hasattr(module, "precompute_positions"):  # SAM 2's memory: places of its grid
            memory: Any = module
            with torch.device("cpu"):
                memory.position_ids = memory.precompute_positions(memory.config).to(device)
        elif "attn_mask" in own:  # open_clip's text tower: nothing above the diagonal is seen
            side = own["attn_mask"].shape[-1]
            module.attn_mask = torch.full((side, side), -torch.inf, device=device).triu_(1)
    left = [n for n, t in [*root.named_parameters(), *root.named_buffers()] if t.is_meta]
    if left:
        raise RuntimeError(f"still without values: {', '.join(left[:8])}")


def _tied(root: nn.Module) -> dict[str, tuple[str, ...]]:
    """Names that share one parameter with others: name -> all its names, first one first."""
    owners: dict[int, list[str]] = {}
    for name, parameter in root.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    return {name: tuple(names) for names in owners.values() if len(names) > 1 for name in names}


def _compare(
    source: ModelSource, wanted: Mapping[str, tuple[int, ...]], groups: Mapping[str, tuple]
) -> None:
    """Raise a `ModelError` unless the source holds exactly the wanted names and shapes."""
    have = {name: entry for name, entry in source.entries.items() if entry.pieces}
    missing = [name for name in wanted if not any(n in have for n in groups.get(name, (name,)))]
    unexpected = [name for name in have if name not in wanted]
    misshapen = [
        f"{name} {list(have[name].shape)}, expected {list(shape)}"
        for name, shape in wanted.items()
        if name in have and have[name].shape != shape
    ]
    faults = [("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)]
    told = "; ".join(f"{len(names)} {kind}: {some_names(names)}" for kind, names in faults if names)
    if told:
        raise ModelError(f"{source.folder}: weights do not fit (layout {source.layout}): {told}")


def _is_parameter(root: nn.Module, name: str) -> bool:
    stem, _, leaf = name.rpartition(".")
    return leaf in root.get_submodule(stem)._parameters


def _quantises(root: nn.Module, name: str) -> bool:
    """Whether a weight is not kept as it is given."""
    stem, _, leaf = name.rpartition(".")
    return leaf == "weight" and isinstance(root.get_submodule(stem), QuantisedLinear)


def _assign(root: nn.Module, names: Iterable[str], value: Tensor) -> None:
    """Put one tensor under all its names."""
    parameter: nn.Parameter | None = None
    for name in names:
        stem, _, leaf = name.rpartition(".")
        module = root.get_submodule(stem)
        if _quantises(root, name):
            module.take(value)  # type: ignore[operator]
        elif _is_parameter(root, name):
            if parameter is None:
                parameter = nn.Parameter(value, requires_grad=False)
            setattr(module, leaf, parameter)
        else:
            setattr(module, leaf, value)


def some_names(names: list[str]) -> str:
    """The first eight of some names, for a message."""
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
