"""Sa2VA: small checkpoints in the original layout, read strictly, answered by a plain rewrite."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from torch.nn import functional as F

import litelvlm
from litelvlm.errors import InputError, ModelError
from litelvlm.families.sa2va import cut_tiles, tiles_of
from litelvlm.geometry import TiledFrame
from litelvlm.loading import open_folder

SIDE = 56  # pixels of a tile: 4 x 4 patches of 14, 2 x 2 tokens
MARKS = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]
MARKS += ["[SEG]", "<p>", "</p>", "<vp>", "</vp>"]
WORDS = ["\n", "user", "assistant", "please", "segment", "Please", "the", "red", "disc", "a", "in"]
WORDS += ["this", "image", ".", "It", "is", "Sure", ","]
SAM = {
    "vision_config": {
        "backbone_config": {
            "model_type": "sam2_hiera_det_model", "hidden_size": 8, "num_attention_heads": 1,
            "embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 1, 2, 4],
            "blocks_per_stage": [1, 1, 2, 1], "global_attention_blocks": [3],
            "window_size_per_stage": [8, 4, 4, 4], "image_size": [128, 128],
            "window_positional_embedding_background_size": [7, 7],
        },
        "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 128,
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
    },
    "prompt_encoder_config": {"hidden_size": 128, "image_size": 128, "mask_input_channels": 16},
    "mask_decoder_config": {
        "hidden_size": 128, "mlp_dim": 64, "iou_head_hidden_dim": 32, "num_attention_heads": 4,
    },
}  # fmt: skip
MEMORY = dict(
    memory_attention_hidden_size=128, memory_attention_feed_forward_hidden_size=64,
    memory_encoder_hidden_size=128, memory_encoder_output_channels=64,
    mask_downsampler_embed_dim=128, memory_fuser_embed_dim=128, memory_fuser_intermediate_dim=64,
)  # fmt: skip
NEWER = "enable_temporal_pos_encoding_for_object_pointers", "enable_occlusion_spatial_embedding"
LLM = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-6, rope_theta=10000.0,
    hidden_act="silu",
)  # fmt: skip
VISION = dict(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    image_size=SIDE, patch_size=14, hidden_act="gelu", layer_norm_eps=1e-6, norm_type="layer_norm",
)  # fmt: skip


def word_tokenizer(marks, words):
    """Whole words and line breaks; the marks are special."""
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*marks, *words])}, "<unk>"))
    words_and_lines = Regex(r"\n|\w+|[^\w\s]+")
    raw.pre_tokenizer = pre_tokenizers.Split(words_and_lines, "removed", invert=True)
    raw.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    return raw


def tokenizer():
    return word_tokenizer(MARKS, WORDS)


def write_guide(folder):
    """A random CLIP beside a checkpoint."""
    half = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2)
    clip = transformers.CLIPConfig(
        vision_config=half | dict(image_size=64, patch_size=16),
        text_config=half | dict(vocab_size=49408, max_position_embeddings=77, eos_token_id=49407),
        projection_dim=12,
    )
    transformers.CLIPModel(clip).save_pretrained(folder / "clip")


def vision_layout(vision):
    """InternViT's own names: joined queries, keys and values."""
    held = {}
    for name, value in vision.state_dict().items():
        for ours, theirs in (
            ("cls_token", "class_embedding"), ("position_embeddings", "position_embedding"),
            ("patch_embeddings.projection", "patch_embedding"),
            ("encoder.layer.", "encoder.layers."),
            ("lambda_", "ls"), ("attention.projection_layer", "attn.proj"),
            ("layernorm_before", "norm1"), ("layernorm_after", "norm2"), ("attention.", "attn."),
        ):  # fmt: skip
            name = name.replace(ours, theirs)
        if ".q_proj." in name or ".k_proj." in name or ".v_proj." in name:
            stem, leaf = name[:-1].rsplit("_proj.", 1)[0][:-1], name.rsplit(".", 1)[1]
            held.setdefault(f"vision_model.{stem}qkv.{leaf}", []).append((name, value))
        else:
            held[f"vision_model.{name}"] = value
    order = {"q": 0, "k": 1, "v": 2}
    return {
        key: torch.cat(
            [v for _, v in sorted(value, key=lambda p: order[p[0].split("_proj")[0][-1]])]
        )
        if isinstance(value, list)
        else value
        for key, value in held.items()
    }


