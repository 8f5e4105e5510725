"""Token pruning inside any Hugging Face vision-language model, through the model's own arguments.

    families.py   which models, and how the image tokens of each lie over the picture
    scores.py     what a selection rule may know: the model's own CLIP, a guide, or the tokens alone
    prompt.py     prompts without the tokens that were dropped: columns, positions, padding
    checks.py     what a user gives, checked
    record.py     what comes back
    pruner.py     `Pruner.prepare`: pictures and text in, arguments of `model.generate` out
    harness.py    `PrunedProcessor`: the same in place of a program's own processor

Nothing of the model is changed, so there is nothing to undo.
"""

from litelvlm.plugin.families import FAMILIES, Family, Piece, table
from litelvlm.plugin.harness import PrunedProcessor
from litelvlm.plugin.pruner import Pruner
from litelvlm.plugin.record import PictureRecord, PieceRecord, PrunedInputs

__all__ = [
    "FAMILIES",
    "Family",
    "PictureRecord",
    "Piece",
    "PieceRecord",
    "PrunedInputs",
    "PrunedProcessor",
    "Pruner",
    "table",
]
