"""Ground a phrase in a picture with a fraction of the image tokens.

    import litelvlm

    pipe = litelvlm.load("nano")
    scene = pipe.encode("photo.jpg")
    result = pipe.ground(scene, ["the red apple"], budget=192)
    litelvlm.show(result[0])

Names are resolved on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from litelvlm._version import __version__

if TYPE_CHECKING:
    from litelvlm.errors import InputError
    from litelvlm.loading import load
    from litelvlm.pipeline import Pipeline
    from litelvlm.pruning import select_tokens
    from litelvlm.result import GroundingResult
    from litelvlm.viz import show

_HOMES = {
    "load": "litelvlm.loading",
    "Pipeline": "litelvlm.pipeline",
    "GroundingResult": "litelvlm.result",
    "InputError": "litelvlm.errors",
    "select_tokens": "litelvlm.pruning",
    "show": "litelvlm.viz",
}

__all__ = [
    "GroundingResult",
    "InputError",
    "Pipeline",
    "__version__",
    "load",
    "select_tokens",
    "show",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'litelvlm' has no attribute {name!r}")
