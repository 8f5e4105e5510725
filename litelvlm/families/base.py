"""What a model family offers the pipeline: encode a picture, score its tokens, answer.

A family is one file beside this one and one line of `families.table`; `glamm.py` is the one to
copy. Nothing outside this folder knows which family answers.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from litelvlm.config import MODES, SelectionConfig
from litelvlm.errors import InputError
from litelvlm.methods import InsideResult, TokenView
from litelvlm.models.prompt import plain
from litelvlm.profiling import Profiler
from litelvlm.pruning import Selection
from litelvlm.question import ANSWER_TOKENS, Question
from litelvlm.scene import EncodedImage


@dataclass(frozen=True)
class Capabilities:
    """What a model can do.

    Attributes:
        scores: what selection methods may read of it; see `methods.Method.needs`.
        modes: how it can be asked, of `config.MODES`.
        masks: whether its answers come with masks.
        joint: whether several phrases can share one prompt.
        frames: of a clip that enter the language model, its first; 0 without video.
    """

    scores: frozenset[str]
    modes: tuple[str, ...] = MODES
    masks: bool = True
    joint: bool = True
    frames: int = 0

    def ask(self, question: Question) -> Question:
        """The same question, in text where there are no masks."""
        if self.masks:
            return question
        return replace(question, mode="generate", max_new_tokens=ANSWER_TOKENS)

    def check(self, asked: Question, model: str) -> None:
        """Raise `InputError` where a question asks for what the model cannot do."""
        if asked.mode not in self.modes:
            known = " or ".join(self.modes)
            how = "" if self.masks else ": it answers in text, use ask"
            raise InputError(f"{model} works in mode {known}, not {asked.mode!r}{how}")
        if asked.joint and not self.joint:
            raise InputError(f"{model} takes one phrase a prompt: joint=True does not work")


@dataclass(frozen=True)
class Answer:
    """What a model says about one phrase.

    Attributes:
        text: written, or the template in forced mode.
        logits: (h, w) float32 mask logits of the mask branch's square; None without a mask.
        mask: (H, W) bool on the picture; likewise.
        quality: the mask branch's own estimate of the mask's IoU, about 0..1; None without one.
    """

    text: str
    logits: Tensor | None = None
    mask: Tensor | None = None
    quality: float | None = None


@dataclass(frozen=True)
class Reply:
    """The answers to a question, and what the language model was given.

    Attributes:
        answers: one a phrase, in order.
        llm_tokens: length of the longest sequence that entered.
        inside: of a method that prunes inside the language model.
    """

    answers: tuple[Answer, ...]
    llm_tokens: int
    inside: InsideResult | None = None


class Family(ABC):
    """One loaded model, seen through its family's eyes.

    Attributes:
        name: of the model.
        model: all weights, in evaluation mode.
        defaults: its choices where a question leaves them open.
        capabilities: what it can do.
        vocabulary: words it was trained on; None for an open vocabulary.
        tokens_total: N of an ordinary picture; a picture's own number is `EncodedImage.count`.
        confidence: see `config.ModelConfig`; None without a calibration.
        encoder: image-text tower, for measurements of it; None where it has none of its own.
        segmenter: mask branch, likewise.
        wordings: (questions, answers) that it was trained with, its own first.
        scorer: whose view of picture and text the rules read, for the record.
    """

    name: str
    model: nn.Module
    defaults: SelectionConfig
    capabilities: Capabilities
    vocabulary: frozenset[str] | None = None
    tokens_total: int
    confidence: dict[str, float] | None = None
    encoder: Any = None
    segmenter: Any = None
    wordings: tuple[tuple[str, ...], tuple[str, ...]]
    scorer: str = "own CLIP tower"

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """What the language model computes in."""

    @property
    @abstractmethod
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one position adds to the cache."""

    @abstractmethod
    def encode(
        self, images: Sequence[np.ndarray], view: str, profiler: Profiler
    ) -> list[EncodedImage]:
        """Run what depends on the pictures alone.

        Args:
            images: (H, W, 3) uint8 each, upright RGB.
            view: of `geometry.VIEWS`.
            profiler: every stage goes through it.

        Returns:
            One record a picture, costs left empty.
        """

    @abstractmethod
    def text_embeddings(
        self, phrases: Sequence[str], form: str, question: str | None = None
    ) -> Tensor:
        """(T, E), phrases in the space they share with patches, not normalised.

        Args:
            phrases: at least one.
            form: of `config.TEXTS`.
            question: that form="question" fills in, in place of the model's own.
        """

    @abstractmethod
    def view(
        self, scene: EncodedImage, needs: frozenset[str], embeds: Tensor | None, rows: int
    ) -> TokenView:
        """What a selection rule reads of a picture.

        Args:
            scene: from `encode`.
            needs: of the rule; other fields stay empty.
            embeds: (rows, T, E), from `text_embeddings`; None where the rule reads no text.
            rows: prompts that are asked; each gets the same picture.
        """

    @abstractmethod
    def sequence(
        self,
        scene: EncodedImage,
        question: Question,
        selection: Selection | None,
        profiler: Profiler,
    ) -> Any:
        """What enters the language model: embeddings and positions, of any rank.

        Args:
            scene: from `encode`.
            question: settled.
            selection: of the tokens that enter, a row a prompt; None for all of them.
            profiler: every stage goes through it.

        Raises:
            InputError: longer than the model's positions reach.
        """

    @abstractmethod
    def answer(
        self, scene: EncodedImage, question: Question, sequence: Any, profiler: Profiler
    ) -> Reply:
        """Run the language model over a `sequence`, and the mask branch where there is one."""

    def answers(
        self,
        scenes: Sequence[EncodedImage],
        questions: Sequence[Question],
        sequences: Sequence[Any],
        profiler: Profiler,
    ) -> list[Reply]:
        """`answer` for several pictures, whose questions differ in their phrases only.

        A family that can run their sequences together overrides it.
        """
        rows = zip(scenes, questions, sequences, strict=True)
        return [self.answer(*row, profiler) for row in rows]

    def encode_frames(self, frames: np.ndarray, profiler: Profiler) -> list[EncodedImage]:
        """The key frames of a clip, (F, H, W, 3) uint8, without what the mask branch says.

        A family whose capabilities have frames offers it and `follow`.
        """
        raise NotImplementedError

    def follow(
        self,
        frames: np.ndarray,
        scenes: Sequence[EncodedImage],
        question: Question,
        selections: Sequence[Selection | None],
        profiler: Profiler,
    ) -> tuple[Reply, list[np.ndarray]]:
        """Answer about a whole clip.

        Args:
            frames: (T, H, W, 3) uint8.
            scenes: its F key frames, from `encode_frames`.
            question: settled, of one key frame.
            selections: of the tokens of each key frame.
            profiler: every stage goes through it.

        Returns:
            The answers, with the mask of the first frame, and (T, H, W) bool for each.
        """
        raise NotImplementedError

    def text_warnings(self, phrase: str, form: str) -> tuple[str, ...]:
        """Short notes about a phrase whose end the text tower does not read."""
        return ()

    def unknown_words(self, phrase: str) -> tuple[str, ...]:
        """Words of a phrase the model was never trained on, in order, each once."""
        if self.vocabulary is None:
            return ()
        words = re.findall(r"[^\W_]+(?:'[^\W_]+)?", plain(phrase))
        return tuple(dict.fromkeys(word for word in words if word not in self.vocabulary))
