"""From scored tokens and a question to the tokens that enter the language model; knows no model."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from torch import Tensor

from litelvlm.errors import InputError
from litelvlm.geometry import PatchFrame
from litelvlm.methods import METHODS, Method, TokenView
from litelvlm.pruning import Reason, Selection
from litelvlm.question import Question
from litelvlm.result import TokenMap


def check_method(rule: Method, scores: Collection[str], model: str, advice: str = "") -> None:
    """Raise `InputError`, naming the methods that work, where a model lacks what a rule reads.

    Args:
        rule: the method asked for.
        scores: what the model offers; see `methods.Method.needs`.
        model: its name.
        advice: what else would help.
    """
    if missing := rule.needs - set(scores):
        able = [name for name, method in METHODS.items() if method.needs <= set(scores)]
        raise InputError(
            f"method {rule.name!r} needs {', '.join(sorted(missing))}, which {model} does not "
            f"offer{advice}; methods that work: {', '.join(able)}"
        )


def select(view: TokenView, question: Question) -> Selection:
    """Choose `question.budget` of the N tokens of each row.

    Args:
        view: B rows of scored tokens; filled as far as the rule's `needs` say.
        question: settled.

    Returns:
        A `Selection` of B rows.
    """
    assert question.budget is not None
    chosen = question.rule.rule(view, question.budget, question.options)
    if not isinstance(chosen, Selection) or len(chosen.indices) != len(view.hidden):
        raise RuntimeError(f"{question.method}: no selection for each of {len(view.hidden)} rows")
    return chosen


def token_map(
    frame: PatchFrame,
    selection: Selection | None = None,
    row: int = 0,
    phrase: int = 0,
    kept: Tensor | None = None,
) -> TokenMap:
    """Which patches entered for one phrase, and why.

    Args:
        frame: of the picture.
        selection: made before the language model; None for the unpruned model and for methods
            inside it.
        row: of the selection.
        phrase: among those that share the row.
        kept: (K,) patch numbers that reached the last layer, for methods inside; -1: merged.
    """
    if selection is None:
        order = np.arange(frame.count) if kept is None else kept.cpu().numpy()
        reason = np.full(len(order), Reason.RULE, np.uint8)
        similarity = context = None
    else:
        order = selection.indices[row].cpu().numpy()
        reason = selection.reason[row].cpu().numpy()
        similarity = _array(selection.similarity, row, phrase)
        context = _array(selection.context, row)
    ascending = np.argsort(order, kind="stable")
    ascending = ascending[order[ascending] >= 0]  # merged tokens stand for no patch
    return TokenMap(order[ascending], reason[ascending], order, similarity, context, frame)


def _array(scores: Tensor | None, *index: int) -> np.ndarray | None:
    return None if scores is None else scores[index].float().cpu().numpy()
