"""Similarity reversal: on towers whose answer is known, and on random open_clip models."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import open_clip
import pytest
import torch

import litelvlm
from litelvlm.cli import main
from litelvlm.data.samples import Sample
from litelvlm.errors import InputError, ModelError
from litelvlm.reversal import SHARES, load_tower, measure, tower_of, tower_of_pipeline

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
SIDE = 64


@dataclass
class Known:
    """A tower of 4 x 4 patches whose similarity is the mean brightness of a patch, times a sign."""

    sign: float
    name: str = "known"

    def text(self, phrases, form):
        return torch.ones(len(phrases), 1)

    def patches(self, image, view="crop"):
        grey = torch.from_numpy(image[..., 0].astype(np.float32))
        bright = grey.view(4, SIDE // 4, 4, SIDE // 4).mean((1, 3)).view(-1, 1)
        flat = torch.zeros(16, 1)
        return {"1": (flat, (4, 4)), "2": (self.sign * bright, (4, 4)), "3": (flat, (4, 4))}


def bright_square(size: int = 32) -> Sample:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:size, :size] = True
    image = np.repeat(mask[..., None], 3, axis=-1).astype(np.uint8) * 200
    return Sample("1", "1", "the bright square", image, mask)


def noise(number: int = 0) -> Sample:
    draw = np.random.default_rng(number)
    image = draw.integers(0, 255, (SIDE, 80, 3), dtype=np.uint8)
    mask = np.zeros((SIDE, 80), bool)
    mask[8:60, 10:60] = True
    return Sample(f"{number}", f"{number}", "the noise", image, mask)


@pytest.mark.parametrize(("sign", "auc"), [(1.0, 1.0), (-1.0, 0.0)])
def test_a_known_tower_gives_its_known_answer(sign, auc):
    found = measure(Known(sign), [bright_square()], forms=["phrase"])
    assert [(row.layer, row.auc, row.used) for row in found.rows] == [
        (1, 0.5, False),
        (2, auc, True),
        (3, 0.5, False),
    ]
    row = found.used()
    quarter = SHARES.index(0.25)
    assert row.lowest[quarter] == 1.0 - auc  # the square is a quarter of the patches
    assert row.highest[quarter] == auc
    assert row.lowest[0] == 0.0
    assert row.lowest[-1] == 1.0
    assert row.reversed_share == 1.0 - auc


def test_targets_smaller_than_half_a_patch_are_skipped():
    found = measure(Known(1.0), [bright_square(), bright_square(4)], forms=["phrase"])
    assert found.skipped == 1
    assert found.used().expressions == 1
    with pytest.raises(InputError, match="covers half a patch"):
        measure(Known(1.0), [bright_square(4)])


def test_the_layer_that_is_marked_is_the_one_the_pipeline_reads():
    pipe = litelvlm.load("tiny-random", device="cpu")
    tower = tower_of_pipeline(pipe)
    image = noise().image
    layers = tower.patches(image)
    assert list(layers) == ["1", "2", "3", "4"]
    own = pipe.family.encoder.project(pipe.encode(image, view="crop").tokens)[0]
    torch.testing.assert_close(layers["3"][0], own)
    torch.testing.assert_close(
        tower.text(["a dog"], "phrase"), pipe.text_embeddings(["a dog"]), atol=1e-5, rtol=1e-5
    )
    found = measure(tower, [noise()], forms=["phrase"])
    assert found.used().layer == 3


def vit(**vision):
    torch.manual_seed(0)
    config = {"image_size": 64, "patch_size": 16, "width": 32, "head_width": 16, "layers": 3}
    return open_clip.CLIP(embed_dim=24, vision_cfg={**config, **vision}, text_cfg=TEXT)


def siglip():
    """SigLIP's own image tower: no class token, attention pooling."""
    torch.manual_seed(0)
    vision = {
        "timm_model_name": "vit_base_patch16_siglip_224",
        "timm_pool": "map",
        "timm_proj": "none",
    }
    return open_clip.CustomTextCLIP(embed_dim=768, vision_cfg=vision, text_cfg=TEXT)


def register_and_map():
    torch.manual_seed(0)
    vision = {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"}
    return open_clip.CustomTextCLIP(embed_dim=96, vision_cfg=vision, text_cfg=TEXT)


def convnext():
    torch.manual_seed(0)
    vision = {"timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": "linear"}
    return open_clip.CustomTextCLIP(embed_dim=24, vision_cfg=vision, text_cfg=TEXT)


def resnet():
    torch.manual_seed(0)
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}
    return open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=TEXT)


