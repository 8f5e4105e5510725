"""Every way to choose image tokens: the table `METHODS`, or one by name: `get_method`."""

from litelvlm.methods.table import METHODS, get_method
from litelvlm.methods.view import (
    BlockView,
    InsideResult,
    Method,
    SelectionOptions,
    TokenView,
)

__all__ = [
    "METHODS",
    "BlockView",
    "InsideResult",
    "Method",
    "SelectionOptions",
    "TokenView",
    "get_method",
]
