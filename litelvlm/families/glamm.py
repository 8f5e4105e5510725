"""GLaMM: CLIP's patch tokens through a projector into LLaMA, whose [SEG] states prompt SAM.

    picture ─► clip_image ─┬─► select(budget) ─► project ─► llm_prefill ─► [SEG] state ─┐
    phrase ──► clip_text ──┘                                                            ▼
    picture ─► sam_image ─────────────────────────────────────────────────────────► mask_decode

The embedded models are of this family too. Rasheed et al., CVPR 2024; the names of its original
checkpoints are in `glamm_files`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from litelvlm.config import ModelConfig
from litelvlm.families.base import Answer, Capabilities, Reply
from litelvlm.families.clip_llama import ClipLlama, Prompted, blocks, build, tokens, wrap_as
from litelvlm.families.glamm_files import (
    PROMPT,
    open_folder,
    published_config,
    recognises,
    sized_config,
    toy_config,
)
from litelvlm.geometry import PatchFrame
from litelvlm.methods import InsideResult
from litelvlm.models.bundle import GroundingModel
from litelvlm.models.language import join
from litelvlm.models.prompt import PromptIds, build_prompt
from litelvlm.models.segmenter import Segmenter
from litelvlm.profiling import Profiler
from litelvlm.question import Question
from litelvlm.scene import EncodedImage, MaskScene

__all__ = [
    "Glamm",
    "blocks",
    "build",
    "open_folder",
    "random_config",
    "recognises",
    "tokens",
    "wrap",
]

# Wordings that GLaMM was trained with; its released evaluation draws one of each for a prompt.
QUESTIONS = (
    "Can you segment the {phrase} in this image?",
    "Please segment {phrase} in this image.",
    "What is {phrase} in this image? Please respond with segmentation mask.",
    "What is {phrase} in this image? Please output segmentation mask.",
    "Could you provide a segmentation mask for the {phrase} in this image?",
    "Please identify and segment the {phrase} in this image.",
    "Where is the {phrase} in this picture? Please respond with a segmentation mask.",
    "Can you highlight the {phrase} in this image with a segmentation mask?",
)
ANSWERS = (
    "It is [SEG].",
    "Sure, [SEG].",
    "Sure, it is [SEG].",
    "Sure, the segmentation result is [SEG].",
    "[SEG].",
)


def random_config(name: str) -> ModelConfig:
    """The configuration of a preset whose weights are drawn."""
    if name == "tiny-random":
        return toy_config()
    if name == "glamm-fullscope-v0":
        return sized_config(name, PROMPT, 224, 2048, 1e-6, projector="linear")
    return replace(published_config(), name=name)


def wrap(model: GroundingModel, config: ModelConfig, folder: Path | None) -> Glamm:
    """A filled module as a GLaMM; see `wrap_as`."""
    return wrap_as(Glamm, model, config, folder)


class Glamm(ClipLlama):
    """A GLaMM in memory; see `ClipLlama`."""

    segmenter: Segmenter
    questions: tuple[str, ...] = QUESTIONS
    replies: tuple[str, ...] = ANSWERS
    capabilities = Capabilities(
        scores=frozenset({"similarity", "last", "penultimate", "early", "llm", "layers"})
    )

    def __init__(
        self,
        model: GroundingModel,
        config: ModelConfig,
        tokenizer: Any,
        vocabulary: frozenset[str] | None = None,
    ) -> None:
        super().__init__(model, config, tokenizer, vocabulary)
        self.segmenter = Segmenter(model.segmenter, config.segmenter_place)

    def encode(  # noqa: D102
        self, images: Sequence[np.ndarray], view: str, profiler: Profiler
    ) -> list[EncodedImage]:
        tokens = profiler.run("clip_image", self.encode_tokens, images, view)
        features = profiler.run("sam_image", self._encode_masks, images)
        found = []
        for row, image in enumerate(images):
            frame = PatchFrame(self.encoder.grid, (image.shape[0], image.shape[1]), view)
            masks = MaskScene(features[row : row + 1], self.segmenter.frame(frame.image_hw))
            found.append(EncodedImage(image, tokens.picture(row), masks, frame, (), self.name))
        return found

    def _encode_masks(self, images: Sequence[np.ndarray]) -> Tensor:
        pixels = torch.cat([self.segmenter.pixels(image) for image in images])
        return self.segmenter.encode(pixels.to(self.device))

    def answers(  # noqa: D102
        self,
        scenes: Sequence[EncodedImage],
        questions: Sequence[Question],
        sequences: Sequence[Prompted],
        profiler: Profiler,
    ) -> list[Reply]:
        question, inside = questions[0], questions[0].rule.where == "inside"
        own = question.wording[1] if question.wording else self.config.prompt.answer
        counts = [len(each.phrases) for each in questions]
        texts = [own] * sum(counts)
        outcomes: list[InsideResult | None] = [None] * len(scenes)
        if question.mode == "generate":
            total = scenes[0].count
            written, texts, outcomes = self.write(sequences, question, total, profiler)
            states = [answer.seg_states for answer in written]
        elif inside and question.budget != scenes[0].count:
            pruned = [self._prune_inside(each, question, profiler) for each in sequences]
            states = [state for found, _ in pruned for state in found]
            outcomes = [outcome for _, outcome in pruned]
        else:
            batch = join([each.batch for each in sequences])
            rows = [len(each.prompts) for each in sequences] if question.share else []
            every = profiler.run("llm_prefill", self.language.prefill, batch, rows)
            states = [every[row, [place]] for row, place in self._seg_places(*sequences)]
        where = [scene.segmenter for scene, n in zip(scenes, counts, strict=True) for _ in range(n)]
        masks = profiler.run("mask_decode", self._decode, where, states)
        answers = iter([Answer(text, *mask) for text, mask in zip(texts, masks, strict=True)])
        return [
            Reply(tuple(islice(answers, count)), sequence.batch.embeds.shape[1], outcome)
            for count, sequence, outcome in zip(counts, sequences, outcomes, strict=True)
        ]

    def prompts(self, question: Question) -> tuple[PromptIds, ...]:  # noqa: D102
        def encode(piece: str) -> list[int]:
            return self.tokenizer.encode(piece, add_special_tokens=False)

        prompt = self.config.prompt
        if question.wording:
            prompt = replace(prompt, question=question.wording[0], answer=question.wording[1])
        phrases = question.phrases
        turns = [phrases] if question.joint else [(phrase,) for phrase in phrases]
        answered = question.mode == "forced"
        return tuple(
            build_prompt(turn, prompt, self.config.tokens, encode, answered=answered)
            for turn in turns
        )

    def _seg_places(self, *sequences: Prompted) -> list[tuple[int, int]]:
        """(row, position) of the state that predicts each [SEG], phrase by phrase."""
        seg = self.language.seg_id
        assert seg is not None  # a family that grounds has one
        rows = [(prompt, each.kept) for each in sequences for prompt in each.prompts]
        return [
            (row, place)
            for row, (prompt, kept) in enumerate(rows)
            for place in prompt.seg_states(seg, kept)
        ]

    def _prune_inside(
        self, sequence: Prompted, question: Question, profiler: Profiler
    ) -> tuple[list[Tensor], InsideResult]:
        """Per phrase the (1, L) state that predicts [SEG], and what the method did."""
        rule = (question.rule.rule, question.budget)
        outcome: Any = profiler.run(
            "llm_prefill", self.language.prune, sequence.batch, sequence.kept, *rule
        )
        states = [
            outcome.hidden[row, outcome.places[row] == place]
            for row, place in self._seg_places(sequence)
        ]
        return states, outcome

    def _decode(
        self, scenes: Sequence[MaskScene], states: list[Tensor]
    ) -> list[tuple[Tensor | None, Tensor | None, float | None]]:
        """Per phrase (h, w) logits, (H, W) mask and quality; masks of several [SEG] are united.

        Args:
            scenes: the picture of each phrase.
            states: (n, L), of each phrase.
        """
        counts = [len(state) for state in states]
        if not sum(counts):
            return [(None, None, None)] * len(states)
        prompts = self.model.seg_head(torch.cat(states))
        embedding = scenes[0].embedding
        if any(scene is not scenes[0] for scene in scenes):
            pairs = zip(scenes, counts, strict=True)
            embedding = torch.cat([each.embedding.expand(n, -1, -1, -1) for each, n in pairs])
        logits, quality = self.segmenter.decode(embedding, prompts)
        masks: list[tuple[Tensor | None, Tensor | None, float | None]] = []
        pieces = zip(scenes, logits.float().split(counts), quality.split(counts), strict=True)
        for scene, piece, own in pieces:
            if not len(piece):
                masks.append((None, None, None))
                continue
            low_res = piece.amax(0)
            mask = scene.frame.upscale(low_res[None])[0] > 0
            masks.append((low_res, mask, float(own.float().amin())))
        return masks
