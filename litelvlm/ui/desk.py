"""The models of one demo and the three jobs they do, on whatever hardware there is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from litelvlm.errors import InputError
from litelvlm.question import Question
from litelvlm.ui import beside, patch_map, work
from litelvlm.ui.limits import Picture, take_picture
from litelvlm.ui.settings import Settings
from litelvlm.ui.zero import gpu, on_zero_gpu

if TYPE_CHECKING:
    from litelvlm.pipeline import Pipeline
    from litelvlm.result import GroundingResults

log = logging.getLogger(__name__)
DEFAULT_TOKENS = 576


class Desk:
    """Answers questions about pictures with the models of one demo.

    A lent GPU lives in another process, from which only plain results come back; there the
    encoded picture is not kept and every call encodes anew.

    Args:
        settings: which models, on which device.
        load: turns (name, device, dtype) into a pipeline; None for `litelvlm.load`.
    """

    def __init__(self, settings: Settings, load: Callable[[str], Pipeline] | None = None) -> None:
        self.settings = settings
        self.models = work.Models(settings.models, load or self._load)
        self.holds = not on_zero_gpu()
        models, holds = self.models, self.holds

        @gpu(lambda name, picture, ask, before: 15 + 3 * len(ask.phrases))
        def _answer(name: str, picture: Picture, ask: Question, before: Any) -> work.Answer:
            return work.answer(models.get(name), picture, ask, before, hold=holds)

        @gpu(lambda name, given: 40 + 10 * len(given.ask.phrases))
        def _measure(name: str, given: work.Answer) -> work.Answer:
            return work.measure(models.get(name), given)

        @gpu(lambda name, given, methods: 40 + 20 * len(methods))
        def _sweep(name: str, given: work.Answer, methods: Sequence[str]) -> Iterator[work.Sweep]:
            yield from work.sweep(models.get(name), given, methods)

        @gpu(lambda name, frames, phrases, budget: 30 + len(frames))
        def _follow(name: str, frames: np.ndarray, phrases: Sequence[str], budget: Any) -> Any:
            return models.get(name).follow(frames, phrases, budget)

        @gpu(lambda name, given, methods: 40 + 10 * len(methods))
        def _beside(name: str, given: work.Answer, methods: Sequence[str]) -> beside.Beside:
            return beside.beside(models.get(name), given, methods)

        self._answer, self._measure, self._sweep = _answer, _measure, _sweep
        self._beside = _beside
        self._follow = _follow

    def _load(self, name: str) -> Pipeline:
        import litelvlm

        return litelvlm.load(name, device=self.settings.device, dtype=self.settings.dtype)

    def tokens(self, name: str | None = None) -> int:
        """N of a model; 576 where it cannot be loaded."""
        try:
            return self.models.get(name).tokens_total
        except InputError:
            return DEFAULT_TOKENS

    def masks(self, name: str | None = None) -> bool:
        """Whether a model answers with masks; else in text. True where it cannot be loaded."""
        try:
            return self.models.get(name).family.capabilities.masks
        except InputError:
            return True

    def clips(self, name: str | None = None) -> bool:
        """Whether a model takes clips; False where it cannot be loaded."""
        try:
            return self.models.get(name).family.capabilities.frames > 0
        except InputError:
            return False

    def follow(
        self, name: str, frames: np.ndarray, phrases: Sequence[str], budget: Any
    ) -> GroundingResults:
        """See `Pipeline.follow`."""
        return self._follow(name, frames, phrases, budget)

    def answer(
        self, name: str, picture: Picture, ask: Question, before: work.Answer | None
    ) -> work.Answer:
        """See `work.answer`."""
        if before is not None and not self.holds:
            before = None
        return replace(self._answer(name, picture, ask, before), model=name)

    def play(self, given: work.Answer, index: int) -> patch_map.Play | None:
        """See `patch_map.play`; by the model that answered."""
        return patch_map.play(self.models.get(given.model), given, index)

    def measure(self, given: work.Answer) -> work.Answer:
        """See `work.measure`; by the model that answered."""
        done = self._measure(given.model, given)
        return replace(given, measured=done.measured)

    def sweep(
        self, given: work.Answer, methods: Sequence[str] = work.RIVALS
    ) -> Iterator[work.Sweep]:
        """See `work.sweep`; by the model that answered."""
        yield from self._sweep(given.model, given, methods)

    def beside(self, given: work.Answer, methods: Sequence[str]) -> beside.Beside:
        """See `beside.beside`; by the model that answered."""
        return self._beside(given.model, given, methods)

    def warm_up(self) -> float | None:
        """Run the first model once on a blank picture, so that the first visitor need not wait.

        Returns:
            Seconds it took, None where there is no model.
        """
        if not self.holds:
            return None
        start = time.perf_counter()
        try:
            family = self.models.get().family
            blank = take_picture(np.full((64, 64, 3), 128, np.uint8))
            given = None
            for budget in work.budgets(family.tokens_total)[:2]:
                ask = family.capabilities.ask(Question(("a thing",), budget))
                given = self.answer(self.models.names[0], blank, ask, given)
        except InputError as error:
            log.warning("no model yet: %s", error)
            return None
        return time.perf_counter() - start
