"""Picture + question -> answers, token maps and costs, by whichever model is loaded.

    picture ─► encode ─► tokens ─► select(budget) ─► sequence ─► answer ─► mask, text
    phrase ──► text embedding ──────┘

`encode` does what depends on the picture alone, once; `ground` does the rest for any phrase and
budget. Nothing is remembered between calls: state is the `EncodedImage` that the caller holds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from litelvlm.batching import answer_clip, answer_together, choose_tokens
from litelvlm.clips import read_clip
from litelvlm.errors import InputError
from litelvlm.families.base import Family
from litelvlm.images import read_image
from litelvlm.memory import memory_told
from litelvlm.methods import METHODS
from litelvlm.profiling import Profiler
from litelvlm.question import ANSWER_TOKENS, Question, check_choice
from litelvlm.result import GroundingResults, TextResult, TokenMap
from litelvlm.scene import EncodedImage

F = TypeVar("F", bound=Callable[..., Any])


def _guarded(method: F) -> F:
    """Run without gradients, and tell what to do when memory is short."""

    @functools.wraps(method)
    def wrapper(self: Pipeline, *args: Any, **kwargs: Any) -> Any:
        advice = "; try fewer phrases, a smaller budget or a smaller picture"
        with torch.inference_mode(), memory_told(self.device, advice):
            return method(self, *args, **kwargs)

    return wrapper  # type: ignore[return-value]


class Pipeline:
    """A vision-language model with token pruning. Make one with `litelvlm.load`.

    Args:
        family: the loaded model, seen through its family's eyes.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        weights = [*family.model.parameters(), *family.model.buffers()]
        self.weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in weights)

    def __repr__(self) -> str:
        return f"Pipeline({self.name!r}, device={str(self.device)!r}, dtype={self.dtype})"

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.family.name

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.family.device

    @property
    def dtype(self) -> torch.dtype:
        """What the language model computes in."""
        return self.family.dtype

    @property
    def tokens_total(self) -> int:
        """N, patch tokens of an ordinary picture; a picture's own number is `scene.count`."""
        return self.family.tokens_total

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the selection methods that work with this model."""
        scores = self.family.capabilities.scores
        return tuple(name for name, method in METHODS.items() if method.needs <= scores)

    def __call__(
        self, image: Any, phrases: str | Sequence[str], budget: Any = None, **options: Any
    ) -> GroundingResults:
        """`encode`, then `ground`; see there. An `EncodedImage` is taken as it is."""
        if not isinstance(image, EncodedImage):
            profile = options.get("profile", "time")
            image = self.encode(image, view=options.pop("view", None), profile=profile)
        return self.ground(image, phrases, budget, **options)

    @overload
    def encode(
        self, image: list[Any], *, view: str | None = None, profile: str = "time"
    ) -> list[EncodedImage]: ...

    @overload
    def encode(
        self, image: Any, *, view: str | None = None, profile: str = "time"
    ) -> EncodedImage: ...

    @_guarded
    def encode(self, image: Any, *, view: str | None = None, profile: str = "time") -> Any:
        """Run what depends on the picture alone.

        Args:
            image: path, Pillow image or (H, W, 3) uint8 RGB array (see `images.read_image`); or a
                list of them, which run through the towers together.
            view: what the image tower sees: "crop" (the middle square), "letterbox" (all of it,
                padded) or "whole" (all of it, squeezed); None takes what the model was trained
                with, and some models see the whole only.
            profile: "time"; "full" to measure FLOPs and memory too, at twice the time; or "off".

        Returns:
            An `EncodedImage`, or a list of them; each then carries the cost of all.

        Raises:
            InputError: not a picture, too large, or an unknown option.
        """
        check_choice("profile", profile)
        view = self.family.defaults.view if view is None else check_choice("view", view)
        many = isinstance(image, list)
        pixels = [read_image(each) for each in (image if many else [image])]
        profiler = Profiler(self.device, profile)
        scenes = self.family.encode(pixels, view, profiler) if pixels else []
        scenes = [replace(scene, costs=tuple(profiler.costs)) for scene in scenes]
        return scenes if many else scenes[0]

    @overload
    def ground(
        self,
        scene: EncodedImage,
        phrases: str | Sequence[str],
        budget: int | None = None,
        **options: Any,
    ) -> GroundingResults: ...

    @overload
    def ground(
        self,
        scene: list[EncodedImage],
        phrases: Sequence[Sequence[str]],
        budget: int | None = None,
        **options: Any,
    ) -> list[GroundingResults]: ...

    def ground(self, scene: Any, phrases: Any, budget: int | None = None, **options: Any) -> Any:
        """Find what each phrase refers to.

        Args:
            scene: from `encode`; or a list of scenes, which run together.
            phrases: one or several; each gets its own tokens, prompt and mask, in one batch. For
                a list of scenes, the phrases of each.
            budget: image tokens that enter the language model, 1..N; None or N: unpruned.
            **options: the other fields of `litelvlm.question.Question`: method, split, order,
                positions, context, text, mode, joint, seed, max_new_tokens, profile, wording,
                share.

        Returns:
            One result a phrase, in order, and the cost of the call; a list of these for a list of
            scenes, each with the cost of all.

        Raises:
            InputError: bad phrase, budget or option; the message names it.
        """
        if not isinstance(scene, list):
            return self.answer(scene, Question(phrases, budget, **options))
        if not isinstance(phrases, Sequence) or len(phrases) != len(scene):
            raise InputError(f"{len(scene)} scenes need as many lists of phrases")
        questions = [Question(each, budget, **options) for each in phrases]
        return self._answer_together(scene, questions)

    @_guarded
    def _answer_together(
        self, scenes: list[EncodedImage], questions: list[Question]
    ) -> list[GroundingResults]:
        return answer_together(self.family, scenes, questions, self.weight_bytes)

    def ask(
        self, scene: EncodedImage, question: str, budget: int | None = None, **options: Any
    ) -> TextResult:
        """One question, answered in the model's own words; arguments as for `ground`."""
        own = {"mode": "generate", "max_new_tokens": ANSWER_TOKENS}
        return self.ground(scene, question, budget, **{**own, **options})[0]

    def answer(self, scene: EncodedImage, question: Question) -> GroundingResults:
        """`ground`, for a ready question."""
        return self._answer_together([scene], [question])[0]

    @_guarded
    def select(
        self,
        scene: EncodedImage,
        phrases: str | Sequence[str],
        budget: int | None = None,
        **options: Any,
    ) -> list[TokenMap]:
        """The token maps that `ground` would give; the language model does not run."""
        return choose_tokens(self.family, scene, Question(phrases, budget, **options))  # type: ignore[arg-type]

    @_guarded
    def follow(
        self, clip: Any, phrases: str | Sequence[str], budget: int | None = None, **options: Any
    ) -> GroundingResults:
        """Find what each phrase refers to in a clip, frame by frame.

        Args:
            clip: path, `clips.Clip` or (T, H, W, 3) uint8 RGB array.
            phrases: as for `ground`.
            budget: image tokens of each key frame (`family.capabilities.frames`, the first) that
                enter the language model; None: all of them.
            **options: as for `ground`.

        Returns:
            A `ClipResult` a phrase, in order, and the cost of the call.

        Raises:
            InputError: a model without video, a clip that cannot be read or is too long, or a bad
                phrase, budget or option.
        """
        question = Question(phrases, budget, **options)  # type: ignore[arg-type]
        frames = read_clip(clip).frames
        return answer_clip(self.family, frames, question, self.weight_bytes)

    def unknown_words(self, phrase: str) -> tuple[str, ...]:
        """Words of a phrase the model was never trained on; empty for an open vocabulary."""
        return self.family.unknown_words(phrase)

    @_guarded
    def text_embeddings(self, phrases: Sequence[str], text: str = "phrase") -> Tensor:
        """(T, E): what the text tower makes of each phrase, in one of `config.TEXTS`."""
        return self.family.text_embeddings(phrases, check_choice("text", text))

    @_guarded
    def similarity(
        self, scene: EncodedImage, phrases: Sequence[str], text: str = "phrase"
    ) -> Tensor:
        """(T, N) float32: the score that LiteLVLM ranks, lowest first."""
        embeds = self.family.text_embeddings(phrases, check_choice("text", text))
        view = self.family.view(scene, frozenset({"similarity"}), embeds[None], 1)
        return view.need("similarity")[0]
