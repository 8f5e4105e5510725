"""What a stage costs: wall time, FLOPs, and the peak of activation memory above the weights.

How each figure is measured:

* wall time: `time.perf_counter` around the stage, the device synchronised before and after;
* FLOPs: `torch.utils.flop_counter`, two per multiply-add, counted from the operators that run;
* peak memory on CUDA: the allocator's high-water mark above what was allocated at the start;
* peak memory on CPU: a tally of the storages that operators create while the stage runs, each
  counted from its creation until it is freed. Scratch space inside a kernel is not seen.

Counting slows a stage down, so in full profiles the stage runs twice: counted first, which also
warms it up, and then timed without any counter.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

PROFILES = ("time", "full", "off")

T = TypeVar("T")


@dataclass(frozen=True)
class StageCost:
    """Cost of one stage.

    Attributes:
        stage: name, for example "llm_prefill".
        ms: wall time in milliseconds.
        peak_bytes: most bytes of activations alive at once; None where not measured.
        flops: floating-point operations, two per multiply-add; None where not measured.
    """

    stage: str
    ms: float
    peak_bytes: int | None = None
    flops: int | None = None

    def __str__(self) -> str:
        memory = "" if self.peak_bytes is None else f"  {self.peak_bytes / 2**20:9.1f} MiB peak"
        work = "" if self.flops is None else f"  {self.flops / 1e9:10.2f} GFLOP"
        return f"{self.stage:<12}{self.ms:10.1f} ms{memory}{work}"


class Profiler:
    """Runs stages one by one and notes what each costs.

    Args:
        device: where the stages run; a GPU is synchronised around each.
        profile: "time" measures wall time (and peak memory on CUDA, which is free); "full" runs
            each stage twice and measures everything; "off" measures nothing and never waits for
            the device.
    """

    def __init__(self, device: torch.device, profile: str = "time") -> None:
        if profile not in PROFILES:
            raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {profile!r}")
        self.device = device
        self.profile = profile
        self.costs: list[StageCost] = []

    def run(self, stage: str, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call `work` and append its cost. In full profiles `work` is called twice."""
        if self.profile == "off":
            return work(*args, **kwargs)
        flops = peak = None
        if self.profile == "full":
            flops, peak = count(work, *args, **kwargs)
        on_cuda = self.device.type == "cuda"
        self._wait()
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
        start = time.perf_counter()
        result = work(*args, **kwargs)
        self._wait()
        ms = (time.perf_counter() - start) * 1e3
        if on_cuda:
            peak = torch.cuda.max_memory_allocated(self.device) - before
        self.costs.append(StageCost(stage, ms, peak, flops))
        return result

    def _wait(self) -> None:
        """Until the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


def count(work: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[int, int]:
    """(FLOPs, peak bytes of live storages) of one call, by watching the operators it runs."""
    counter = FlopCounterMode(display=False, custom_mapping=_EXTRA_FORMULAS)
    tally = StorageTally()
    with counter, tally:
        result = work(*args, **kwargs)
    del result
    return counter.get_total_flops(), tally.peak


class StorageTally(TorchDispatchMode):
    """Tally of the storages that operators create, and its peak, in bytes.

    Only storages born inside the mode count, so weights and inputs do not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        given = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                key = storage._cdata
                if key not in given and key not in self._known:
                    self._add(key, storage)
        return result

    def _add(self, key: int, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _fused_block_flops(query, key, value, embed_dim, num_head, *args, **kwargs) -> int:  # type: ignore[no-untyped-def]
    """The fused attention that `nn.MultiheadAttention` uses on CPU: four projections and SDPA."""
    batch, queries, _ = query
    keys = key[1]
    head = (batch, num_head, queries, embed_dim // num_head)
    projections = 2 * batch * embed_dim**2 * (2 * queries + 2 * keys)
    other = (batch, num_head, keys, embed_dim // num_head)
    return projections + sdpa_flop_count(head, other, other)


def _attention_flops(query, key, value, *args, **kwargs) -> int:  # type: ignore[no-untyped-def]
    """SDPA as it runs on CPU; torch itself counts it in newer releases only."""
    return sdpa_flop_count(query, key, value)


def _product_flops(a, b, *args, **kwargs) -> int:  # type: ignore[no-untyped-def]
    """(m, k) times (k, n) in eight bits, which torch does not count."""
    return 2 * a[0] * a[1] * b[1]


_EXTRA_FORMULAS: dict[Any, Any] = {
    torch.ops.aten._native_multi_head_attention: _fused_block_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._int_mm: _product_flops,
}