def internlm_layout(llama):
    """InternLM2's own names: for each key-value head its queries, its key, its value."""
    held, state = {}, llama.state_dict()
    for name, value in state.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            q = value.view(2, 2, 8, 32)  # 2 groups of 2 heads of 8
            k, v = (
                state[name.replace("q_proj", p)].view(2, 1, 8, 32) for p in ("k_proj", "v_proj")
            )
            value = torch.cat([q, k, v], 1).reshape(-1, 32)
            name = name.replace("self_attn.q_proj", "attention.wqkv")
        for ours, theirs in (
            ("embed_tokens", "tok_embeddings"), ("self_attn.o_proj", "attention.wo"),
            ("mlp.gate_proj", "feed_forward.w1"), ("mlp.down_proj", "feed_forward.w2"),
            ("mlp.up_proj", "feed_forward.w3"), ("input_layernorm", "attention_norm"),
            ("post_attention_layernorm", "ffn_norm"), ("lm_head", "output"),
        ):  # fmt: skip
            name = name.replace(ours, theirs)
        held[f"language_model.{name}"] = value
    return held


def sam_layout(sam):
    """SAM 2's own names."""
    held = {}
    for name, value in sam.state_dict().items():
        if name == "shared_image_embedding.positional_embedding":
            continue
        if name == "prompt_encoder.shared_embedding.positional_embedding":
            value = sam.shared_image_embedding.positional_embedding  # one tensor in the original
            name = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
        if name == "prompt_encoder.point_embed.weight":
            for number in range(4):
                stem = "sam_prompt_encoder.point_embeddings"
                held[f"{stem}.{number}.weight"] = value[number : number + 1]
            continue
        if "mask_downsampler.layers." in name:
            number, kind, leaf = name.split("layers.")[1].split(".")
            name = f"encoder.{3 * int(number) + (kind == 'layer_norm')}.{leaf}"
            name = f"memory_encoder.mask_downsampler.{name}"
        head = "_head." in name or "_mlps." in name or "object_pointer_proj." in name
        for ours, theirs in (
            ("vision_encoder.backbone.", "image_encoder.trunk."),
            ("vision_encoder.neck.", "image_encoder.neck."),
            ("prompt_encoder.", "sam_prompt_encoder."), ("mask_decoder.", "sam_mask_decoder."),
            ("no_memory_embedding", "no_mem_embed"),
            ("no_memory_positional_encoding", "no_mem_pos_enc"),
            ("memory_temporal_positional_encoding", "maskmem_tpos_enc"),
            ("temporal_positional_encoding_projection_layer", "obj_ptr_tpos_proj"),
            ("occlusion_spatial_embedding_parameter", "no_obj_embed_spatial"),
            ("no_object_pointer", "no_obj_ptr"), ("object_pointer_proj", "obj_ptr_proj"),
            ("memory_encoder.projection", "memory_encoder.out_proj"),
            ("feature_projection", "pix_feat_proj"), ("memory_fuser", "fuser"),
            ("depthwise_conv", "dwconv"), ("pointwise_conv", "pwconv"), (".scale", ".g_weight"),
            ("mask_downsampler.final_conv", "mask_downsampler.encoder.12"),
            ("patch_embed.projection", "patch_embed.proj"),
            ("mask_embed.conv1", "mask_downscaling.0"),
            ("mask_embed.layer_norm1", "mask_downscaling.1"),
            ("mask_embed.conv2", "mask_downscaling.3"),
            ("mask_embed.layer_norm2", "mask_downscaling.4"),
            ("mask_embed.conv3", "mask_downscaling.6"), ("upscale_conv1", "output_upscaling.0"),
            ("upscale_layer_norm", "output_upscaling.1"), ("upscale_conv2", "output_upscaling.3"),
            ("layer_norm", "norm"), ("o_proj", "out_proj"),
            ("layers.0", "layers.1" if head else "layers.0"),
            ("proj_in", "layers.0"), ("proj_out", "layers.2" if head else "layers.1"),
        ):  # fmt: skip
            name = name.replace(ours, theirs)
        if name.startswith("image_encoder.neck.convs."):
            number, leaf = name.rsplit(".", 2)[1:]
            name = f"image_encoder.neck.convs.{number}.conv.{leaf}"
        held[name] = value
    return {f"grounding_encoder.sam2_model.{name}": value for name, value in held.items()}


