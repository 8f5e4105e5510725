"""A processor that prunes, for programs that call processor and `model.generate` themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from litelvlm.errors import InputError
from litelvlm.plugin.pruner import Pruner

_IMPLIED = {"padding", "padding_side", "return_tensors"}  # `prepare` pads and returns tensors


class PrunedProcessor:
    """Stands where a program holds its processor, and shortens what that makes of pictures.

        program.processor = PrunedProcessor(Pruner(program.model, program.processor), 192)

    All else is the processor's own; a prompt without pictures goes to it unchanged.

    Args:
        pruner: of the program's model and processor.
        budget, positions: as in `Pruner.prepare`.
    """

    def __init__(self, pruner: Pruner, budget: Any, *, positions: str | None = None) -> None:
        self.pruner = pruner
        self.budget = budget
        self.positions = positions

    def __call__(
        self, images: Any = None, text: str | Sequence[str] = "", videos: Any = None, **more: Any
    ) -> Any:
        """What `generate` takes, as the processor hands it out.

        Raises:
            InputError: videos, an option that has no effect here, or as `Pruner.prepare`.
        """
        if videos:
            raise InputError("only pictures are pruned, not videos")
        if images is None or (isinstance(images, (list, tuple)) and not images):
            return self.pruner.processor(text=text, **more)
        if unknown := set(more) - _IMPLIED:
            raise InputError(f"processor option {min(unknown)!r}: set it where the processor loads")
        return self.pruner.prepare(images, text, self.budget, positions=self.positions)

    def __getattr__(self, name: str) -> Any:
        if name == "pruner":  # not there yet while a copy is made
            raise AttributeError(name)
        return getattr(self.pruner.processor, name)
