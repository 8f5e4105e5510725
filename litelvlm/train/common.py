"""What the three training stages share: schedule, data stream, checkpoints, log.

Everything is device-agnostic: matrix products run in bfloat16 through autocast where the
processor gains from it, parameters and optimiser state stay in float32.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

log = logging.getLogger(__name__)


def seed_everything(seed: int) -> None:
    """Seed Python and torch; NumPy draws from generators that carry their own seeds."""
    random.seed(seed)
    torch.manual_seed(seed)


def autocast(device: torch.device | str, enabled: bool = True) -> contextlib.AbstractContextManager:
    """bfloat16 autocast on ``device``; a no-op when ``enabled`` is false."""
    if not enabled:
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention, (B, heads, Q, d) x (B, heads, K, d) -> (B, heads, Q, d).

    ``bias`` is added to the logits (0 to see, a large negative number to hide).
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


def cosine(step: int, total: int, warmup: int, floor: float = 0.02) -> float:
    """Learning-rate factor at ``step``: linear warm-up, then a cosine from 1 to ``floor``."""
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def adamw(modules: list[nn.Module], lr: float, decay: float, betas: tuple[float, float]) -> Any:
    """AdamW over the trainable parameters; vectors, norms and embeddings are not decayed."""
    matrices, others, seen = [], [], set()
    for module in modules:
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            plain = parameter.ndim < 2 or "embed" in name
            (others if plain else matrices).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=True)


class _Batches(IterableDataset):
    """Batches ``start``, ``start + 1``, ... made by a pure function of their number."""

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
    """Yield ``make(start)`` .. ``make(stop - 1)`` in order, made by ``workers`` processes.

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
    """Move every tensor of a batch to ``device``; other values pass through."""
    return {
        k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()
    }


@dataclass
class Run:
    """One stage of a training run: its folder, its state and its log.

    folder: holds ``<stage>.pt`` (checkpoint) and ``<stage>.jsonl`` (log, one record per line).
    """

    folder: Path
    stage: str
    modules: dict[str, nn.Module]
    optimiser: torch.optim.Optimizer
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
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=False)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]
        torch.set_rng_state(state["rng"])
        log.info("%s: resumed at step %d", self.stage, self.step)
        return True

    def save(self) -> None:
        """Write the checkpoint; the file is replaced in one step, never half written."""
        state = {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "rng": torch.get_rng_state(),
        }
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.checkpoint)
        self._saved = time.monotonic()

    def update(self, loss: Tensor) -> None:
        """One optimiser step at the scheduled learning rate; a non-finite gradient is skipped."""
        factor = cosine(self.step, self.steps, self.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr * factor * group.get("scale", 1.0)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for g in self.optimiser.param_groups for p in g["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.clip)
        if torch.isfinite(norm):
            self.optimiser.step()
        self.track(grad=float(norm))
        self.step += 1

    def track(self, **values: float | Tensor) -> None:
        """Add values to the running means of the next log line."""
        for key, value in values.items():
            value = value.detach() if isinstance(value, Tensor) else value
            self._sums.setdefault(key, []).append(float(value))

    def record(self, **values: float) -> dict[str, float]:
        """Write one log line: the running means since the last one, and ``values``."""
        now = time.monotonic()
        self.seconds += now - self._ticked
        self._ticked = now
        means = {k: sum(v) / len(v) for k, v in self._sums.items()}
        self._sums = {}
        line = {"step": self.step, "seconds": round(self.seconds, 1)}
        line |= {k: round(float(v), 5) for k, v in (means | values).items()}
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
        log_every: int = 50,
        probe_every: int = 1000,
        limit: int | None = None,
    ) -> None:
        """Train from the present step to the last: ``learn(batch)`` gives the loss.

        limit: stop after so many steps of this call; a later call with ``resume`` goes on.
        """
        stop = self.steps if limit is None else min(self.steps, self.step + limit)
        bar = tqdm(total=self.steps, initial=self.step, desc=self.stage, mininterval=5.0)
        for batch in stream(make, self.step, stop, workers):
            self.update(learn(to_device(batch, device)))
            bar.update(1)
            due = self.step % probe_every == 0 or self.step == self.steps
            if self.step % log_every == 0 or due:
                line = self.record(**(probe() if probe is not None and due else {}))
                bar.set_postfix_str(" ".join(f"{k} {v:.3g}" for k, v in line.items()), False)
            if time.monotonic() - self._saved > self.save_every_s:
                self.save()
        bar.close()
        if self._sums:
            self.record()
        self.save()
