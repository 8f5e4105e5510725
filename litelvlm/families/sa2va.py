"""Sa2VA on InternVL: tiles of a picture into a language model, whose [SEG] states prompt SAM 2.

Yuan et al., Sa2VA, 2025; the layout of ByteDance/Sa2VA-1B, -4B and -8B, built from transformers'
own parts, none of the code beside the weights. A picture is up to twelve tiles and a small copy of
all of it, 256 tokens each: up to 3,328. The state at [SEG]'s own position counts, so one more step
runs after it; a [SEG] that ends an answer gives no mask. The vision tower has no text half: a CLIP
beside it (`tower`) scores the tokens as for Florence-2, each at the place it shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    InternVLVisionConfig,
    InternVLVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

from litelvlm.errors import InputError, ModelError, one_line
from litelvlm.families.base import Answer, Capabilities, Reply
from litelvlm.families.glamm import ANSWERS, QUESTIONS, Glamm, Prompted
from litelvlm.families.glamm_files import stand_in_tokenizer
from litelvlm.families.sa2va_files import Sa2vaConfig, open_folder, random_config, recognises
from litelvlm.geometry import PatchFrame, TiledFrame
from litelvlm.methods import TokenView
from litelvlm.models.dual_encoder import DualEncoder, ImageTokens, build_clip
from litelvlm.models.guide import LENT, lend
from litelvlm.models.language import LanguageModel, build_seg_head, load_tokenizer, wrap_tokenizer
from litelvlm.models.prompt import PromptIds, plain
from litelvlm.models.sam2 import MEAN, STD, Sam2Segmenter, build_sam2
from litelvlm.profiling import Profiler
from litelvlm.pruning import Selection, gather_tokens, text_similarity
from litelvlm.question import Question
from litelvlm.scene import EncodedImage, MaskScene

__all__ = [
    "Sa2va",
    "blocks",
    "build",
    "open_folder",
    "random_config",
    "recognises",
    "tokens",
    "wrap",
]

MOST_TILES = 12
LANGUAGES: dict[str, tuple[Any, Any]] = {
    "Qwen2ForCausalLM": (Qwen2Config, Qwen2ForCausalLM),
    "InternLM2ForCausalLM": (LlamaConfig, LlamaForCausalLM),
}
# Special tokens of the prompt, and their ids for drawn weights.
TOKENS = {"seg": "[SEG]", "img": "<img>", "img_end": "</img>", "eos": "<|im_end|>"}


class Sa2vaModel(nn.Module):
    """All parts side by side."""

    def __init__(self, config: Sa2vaConfig) -> None:
        super().__init__()
        settings, kind = LANGUAGES[config.kind]
        wide, width = 4 * config.vision["hidden_size"], config.language["hidden_size"]
        self.vision: Any = InternVLVisionModel(InternVLVisionConfig(**config.vision))
        self.projector = nn.Sequential(
            nn.LayerNorm(wide), nn.Linear(wide, width), nn.GELU(), nn.Linear(width, width)
        )
        self.language: Any = kind(settings(**config.language))
        self.segmenter: Any = build_sam2(config.sam)
        hidden = config.sam.get("prompt_encoder_config", {}).get("hidden_size", 256)
        self.seg_head = build_seg_head(width, hidden)
        self.dual_encoder: Any = None if config.clip is None else build_clip(config.clip)


def build(config: Sa2vaConfig) -> Sa2vaModel:
    """The module that the weights of a configuration fill."""
    try:
        return Sa2vaModel(config)
    except (TypeError, ValueError, KeyError) as fault:
        raise ModelError(f"{config.name}: config.json: {one_line(fault)}") from None


def blocks(model: Sa2vaModel) -> nn.Module:
    """What `load(bits=...)` stores in fewer bits: the language model without its output layer."""
    return model.language.model


def tokens(config: Sa2vaConfig) -> int:
    """N of a picture that is cut into the most tiles."""
    return _side(config) ** 2 * (MOST_TILES + 1)


def _side(config: Sa2vaConfig) -> int:
    """Tokens a side of a tile: four patches make one."""
    size, patch = config.vision.get("image_size", 448), config.vision.get("patch_size", 14)
    return size // patch // 2


def wrap(model: Sa2vaModel, config: Sa2vaConfig, folder: Path | None) -> Sa2va:
    """A filled module as a Sa2VA, with the tokenizer of its folder.

    Raises:
        ModelError: the tokenizer cannot be read or lacks a special token.
    """
    if folder is None:
        last = config.language["vocab_size"] - 1
        ids = {name: last - number for number, name in enumerate(TOKENS)}
        return Sa2va(model, config, wrap_tokenizer(stand_in_tokenizer()), ids)
    # InternLM2's tokenizer begins every text with <s>.
    begin = {"bos": "<s>"} if config.kind == "InternLM2ForCausalLM" else {}
    return Sa2va(model, config, *open_tokenizer(folder, TOKENS | begin))


def open_tokenizer(folder: Path, texts: dict[str, str]) -> tuple[Any, dict[str, int]]:
    """The tokenizer of a folder, and the ids of some special tokens.

    Args:
        folder: holds tokenizer.json, or the files of Qwen2's own tokenizer.
        texts: of the tokens, by any name.

    Raises:
        ModelError: it cannot be read or lacks one of them.
    """
    if not (folder / "tokenizer.json").is_file() and (folder / "merges.txt").is_file():
        tokenizer: Any = Qwen2Tokenizer.from_pretrained(folder)
    else:
        tokenizer = load_tokenizer(folder)
    known = tokenizer.get_vocab()
    lacking = [text for text in texts.values() if text not in known]
    if lacking:
        raise ModelError(f"{folder}: the tokenizer lacks {', '.join(lacking)}")
    return tokenizer, {name: known[text] for name, text in texts.items()}


def tiles_of(image_hw: tuple[int, int], size: int, most_tiles: int = MOST_TILES) -> tuple[int, int]:
    """(rows, columns) of the tiles whose shape is closest to a picture's, as InternVL chooses."""
    height, width = image_hw
    most = range(1, most_tiles + 1)
    # A set, sorted by its number alone: ties stand in the order of the original.
    pairs = {
        (i, j) for n in most for i in range(1, n + 1) for j in range(1, n + 1) if i * j in most
    }
    best, least = (1, 1), float("inf")
    for columns, rows in sorted(pairs, key=lambda pair: pair[0] * pair[1]):
        off = abs(width / height - columns / rows)
        if off < least:
            best, least = (rows, columns), off
        elif off == least and width * height > 0.5 * size * size * columns * rows:
            best = (rows, columns)
    return best


