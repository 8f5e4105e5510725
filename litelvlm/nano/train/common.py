"""What the three training stages share: schedule, data stream, checkpoints, log.

Everything is device-agnostic: matrix products run in bfloat16 through autocast where the
processor gains from it, parameters and optimiser state stay in float32.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from litelvlm.errors import InputError

log = logging.getLogger(__name__)


def seed_everything(seed: int) -> None:
    """Seed Python and torch; NumPy draws from generators that carry their own seeds."""
    random.seed(seed)
    torch.manual_seed(seed)


def autocast(device: torch.device | str, enabled: bool = True) -> contextlib.AbstractContextManager:
    """bfloat16 autocast on `device`; a no-op when `enabled` is false."""
    if not enabled:
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention, (B, heads, Q, d) x (B, heads, K, d) -> (B, heads, Q, d).

    `bias` is added to the logits (0 to see, a large negative number to hide).
    On a CPU with bfloat16 units two plain matrix products are about four times faster, forward
    and backward together, than the fused kernel; elsewhere the fused kernel is used.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        mask = None if bias is None else bias.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, mask)
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    return logits.softmax(-1) @ v


def schedule(step: int, total: int, warmup: int, hold: float = 0.2) -> float:
    """Learning-rate factor at `step`: linear warm-up, 1 for a share `hold`, linear to 0."""
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return min(1.0, (1 - done) / (1 - hold))


def optimisers(
    modules: Sequence[nn.Module], lr: float, decay: float, gain: float
) -> list[torch.optim.Optimizer]:
    """Muon for the weight matrices of the blocks, AdamW for everything else.

    Muon (Jordan et al. 2024) takes steps whose singular values are all alike. After 300 steps of
    the dual encoder from nothing it named 33 % of the patches, AdamW alone 9 %. Its rate is
    `gain` times `lr`, in the scale of AdamW's. Vectors, norms, embeddings, convolutions and
    the layers that read or write a small space (fewer than 32 rows or columns) stay with AdamW.

    Raises:
        InputError: this torch has no Muon.
    """
    if not hasattr(torch.optim, "Muon"):
        raise InputError(f"training needs torch 2.9 or later, this is {torch.__version__}")
    hidden, matrices, others, seen = [], [], [], set()
    for module in modules:
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if parameter.ndim < 2 or "embed" in name:
                others.append(parameter)
            elif parameter.ndim == 2 and min(parameter.shape) >= 32:
                hidden.append(parameter)
            else:
                matrices.append(parameter)
    groups = [
        {"params": matrices, "weight_decay": decay},
        {"params": others, "weight_decay": 0.0},
    ]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=(0.9, 0.98), fused=True)
    ]
    if hidden:
        group = {"params": hidden, "scale": gain}
        found.append(
            torch.optim.Muon([group], lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        )
    return found


class _Batches(IterableDataset):
    """Batches `start`, `start + 1`, ... made by a pure function of their number."""

    def __init__(self, make: Callable[[int], dict[str, Any]], start: int, stop: int) -> None:
        self.make, self.start, self.stop = make, start, stop

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        first, stride = (0, 1) if info is None else (info.id, info.num_workers)
        torch.set_num_threads(1)
        for number in range(self.start + first, self.stop, stride):
            yield self.make(number)


def stream(
    make: Callable[[int], dict[str, Any]], start: int, stop: int, workers: int
) -> Iterator[dict[str, Any]]:
    """Yield `make(start)` .. `make(stop - 1)` in order, made by `workers` processes.

    The order does not depend on the number of workers, so a resumed run sees the batches that
    the interrupted one would have seen.
    """
    if workers == 0:
        yield from (make(number) for number in range(start, stop))
        return
    loader = DataLoader(
        _Batches(make, start, stop), batch_size=None, num_workers=workers, prefetch_factor=4
    )
    yield from loader


def to_device(batch: dict[str, Any], device: torch.device | str) -> dict[str, Any]:
    """Move every tensor of a batch to `device`; other values pass through."""
    return {
        k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()
    }


@contextlib.contextmanager
def processes(device: str) -> Iterator[str]:
    """Join the processes that `torchrun` started, if it did; gives this process's device.

    Each process then takes its own batches and gradients are averaged: on a CPU, one process per
    core trains about a seventh faster than one process with as many threads.
    """
    if not {"RANK", "MASTER_ADDR"} <= set(os.environ) or os.environ.get("WORLD_SIZE") == "1":
        yield device
        return
    cuda = torch.device(device).type == "cuda"
    torch.distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield f"cuda:{os.environ['LOCAL_RANK']}" if cuda else device
    finally:
        torch.distributed.destroy_process_group()


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) outside `torchrun`."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


@dataclass(frozen=True)
class _Share:
    """The batches of one process: numbers `rank`, `rank + world`, ... of all."""

    make: Callable[[int], dict[str, Any]]
    rank: int
    world: int

    def __call__(self, number: int) -> dict[str, Any]:
        return self.make(number * self.world + self.rank)


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace gradients by their mean over all processes; nothing to do in a single one.

    A parameter that learns but had no part in this process's loss counts as zero.
    """
    world = rank_and_world()[1]
    if world == 1:
        return
    learning = [p for p in parameters if p.requires_grad]
    flat = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in learning]
    )
    torch.distributed.all_reduce(flat)
    parts = (flat / world).split([p.numel() for p in learning])
    for parameter, part in zip(learning, parts, strict=True):
        parameter.grad = part.view_as(parameter)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `Run.save` wrote: "modules" by name, and the state of the run."""
    return torch.load(path, map_location="cpu", weights_only=False)


@dataclass
class Run:
    """One stage of a training run: its folder, its state and its log.

    The folder holds `<stage>.pt` (checkpoint) and `<stage>.jsonl` (log, one record a line). Of
    several processes the first alone writes; all read the same checkpoint.
    """

    folder: Path
    stage: str
    modules: dict[str, nn.Module]
    optimisers: Sequence[torch.optim.Optimizer]
    steps: int
    lr: float
    warmup: int
    clip: float = 1.0
    save_every_s: float = 120.0
    step: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._saved = self._ticked = time.monotonic()
        self._sums: dict[str, list[float]] = {}

    @property
    def checkpoint(self) -> Path:
        """Where the state is kept."""
        return self.folder / f"{self.stage}.pt"

    def resume(self) -> bool:
        """Load the last checkpoint of this stage, if there is one; true if there was."""
        if not self.checkpoint.exists():
            return False
        state = read_checkpoint(self.checkpoint)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            scales = [group.get("scale", 1.0) for group in optimiser.param_groups]
            optimiser.load_state_dict(saved)
            # Rates are the recipe's, not the checkpoint's: a run may go on by another plan.
            for group, scale in zip(optimiser.param_groups, scales, strict=True):
                group["scale"] = scale
        self.step, self.seconds = state["step"], state["seconds"]
        torch.set_rng_state(state["rng"])
        log.info("%s: resumed at step %d", self.stage, self.step)
        return True

    def save(self) -> None:
        """Write the checkpoint; the file is replaced in one step, never half written."""
        self._saved = time.monotonic()
        if rank_and_world()[0]:
            return
        state = {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimisers": [o.state_dict() for o in self.optimisers],
            "step": self.step,
            "seconds": self.seconds,
            "rng": torch.get_rng_state(),
        }
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.checkpoint)

    def update(self, loss: Tensor) -> None:
        """One optimiser step at the scheduled learning rate; a non-finite gradient is skipped."""
        factor = schedule(self.step, self.steps, self.warmup)
        groups = [group for o in self.optimisers for group in o.param_groups]
        for group in groups:
            group["lr"] = self.lr * factor * group.get("scale", 1.0)
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for g in groups for p in g["params"]]
        average_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, self.clip)
        if torch.isfinite(norm):
            for optimiser in self.optimisers:
                optimiser.step()
        self.track(grad=float(norm))
        self.step += 1

    def track(self, **values: float | Tensor) -> None:
        """Add values to the running means of the next log line."""
        for key, value in values.items():
            value = value.detach() if isinstance(value, Tensor) else value
            self._sums.setdefault(key, []).append(float(value))

    def record(self, **values: float) -> dict[str, float]:
        """Write one log line: the running means since the last one, and `values`."""
        now = time.monotonic()
        self.seconds += now - self._ticked
        self._ticked = now
        means = {k: sum(v) / len(v) for k, v in self._sums.items()}
        self._sums = {}
        line = {"step": self.step, "seconds": round(self.seconds, 1)}
        line |= {k: round(float(v), 5) for k, v in (means | values).items()}
        if rank_and_world()[0] == 0:
            with open(self.folder / f"{self.stage}.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")
        return line

    def loop(
        self,
        make: Callable[[int], dict[str, Any]],
        learn: Callable[[dict[str, Any]], Tensor],
        probe: Callable[[], dict[str, float]] | None,
        device: torch.device | str,
        workers: int,
        probe_every: int = 1000,
        limit: int | None = None,
        log_every: int = 50,
    ) -> None:
        """Train to the last step: `make(number)` gives a batch, `learn(batch)` the loss.

        With a `limit` it stops after so many steps; a later call with `resume` goes on.
        """
        stop = self.steps if limit is None else min(self.steps, self.step + limit)
        rank, world = rank_and_world()
        bar = tqdm(
            total=self.steps, initial=self.step, desc=self.stage, mininterval=5.0, disable=rank > 0
        )
        for batch in stream(_Share(make, rank, world), self.step, stop, workers):
            self.update(learn(to_device(batch, device)))
            bar.update(1)
            due = self.step % probe_every == 0 or self.step == self.steps
            if self.step % log_every == 0 or due:
                line = self.record(**(probe() if probe is not None and due and rank == 0 else {}))
                bar.set_postfix_str(" ".join(f"{k} {v:.3g}" for k, v in line.items()), False)
            if time.monotonic() - self._saved > self.save_every_s:
                self.save()
        bar.close()
        if self._sums:
            self.record()
        self.save()
