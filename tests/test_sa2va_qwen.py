"""Sa2VA on Qwen-VL: small checkpoints in the original layout, answered by transformers' own."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from test_sa2va import MEMORY, SAM, build_sam, sam_layout, word_tokenizer, write_guide
from test_video import draw
from torch.nn import functional as F

import litelvlm
from litelvlm.errors import InputError, ModelError
from litelvlm.families.table import PRESETS, family
from litelvlm.loading import open_folder
from litelvlm.models.sam2 import Sam2Segmenter

KINDS = {"qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}
IMAGE, VIDEO, START, END = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"
MARKS = ["<unk>", "<|im_start|>", "<|im_end|>", START, END, IMAGE, VIDEO, "[SEG]"]
WORDS = ["\n", "user", "assistant", "please", "segment", "Please", "the", "red", "disc", "a", "in"]
WORDS += ["this", "image", ".", "It", "is"]
PIXELS = {"shortest_edge": 512 * 28 * 28, "longest_edge": 2048 * 28 * 28}


def tokenizer():
    return word_tokenizer(MARKS, WORDS)


def read(text):
    return tokenizer().encode(text, add_special_tokens=False).ids


def qwen_config(kind):
    vision = dict(hidden_size=16, out_hidden_size=32, intermediate_size=32, depth=3, num_heads=2)
    if kind == "qwen2_5_vl":
        vision |= dict(patch_size=14, window_size=112, fullatt_block_indexes=[1])
    else:
        vision |= dict(patch_size=16, deepstack_visual_indexes=[0, 1], num_position_embeddings=64)
    rope = dict(rope_type="default", rope_theta=10000.0, mrope_section=[2, 1, 1])
    if kind == "qwen3_vl":
        rope["mrope_interleaved"] = True
    text = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, rms_norm_eps=1e-6,
        vocab_size=len(MARKS) + len(WORDS), rope_parameters=rope,
        **({"head_dim": 8} if kind == "qwen3_vl" else {}),
    )  # fmt: skip
    ids = {name: MARKS.index(mark) for name, mark in (
        ("image_token_id", IMAGE), ("video_token_id", VIDEO),
        ("vision_start_token_id", START), ("vision_end_token_id", END),
    )}  # fmt: skip
    return getattr(transformers, f"{KINDS[kind]}Config")(
        text_config=text, vision_config=vision, tie_word_embeddings=False, **ids
    )


def write_sa2va(folder, kind):
    """(parts) of a random Sa2VA, whose checkpoint and CLIP are written in the original layout."""
    torch.manual_seed(1)
    config = qwen_config(kind)
    qwen = getattr(transformers, f"{KINDS[kind]}ForConditionalGeneration")(config)
    sam = build_sam()
    head = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 128))
    parts = dict(qwen=qwen, sam=sam, head=head)
    for part in parts.values():
        part.eval().requires_grad_(False)
        for parameter in part.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    sam.no_memory_embedding.normal_()
    qwen.lm_head.weight[MARKS.index("<|im_end|>")] = 0  # so that an answer has some words
    weights = {f"model.{name}": value for name, value in qwen.state_dict().items()}
    weights |= sam_layout(sam) | {f"text_hidden_fcs.{k}": v for k, v in head.state_dict().items()}
    save_file({k: v.clone().contiguous() for k, v in weights.items()}, folder / "model.safetensors")
    raw = json.loads(config.to_json_string()) | dict(
        model_type="sa2va_chat", architectures=["Sa2VAChatModelQwen"], template="qwen_chat",
        sam2_config=SAM | {"video": MEMORY},
        auto_map={"AutoModel": "modeling_sa2va_chat.Sa2VAChatModelQwen"},
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(raw))
    tokenizer().save(str(folder / "tokenizer.json"))
    own = dict(patch_size=config.vision_config.patch_size)
    if kind == "qwen3_vl":
        own |= dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    saved = own | dict(min_pixels=56 * 56, max_pixels=84 * 84)  # which a call overrides
    transformers.Qwen2VLImageProcessor(**saved).save_pretrained(folder)
    write_guide(folder)
    parts["images"] = transformers.Qwen2VLImageProcessor(**own, size=PIXELS)
    return parts


@pytest.fixture(scope="module", params=list(KINDS))
def loaded(request, tmp_path_factory):
    """(folder, pipeline, the parts it was written from)."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    parts = write_sa2va(folder, request.param)
    return folder, litelvlm.load(folder, device="cpu", tower="clip"), parts


