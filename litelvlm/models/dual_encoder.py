"""CLIP's two towers over open_clip: patch tokens on one side, phrase embeddings on the other.

The language model reads the patch tokens of the layer before the last, so the last block never
runs: its first norm and its query, key and value projections are applied to those tokens where a
score needs them. No hook is set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from litelvlm.config import WORDINGS
from litelvlm.errors import InputError, ModelError
from litelvlm.geometry import clip_square
from litelvlm.models.backbone import Backbone, PatchStem
from litelvlm.models.prompt import plain


@dataclass(frozen=True)
class ImageTokens:
    """What the image tower says about B pictures.

    Attributes:
        inputs: inputs of some blocks by block number (negative: from the end), each
            (B, 1 + N, D), class token first; -1 is the input of the last block, known as
            `hidden_states[-2]`.
        grid: (rows, columns) of patches, N = rows * columns in raster order.
    """

    inputs: dict[int, Tensor]
    grid: tuple[int, int]

    @property
    def hidden(self) -> Tensor:
        """(B, N, D), the patch tokens that the language model reads."""
        return self.inputs[-1][:, 1:]

    def picture(self, row: int) -> ImageTokens:
        """What is said about one of the pictures."""
        return ImageTokens({k: v[row : row + 1] for k, v in self.inputs.items()}, self.grid)


@dataclass(frozen=True)
class BlockQKV:
    """Query of the class token, keys and values of the patches in one block.

    Attributes:
        query: (B, D), unscaled, heads side by side.
        own_key: (B, D), key of the class token itself.
        keys: (B, N, D).
        values: (B, N, D).
        heads: number of heads in D.
    """

    query: Tensor
    own_key: Tensor
    keys: Tensor
    values: Tensor
    heads: int

    def expand(self, rows: int) -> BlockQKV:
        """A block of one picture as `rows` equal ones, without a copy."""

        def many(part: Tensor) -> Tensor:
            return part.expand(rows, *part.shape[1:])

        return BlockQKV(
            many(self.query), many(self.own_key), many(self.keys), many(self.values), self.heads
        )

    @property
    def attention(self) -> Tensor:
        """(B, heads, N) float32: what the class token attends to, columns of the patches.

        The softmax includes the class token's own column, so a row sums to less than one, and a
        head that looks mostly at the class token says little about the patches.
        """
        keys = torch.cat([self.own_key.unsqueeze(1), self.keys], dim=1).float()
        keys = keys.unflatten(-1, (self.heads, -1))  # (B, 1 + N, heads, d)
        query = self.query.float().unflatten(-1, (self.heads, -1)).unsqueeze(1)
        logits = (keys * query).sum(-1) / keys.shape[-1] ** 0.5
        return logits.softmax(1)[:, 1:].transpose(1, 2)


def phrase_texts(phrase: str, form: str, question: str) -> list[str]:
    """What the text tower reads for one phrase, in one of `config.TEXTS`.

    question: with {phrase} in it, for the form "question".
    """
    text = plain(phrase)
    if form == "question":
        return [question.replace("{phrase}", text)]
    return [wording.format(text) for wording in WORDINGS[form]]


def build_clip(config: dict[str, Any]) -> nn.Module:
    """open_clip's CLIP from `embed_dim`, `vision_cfg`, `text_cfg` and `quick_gelu`.

    `image_mean` and `image_std` in the same dictionary are left to `DualEncoder`. With a true
    `backbone` the patch embedding is a `PatchStem`.
    """
    own = {k: v for k, v in config.items() if not k.startswith("image_") and k != "backbone"}
    clip = open_clip.CLIP(**own)
    if config.get("backbone"):
        clip.visual.conv1 = PatchStem(Backbone(), own["vision_cfg"]["width"])
    return clip


class Towers:
    """The two towers of any CLIP of open_clip: pixels in, texts into the space they share.

    Args:
        clip: the module, from `build_clip` or `open_clip.create_model`.
        image_mean: RGB mean of the training pictures, 0..1; default: OpenAI's.
        image_std: RGB standard deviation likewise.
        tokenize: texts -> (T, length) token ids; default: CLIP's own.
    """

    def __init__(
        self,
        clip: nn.Module,
        image_mean: Sequence[float] = open_clip.OPENAI_DATASET_MEAN,
        image_std: Sequence[float] = open_clip.OPENAI_DATASET_STD,
        tokenize: Any = None,
    ) -> None:
        self.clip: Any = clip
        self.image_mean = tuple(image_mean)
        self.image_std = tuple(image_std)
        visual: Any = self.clip.visual
        size: Any = visual.image_size
        self.image_size: int = size[0] if isinstance(size, (tuple, list)) else size
        self._tokenizer = tokenize or open_clip.tokenizer.SimpleTokenizer(
            context_length=self.clip.context_length
        )

    @staticmethod
    def named(model: str, pretrained: str | None = None) -> dict[str, Any]:
        """The `config` of a model that open_clip knows by name.

        Raises:
            ModelError: unknown name, or OpenAI weights asked for without the quick-GELU variant
                they were trained with (open_clip only warns).
        """
        config = open_clip.get_model_config(model)
        if config is None:
            raise ModelError(f"unknown open_clip model {model!r}; see open_clip.list_models()")
        config.setdefault("quick_gelu", False)
        if pretrained == "openai" and not config["quick_gelu"]:
            raise ModelError(f"OpenAI weights need {model}-quickgelu, got {model}")
        return config

    def pixels(self, image: np.ndarray, view: str = "crop") -> Tensor:
        """(H, W, 3) uint8 -> (1, 3, S, S) float32, resampled, cut and normalised as for CLIP."""
        square = torch.from_numpy(np.array(clip_square(image, self.image_size, view)))
        mean, std = torch.tensor(self.image_mean), torch.tensor(self.image_std)
        return ((square / 255 - mean) / std).permute(2, 0, 1).unsqueeze(0)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (T, E), in the space that patches are projected into, not normalised."""
        if not texts:
            raise InputError("no text given")
        ids = self._tokenizer(list(texts)).to(next(self.clip.parameters()).device)
        return self.clip.encode_text(ids)


