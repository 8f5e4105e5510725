"""Florence-2: a vision tower's tokens and a task's sentence through an encoder; outlines come out.

    picture ─► vision ──────┐
    picture ─► clip_image ──┴─► select(budget) ─► llm_prefill ─► llm_decode ─► mask_decode
    phrase ──► clip_text ───┘      encoder          decoder        polygons

Xiao et al., Florence-2, CVPR 2024, in transformers' own layout. Its tower has no text half, so a
CLIP beside it (`tower`) scores the tokens, laid over them by geometry; without one only rules that
need no text work. The mean of all tokens shows no place and always enters. There is no mask
branch: the decoder writes polygons, which are filled. In forced mode it may write nothing else; in
generate mode it writes what it likes, at most `max_new_tokens`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import BaseModelOutput

from litelvlm.config import SelectionConfig
from litelvlm.errors import InputError, ModelError, one_line
from litelvlm.families.base import Answer, Capabilities, Family, Reply
from litelvlm.geometry import PatchFrame, fill_polygons
from litelvlm.methods import TokenView
from litelvlm.models.dual_encoder import DualEncoder, ImageTokens, build_clip
from litelvlm.models.files import ModelSource, folder_beside, index, read_object
from litelvlm.models.guide import LENT, centres, lend
from litelvlm.models.names import Place, clip_config, place_clip
from litelvlm.models.prompt import plain
from litelvlm.profiling import Profiler
from litelvlm.pruning import Selection, gather_tokens, text_similarity
from litelvlm.question import Question
from litelvlm.scene import EncodedImage

TASK = "<REFERRING_EXPRESSION_SEGMENTATION>"
QUESTION = "Locate {phrase} in the image with mask"  # what the processor makes of the task
GUIDE = "openai/clip-vit-base-patch16"
LONGEST = 1000  # tokens of an outline, as its authors bound it
PIXELS = 32  # of a token's side: 768 / 24


@dataclass(frozen=True)
class FlorenceConfig:
    """What builds the model.

    Attributes:
        name: shown to users.
        florence: config.json of the checkpoint.
        side: of the square it sees, pixels.
        clip: arguments of `build_clip` for the CLIP that scores; None without one.
        guide: its name, for the record.
    """

    name: str
    florence: dict[str, Any]
    side: int = 768
    clip: dict[str, Any] | None = None
    guide: str = GUIDE
    selection: SelectionConfig = field(default_factory=lambda: SelectionConfig(view="whole"))

    def to_json(self) -> str:
        """The text of a config.json that `open_folder` reads back, with the CLIP in the folder."""
        return json.dumps({**self.florence, "guide": [self.guide, self.clip]}, indent=2) + "\n"


class FlorenceModel(nn.Module):
    """Florence-2 and the CLIP that scores its tokens, side by side."""

    def __init__(self, config: FlorenceConfig) -> None:
        super().__init__()
        settings = {k: v for k, v in config.florence.items() if k != "guide"}
        self.florence: Any = Florence2ForConditionalGeneration(Florence2Config(**settings))
        self.dual_encoder: Any = None if config.clip is None else build_clip(config.clip)


def recognises(raw: dict[str, Any]) -> bool:
    """Whether a config.json is of this family, in transformers' layout or its authors' own."""
    return raw.get("model_type") == "florence2"


def open_folder(folder: Path, raw: dict[str, Any], tower: str | Path | None) -> ModelSource:
    """Open a model folder whose config.json is recognised.

    Args:
        folder: holds config.json, the weights, the tokenizer and the processor's settings.
        raw: the parsed config.json.
        tower: folder or hub id of the CLIP that scores; None takes the one in the folder, or
            OpenAI's ViT-B/16; "none" leaves it out.

    Raises:
        ModelError: naming the file and the fault.
    """
    if "auto_map" in raw or "dim_embed" in raw.get("vision_config", {}):
        raise ModelError(
            f"{folder / 'config.json'}: the layout of Microsoft's own code, which is not run here; "
            "take the converted checkpoint, florence-community/Florence-2-base-ft or -large-ft"
        )
    parts: list[Any] = [(folder, place_florence)]
    guide, clip = raw.get("guide") or (str(tower or GUIDE), None)
    if "guide" not in raw and str(tower) != "none":
        try:
            beside = folder_beside(folder, guide)
        except ModelError as fault:
            raise ModelError(f"{fault}; tower='none' loads without a CLIP") from None
        try:
            preprocessor = beside / "preprocessor_config.json"
            means = read_object(preprocessor) if preprocessor.is_file() else None
            clip = clip_config(read_object(beside / "config.json"), means)
        except (KeyError, ValueError) as fault:
            raise ModelError(f"{beside / 'config.json'}: no CLIP: {fault}") from None
        parts.insert(0, (beside, place_clip))
    entries, ignored = index(parts)
    config = FlorenceConfig(folder.name, raw, _side(folder), clip, guide)
    return ModelSource(config, folder, "florence-2", entries, ignored)


def place_florence(key: str) -> Place:
    """Where a tensor goes: the checkpoint's names are transformers' own."""
    ours = key.startswith(("florence.", "dual_encoder."))  # written by `litelvlm convert`
    return Place(key if ours else f"florence.{key}")


def _side(folder: Path) -> int:
    """Side of the square that a checkpoint's processor makes of a picture."""
    for file in ("processor_config.json", "preprocessor_config.json"):
        if (folder / file).is_file():
            settings = read_object(folder / file)
            size = (settings.get("image_processor") or settings).get("size", {})
            if "height" in size and size["height"] == size.get("width"):
                return int(size["height"])
    raise ModelError(f"{folder}: no processor_config.json or preprocessor_config.json with a size")


