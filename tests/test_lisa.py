"""LISA and GLaMM's variants: small checkpoints in their original layouts, read and answered."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from golden_files import GROUNDING, tensors, write_glamm_layout
from torch.nn import functional as F
from transformers import CLIPVisionModel, LlamaConfig, LlamaForCausalLM

import litelvlm
from litelvlm.errors import ModelError
from litelvlm.families.glamm_files import tiny_tokenizer
from litelvlm.families.table import PRESETS, family
from litelvlm.loading import open_folder
from litelvlm.models.bundle import GroundingModel

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)


def lisa_weights():
    """The recorded small model under LISA's names, with one projector layer."""
    weights = {}
    for key, value in tensors(GROUNDING / "state_dict.safetensors").items():
        if not key.startswith(("model.region_encoder.", "model.mm_projector.")):
            weights[key.replace("model.grounding_encoder.", "model.visual_model.")] = value
    generator = torch.Generator().manual_seed(1)
    weights["model.mm_projector.weight"] = torch.randn(64, 64, generator=generator) / 8
    weights["model.mm_projector.bias"] = torch.randn(64, generator=generator) / 8
    return weights


def write_lisa_layout(folder):
    """One pickled file, added_tokens.json with LISA's three tokens, CLIP beside it."""
    write_glamm_layout(folder)
    for path in folder.glob("pytorch_model*"):
        path.unlink()
    torch.save(lisa_weights(), folder / "pytorch_model.bin")
    config = json.loads((folder / "config.json").read_text())
    for name in ("bbox_token_idx", "with_region", "num_level_reg_features"):
        del config[name]
    config["architectures"] = ["LISAForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    added = {"[SEG]": 304, "<im_start>": 300, "<im_end>": 301}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_lisa_layout(tmp_path_factory.mktemp("lisa"))


@pytest.fixture(scope="module")
def lisa(folder):
    torch.set_num_threads(1)
    return litelvlm.load(folder, device="cpu")


def plain_prompt_embedding(folder, pixels, phrase, kept):
    """(1, C) SAM prompt of a phrase, by the published rule and none of the package's code."""
    weights = lisa_weights()
    settings = json.loads((folder / "config.json").read_text())
    clip = CLIPVisionModel.from_pretrained(folder / "tiny-clip").eval()
    states = clip(pixels, output_hidden_states=True).hidden_states[-2][0, 1:]
    image = F.linear(
        states[kept], weights["model.mm_projector.weight"], weights["model.mm_projector.bias"]
    )
    names = set(LlamaConfig().to_dict())
    llama = LlamaForCausalLM(
        LlamaConfig(**{k: v for k, v in settings.items() if k in names and k != "model_type"})
    ).eval()
    own = {k: v for k, v in weights.items() if k in llama.state_dict()}
    llama.load_state_dict(own, strict=True)

    def read(text):
        return tiny_tokenizer().encode(text, add_special_tokens=False).ids

    question = f"What is {phrase} in this image? Please output segmentation mask."
    before = [1, *read(f"{SYSTEM} USER:"), 300]
    after = [301, *read(f"{question} ASSISTANT:"), 304]
    embed = llama.get_input_embeddings()
    sequence = torch.cat([embed(torch.tensor(before)), image, embed(torch.tensor(after))])
    hidden = llama.model(inputs_embeds=sequence[None]).last_hidden_state[0]
    state = hidden[len(before) + len(kept) + len(after) - 2]  # the position before [SEG]
    stem = "model.text_hidden_fcs.0."
    state = F.relu(F.linear(state, weights[f"{stem}0.weight"], weights[f"{stem}0.bias"]))
    return F.linear(state, weights[f"{stem}2.weight"], weights[f"{stem}2.bias"])[None]


@pytest.mark.parametrize("budget", [64, 20])
@torch.inference_mode()
def test_a_lisa_checkpoint_answers_by_the_published_rule(lisa, folder, picture, budget):
    result = lisa(picture, "the red disc", budget, method="grid", view="crop")[0]
    kept = torch.as_tensor(np.sort(result.token_map.indices))
    assert len(kept) == budget
    pixels = lisa.family.encoder.pixels(picture)
    prompt = plain_prompt_embedding(folder, pixels, "the red disc", kept)
    sam, segmenter = lisa.family.model.segmenter, lisa.family.segmenter
    embedding = segmenter.encode(segmenter.pixels(picture))
    dense = sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    low_res = sam.mask_decoder(
        image_embeddings=embedding,
        image_positional_embeddings=sam.get_image_wide_positional_embeddings(),
        sparse_prompt_embeddings=prompt[:, None, None],
        dense_prompt_embeddings=dense.expand_as(embedding),
        multimask_output=False,
    )[0]
    logits = segmenter.frame(picture.shape[:2]).upscale(low_res[0, 0])[0]
    np.testing.assert_allclose(result.logits, logits.numpy(), atol=1e-3)


def test_budgets_follow_the_picture_s_own_tokens(lisa):
    assert lisa.tokens_total == 64
    with torch.device("meta"):
        model = GroundingModel(family("lisa").random_config("lisa-7b"))
    assert model.dual_encoder.visual.grid_size == (16, 16)
    assert tuple(model.projector.weight.shape) == (4096, 1024)


def test_a_lisa_in_eight_bits_loads_too(folder, lisa):
    small = litelvlm.load(folder, device="cpu", bits=8)
    assert small.weight_bytes < lisa.weight_bytes


def test_the_layout_is_told_apart(folder, tmp_path):
    assert open_folder(folder).layout == "lisa"
    assert open_folder(write_glamm_layout(tmp_path)).layout == "glamm"


def test_a_glamm_branch_in_a_lisa_is_named(tmp_path):
    folder = write_lisa_layout(tmp_path)
    held = lisa_weights() | {"model.grounding_encoder.odd": torch.zeros(1)}
    torch.save(held, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"1 unexpected: model\.grounding_encoder\.odd"):
        litelvlm.load(folder, device="cpu")


def test_the_first_glamm_has_one_projector_layer(tmp_path, picture):
    folder = write_glamm_layout(tmp_path)
    for path in folder.glob("pytorch_model*"):
        path.unlink()
    weights = dict(tensors(GROUNDING / "state_dict.safetensors"))
    weights = {k: v for k, v in weights.items() if "mm_projector" not in k}
    weights |= {k: v for k, v in lisa_weights().items() if "mm_projector" in k}
    torch.save(weights, folder / "pytorch_model.bin")
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    pipe = litelvlm.load(folder, device="cpu")
    assert pipe.family.config.projector == "linear"
    assert pipe(picture, "a disc", 16)[0].mask.shape == picture.shape[:2]


def test_a_relative_is_refused_by_name(tmp_path):
    folder = write_glamm_layout(tmp_path)
    kinds = {"architectures": ["PixelLMForCausalLM"]}
    config = json.loads((folder / "config.json").read_text()) | kinds
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="PixelLM"):
        open_folder(folder)


def test_a_variant_without_a_mask_branch_is_refused(tmp_path):
    folder = write_lisa_layout(tmp_path)
    held = {k: v for k, v in lisa_weights().items() if "visual_model" not in k}
    torch.save(held, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="without a mask branch"):
        open_folder(folder)


@pytest.mark.parametrize("name", [n for n, p in PRESETS.items() if p.hub])
def test_every_published_model_can_be_built_at_its_size(name):
    kind = family(PRESETS[name].family)
    with torch.device("meta"):
        model = kind.build(kind.random_config(name))
    assert sum(p.numel() for p in model.parameters()) > 10**8
