"""LLaVA-1.5: the same way from picture to language model as GLaMM's, with answers in text.

Liu et al., Improved Baselines with Visual Instruction Tuning, CVPR 2024. Two layouts are read: the
original one (`model.layers...`, `model.mm_projector...`; CLIP lies in a repository of its own) and
Hugging Face's (`language_model...`, `multi_modal_projector...`, `vision_tower...`; only CLIP's text
half lies apart). A text half means nothing to a tower it was not trained with, so a tower that a
checkpoint brings along must be the published one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from litelvlm.config import FORMAT, ModelConfig, PromptConfig, SelectionConfig
from litelvlm.errors import ModelError
from litelvlm.families.base import Answer, Capabilities, Reply
from litelvlm.families.clip_llama import ClipLlama, Prompted, blocks, build, tokens, wrap_as
from litelvlm.families.glamm_files import language_config, place_glamm, sized_config
from litelvlm.geometry import PatchFrame
from litelvlm.models.bundle import GroundingModel
from litelvlm.models.files import (
    Entry,
    ModelSource,
    equal_up_to_rounding,
    folder_beside,
    index,
    read_all,
    read_object,
)
from litelvlm.models.names import CLIP_FILES, Place, clip_config, place_clip, place_ours, renamed
from litelvlm.models.prompt import PromptIds
from litelvlm.profiling import Profiler
from litelvlm.question import Question
from litelvlm.scene import EncodedImage

__all__ = [
    "Llava",
    "blocks",
    "build",
    "open_folder",
    "random_config",
    "recognises",
    "tokens",
    "wrap",
]

# Its conversation "vicuna_v1"; a question enters as it was asked.
PROMPT = PromptConfig(
    system=(
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    ),
    image_sentence="<image>\n",
    question="{phrase}",
    answer="",
)
SELECTION = SelectionConfig(view="letterbox")  # `image_aspect_ratio` "pad"
ORIGINAL, PORTED = "LlavaLlamaForCausalLM", "LlavaForConditionalGeneration"


def recognises(raw: dict[str, Any]) -> bool:
    """Whether a config.json is of this family, in our layout or in one of the published two."""
    if raw.get("format") == FORMAT:
        return raw.get("segmenter") == {}
    kinds = raw.get("architectures") or ()
    return ORIGINAL in kinds or PORTED in kinds


def open_folder(folder: Path, raw: dict[str, Any], tower: str | Path | None) -> ModelSource:
    """Open a model folder whose config.json is recognised.

    Args:
        folder: holds config.json, the weights and the tokenizer.
        raw: the parsed config.json.
        tower: folder or hub id of CLIP; None takes the one that config.json names or describes.

    Raises:
        ModelError: naming the file and the fault; a vision tower that is not that CLIP's.
    """
    if raw.get("format") == FORMAT:
        entries, ignored = index([(folder, place_ours)])
        config = ModelConfig.from_json(folder / "config.json")
        return ModelSource(config, folder, FORMAT, entries, ignored)
    where = folder / "config.json"
    place: Callable[[str], Place | None]
    if ORIGINAL in raw["architectures"]:
        text, layout, place = raw, "llava", place_glamm
        expected = {
            "mm_projector_type": ("mlp2x_gelu", "linear"),
            "mm_vision_select_layer": (-2,),
            "mm_use_im_start_end": (False,),
            "image_aspect_ratio": ("pad", "square", None),
        }
        named = raw.get("mm_vision_tower")
    else:
        text, layout, place = {**_TEXT, **(raw.get("text_config") or {})}, "llava-hf", place_ported
        rope = text.get("rope_parameters") or {}
        text["rope_theta"] = text.get("rope_theta") or rope.get("rope_theta")
        expected = {"vision_feature_layer": (-2,), "projector_hidden_act": ("gelu",)}
        if text["model_type"] != "llama":
            raise ModelError(f"{where}: a {text['model_type']} language model, expected llama")
        vision = raw.get("vision_config") or {}
        shape = tuple(vision.get(name) for name in ("hidden_size", "image_size", "patch_size"))
        named = CLIP_FILES.get(shape)  # type: ignore[arg-type]
    for setting, known in expected.items():
        if (given := raw.get(setting, known[0])) not in known:
            raise ModelError(f"{where}: {setting} is {given!r}, LLaVA-1.5 has {known[0]!r}")
    if not (tower := tower or named):
        raise ModelError(f"{where}: names no CLIP, and no published one has its tower's shape")
    clip = folder_beside(folder, tower)
    theirs, _ = index([(clip, place_clip)])
    own, ignored = index([(folder, place)])
    check_tower(folder, own, theirs, str(tower))
    config = _config(folder, text, clip, {n: e.shape for n, e in own.items()})
    return ModelSource(config, folder, layout, {**theirs, **own}, ignored)


# Settings at their default are left out of Hugging Face's files.
_TEXT: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}


def _config(
    folder: Path, text: Mapping[str, Any], clip: Path, shapes: Mapping[str, tuple[int, ...]]
) -> ModelConfig:
    preprocessor = clip / "preprocessor_config.json"
    try:
        dual = clip_config(
            read_object(clip / "config.json"),
            read_object(preprocessor) if preprocessor.is_file() else None,
        )
        vocabulary = shapes["language.model.embed_tokens.weight"][0]
    except KeyError as fault:
        raise ModelError(f"{folder}: the weights lack {fault}") from None
    except ValueError as fault:
        raise ModelError(f"{clip / 'config.json'}: {fault}") from None
    ids = {"pad": 0, "bos": text.get("bos_token_id") or 1, "eos": text.get("eos_token_id") or 2}
    return ModelConfig(
        name=folder.name,
        dual_encoder=dual,
        language=language_config(folder, text, ids, vocabulary),
        segmenter={},
        prompt=PROMPT,
        tokens=ids,
        selection=SELECTION,
        projector="linear" if "projector.weight" in shapes else "mlp",
    )


def check_tower(
    folder: Path, own: Mapping[str, Entry], theirs: Mapping[str, Entry], source: str
) -> None:
    """Raise `ModelError` unless the vision tower in a checkpoint is that of `source`, weight by
    weight up to rounding.
    """
    mine = [entry for name, entry in own.items() if name.startswith("dual_encoder.")]
    twins = {e.name: t for e, t in read_all([theirs[e.name] for e in mine if e.name in theirs])}
    for entry, weight in read_all(mine):
        twin = twins.get(entry.name)
        if twin is None or twin.shape != weight.shape or not equal_up_to_rounding(weight, twin):
            raise ModelError(
                f"{folder}: its vision tower is not that of {source} ({entry.name} differs), so "
                "that CLIP's text half says nothing about it; litelvlm.Pruner takes a guide="
            )


def place_ported(key: str) -> Place | None:
    """Where a tensor of Hugging Face's layout goes; an unknown name comes back unchanged."""
    name = key.removeprefix("model.")
    if name.startswith("vision_tower."):
        return place_clip(name.removeprefix("vision_tower."))
    starts = {
        "lm_head.": "language.lm_head.",
        "language_model.lm_head.": "language.lm_head.",
        "language_model.model.": "language.model.",
        "language_model.": "language.model.",
        "multi_modal_projector.linear_1.": "projector.0.",
        "multi_modal_projector.linear_2.": "projector.2.",
    }
    ours = renamed(name, starts)
    return Place(key if ours == name else ours)


