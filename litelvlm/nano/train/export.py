"""From training checkpoints to a model folder that `litelvlm.load` opens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

from litelvlm.config import ModelConfig, SelectionConfig
from litelvlm.nano.scenes import known_words
from litelvlm.nano.train.common import read_checkpoint
from litelvlm.nano.train.recipe import Recipe
from litelvlm.nano.train.tokens import PROMPT, PromptTokens

# Trained on whole pictures, letterboxed, and on bare phrases.
SELECTION = SelectionConfig(view="letterbox", text="phrase", positions="original")
_PARTS = {"llama": "language", "projector": "projector", "seg_head": "seg_head"}


def collect(folder: Path) -> dict[str, Tensor]:
    """Weights of the whole model under the engine's names, from a run's checkpoints.

    The train-time helpers are left behind. The mask decoder is the one that the language stage
    has tuned.
    """
    clip = read_checkpoint(folder / "clip.pt")["modules"]["clip"]
    sam = read_checkpoint(folder / "masks.pt")["modules"]["sam"]
    tensors = {f"dual_encoder.{k}": v for k, v in clip.items()}
    tensors |= {f"segmenter.{k}": v for k, v in sam.items()}
    language = read_checkpoint(folder / "language.pt")["modules"]
    for key, value in language["grounder"].items():
        head, _, rest = key.partition(".")
        if head in _PARTS:
            tensors[f"{_PARTS[head]}.{rest}"] = value
    tensors |= {f"segmenter.mask_decoder.{k}": v for k, v in language["decoder"].items()}
    return tensors


def model_config(recipe: Recipe, tokens: PromptTokens, selection: SelectionConfig) -> ModelConfig:
    """The engine's configuration of a recipe."""
    ids = tokens.ids
    language = recipe.language | {
        "vocab_size": tokens.tokenizer.get_vocab_size(),
        "pad_token_id": ids["pad"],
        "bos_token_id": ids["bos"],
        "eos_token_id": ids["eos"],
    }
    return ModelConfig(
        name="nano",
        dual_encoder=recipe.dual_encoder,
        language=language,
        segmenter=recipe.segmenter,
        prompt=PROMPT,
        tokens=ids,
        selection=selection,
        segmenter_place="middle",
    )


def write_weights(state: dict[str, Tensor], target: Path) -> None:
    """Write model.safetensors to a folder: float16, tied weights once; the engine ties them."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in state.items():
        if value.data_ptr() in seen and value.numel():
            continue
        seen.add(value.data_ptr())
        half = value.to(torch.float16) if value.is_floating_point() else value
        tensors[name] = half.contiguous()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def export(
    recipe: Recipe, folder: Path, target: Path, selection: SelectionConfig | None = None
) -> Path:
    """Write config.json, model.safetensors (float16), tokenizer.json, vocabulary.json to `target`.

    `folder` holds the checkpoints of all three stages; other files in `target` are left alone.
    """
    target.mkdir(parents=True, exist_ok=True)
    tokens = PromptTokens(folder / "tokenizer.json")
    write_weights(collect(folder), target)
    config = model_config(recipe, tokens, selection or SELECTION)
    (target / "config.json").write_text(config.to_json(), encoding="utf-8")
    shutil.copyfile(folder / "tokenizer.json", target / "tokenizer.json")
    words = json.dumps(sorted(known_words()), indent=0)
    (target / "vocabulary.json").write_text(words + "\n", encoding="utf-8")
    return target
