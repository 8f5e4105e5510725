"""GLaMM: CLIP's patch tokens through a projector into LLaMA, whose [SEG] states prompt SAM.

    picture ─► clip_image ─┬─► select(budget) ─► project ─► llm_prefill ─► [SEG] state ─┐
    phrase ──► clip_text ──┘                                                            ▼
    picture ─► sam_image ─────────────────────────────────────────────────────────► mask_decode

The embedded models are of this family too. Rasheed et al., CVPR 2024; the names of its original
checkpoints are in `glamm_files`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from litelvlm.config import WORDINGS, ModelConfig
from litelvlm.errors import InputError, ModelError
from litelvlm.families.base import Answer, Capabilities, Family, Reply
from litelvlm.families.glamm_files import (
    open_folder,
    published_config,
    recognises,
    stand_in_tokenizer,
    tiny_tokenizer,
    toy_config,
)
from litelvlm.geometry import PatchFrame
from litelvlm.methods import InsideResult, TokenView
from litelvlm.models.bundle import GroundingModel
from litelvlm.models.dual_encoder import DualEncoder, ImageTokens
from litelvlm.models.files import read_vocabulary
from litelvlm.models.language import LanguageModel, Sequences, join, load_tokenizer, wrap_tokenizer
from litelvlm.models.prompt import PromptIds, build_prompt, plain
from litelvlm.models.segmenter import Segmenter
from litelvlm.profiling import Profiler
from litelvlm.pruning import Selection, gather_tokens, text_similarity
from litelvlm.question import Question
from litelvlm.scene import EncodedImage, MaskScene

__all__ = ["Glamm", "blocks", "build", "open_folder", "random_config", "recognises", "wrap"]

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
    return toy_config() if name == "tiny-random" else published_config()


def build(config: ModelConfig) -> GroundingModel:
    """The module that the weights of a configuration fill."""
    return GroundingModel(config)


def blocks(model: GroundingModel) -> torch.nn.Module:
    """What `load(bits=...)` stores in fewer bits: the language model without its output layer."""
    return model.language.model


def wrap(model: GroundingModel, config: ModelConfig, folder: Path | None) -> Glamm:
    """A filled module as a family, with the tokenizer of its folder.

    Args:
        model: from `build`, filled.
        config: its configuration.
        folder: holds the tokenizer, and vocabulary.json for a closed vocabulary; None for drawn
            weights, which get a tokenizer made in code.

    Raises:
        ModelError: the tokenizer cannot be read or does not fit.
    """
    if folder is None:
        small = config.language["vocab_size"] < 1000
        drawn = tiny_tokenizer() if small else stand_in_tokenizer()
        return Glamm(model, config, wrap_tokenizer(drawn))
    tokenizer = load_tokenizer(folder)
    given, expected = tokenizer.convert_tokens_to_ids("[SEG]"), config.tokens["seg"]
    if given != expected:
        raise ModelError(f"{folder}: [SEG] is {given} in the tokenizer, not {expected}")
    return Glamm(model, config, tokenizer, read_vocabulary(folder))


@dataclass(frozen=True)
class Prompted:
    """Prompts and the batch they make with their image tokens.

    Attributes:
        prompts: one a row.
        batch: what enters the language model.
        kept: K, image tokens in each row.
    """

    prompts: tuple[PromptIds, ...]
    batch: Sequences
    kept: int


class Glamm(Family):
    """A GLaMM in memory.

    Args:
        model: all weights, in evaluation mode.
        config: its configuration.
        tokenizer: of the language model; `encode(text, add_special_tokens=False)` and `decode`.
        vocabulary: words the model was trained on; None for an open vocabulary.
    """

    model: GroundingModel
    encoder: DualEncoder
    segmenter: Segmenter
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
        encoder = config.dual_encoder
        statistics = {k: encoder[k] for k in ("image_mean", "image_std") if k in encoder}
        self.name = config.name
        self.model = model
        self.config = config
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.defaults = config.selection
        self.confidence = config.confidence
        own = config.prompt
        self.wordings = ((own.question, *QUESTIONS), (own.answer, *ANSWERS))
        self.encoder = DualEncoder(model.dual_encoder, **statistics)
        self.language = LanguageModel(model.language, config.tokens["seg"], config.tokens["eos"])
        self.segmenter = Segmenter(model.segmenter, config.segmenter_place)
        self.tokens_total = self.encoder.grid[0] * self.encoder.grid[1]

    @property
    def device(self) -> torch.device:  # noqa: D102
        return self.language.llama.device

    @property
    def dtype(self) -> torch.dtype:  # noqa: D102
        return self.language.llama.dtype

    @property
    def kv_bytes_per_token(self) -> int:  # noqa: D102
        return self.language.kv_bytes_per_token

    def encode(  # noqa: D102
        self, images: Sequence[np.ndarray], view: str, profiler: Profiler
    ) -> list[EncodedImage]:
        tokens = profiler.run("clip_image", self._encode_tokens, images, view)
        features = profiler.run("sam_image", self._encode_masks, images)
        found = []
        for row, image in enumerate(images):
            frame = PatchFrame(self.encoder.grid, (image.shape[0], image.shape[1]), view)
            masks = MaskScene(features[row : row + 1], self.segmenter.frame(frame.image_hw))
            found.append(EncodedImage(image, tokens.picture(row), masks, frame, (), self.name))
        return found

    def _encode_tokens(self, images: Sequence[np.ndarray], view: str) -> ImageTokens:
        pixels = torch.cat([self.encoder.pixels(image, view) for image in images])
        return self.encoder.encode_image(pixels.to(self.device))

    def _encode_masks(self, images: Sequence[np.ndarray]) -> Tensor:
        pixels = torch.cat([self.segmenter.pixels(image) for image in images])
        return self.segmenter.encode(pixels.to(self.device))

    def text_embeddings(  # noqa: D102
        self, phrases: Sequence[str], form: str, question: str | None = None
    ) -> Tensor:
        texts = [text for phrase in phrases for text in self._wordings(phrase, form, question)]
        embeds = self.encoder.encode_text(texts)
        return embeds.view(len(phrases), -1, embeds.shape[-1]).mean(1)

    def text_warnings(self, phrase: str, form: str) -> tuple[str, ...]:  # noqa: D102
        if not any(map(self.encoder.is_cut, self._wordings(phrase, form))):
            return ()
        limit = self.encoder.context_length
        return (f"CLIP reads {limit} tokens; the end of this phrase does not reach its score",)

    def view(  # noqa: D102
        self, scene: EncodedImage, needs: frozenset[str], embeds: Tensor | None, rows: int
    ) -> TokenView:
        tokens = scene.tokens
        blocks = {"last": -1, "penultimate": -2, "early": self.encoder.early}
        fields: dict[str, Any] = {
            name: self.encoder.block(tokens, index).expand(rows)
            for name, index in blocks.items()
            if name in needs
        }
        if "llm" in needs:  # once a picture, not once a phrase
            fields["llm"] = self.model.projector(tokens.hidden).expand(rows, -1, -1)
        if embeds is not None:
            projected = self.encoder.project(tokens).expand(rows, -1, -1)
            similarity = text_similarity(projected, embeds)
            fields |= {"similarity": similarity, "text": embeds, "projected": projected}
        hidden = tokens.hidden.expand(rows, -1, -1)
        return TokenView(hidden, tokens.grid, self.encoder.heads, **fields)

    def sequence(  # noqa: D102
        self,
        scene: EncodedImage,
        question: Question,
        selection: Selection | None,
        profiler: Profiler,
    ) -> Prompted:
        prompts = self.prompts(question)
        hidden = scene.tokens.hidden.expand(len(prompts), -1, -1)
        image = profiler.run("project", self._project, hidden, selection)
        original = question.positions == "original" and selection is not None
        places = selection.indices if original and selection is not None else None
        batch = self.language.assemble(prompts, image, places, scene.count)
        kept = image.shape[1]
        expected = tuple(prompt.length(kept) for prompt in prompts)
        if batch.lengths != expected or batch.embeds.shape[1] != max(expected):
            raise RuntimeError(f"{batch.embeds.shape[1]} tokens would enter, not {expected}")
        new = question.max_new_tokens if question.mode == "generate" else 0
        needed = max(expected) + (scene.count - kept if original else 0) + new
        limit = self.language.llama.config.max_position_embeddings
        if needed > limit:
            raise InputError(f"the prompt needs {needed} positions, the model has {limit}")
        return Prompted(prompts, batch, kept)

    def answer(  # noqa: D102
        self, scene: EncodedImage, question: Question, sequence: Prompted, profiler: Profiler
    ) -> Reply:
        return self.answers([scene], [question], [sequence], profiler)[0]

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
            states, texts = self._generate(sequences, question.max_new_tokens, profiler)
        elif inside and question.budget != scenes[0].count:
            pruned = [self._prune_inside(each, question, profiler) for each in sequences]
            states = [state for found, _ in pruned for state in found]
            outcomes = [outcome for _, outcome in pruned]
        else:
            batch = join([each.batch for each in sequences])
            every = profiler.run("llm_prefill", self.language.prefill, batch)
            states = [every[row, [place]] for row, place in self._seg_places(*sequences)]
        where = [scene.segmenter for scene, n in zip(scenes, counts, strict=True) for _ in range(n)]
        masks = profiler.run("mask_decode", self._decode, where, states)
        answers = iter([Answer(text, *mask) for text, mask in zip(texts, masks, strict=True)])
        return [
            Reply(tuple(islice(answers, count)), sequence.batch.embeds.shape[1], outcome)
            for count, sequence, outcome in zip(counts, sequences, outcomes, strict=True)
        ]

    def prompts(self, question: Question) -> tuple[PromptIds, ...]:
        """The conversations that ask a question: one a phrase, or one for all of them."""

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

    def _wordings(self, phrase: str, form: str, question: str | None = None) -> list[str]:
        """What the text tower reads for one phrase; embeddings of several are averaged."""
        text = plain(phrase)
        if form == "question":
            return [(question or self.config.prompt.question).format(phrase=text)]
        return [wording.format(text) for wording in WORDINGS[form]]

    def _project(self, hidden: Tensor, selection: Selection | None) -> Tensor:
        """(P, N, D) patch tokens -> (P, K, L) tokens of the language model."""
        if selection is None:
            return self.model.projector(hidden[:1]).expand(hidden.shape[0], -1, -1)
        tokens = selection.tokens
        if tokens is None:
            tokens = gather_tokens(hidden, selection.indices)
        return self.model.projector(tokens.to(hidden.dtype))

    def _seg_places(self, *sequences: Prompted) -> list[tuple[int, int]]:
        """(row, position) of the state that predicts each [SEG], phrase by phrase."""
        rows = [(prompt, each.kept) for each in sequences for prompt in each.prompts]
        return [
            (row, place)
            for row, (prompt, kept) in enumerate(rows)
            for place in prompt.seg_states(self.language.seg_id, kept)
        ]

    def _generate(
        self, sequences: Sequence[Prompted], max_new_tokens: int, profiler: Profiler
    ) -> tuple[list[Tensor], list[str]]:
        """Per phrase the (n, L) states that predicted [SEG], and the written text."""
        language, batch = self.language, join([each.batch for each in sequences])
        cache, state = profiler.run("llm_prefill", language.start, batch)
        written = profiler.run("llm_decode", language.decode, batch, cache, state, max_new_tokens)
        texts = [
            self.tokenizer.decode([token for token in answer.ids if token != language.eos_id])
            for answer in written
        ]
        return [answer.seg_states for answer in written], [text.strip() for text in texts]

    def _prune_inside(
        self, sequence: Prompted, question: Question, profiler: Profiler
    ) -> tuple[list[Tensor], InsideResult]:
        """Per phrase the (1, L) state that predicts [SEG], and what the method did."""
        batch = sequence.batch
        span = (batch.image_start, batch.image_start + sequence.kept)
        # The rules look at the last real token of each row, so they must know the padding.
        lengths = torch.tensor(batch.lengths, device=self.device)
        mask = torch.arange(batch.embeds.shape[1], device=self.device) < lengths[:, None]
        outcome: Any = profiler.run(
            "llm_prefill",
            question.rule.rule,
            self.language.llama.model,
            batch.embeds,
            mask,
            batch.positions,
            span,
            question.budget,
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
