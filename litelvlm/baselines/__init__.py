"""Every way to choose image tokens, in one table: `METHODS`, or one by name: `get_method`."""

from __future__ import annotations

from litelvlm.baselines import before_llm, ours
from litelvlm.baselines.view import (
    BlockView,
    InsideResult,
    Method,
    SelectionOptions,
    TokenView,
)
from litelvlm.errors import unknown

__all__ = [
    "METHODS",
    "BlockView",
    "InsideResult",
    "Method",
    "SelectionOptions",
    "TokenView",
    "get_method",
]

_LITELVLM = "Lee & Choi, LiteLVLM, ICML 2026, arXiv 2605.13178"


def _before(name, title, rule, source, text, *needs, positions=None) -> Method:  # type: ignore[no-untyped-def]
    return Method(name, title, source, text, "before", frozenset(needs), rule, positions)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        _before(
            "litelvlm",
            "LiteLVLM",
            ours.litelvlm,
            _LITELVLM,
            "Half the budget goes to the patches least like the phrase, half to context.",
        ),
        _before(
            "litelvlm-released",
            "LiteLVLM (released code)",
            ours.released,
            f"{_LITELVLM}; github.com/sejong-rcv/LiteLVLM",
            "An equal share per phrase of the least similar patches, context first in order.",
        ),
        _before(
            "random",
            "Random",
            before_llm.random,
            "control",
            "Patches drawn uniformly at random.",
        ),
        _before(
            "grid",
            "Uniform grid",
            before_llm.grid,
            "control",
            "Patches on an even lattice.",
        ),
        _before(
            "most-similar",
            "Most similar",
            before_llm.most_similar,
            "control: the ranking without the reversal",
            "The patches most like the phrase.",
        ),
        _before(
            "least-similar",
            "Least similar only",
            before_llm.least_similar,
            f"{_LITELVLM} (ablation)",
            "The patches least like the phrase, no context.",
        ),
        _before(
            "context",
            "Context only",
            before_llm.context,
            f"{_LITELVLM} (ablation)",
            "The patches with the highest context score, blind to the phrase.",
        ),
    )
}


def get_method(name: str) -> Method:
    """The method of that name. Raises `InputError` listing the names that exist."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]