BUILDS = {
    "class token": vit,
    "mean pool": lambda: vit(pool_type="avg"),
    "norm after pool": lambda: vit(pool_type="avg", final_ln_after_pool=True),
    "attention pool": lambda: vit(attentional_pool=True, attn_pooler_heads=2),
    "siglip": siglip,
    "register and map": register_and_map,
    "convnext": convnext,
    "resnet": resnet,
}


def tower_for(name: str):
    clip = BUILDS[name]().eval()
    size = clip.visual.image_size
    if hasattr(clip.visual, "trunk"):  # timm's own size, whatever the configuration says
        clip.visual.image_size = clip.visual.trunk.default_cfg["input_size"][1:]
        size = clip.visual.image_size
    assert size
    return tower_of(clip, open_clip.tokenizer.SimpleTokenizer(context_length=77), name)


@pytest.mark.parametrize("name", BUILDS)
def test_any_open_clip_tower_can_be_measured(name):
    tower = tower_for(name)
    found = measure(tower, [noise(0), noise(1)])
    assert all(0 <= row.auc <= 1 for row in found.rows)
    assert {row.form for row in found.rows} == {"phrase", "question", "templates"}
    width = tower.text(["x"], "phrase").shape[-1]
    for projected, grid in tower.patches(noise().image).values():
        assert projected.shape == (grid[0] * grid[1], width)


@torch.inference_mode()
def test_a_patch_alone_goes_through_the_models_own_head():
    from litelvlm.reversal import project_alone

    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    clip = vit().eval()
    out = clip.visual.forward_intermediates(pixels, output_fmt="NLC", output_extra_tokens=True)
    token = out["image_intermediates_prefix"][-1][0]
    torch.testing.assert_close(project_alone(clip.visual, token), clip.visual(pixels))

    # A picture whose patches are all alike: pooling by mean or attention changes nothing.
    for name in ("mean pool", "norm after pool"):
        visual = BUILDS[name]().eval().visual
        token = torch.rand(1, 32, generator=torch.Generator().manual_seed(1))
        pooled, _ = visual._pool(token.expand(1, 17, -1))
        torch.testing.assert_close(project_alone(visual, token), pooled @ visual.proj)
    visual = register_and_map().eval().visual
    token = torch.rand(1, 96, generator=torch.Generator().manual_seed(1))
    whole = visual.trunk.norm(token[:, None].expand(1, 100, -1))
    torch.testing.assert_close(
        project_alone(visual, token), visual.head(visual.trunk.forward_head(whole))
    )


def test_names_and_weights_that_do_not_exist_are_refused():
    with pytest.raises(ModelError, match="unknown open_clip model"):
        load_tower("ViT-Z", "openai")
    with pytest.raises(InputError, match="unknown weights of ViT-B-16 'nothing'"):
        load_tower("ViT-B-16", "nothing")
    with pytest.raises(InputError, match="random ones"):
        load_tower("ViT-B-16")
    with pytest.raises(ModelError, match="trained as ViT-B-16-quickgelu"):
        load_tower("ViT-B-16", "openai")
    with pytest.raises(InputError, match="unknown text form"):
        measure(Known(1.0), [bright_square()], forms=["song"])


def test_random_weights_follow_the_seed_and_leave_the_global_state_alone():
    before = torch.random.get_rng_state()
    first, second = (load_tower("ViT-S-32-alt", random_weights=True, seed=3) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first.encoder.clip.visual.proj, second.encoder.clip.visual.proj)


def test_the_command_measures_the_clip_of_a_model(tmp_path, capsys):
    from PIL import Image

    sample = noise()
    Image.fromarray(sample.image).save(tmp_path / "a.png")
    Image.fromarray(sample.mask).save(tmp_path / "m.png")
    row = {"image": "a.png", "text": "the noise", "mask": "m.png"}
    (tmp_path / "samples.jsonl").write_text(json.dumps(row))
    out = tmp_path / "out"
    arguments = ["reversal", "--data", str(tmp_path), "--out", str(out), "--quiet"]
    assert main([*arguments, "--model", "tiny-random"]) == 0
    assert "tiny-random on" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {
        "reversal.json",
        "reversal.md",
        "reversal.png",
    }
    document = json.loads((out / "reversal.json").read_text())
    assert len(document["rows"]) == 4 * 3
    assert main([*arguments, "--model", "nano", "--clip", "ViT-B-16"]) == 2
    assert "not both" in capsys.readouterr().err