def build_sam(newer=False):
    """A random SAM 2 with its memory; SAM 2.1 if newer."""
    own = dict(
        image_size=128, memory_attention_rope_feat_sizes=[8, 8], **dict.fromkeys(NEWER, newer)
    )
    return transformers.Sam2VideoModel(transformers.Sam2VideoConfig(**SAM, **MEMORY, **own))


def write_sa2va(folder, kind="Qwen2ForCausalLM", newer=False):
    """(parts) of a random Sa2VA, whose checkpoint and CLIP are written in the original layout."""
    torch.manual_seed(1)
    size = len(MARKS) + len(WORDS)
    language = LLM | dict(vocab_size=size, tie_word_embeddings=False)
    qwen = kind == "Qwen2ForCausalLM"
    classes = (transformers.Qwen2Config, transformers.Qwen2ForCausalLM)
    if not qwen:
        classes = (transformers.LlamaConfig, transformers.LlamaForCausalLM)
    llm = classes[1](classes[0](**language))
    vision = transformers.InternVLVisionModel(
        transformers.InternVLVisionConfig(**VISION, attention_bias=True)
    )
    sam = build_sam(newer)
    mlp1 = torch.nn.Sequential(
        torch.nn.LayerNorm(64), torch.nn.Linear(64, 32), torch.nn.GELU(), torch.nn.Linear(32, 32)
    )
    head = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 128))
    parts = dict(llm=llm, vision=vision, sam=sam, mlp1=mlp1, head=head)
    for part in parts.values():
        part.eval().requires_grad_(False)
        for parameter in part.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    sam.no_memory_embedding.normal_()
    weights = vision_layout(vision) | sam_layout(sam)
    weights |= {f"mlp1.{k}": v for k, v in mlp1.state_dict().items()}
    weights |= {f"text_hidden_fcs.{k}": v for k, v in head.state_dict().items()}
    own = {f"language_model.{k}": v for k, v in llm.state_dict().items()}
    weights |= own if qwen else internlm_layout(llm)
    save_file({k: v.clone().contiguous() for k, v in weights.items()}, folder / "model.safetensors")
    config = dict(
        model_type="sa2va_chat", architectures=["Sa2VAChatModel"],
        sam2_config=SAM | {"video": MEMORY},
        vision_config=VISION | dict(qkv_bias=True, qk_normalization=False),
        llm_config=LLM | dict(architectures=[kind], vocab_size=size), template="qwen_chat",
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer().save(str(folder / "tokenizer.json"))
    write_guide(folder)
    return parts


@pytest.fixture(scope="module", params=["Qwen2ForCausalLM", "InternLM2ForCausalLM"])
def loaded(request, tmp_path_factory):
    """(pipeline, the parts it was written from, ids of a begin token)."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sa2va")
    parts = write_sa2va(folder, request.param)
    pipe = litelvlm.load(folder, device="cpu", tower="clip")
    return pipe, parts, [0] if request.param == "InternLM2ForCausalLM" else []


def plain_image(parts, picture, tiles):
    """(1, N, L) by InternVL's rule: tiles, a small copy, 2 x 2 patches a token, the projector."""
    picture = Image.fromarray(picture)
    rows, columns = tiles
    whole = picture.resize((columns * SIDE, rows * SIDE), Image.Resampling.BICUBIC)
    crops = [
        whole.crop((c * SIDE, r * SIDE, (c + 1) * SIDE, (r + 1) * SIDE))
        for r in range(rows)
        for c in range(columns)
    ]
    crops += [picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)] if len(crops) > 1 else []
    found = []
    for crop in crops:
        pixels = torch.tensor(np.array(crop)).permute(2, 0, 1) / 255
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        pixels = (pixels - mean[:, None, None]) / std[:, None, None]
        states = parts["vision"](pixels[None]).last_hidden_state[0, 1:].view(4, 4, 16)
        for i in (0, 2):
            for j in (0, 2):
                four = [states[i, j], states[i, j + 1], states[i + 1, j], states[i + 1, j + 1]]
                found.append(parts["mlp1"](torch.cat(four)))
    return torch.stack(found)[None]


