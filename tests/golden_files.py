"""Access to the recorded numbers in tests/golden, and a GLaMM checkpoint written from them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
SELECTION = GOLDEN / "selection"
GROUNDING = GOLDEN / "grounding"


@cache
def tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a recorded file."""
    return load_file(path)


@cache
def manifest(folder: Path) -> dict:
    """The manifest of a folder of recorded numbers."""
    return json.loads((folder / "manifest.json").read_text())


def write_glamm_layout(folder: Path) -> Path:
    """Write the recorded small model as GLaMM is published: two pickled shards and their index.

    The CLIP tower goes beside it, in the folder that config.json names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = tensors(GROUNDING / "state_dict.safetensors")
    names = sorted(weights)
    half = len(names) // 2
    index = {}
    for number, part in enumerate((names[:half], names[half:]), start=1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: weights[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    config = json.loads((GROUNDING / "config.json").read_text())
    language = config["language_model"] | {"mm_vision_tower": "tiny-clip", "model_type": "llava"}
    (folder / "config.json").write_text(json.dumps(language))
    tokens = config["tokens"]
    added = {
        "<im_start>": tokens["im_start"],
        "<im_end>": tokens["im_end"],
        "<bbox>": tokens["bbox"],
        "<point>": tokens["point"],
        "[SEG]": tokens["seg"],
        "<p>": tokens["p"],
        "</p>": tokens["p_end"],
    }
    (folder / "added_tokens.json").write_text(json.dumps(added, indent=2))
    clip = folder / "tiny-clip"
    clip.mkdir(exist_ok=True)
    for file in (SELECTION / "tiny-clip").iterdir():
        (clip / file.name).write_bytes(file.read_bytes())
    return folder


def write_llava_layout(folder: Path, weights: dict[str, Tensor], **settings: object) -> Path:
    """Write LLaVA as it was published: a pickled file, with CLIP beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(weights, folder / "pytorch_model.bin")
    config = json.loads((GROUNDING / "config.json").read_text())["language_model"]
    config = {k: v for k, v in config.items() if k not in ("bbox_token_idx", "with_region")}
    config |= {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "mm_vision_tower": "tiny-clip",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_use_im_start_end": False,
        "image_aspect_ratio": "pad",
    }
    (folder / "config.json").write_text(json.dumps(config | settings))
    from litelvlm.families.glamm_files import tiny_tokenizer

    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    clip = folder / "tiny-clip"
    clip.mkdir(exist_ok=True)
    for file in (SELECTION / "tiny-clip").iterdir():
        (clip / file.name).write_bytes(file.read_bytes())
    return folder


def llava_weights() -> dict[str, Tensor]:
    """The recorded small model's language side, with an output layer that writes varied words."""
    weights = {
        key: value
        for key, value in tensors(GROUNDING / "state_dict.safetensors").items()
        if key.startswith(("model.layers.", "model.norm.", "model.embed_tokens.", "lm_head."))
        or "mm_projector" in key
    }
    generator = torch.Generator().manual_seed(3)
    shape = weights["lm_head.weight"].shape
    return weights | {"lm_head.weight": torch.randn(shape, generator=generator)}
