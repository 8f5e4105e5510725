"""CLIP's patch tokens through a projector into LLaMA: what GLaMM, LISA and LLaVA share.

    picture ─► clip_image ─┬─► select(budget) ─► project ─► llm_prefill ─► llm_decode
    phrase ──► clip_text ──┘

A family on this way adds its conversation, its files and what it does with the states.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from litelvlm.config import ModelConfig
from litelvlm.errors import InputError, ModelError
from litelvlm.families.base import Family, Reply
from litelvlm.families.glamm_files import stand_in_tokenizer, tiny_tokenizer
from litelvlm.methods import InsideResult, TokenView
from litelvlm.models.bundle import GroundingModel
from litelvlm.models.dual_encoder import DualEncoder, ImageTokens
from litelvlm.models.files import read_vocabulary
from litelvlm.models.language import (
    Generation,
    LanguageModel,
    Sequences,
    join,
    load_tokenizer,
    wrap_tokenizer,
)
from litelvlm.models.prompt import PromptIds
from litelvlm.profiling import Profiler
from litelvlm.pruning import Selection, gather_tokens, text_similarity
from litelvlm.question import Question
from litelvlm.scene import EncodedImage

K = TypeVar("K", bound="ClipLlama")


def build(config: ModelConfig) -> GroundingModel:
    """The module that the weights of a configuration fill."""
    return GroundingModel(config)


def blocks(model: GroundingModel) -> torch.nn.Module:
    """What `load(bits=...)` stores in fewer bits: the language model without its output layer."""
    return model.language.model


def tokens(config: ModelConfig) -> int:
    """N, patch tokens of a picture."""
    vision = config.dual_encoder["vision_cfg"]
    return int(vision["image_size"] // vision["patch_size"]) ** 2


def wrap_as(kind: type[K], model: GroundingModel, config: ModelConfig, folder: Path | None) -> K:
    """A filled module as a family, with the tokenizer of its folder.

    Args:
        kind: the family's class.
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
        return kind(model, config, wrap_tokenizer(drawn))
    tokenizer = load_tokenizer(folder)
    given, expected = tokenizer.convert_tokens_to_ids("[SEG]"), config.tokens.get("seg")
    if expected is not None and given != expected:
        raise ModelError(f"{folder}: [SEG] is {given} in the tokenizer, not {expected}")
    return kind(model, config, tokenizer, read_vocabulary(folder))


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


class ClipLlama(Family):
    """Such a model in memory.

    Args:
        model: all weights, in evaluation mode.
        config: its configuration.
        tokenizer: of the language model; `encode(text, add_special_tokens=False)` and `decode`.
        vocabulary: words the model was trained on; None for an open vocabulary.
    """

    model: GroundingModel
    encoder: DualEncoder
    questions: tuple[str, ...] = ()
    replies: tuple[str, ...] = ()

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
        self.wordings = ((own.question, *self.questions), (own.answer, *self.replies))
        self.encoder = DualEncoder(model.dual_encoder, **statistics)
        ids = config.tokens
        self.language = LanguageModel(model.language, ids.get("seg"), ids["eos"])
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

    @abstractmethod
    def prompts(self, question: Question) -> tuple[PromptIds, ...]:
        """The conversations that ask a question: one a phrase, or one for all of them."""

    def answer(  # noqa: D102
        self, scene: EncodedImage, question: Question, sequence: Prompted, profiler: Profiler
    ) -> Reply:
        return self.answers([scene], [question], [sequence], profiler)[0]

    def encode_tokens(self, images: Sequence[np.ndarray], view: str) -> ImageTokens:
        """The image tower over several pictures together."""
        pixels = torch.cat([self.encoder.pixels(image, view) for image in images])
        return self.encoder.encode_image(pixels.to(self.device))

    def text_embeddings(  # noqa: D102
        self, phrases: Sequence[str], form: str, question: str | None = None
    ) -> Tensor:
        asked = question or self.config.prompt.question
        return self.encoder.encode_phrases(phrases, form, asked)

    def text_warnings(self, phrase: str, form: str) -> tuple[str, ...]:  # noqa: D102
        return self.encoder.text_warnings(phrase, form, self.config.prompt.question)

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

    def write(
        self,
        sequences: Sequence[Prompted],
        question: Question,
        total: int,
        profiler: Profiler,
    ) -> tuple[list[Generation], list[str], list[InsideResult | None]]:
        """What the model writes after each prompt: states, texts, and what a rule inside it did.

        Args:
            sequences: one a picture.
            question: settled; of all of them but for its phrases.
            total: N of each picture.
            profiler: every stage goes through it.

        Returns:
            Answer and text of every row, and one outcome a sequence.
        """
        language, new = self.language, question.max_new_tokens
        outcomes: list[InsideResult | None] = [None] * len(sequences)
        written: list[Generation] = []
        if question.rule.where == "inside" and question.budget != total:
            for number, each in enumerate(sequences):
                rule = (question.rule.rule, question.budget)
                outcome, cache = profiler.run(
                    "llm_prefill", language.start_pruned, each.batch, each.kept, *rule
                )
                outcomes[number] = outcome
                written += profiler.run(
                    "llm_decode", language.decode_pruned, each.batch, outcome, cache, new
                )
        else:
            batch = join([each.batch for each in sequences])
            cache, state = profiler.run("llm_prefill", language.start, batch)
            written = profiler.run("llm_decode", language.decode, batch, cache, state, new)
        return written, [self.read(answer.ids) for answer in written], outcomes

    def read(self, ids: Sequence[int]) -> str:
        """Token ids as text, without the end token."""
        return self.tokenizer.decode([i for i in ids if i != self.language.eos_id]).strip()

    def _project(self, hidden: Tensor, selection: Selection | None) -> Tensor:
        """(P, N, D) patch tokens -> (P, K, L) tokens of the language model."""
        if selection is None:
            return self.model.projector(hidden[:1]).expand(hidden.shape[0], -1, -1)
        tokens = selection.tokens
        if tokens is None:
            tokens = gather_tokens(hidden, selection.indices)
        return self.model.projector(tokens.to(hidden.dtype))