@pytest.mark.parametrize("budget", [None, 9])
@torch.inference_mode()
def test_a_sa2va_checkpoint_answers_by_the_published_rule(loaded, picture, budget):
    pipe, parts, begin = loaded
    scene = pipe.encode(picture)
    tiles = scene.frame.tiles
    assert tiles == (3, 4)
    assert scene.count == (12 + 1) * 4
    result = pipe.ground(scene, "the red disc", budget, method="grid")[0]
    kept = torch.as_tensor(result.token_map.order)
    assert len(kept) == (budget or scene.count)

    image = plain_image(parts, picture, tiles)[:, kept]
    read = lambda text: tokenizer().encode(text, add_special_tokens=False).ids  # noqa: E731
    before = [*begin, *read("<|im_start|>user\n<img>")]
    question = "Please segment the red disc in this image."
    after = read(f"</img>{question}<|im_end|>\n<|im_start|>assistant\nIt is [SEG].")
    embed = parts["llm"].get_input_embeddings()
    sequence = torch.cat([embed(torch.tensor([before])), image, embed(torch.tensor([after]))], 1)
    start = len(before)
    end = start + scene.count + torch.arange(len(after))
    positions = torch.cat([torch.arange(start), start + kept, end])  # as in the unpruned prompt
    states = parts["llm"].model(
        inputs_embeds=sequence,
        position_ids=positions[None],
        attention_mask=torch.ones(sequence.shape[:2]),
    )
    place = start + len(kept) + after.index(MARKS.index("[SEG]"))  # the position of [SEG] itself
    prompt = parts["head"](states.last_hidden_state[0, place])

    sam = parts["sam"]
    square = Image.fromarray(picture).resize((128, 128), Image.Resampling.BILINEAR)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((torch.tensor(np.array(square)) / 255 - mean) / std).permute(2, 0, 1)[None]
    levels = sam.get_image_embeddings(pixels)
    blank = sam.prompt_encoder.not_a_point_embed.weight
    sparse = torch.cat([blank, blank, prompt[None]])[None, None]  # two that are no point
    dense = sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(1, -1, 8, 8)
    masks, quality, *_ = sam.mask_decoder(
        image_embeddings=levels[-1],
        image_positional_embeddings=sam.get_image_wide_positional_embeddings(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
        high_resolution_features=levels[:-1],
    )
    best = int(quality[0, 0].argmax())
    logits = F.interpolate(masks[:, 0, [best]], picture.shape[:2], mode="bilinear")[0, 0]
    assert result.quality == pytest.approx(float(quality[0, 0, best]), abs=1e-3)
    np.testing.assert_allclose(result.logits, logits.numpy(), atol=2e-5 * logits.abs().max())


@torch.inference_mode()
def test_a_written_seg_counts_by_its_own_state_and_only_if_a_step_follows(loaded, picture):
    pipe, *_ = loaded
    scene = pipe.encode(picture)
    head = pipe.family.language.llama.lm_head
    held = head.weight.clone()
    seg = pipe.family.ids["seg"]
    try:
        head.weight.zero_()  # all words tie and the first is written
        assert not pipe.ask(scene, "a disc", max_new_tokens=3).found
        states = pipe.family.language
        sequence = pipe.family.sequence(scene, _asked(pipe, scene), None, _profiler())
        cache, state = states.start(sequence.batch)
        head.weight[seg] = state[0]  # the first word written is [SEG]
        (one,) = states.decode(sequence.batch, cache, state, 1)
        assert one.ids == (seg,)
        assert len(one.seg_states) == 0
        (two,) = states.decode(sequence.batch, cache, state, 2)
        assert two.ids[0] == seg
        assert len(two.seg_states) == 1
        assert not torch.allclose(two.seg_states[0], state[0])
    finally:
        head.weight.copy_(held)


def _asked(pipe, scene):
    from litelvlm.question import Question

    return Question("a disc", mode="generate").settle(scene.count, pipe.family.defaults)


def _profiler():
    from litelvlm.profiling import Profiler

    return Profiler(torch.device("cpu"), "off")


def test_a_clip_beside_it_scores_every_token_where_it_lies(loaded, picture):
    pipe, *_ = loaded
    scene = pipe.encode(picture)
    found = pipe.ground(scene, ["the red disc", "a disc"], 12)
    assert found.settings["scores"] == "guide: clip"
    assert [len(result.token_map.order) for result in found] == [12, 12]
    similarity = pipe.similarity(scene, ["a disc"])
    assert similarity.shape == (1, scene.count)
    assert similarity.isfinite().all()


def test_tiles_lie_where_their_patches_do():
    frame = TiledFrame((7 * 2, 2), (60, 90), "whole", (2, 3))
    boxes = frame.boxes()
    assert len(boxes) == frame.count == 28
    assert boxes[0].tolist() == [0, 0, 15, 15]
    assert boxes[4].tolist() == [30, 0, 45, 15]  # the second tile
    assert boxes[-1].tolist() == [45, 30, 90, 60]  # the small copy
    mask = np.zeros((60, 90), bool)
    mask[:15, 30:45] = True
    cover = frame.coverage(mask)
    assert cover[4] == 1
    assert cover[:24].sum() == 1
    painted = frame.paint(np.arange(28))
    assert painted[5, 35] == 4
    assert painted[20, 5] == 2


@pytest.mark.parametrize(
    ("hw", "tiles"), [((400, 400), (1, 1)), ((720, 1280), (2, 4)), ((1000, 300), (3, 1))]
)
def test_a_picture_is_cut_as_internvl_does(hw, tiles):
    assert tiles_of(hw, 448) == tiles
    pixels, cut = cut_tiles(np.zeros((*hw, 3), np.uint8), 28)
    assert len(pixels) == cut[0] * cut[1] + (cut != (1, 1))


def test_bad_checkpoints_are_named(tmp_path, picture):
    write_sa2va(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    blind = litelvlm.load(tmp_path, device="cpu", tower="none")
    with pytest.raises(InputError, match="view must be whole"):
        blind.encode(picture, view="crop")
    for change, told in (
        ({"llm_config": LLM | {"architectures": ["Phi3ForCausalLM"]}}, "Phi3ForCausalLM"),
        ({"vision_config": None}, "no vision_config"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ModelError, match=told):
            open_folder(tmp_path, tower="clip")
    (tmp_path / "config.json").write_text(json.dumps(config))
    raw = tokenizer()
    small = json.loads(raw.to_str().replace("[SEG]", "[GES]"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(small))
    with pytest.raises(ModelError, match=r"tokenizer lacks \[SEG\]"):
        litelvlm.load(tmp_path, device="cpu", tower="none")