def prompt(counts, answer=""):
    """Ids of the conversation about pictures of so many tokens, and which of them they have."""
    question = "Please segment the red disc in this image."
    seen = "".join(f"{START}{IMAGE * count}{END}" for count in counts)
    text = f"<|im_start|>user\n{seen}{question}<|im_end|>\n"
    ids = torch.tensor([read(f"{text}<|im_start|>assistant\n{answer}")])
    return ids, (ids == MARKS.index(IMAGE)).int()


def plain_inputs(parts, pictures):
    """What the authors' processor makes of pictures: sides to multiples of 28, then resized."""
    rounded = []
    for picture in pictures:
        height, width = (max(28, round(side / 28) * 28) for side in picture.shape[:2])
        size = (width, height)
        rounded.append(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
    return parts["images"](rounded, return_tensors="pt")


def plain_embedding(parts, pictures, kept, positions):
    """(1, C) of [SEG] from transformers' own model, and how many tokens entered.

    Args:
        kept: of each picture, the numbers of the tokens that enter.
        positions: "compact" numbers the rows and columns that are left anew.
    """
    qwen, inputs = parts["qwen"], plain_inputs(parts, pictures)
    grid = inputs.image_grid_thw
    counts = (grid[:, 1:] // 2).prod(1).tolist()
    ids, kinds = prompt(counts, "It is [SEG].")
    axes, _ = qwen.model.get_rope_index(ids, kinds, image_grid_thw=grid)
    seen = qwen.model.get_image_features(inputs.pixel_values, grid, return_dict=True)
    pieces, end = [], 0  # columns of text and picture by turns
    for image, own in zip(kinds[0].nonzero()[:, 0].split(counts), kept, strict=True):
        pieces += [torch.arange(end, image[0]), image[own]]
        end = image[-1] + 1
    pieces.append(torch.arange(end, ids.shape[1]))
    axes, ids = axes[..., torch.cat(pieces)], ids[:, torch.cat(pieces)]
    if positions == "compact":
        base, parted = 0, []
        for number, part in enumerate(axes[:, 0].split([len(each) for each in pieces], 1)):
            ranks = torch.arange(part.shape[1]).expand(3, -1)
            if number % 2:
                ranks = torch.stack([torch.unique(axis, return_inverse=True)[1] for axis in part])
            parted.append(base + ranks)
            base = parted[-1].max() + 1
        axes = torch.cat(parted, 1)[:, None]

    def left(features):
        return tuple(each[own] for each, own in zip(features, kept, strict=True))

    seen.pooler_output = left(seen.pooler_output)
    if planes := getattr(seen, "deepstack_features", None):
        seen.deepstack_features = [left(plane) for plane in planes]
    order = torch.arange(ids.shape[1])[None, None]
    states = qwen.model(
        input_ids=ids, attention_mask=torch.ones_like(ids),
        position_ids=torch.cat([order, axes]), mm_encoder_outputs={"image": seen},
    ).last_hidden_state  # fmt: skip
    own = states[0, ids[0] == MARKS.index("[SEG]")]  # the state at [SEG] itself
    return parts["head"](own), ids.shape[1]


@pytest.mark.parametrize(("budget", "positions"), [(None, None), (60, None), (60, "compact")])
@torch.inference_mode()
def test_a_checkpoint_answers_by_the_published_rule(loaded, picture, budget, positions):
    _, pipe, parts = loaded
    scene = pipe.encode(picture)
    result = pipe.ground(scene, "the red disc", budget, method="grid", positions=positions)[0]
    kept = torch.as_tensor(result.token_map.order)
    assert len(kept) == (budget or scene.count)
    grid = plain_inputs(parts, [picture]).image_grid_thw
    assert scene.frame.grid == tuple((grid[0, 1:] // 2).tolist())
    embedding, _ = plain_embedding(parts, [picture], [kept], positions)

    sam = parts["sam"]
    square = Image.fromarray(picture).resize((128, 128), Image.Resampling.BILINEAR)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((torch.tensor(np.array(square)) / 255 - mean) / std).permute(2, 0, 1)[None]
    levels = sam.get_image_embeddings(pixels)
    blank = sam.prompt_encoder.not_a_point_embed.weight
    masks, quality, *_ = sam.mask_decoder(
        image_embeddings=levels[-1],
        image_positional_embeddings=sam.get_image_wide_positional_embeddings(),
        sparse_prompt_embeddings=torch.cat([blank, blank, embedding])[None, None],
        dense_prompt_embeddings=sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(
            1, -1, 8, 8
        ),
        multimask_output=True,
        high_resolution_features=levels[:-1],
    )
    best = int(quality[0, 0].argmax())
    logits = F.interpolate(masks[:, 0, [best]], picture.shape[:2], mode="bilinear")[0, 0]
    assert result.quality == pytest.approx(float(quality[0, 0, best]), abs=1e-3)
    np.testing.assert_allclose(result.logits, logits.numpy(), atol=2e-3)


@pytest.mark.parametrize("several", [False, True])
@torch.inference_mode()
def test_it_writes_what_transformers_own_model_writes(loaded, picture, several):
    _, pipe, parts = loaded
    pictures = draw() if several else picture[None]
    inputs = plain_inputs(parts, pictures[:5])
    ids, kinds = prompt((inputs.image_grid_thw[:, 1:] // 2).prod(1).tolist())
    written = parts["qwen"].generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=kinds, **inputs,
        max_new_tokens=6, do_sample=False, eos_token_id=MARKS.index("<|im_end|>"), pad_token_id=0,
    )[0, ids.shape[1] :]  # fmt: skip
    asked = {"mode": "generate", "max_new_tokens": 6}
    if several:
        (result,) = pipe.follow(pictures, "the red disc", **asked)
    else:
        (result,) = pipe.ground(pipe.encode(picture), "the red disc", **asked)
    end = MARKS.index("<|im_end|>")
    assert result.text == pipe.family.tokenizer.decode([i for i in written if i != end]).strip()
    assert len(result.text.split()) > 1


@pytest.mark.parametrize(("budget", "positions"), [(None, None), (60, None), (60, "compact")])
@torch.inference_mode()
def test_key_frames_of_a_clip_are_asked_as_pictures_in_a_row(
    loaded, monkeypatch, budget, positions
):
    _, pipe, parts = loaded
    frames, prompts = draw(), []
    follow = pipe.family.sam.follow

    def watched(clip, given, keys):
        prompts.append(given)
        return follow(clip, given, keys)

    monkeypatch.setattr(pipe.family.sam, "follow", watched)
    found = pipe.follow(frames, "the red disc", budget, method="grid", positions=positions)
    (result,) = found
    kept = [torch.as_tensor(each.order) for each in result.token_maps]
    count = pipe.encode(frames[0]).count
    assert [len(each) for each in kept] == [budget or count] * 5
    assert (found.costs.tokens_total, found.costs.tokens_kept) == (5 * count, 5 * len(kept[0]))

    embedding, length = plain_embedding(parts, frames[:5], kept, positions)
    assert found.costs.llm_tokens == length
    np.testing.assert_allclose(prompts[0].numpy(), embedding.numpy(), atol=1e-4)
    segmenter = Sam2Segmenter(parts["sam"])
    square = segmenter.frame((48, 64))
    expected = list(segmenter.follow(frames, embedding, 5))
    least = min(float(quality) for _, quality in expected if quality is not None)
    assert result.quality == pytest.approx(least, abs=1e-3)
    assert result.masks.shape == (7, 48, 64)
    for mask, (logits, _) in zip(result.masks, expected, strict=True):
        assert (mask != (square.upscale(logits)[0] > 0).numpy()).mean() < 0.01


def test_each_key_frame_is_pruned_as_if_alone(loaded):
    _, pipe, _ = loaded
    frames, phrases = draw(6), ["the red disc", "a disc in the image"]
    for row, item in enumerate(pipe.follow(frames, phrases, 24)):
        assert item.masks.shape == (6, 48, 64)
        scenes = pipe.encode(list(frames[:5]))
        alone = [pipe.ground(scene, phrases[row], 24)[0].token_map for scene in scenes]
        for own, expected in zip(item.token_maps, alone, strict=True):
            np.testing.assert_array_equal(own.indices, expected.indices)
        assert len({tuple(each.indices) for each in alone}) > 1


def test_pictures_of_different_shapes_answer_together_as_alone(loaded, picture):
    _, pipe, _ = loaded
    wide = np.concatenate([picture, picture], 1)
    scenes = pipe.encode([picture, wide])
    assert scenes[0].count != scenes[1].count
    phrases = [["the red disc", "a disc in the image"], ["a red disc"]]
    together = pipe.ground(scenes, phrases, 40)
    for scene, own, found in zip(scenes, phrases, together, strict=True):
        for phrase, result in zip(own, found, strict=True):
            alone = pipe.ground(scene, phrase, 40)[0]
            np.testing.assert_array_equal(alone.token_map.order, result.token_map.order)
            np.testing.assert_allclose(alone.logits, result.logits, rtol=1e-5, atol=5e-3)
    assert together[0].settings["scores"] == "guide: clip"


def test_phrases_that_may_share_answer_as_alone(loaded, picture):
    _, pipe, _ = loaded
    scene = pipe.encode(picture)
    asked = ["the dog", "the cat on the left"]
    together, alone = (pipe.ground(scene, asked, share=share) for share in (True, False))
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.logits, other.logits, atol=1e-4)


def test_every_rule_that_works_keeps_its_budget(loaded, picture):
    _, pipe, _ = loaded
    scene = pipe.encode(picture)
    assert {"litelvlm", "grid", "divprune"} <= set(pipe.methods)
    for method in pipe.methods:
        (result,) = pipe.ground(scene, "the red disc", 24, method=method)
        assert len(result.token_map.order) <= 24, method
        assert np.isfinite(result.logits).all(), method


def test_a_config_of_older_files_reads_the_same(loaded):
    folder, pipe, _ = loaded
    if pipe.family.config.kind != "qwen2_5_vl":
        pytest.skip("Qwen3-VL never wrote such files")
    raw = json.loads((folder / "config.json").read_text())
    text = raw.pop("text_config")
    text["rope_scaling"] = {"type": "mrope", "mrope_section": [2, 1, 1]}
    text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
    del text["model_type"]
    raw["vision_config"]["model_type"] = "qwen2_5_vl"
    old = folder / "old"
    old.mkdir()
    (old / "config.json").write_text(json.dumps(raw | text))
    (old / "model.safetensors").symlink_to(folder / "model.safetensors")
    config = open_folder(old, tower="none").config
    ours = pipe.family.config
    for name in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "vocab_size"):
        assert config.language[name] == ours.language[name]
    assert config.language["rope_parameters"]["mrope_section"] == [2, 1, 1]
    assert config.vision == ours.vision


def test_bad_checkpoints_are_named(loaded, tmp_path):
    folder, pipe, _ = loaded
    raw = json.loads((folder / "config.json").read_text())
    for name in ("tokenizer.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    held = load_file(folder / "model.safetensors")
    save_file(held, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(raw | {"vision_config": {"model_type": "x"}}))
    with pytest.raises(ModelError, match="vision tower is x, expected qwen2_5_vl or qwen3_vl"):
        open_folder(tmp_path)
    broken = raw | {"text_config": raw["text_config"] | {"hidden_size": "wide"}}
    (tmp_path / "config.json").write_text(json.dumps(broken))
    with pytest.raises(ModelError, match=r"config\.json.*hidden_size"):
        open_folder(tmp_path, tower="none")
    (tmp_path / "config.json").write_text(json.dumps(raw | {"model_type": "unheard"}))
    with pytest.raises(ModelError, match="names of its weights are those of sa2va-qwen"):
        open_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="image processor cannot be read"):
        litelvlm.load(tmp_path, device="cpu", tower="none")
    del held["model.model.visual.patch_embed.proj.weight"]
    held["model.model.visual.blocks.0.attn.proj.weight"] = torch.zeros(2, 2)
    save_file(held, tmp_path / "model.safetensors")
    told = (
        r"1 missing: vision\.patch_embed\.proj.*1 of another shape: vision\.blocks\.0\.attn\.proj"
    )
    with pytest.raises(ModelError, match=told):
        litelvlm.load(tmp_path, device="cpu", tower="none")
    with pytest.raises(InputError, match="1 : 200"):
        pipe.encode(np.zeros((4, 900, 3), np.uint8))


@pytest.mark.parametrize("name", [n for n, p in PRESETS.items() if p.family == "sa2va-qwen"])
def test_published_sizes(name):
    kind = family("sa2va-qwen")
    config = kind.random_config(name)
    with torch.device("meta"):
        model = kind.build(config)
    sizes = {"2.5-3b": 4.07e9, "2.5-7b": 8.29e9, "3-2b": 2.44e9, "3-4b": 4.83e9}  # head untied
    parts = [*model.vision.parameters(), *model.language.parameters()]
    count = sum(parameter.numel() for parameter in parts)
    assert count == pytest.approx(sizes[name.removeprefix("sa2va-qwen")], rel=0.01)
    assert kind.tokens(config) == (1568 if "qwen3" in name else 2048)