def random_config(name: str) -> ModelConfig:
    """The configuration of a preset whose weights are drawn."""
    size = (5120, 13824, 40, 40) if name.endswith("13b") else (4096, 11008, 32, 32)
    sized = sized_config(name, PROMPT, 336, 4096, 1e-5, llama=size)
    return replace(
        sized,
        language=sized.language | {"vocab_size": 32000},
        segmenter={},
        tokens={"pad": 0, "bos": 1, "eos": 2},
        selection=SELECTION,
    )


def wrap(model: GroundingModel, config: ModelConfig, folder: Path | None) -> Llava:
    """A filled module as a LLaVA; see `clip_llama.wrap_as`."""
    return wrap_as(Llava, model, config, folder)


class Llava(ClipLlama):
    """A LLaVA in memory; see `ClipLlama`."""

    capabilities = Capabilities(
        scores=frozenset({"similarity", "last", "penultimate", "early", "llm", "layers"}),
        modes=("generate",),
        masks=False,
        joint=False,
    )

    def encode(  # noqa: D102
        self, images: Sequence[np.ndarray], view: str, profiler: Profiler
    ) -> list[EncodedImage]:
        seen = profiler.run("clip_image", self.encode_tokens, images, view)
        frames = [PatchFrame(self.encoder.grid, (i.shape[0], i.shape[1]), view) for i in images]
        return [
            EncodedImage(image, seen.picture(row), None, frame, (), self.name)
            for row, (image, frame) in enumerate(zip(images, frames, strict=True))
        ]

    def prompts(self, question: Question) -> tuple[PromptIds, ...]:  # noqa: D102
        def encode(text: str) -> list[int]:
            # What a user writes never becomes a special token.
            return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

        own, bos = self.config.prompt, self.config.tokens["bos"]
        wording = question.wording[0] if question.wording else own.question
        before, after = f"{own.system} {own.user}: {own.image_sentence}".split("<image>")
        start = (bos, *encode(before))
        texts = [wording.replace("{phrase}", phrase) for phrase in question.phrases]
        return tuple(
            PromptIds(start, tuple(encode(f"{after}{text} {own.assistant}:"))) for text in texts
        )

    def answers(  # noqa: D102
        self,
        scenes: Sequence[EncodedImage],
        questions: Sequence[Question],
        sequences: Sequence[Prompted],
        profiler: Profiler,
    ) -> list[Reply]:
        _, texts, outcomes = self.write(sequences, questions[0], scenes[0].count, profiler)
        left = iter(map(Answer, texts))
        return [
            Reply(tuple(islice(left, len(own.prompts))), own.batch.embeds.shape[1], outcome)
            for own, outcome in zip(sequences, outcomes, strict=True)
        ]
