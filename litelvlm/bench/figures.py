"""Repeated timings and how figures are written; what machine they are from."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Spread:
    """Repeated timings in milliseconds: median, least and most."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(times: Sequence[float]) -> Spread:
        """Of at least one timing."""
        return Spread(statistics.median(times), min(times), max(times))

    def __str__(self) -> str:
        return f"{ms_text(self.median)} ({ms_text(self.low)}..{ms_text(self.high)})"


def machine(device: torch.device) -> str:
    """What runs the model: the GPU's name, or the processor's with its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    from importlib.metadata import version

    from litelvlm._version import __version__

    return {
        "litelvlm": __version__,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "Python": platform.python_version(),
    }


def ms_text(value: float) -> str:
    """Milliseconds with as many digits as mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def mib_text(size: int | None) -> str:
    """Bytes as MiB; "-" where unmeasured."""
    if size is None:
        return "-"
    mib = size / 2**20
    return f"{mib:,.0f}" if mib >= 100 else f"{mib:.1f}" if mib >= 1 else f"{mib:.3f}"


def ratio_of(before: float | None, after: float | None) -> float | None:
    """How many times less; None where unmeasured."""
    return before / after if before is not None and after else None


def faster(before: Spread | None, after: Spread | None) -> float | None:
    """Ratio of two medians; None where a stage did not run."""
    return before.median / after.median if before and after else None


def times_text(ratio: float | None) -> str:
    """A ratio as text."""
    return "-" if ratio is None else f"{ratio:.2f}x"


def cell_text(spread: Spread | None) -> str:
    """A spread as text."""
    return "-" if spread is None else str(spread)
