"""Running out of memory, told as an error of the user's kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
