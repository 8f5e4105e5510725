"""Spaces with a GPU that is lent call by call (ZeroGPU). Without one nothing here does anything.

There, `spaces` has to be imported before torch, weights are placed when the program starts, and
work runs in another process: its arguments and results are pickled, so no tensor of the GPU may
be among them, and time and memory are read inside.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def on_zero_gpu() -> bool:
    """Whether this process runs on such a Space."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "true")


def prepare() -> None:
    """To be called before torch is imported for the first time."""
    if on_zero_gpu():
        import spaces  # noqa: F401


def gpu(duration: Callable[..., int]) -> Callable[[F], F]:
    """Run the function where the lent GPU is; changes nothing anywhere else.

    Args:
        duration: the function's own arguments -> seconds to ask for.
    """
    if not on_zero_gpu():
        return lambda function: function
    import spaces

    return spaces.GPU(duration=duration)