def cut_tiles(
    image: np.ndarray, size: int, most: int = MOST_TILES
) -> tuple[Tensor, tuple[int, int]]:
    """(T, 3, S, S) normalised tiles, with several the small copy last; (rows, columns) of them."""
    from PIL import Image

    picture = Image.fromarray(image)
    rows, columns = tiles_of((image.shape[0], image.shape[1]), size, most)
    whole = np.asarray(picture.resize((columns * size, rows * size), Image.Resampling.BICUBIC))
    tiles = whole.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
    if rows * columns > 1:
        copy = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
        tiles = np.concatenate([tiles, copy[None]])
    pixels = torch.from_numpy(tiles.copy()) / 255
    pixels = (pixels - torch.tensor(MEAN)) / torch.tensor(STD)
    return pixels.permute(0, 3, 1, 2), (rows, columns)


@dataclass(frozen=True)
class Seen:
    """What the towers say about one picture.

    Attributes:
        hidden: (1, N, L), tokens as they enter the language model.
        deep: (D, N, L), DeepStack: what they add after each of its first D layers; None for none.
        clip: what the CLIP says; None without one.
    """

    hidden: Tensor
    deep: Tensor | None = None
    clip: ImageTokens | None = None


class Sa2va(Glamm):
    """A Sa2VA in memory.

    Args:
        model: all weights, in evaluation mode.
        config: its configuration.
        tokenizer: of the language model.
        ids: of the special tokens, keys of `TOKENS` and perhaps "bos".
    """

    most = staticmethod(tokens)
    frames = 5  # of a clip, seen by the language model
    gap = "\n"  # between them

    model: Any
    config: Any
    encoder: Any

    def __init__(
        self, model: nn.Module, config: Sa2vaConfig, tokenizer: Any, ids: dict[str, int]
    ) -> None:
        parts: Any = model
        self.name = config.name
        self.model, self.config = model, config
        self.tokenizer, self.ids = tokenizer, ids
        self.defaults = config.selection
        self.wordings = ((config.prompt.question, *QUESTIONS), (config.prompt.answer, *ANSWERS))
        self.language = LanguageModel(parts.language, ids["seg"], ids["eos"], own=True)
        self.sam = Sam2Segmenter(parts.segmenter)
        self.tokens_total = self.most(config)
        self.encoder, self.scorer = None, "tokens alone"
        if config.clip is not None:
            statistics = {k: v for k, v in config.clip.items() if k.startswith("image_")}
            self.encoder = DualEncoder(parts.dual_encoder, **statistics)
            self.scorer = f"guide: {config.guide}"
        scores = frozenset({"llm"}) | (LENT if self.encoder else frozenset())
        frames = self.frames if "video" in config.sam else 0
        self.capabilities = Capabilities(scores, joint=False, frames=frames)

    def encode(  # noqa: D102
        self, images: Sequence[np.ndarray], view: str, profiler: Profiler
    ) -> list[EncodedImage]:
        if view != "whole":
            raise InputError(f"{self.name} sees the whole picture: view must be whole, got {view}")
        found = []
        for image in images:
            hw = (image.shape[0], image.shape[1])
            seen, frame = profiler.run("vision", self._see, image, hw)
            if self.encoder:
                seen = replace(seen, clip=profiler.run("clip_image", self._look, image))
            features = profiler.run("sam_image", self._encode_sam, image)
            masks = MaskScene(features, self.sam.frame(hw))
            found.append(EncodedImage(image, seen, masks, frame, (), self.name))
        return found

    def encode_frames(  # noqa: D102
        self, frames: np.ndarray, profiler: Profiler
    ) -> list[EncodedImage]:
        found = []
        for image in frames:
            hw = (image.shape[0], image.shape[1])
            seen, frame = profiler.run("vision", self._see, image, hw, 1)
            if self.encoder:
                seen = replace(seen, clip=profiler.run("clip_image", self._look, image))
            found.append(EncodedImage(image, seen, None, frame, (), self.name))
        return found

    def _see(
        self, image: np.ndarray, hw: tuple[int, int], most: int = MOST_TILES
    ) -> tuple[Seen, PatchFrame]:
        pixels, tiles = cut_tiles(image, self.config.vision.get("image_size", 448), most)
        states = self.model.vision(pixels.to(self.device, self.dtype)).last_hidden_state[:, 1:]
        side = _side(self.config)
        four = states.view(len(states), side, 2, side, 2, -1).transpose(2, 3).flatten(3)
        hidden = self.model.projector(four).flatten(0, 2)[None]
        return Seen(hidden), TiledFrame((len(states) * side, side), hw, "whole", tiles)

    def _look(self, image: np.ndarray) -> ImageTokens:
        return self.encoder.encode_image(self.encoder.pixels(image, "letterbox").to(self.device))

    def _encode_sam(self, image: np.ndarray) -> list[Tensor]:
        return self.sam.encode(self.sam.pixels(image).to(self.device))

    def text_embeddings(  # noqa: D102
        self, phrases: Sequence[str], form: str, question: str | None = None
    ) -> Tensor:
        if self.encoder is None:
            raise InputError(f"{self.name} was loaded without a CLIP: nothing reads text")
        return super().text_embeddings(phrases, form, question)

    def view(  # noqa: D102
        self, scene: EncodedImage, needs: frozenset[str], embeds: Tensor | None, rows: int
    ) -> TokenView:
        hidden, grid = scene.tokens.hidden.expand(rows, -1, -1), scene.frame.grid
        if self.encoder is None:
            return TokenView(hidden, grid, llm=hidden)
        square = PatchFrame(self.encoder.grid, scene.frame.image_hw, "letterbox").square
        boxes = torch.from_numpy(scene.frame.boxes())
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2 - torch.tensor(square[:2])
        points = (middle / (square[2] - square[0]) * 2 - 1).float().to(self.device)
        lent = lend(self.encoder, scene.tokens.clip, needs, points, rows)
        if embeds is not None:
            lent |= {"text": embeds, "similarity": text_similarity(lent["projected"], embeds)}
        return TokenView(hidden, grid, self.encoder.heads, llm=hidden, **lent)

    def prompts(self, question: Question) -> tuple[PromptIds, ...]:
        """The conversations that ask a question, one a phrase."""

        def encode(text: str) -> list[int]:
            return self.tokenizer.encode(text, add_special_tokens=False) if text else []

        asked, answer = question.wording or (self.config.prompt.question, self.config.prompt.answer)
        begin = [self.ids["bos"]] if "bos" in self.ids else []
        before = (*begin, *encode("<|im_start|>user\n"), self.ids["img"])
        told: list[int] = []
        if question.mode == "forced":
            first, _, last = answer.partition("[SEG]")
            told = [*encode(first), self.ids["seg"], *encode(last)]
        found = []
        for phrase in question.phrases:
            text = asked.format(phrase=plain(phrase))
            words = encode(f"{text}<|im_end|>\n<|im_start|>assistant\n")
            found.append(PromptIds(before, (self.ids["img_end"], *words, *told)))
        return tuple(found)

    def _project(self, hidden: Tensor, selection: Selection | None) -> Tensor:
        if selection is None:
            return hidden
        merged = selection.tokens
        kept = gather_tokens(hidden, selection.indices) if merged is None else merged
        return kept.to(hidden.dtype)

    def _seg_places(self, *sequences: Prompted) -> list[tuple[int, int]]:
        """(row, position) of each [SEG] itself, phrase by phrase."""
        return [(row, place + 1) for row, place in super()._seg_places(*sequences)]

    def _decode(
        self, scenes: Sequence[MaskScene], states: list[Tensor]
    ) -> list[tuple[Tensor | None, Tensor | None, float | None]]:
        masks: list[tuple[Tensor | None, Tensor | None, float | None]] = []
        for scene, own in zip(scenes, states, strict=True):
            if not len(own):
                masks.append((None, None, None))
                continue
            found = self.sam.decode(scene.embedding, self.model.seg_head(own))
            low_res = found.logits.float().amax(0)
            mask = scene.frame.upscale(low_res[None])[0] > 0
            masks.append((low_res, mask, float(found.quality.float().amin())))
        return masks

    def _clip_sequence(
        self,
        scenes: Sequence[EncodedImage],
        question: Question,
        selections: Sequence[Selection | None],
    ) -> Prompted:
        """The conversation about key frames, each between its own marks, a row a phrase."""
        prompts = self.prompts(question)
        rows, total = len(prompts), 0
        line = self.tokenizer.encode(self.gap, add_special_tokens=False)
        marks = torch.tensor([self.ids["img_end"], *line, self.ids["img"]], device=self.device)
        between = self.language.llama.get_input_embeddings()(marks).expand(rows, -1, -1)
        pieces: list[Tensor] = []
        places: list[Tensor] = []
        for scene, selection in zip(scenes, selections, strict=True):
            if pieces:
                pieces.append(between)
                places.append(torch.arange(len(marks), device=self.device).expand(rows, -1) + total)
                total += len(marks)
            hidden = scene.tokens.hidden.expand(rows, -1, -1)
            pieces.append(self._project(hidden, selection))
            every = torch.arange(scene.count, device=self.device).expand(rows, -1)
            own = every if selection is None else selection.indices
            places.append(torch.where(own < 0, scene.count - 1, own) + total)
            total += scene.count
        image = torch.cat(pieces, 1)
        pruned = selections[0] is not None and question.positions == "original"
        where = torch.cat(places, 1) if pruned else None
        batch = self.language.assemble(prompts, image, where, total)
        new = question.max_new_tokens if question.mode == "generate" else 0
        needed = int(batch.positions.max()) + 1 + new
        limit = self.language.llama.config.max_position_embeddings
        if needed > limit:
            raise InputError(f"the prompt needs {needed} positions, the model has {limit}")
        return Prompted(prompts, batch, image.shape[1])

    def follow(  # noqa: D102
        self,
        frames: np.ndarray,
        scenes: Sequence[EncodedImage],
        question: Question,
        selections: Sequence[Selection | None],
        profiler: Profiler,
    ) -> tuple[Reply, list[np.ndarray]]:
        sequence = profiler.run("project", self._clip_sequence, scenes, question, selections)
        if question.mode == "generate":
            written, texts, _ = self.write([sequence], question, question.budget or 0, profiler)
            states = [answer.seg_states for answer in written]
        else:
            own = question.wording[1] if question.wording else self.config.prompt.answer
            texts = [own] * len(question.phrases)
            every = profiler.run("llm_prefill", self.language.prefill, sequence.batch)
            states = [every[row, [place]] for row, place in self._seg_places(sequence)]
        found = profiler.run("follow", self._follow, frames, states, len(scenes))
        answers = [
            Answer(text, mask=torch.from_numpy(masks[0]), quality=quality)
            for text, (masks, quality) in zip(texts, found, strict=True)
        ]
        reply = Reply(tuple(answers), sequence.batch.embeds.shape[1])
        return reply, [masks for masks, _ in found]

    def _follow(
        self, frames: np.ndarray, states: list[Tensor], keys: int
    ) -> list[tuple[np.ndarray, float | None]]:
        """Per phrase (T, H, W) masks, those of several [SEG] united, and the least quality."""
        counts = [len(state) for state in states]
        masks = [np.zeros(frames.shape[:3], bool) for _ in states]
        qualities: list[float | None] = [None] * len(states)
        if not sum(counts):
            return list(zip(masks, qualities, strict=True))
        prompts = self.model.seg_head(torch.cat(states))
        square = self.sam.frame((frames.shape[1], frames.shape[2]))
        for time, (logits, quality) in enumerate(self.sam.follow(frames, prompts, keys)):
            for row, part in enumerate(logits.float().split(counts)):
                if len(part):
                    masks[row][time] = (square.upscale(part.amax(0)[None])[0] > 0).cpu().numpy()
            for row, part in enumerate(() if quality is None else quality.float().split(counts)):
                if len(part):
                    worst = qualities[row]
                    least = float(part.amin())
                    qualities[row] = least if worst is None else min(worst, least)
        return list(zip(masks, qualities, strict=True))