class DualEncoder(Towers):
    """The two towers of an open_clip CLIP whose image tower is a plain ViT with a class token.

    Args:
        clip, image_mean, image_std: see `Towers`.

    Raises:
        ModelError: the image tower is not open_clip's own ViT or has fewer than three blocks.
    """

    def __init__(self, clip: nn.Module, *statistics: Sequence[float], **named: Any) -> None:
        super().__init__(clip, *statistics, **named)
        visual: Any = self.clip.visual
        if type(visual) is not open_clip.transformer.VisionTransformer:
            raise ModelError(f"image tower is a {type(visual).__name__}, expected a plain ViT")
        self.layers = len(visual.transformer.resblocks)
        if self.layers < 3:
            raise ModelError(f"image tower has {self.layers} blocks, at least 3 are needed")
        self.grid: tuple[int, int] = tuple(visual.grid_size)
        self.heads: int = visual.transformer.resblocks[-1].attn.num_heads
        self.context_length: int = self.clip.context_length
        # One early block, at a depth of 5/24 as in CLIP-L, for rules that look at local detail.
        self.early = max(1, round(self.layers * 5 / 24)) - self.layers

    def encode_image(self, pixels: Tensor) -> ImageTokens:
        """(B, 3, S, S) normalised pixels -> patch tokens; the last block does not run."""
        wanted = {self.early: self.layers + self.early, -2: self.layers - 2, -1: self.layers - 1}
        # The input of a block is the output of the one before.
        indices = sorted({number - 1 for number in wanted.values()})
        visual = self.clip.visual
        out = visual.forward_intermediates(
            pixels.to(visual.conv1.weight.dtype),
            indices=indices,
            stop_early=True,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        levels = [
            torch.cat(pair, dim=1)
            for pair in zip(
                out["image_intermediates_prefix"], out["image_intermediates"], strict=True
            )
        ]
        inputs = {name: levels[indices.index(number - 1)] for name, number in wanted.items()}
        return ImageTokens(inputs, self.grid)

    def project(self, tokens: ImageTokens) -> Tensor:
        """(B, N, E): patch tokens through CLIP's own final norm and projection."""
        visual = self.clip.visual
        return visual.ln_post(tokens.hidden) @ visual.proj

    def block(self, tokens: ImageTokens, index: int = -1) -> BlockQKV:
        """Query, keys and values of block `index`: -1, -2 or `self.early`."""
        block = self.clip.visual.transformer.resblocks[index]
        states = block.ln_1(tokens.inputs[index])  # (B, 1 + N, D)
        attention = block.attn
        w_q, w_k, w_v = attention.in_proj_weight.chunk(3)
        b_q, b_k, b_v = attention.in_proj_bias.chunk(3)
        keys = F.linear(states, w_k, b_k)
        return BlockQKV(
            query=F.linear(states[:, 0], w_q, b_q),
            own_key=keys[:, 0],
            keys=keys[:, 1:],
            values=F.linear(states[:, 1:], w_v, b_v),
            heads=attention.num_heads,
        )

    def encode_phrases(self, phrases: Sequence[str], form: str, question: str) -> Tensor:
        """Phrases -> (T, E), each the mean over its texts; see `phrase_texts`."""
        texts = [text for phrase in phrases for text in phrase_texts(phrase, form, question)]
        embeds = self.encode_text(texts)
        return embeds.view(len(phrases), -1, embeds.shape[-1]).mean(1)

    def text_warnings(self, phrase: str, form: str, question: str) -> tuple[str, ...]:
        """What to tell of a phrase whose texts do not fit CLIP's context."""
        if not any(map(self.is_cut, phrase_texts(phrase, form, question))):
            return ()
        limit = self.context_length
        return (f"CLIP reads {limit} tokens; the end of this phrase does not reach its score",)

    def is_cut(self, text: str) -> bool:
        """Whether CLIP's context is too short for a text, so that its end is not read."""
        return len(self._tokenizer.encode(text)) + 2 > self.context_length
