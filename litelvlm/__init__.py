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
    from litelvlm.plugin import Pruner
    from litelvlm.pruning import (
        context_saliency,
        gather_tokens,
        select_tokens,
        text_similarity,
    )
    from litelvlm.result import GroundingResult
    from litelvlm.viz import show

_HOMES = {
    "load": "litelvlm.loading",
    "Pipeline": "litelvlm.pipeline",
    "GroundingResult": "litelvlm.result",
    "InputError": "litelvlm.errors",
    "Pruner": "litelvlm.plugin",
    "context_saliency": "litelvlm.pruning",
    "gather_tokens": "litelvlm.pruning",
    "select_tokens": "litelvlm.pruning",
    "text_similarity": "litelvlm.pruning",
    "show": "litelvlm.viz",
}

__all__ = [
    "GroundingResult",
    "InputError",
    "Pipeline",
    "Pruner",
    "__version__",
    "context_saliency",
    "gather_tokens",
    "load",
    "select_tokens",
    "show",
    "text_similarity",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'litelvlm' has no attribute {name!r}")