def random_config(name: str) -> FlorenceConfig:
    """The configuration of a preset whose weights are drawn."""
    large = name == "florence-2-large-ft"
    width, layers, heads = (1024, 12, 16) if large else (768, 6, 12)
    text: dict[str, Any] = {
        "model_type": "bart",
        "vocab_size": 51328,
        "d_model": width,
        "max_position_embeddings": 4096 if large else 1024,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
    }
    for half in ("encoder", "decoder"):
        text |= {f"{half}_layers": layers, f"{half}_attention_heads": heads}
        text[f"{half}_ffn_dim"] = 4 * width
    stages = [256, 512, 1024, 2048] if large else [128, 256, 512, 1024]
    groups = [stage // 32 for stage in stages]
    vision = {"embed_dim": stages, "num_heads": groups, "num_groups": groups}
    return FlorenceConfig(
        name,
        {"text_config": text, "vision_config": vision | {"projection_dim": width}},
        clip=DualEncoder.named("ViT-B-16-quickgelu", "openai"),
    )


def build(config: FlorenceConfig) -> FlorenceModel:
    """The module that the weights of a configuration fill."""
    try:
        return FlorenceModel(config)
    except (TypeError, ValueError) as fault:
        raise ModelError(f"{config.name}: config.json: {one_line(fault)}") from None


def blocks(model: FlorenceModel) -> nn.Module:
    """What `load(bits=...)` stores in fewer bits: encoder and decoder."""
    return model.florence.model.language_model


def tokens(config: FlorenceConfig) -> int:
    """N, image tokens that show a place."""
    return (config.side // PIXELS) ** 2


def wrap(model: FlorenceModel, config: FlorenceConfig, folder: Path | None) -> Florence:
    """A filled module as a Florence, with the processor of its folder.

    Raises:
        ModelError: the processor cannot be read or does not know outlines.
    """
    if folder is None:
        return Florence(model, config, _drawn_processor(config.side))
    try:
        processor = Florence2Processor.from_pretrained(folder, local_files_only=True)
        if (folder / "generation_config.json").is_file():
            model.florence.generation_config = GenerationConfig.from_pretrained(folder)
    except Exception as fault:  # the libraries raise bare Exceptions
        raise ModelError(f"{folder}: processor cannot be read ({one_line(fault)})") from None
    if "polygons" not in processor.post_processor.parse_task_config:
        raise ModelError(f"{folder}: the processor's post_processor_config knows no polygons")
    return Florence(model, config, processor)


def _drawn_processor(side: int) -> Any:
    """A processor for drawn weights: words cost as much as Florence's, places have its ids."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    marks = ["<s>", "<pad>", "</s>", "<unk>", "<sep>", "<poly>", "</poly>"]
    ids = {mark: number for number, mark in enumerate(marks)}
    ids |= {f"<loc_{number}>": 50269 + number for number in range(1000)} | {"<image>": 51289}
    raw = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    pieces = Regex(r"<\w+>|\w{1,9}|[^\w\s]")
    raw.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="removed", invert=True)
    raw.decoder = decoders.Fuse()
    names = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        extra_special_tokens={"image_token": "<image>"},
        **{f"{name}_token": text for name, text in names.items()},
    )
    square = {"height": side, "width": side}
    images: Any = CLIPImageProcessor(size=square, crop_size=square, do_center_crop=False)
    images.image_seq_length = (side // PIXELS) ** 2 + 1
    return Florence2Processor(images, tokenizer, post_processor_config={"polygons": {}})


@dataclass(frozen=True)
class Seen:
    """What the towers say about one picture.

    Attributes:
        mean: (1, 1, L), the token that stands for all.
        patches: (1, N, L), those that show a place, as they enter the encoder.
        clip: what the CLIP says; None without one.
    """

    mean: Tensor
    patches: Tensor
    clip: ImageTokens | None


@dataclass(frozen=True)
class Prompted:
    """(P, S, L) embeddings, padded on the right, and their (P, S) mask."""

    embeds: Tensor
    mask: Tensor


class Florence(Family):
    """A Florence-2 in memory.

    Args:
        model: all weights, in evaluation mode.
        config: its configuration.
        processor: a `Florence2Processor`.
    """

    wordings = ((QUESTION,), ("",))

    def __init__(self, model: FlorenceModel, config: FlorenceConfig, processor: Any) -> None:
        self.name = config.name
        self.model = model
        self.florence = model.florence
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.defaults = config.selection
        self.grid = (config.side // PIXELS,) * 2
        self.tokens_total = tokens(config)
        self.guide: DualEncoder | None = None
        self.scorer = "tokens alone"
        if config.clip is not None:
            statistics = {k: v for k, v in config.clip.items() if k.startswith("image_")}
            self.guide = DualEncoder(model.dual_encoder, **statistics)
            self.scorer = f"guide: {config.guide}"
        scores = frozenset({"llm"}) | (LENT if self.guide else frozenset())
        self.capabilities = Capabilities(scores, joint=False)
        words = self.tokenizer.get_vocab()
        outline = {"<sep>", "<poly>", "</poly>"} | {f"<loc_{number}>" for number in range(1000)}
        outline |= {self.tokenizer.bos_token, self.tokenizer.eos_token, self.tokenizer.pad_token}
        allowed = {words.get(word) for word in outline}
        every = range(self.florence.lm_head.out_features)
        self.not_outline = [number for number in every if number not in allowed]

    @property
    def device(self) -> torch.device:  # noqa: D102
        return self.florence.device

    @property
    def dtype(self) -> torch.dtype:  # noqa: D102
        return self.florence.dtype

    @property
    def kv_bytes_per_token(self) -> int:  # noqa: D102
        text = self.florence.config.text_config  # the decoder looks at every token in each layer
        return 2 * text.decoder_layers * text.d_model * self.dtype.itemsize

    def encode(  # noqa: D102
        self, images: Sequence[np.ndarray], view: str, profiler: Profiler
    ) -> list[EncodedImage]:
        if view != "whole":
            raise InputError(f"{self.name} sees the whole picture: view must be whole, got {view}")
        features = profiler.run("vision", self._features, images)
        clip = profiler.run("clip_image", self._look, images) if self.guide else None
        found = []
        for row, image in enumerate(images):
            own = features[row : row + 1]
            seen = Seen(own[:, :1], own[:, 1:], None if clip is None else clip.picture(row))
            frame = PatchFrame(self.grid, (image.shape[0], image.shape[1]), view)
            found.append(EncodedImage(image, seen, None, frame, (), self.name))
        return found

    def _features(self, images: Sequence[np.ndarray]) -> Tensor:
        pixels = self.processor.image_processor(list(images), return_tensors="pt").pixel_values
        seen = self.florence.get_image_features(pixels.to(self.device, self.dtype))
        return seen.pooler_output

    def _look(self, images: Sequence[np.ndarray]) -> ImageTokens:
        assert self.guide is not None
        pixels = torch.cat([self.guide.pixels(image, "letterbox") for image in images])
        return self.guide.encode_image(pixels.to(self.device))

    def text_embeddings(  # noqa: D102
        self, phrases: Sequence[str], form: str, question: str | None = None
    ) -> Tensor:
        if self.guide is None:
            raise InputError(f"{self.name} was loaded without a CLIP: nothing reads text")
        return self.guide.encode_phrases(phrases, form, question or QUESTION)

    def text_warnings(self, phrase: str, form: str) -> tuple[str, ...]:  # noqa: D102
        return () if self.guide is None else self.guide.text_warnings(phrase, form, QUESTION)

    def view(  # noqa: D102
        self, scene: EncodedImage, needs: frozenset[str], embeds: Tensor | None, rows: int
    ) -> TokenView:
        patches = scene.tokens.patches.expand(rows, -1, -1)
        if self.guide is None:
            return TokenView(patches, self.grid, llm=patches)
        looked = PatchFrame(self.guide.grid, scene.frame.image_hw, "letterbox").square
        points = centres(self.grid, np.array(scene.frame.square), looked).to(self.device)
        lent = lend(self.guide, scene.tokens.clip, needs, points, rows)
        if embeds is not None:
            similarity = text_similarity(lent["projected"], embeds)
            lent |= {"text": embeds, "similarity": similarity}
        return TokenView(patches, self.grid, self.guide.heads, llm=patches, **lent)

    def sequence(  # noqa: D102
        self,
        scene: EncodedImage,
        question: Question,
        selection: Selection | None,
        profiler: Profiler,
    ) -> Prompted:
        seen, rows = scene.tokens, len(question.phrases)
        image = seen.patches.expand(rows, -1, -1)
        if selection is not None:
            merged = selection.tokens
            image = gather_tokens(image, selection.indices) if merged is None else merged
        texts = self.prompts(question)
        longest = max(map(len, texts))
        needed = 1 + scene.count + longest
        limit = self.florence.config.text_config.max_position_embeddings
        if needed > limit:
            raise InputError(f"the prompt needs {needed} positions, the model has {limit}")
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([text + [pad] * (longest - len(text)) for text in texts])
        words = self.florence.get_input_embeddings()(ids.to(self.device))
        mean = seen.mean.expand(rows, -1, -1)
        embeds = torch.cat([mean, image.to(words.dtype), words], 1)
        mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=self.device)
        for row, text in enumerate(texts):
            mask[row, embeds.shape[1] - longest + len(text) :] = 0
        if selection is not None and question.positions == "original":
            embeds = embeds + self._moved(selection.indices, scene.count, longest)
        return Prompted(embeds, mask)

    def prompts(self, question: Question) -> list[list[int]]:
        """The task's sentence about each phrase, begin and end token included."""
        wording = question.wording[0] if question.wording else QUESTION
        begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        texts = [wording.format(phrase=plain(phrase)) for phrase in question.phrases]
        return [[begin, *self.tokenizer.encode(t, add_special_tokens=False), end] for t in texts]

    def _moved(self, kept: Tensor, count: int, words: int) -> Tensor:
        """(P, S, L), what makes the encoder's own numbering 0, 1, 2, ... the unpruned prompt's."""
        table = self.florence.model.language_model.encoder.embed_positions
        tail = torch.arange(1 + count, 1 + count + words, device=kept.device)
        places = torch.cat([torch.zeros_like(kept[:, :1]), 1 + kept, tail.expand(len(kept), -1)], 1)
        own = torch.arange(places.shape[1], device=kept.device)
        return table.weight[places + table.offset] - table.weight[own + table.offset]

    def answer(  # noqa: D102
        self, scene: EncodedImage, question: Question, sequence: Prompted, profiler: Profiler
    ) -> Reply:
        states = profiler.run("llm_prefill", self._read, sequence)
        texts = profiler.run("llm_decode", self._write, states, sequence.mask, question)
        masks = profiler.run("mask_decode", self._fill, texts, scene.frame.image_hw)
        texts = [re.sub("</?s>|<pad>", "", text).strip() for text in texts]
        answers = (Answer(text, mask=mask) for text, mask in zip(texts, masks, strict=True))
        return Reply(tuple(answers), sequence.embeds.shape[1])

    def _read(self, sequence: Prompted) -> Tensor:
        encoder = self.florence.model.language_model.encoder
        found = encoder(inputs_embeds=sequence.embeds, attention_mask=sequence.mask)
        return found.last_hidden_state

    def _write(self, states: Tensor, mask: Tensor, question: Question) -> list[str]:
        free = question.mode == "generate"
        room = self.florence.config.text_config.max_position_embeddings - 1
        written = self.florence.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=min(question.max_new_tokens if free else LONGEST, room),
            suppress_tokens=None if free else self.not_outline,
        )
        return self.tokenizer.batch_decode(written, skip_special_tokens=False)

    def _fill(self, texts: Sequence[str], image_hw: tuple[int, int]) -> list[Tensor]:
        """(H, W) bool of each answer: the union of its polygons."""
        masks = []
        for text in texts:
            read = self.processor.post_process_generation
            found = read(text=text, task=TASK, image_size=image_hw[::-1])
            polygons = [corners for one in found[TASK]["polygons"] for corners in one]
            masks.append(torch.from_numpy(fill_polygons(polygons, image_hw)))
        return masks
