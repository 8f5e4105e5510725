"""Memory of the process: running out of it, told as an error of the user's kind, and its peak."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from litelvlm.errors import MemoryShortError


@contextmanager
def memory_told(device: torch.device, advice: str) -> Iterator[None]:
    """Turn "out of memory" into a `MemoryShortError` that says what would help.

    Args:
        device: named in the message; the cache of a GPU is emptied.
        advice: end of the message.
    """
    try:
        yield
        return
    except (torch.OutOfMemoryError, MemoryError):
        pass
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
    if device.type == "cuda":
        torch.cuda.empty_cache()
    raise MemoryShortError(f"out of memory on {device}{advice}")


def peak_resident() -> int | None:
    """Most bytes of main memory that this process ever held, its libraries included.

    None where the system does not tell (Linux does).
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(ln.split()[1]) * 1024 for ln in lines if ln.startswith("VmHWM:")), None)
