"""Tiny random vision-language models of every kind the plug-in knows, built without a download."""

from __future__ import annotations

import functools

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ["what", "where", "is", "the", "red", "apple", "on", "left", "a", "photo", "of"]
WORDS += ["user", "assistant"]
SPECIAL = {
    "image_token": "<image>",
    "video_token": "<video>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<image>",
    "boi_token": "<boi>",
    "eoi_token": "<eoi>",
}
TEXT = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=80,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
CLIP = dict(
    hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, patch_size=8
)
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
MAIN = "llava llava_next llava_onevision qwen2_vl qwen2_5_vl qwen3_vl internvl gemma3 paligemma"
KINDS = (*MAIN.split(), "idefics3", "smolvlm", "florence2")


def tokenizer(**more):
    names = ["<pad>", "<s>", "</s>", "<unk>", *dict.fromkeys(SPECIAL.values())]
    vocabulary = {word: i for i, word in enumerate([*names, *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=SPECIAL,
        model_max_length=512,
        **more,
    )


def prompt(kind, question="what is the red apple", pictures=1):
    """A prompt with that many placeholders, as the kind of model writes them."""
    if kind == "florence2":
        return question
    token = {"gemma3": "<boi>", "q": "<img> <image> </img>"}.get(
        "q" if kind.startswith("qwen") else kind, "<image>"
    )
    return f"user {token * pictures} {question} assistant"


def picture(height=40, width=56, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 255, (height, width, 3)).astype(np.uint8)


def _qwen(kind):
    cls = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[kind]
    vision = dict(depth=4, num_heads=2, patch_size=8, spatial_merge_size=2, temporal_patch_size=2)
    if kind == "qwen2_vl":
        vision |= dict(embed_dim=16, hidden_size=32, mlp_ratio=2)
    else:
        vision |= dict(hidden_size=16, out_hidden_size=32, intermediate_size=32)
    if kind == "qwen2_5_vl":
        vision |= dict(window_size=32, fullatt_block_indexes=[1, 3])
    if kind == "qwen3_vl":
        vision |= dict(deepstack_visual_indexes=[0, 1], num_position_embeddings=64)
    text = TEXT | dict(rope_parameters=MROPE)
    config = getattr(transformers, f"{cls}Config")(
        text_config=text, vision_config=vision, image_token_id=4, video_token_id=5,
        vision_start_token_id=6, vision_end_token_id=7,
    )  # fmt: skip
    images = transformers.Qwen2VLImageProcessor(
        patch_size=8, merge_size=2, temporal_patch_size=2, min_pixels=16 * 16, max_pixels=80 * 80,
        size={"shortest_edge": 16 * 16, "longest_edge": 80 * 80},
    )  # fmt: skip
    video = transformers.Qwen3VLVideoProcessor if kind == "qwen3_vl" else None
    video = (video or transformers.Qwen2VLVideoProcessor)()
    processor = getattr(transformers, f"{cls}Processor")(images, tokenizer(), video)
    return config, processor


def _llava(kind):
    vision = transformers.CLIPVisionConfig(**CLIP, image_size=32, projection_dim=12)
    common = dict(text_config=transformers.LlamaConfig(**TEXT), image_token_index=4)
    images = dict(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    how = dict(patch_size=8, vision_feature_select_strategy="default")
    if kind == "llava":
        config = transformers.LlavaConfig(vision_config=vision, **common)
        processor = transformers.LlavaProcessor(
            transformers.CLIPImageProcessor(**images),
            tokenizer(),
            num_additional_image_tokens=1,
            **how,
        )
        return config, processor
    points = [[32, 64], [64, 32], [64, 64]]
    if kind == "llava_next":
        config = transformers.LlavaNextConfig(
            vision_config=vision, image_grid_pinpoints=points, **common
        )
        return config, transformers.LlavaNextProcessor(
            transformers.LlavaNextImageProcessor(image_grid_pinpoints=points, **images),
            tokenizer(),
            num_additional_image_tokens=1,
            **how,
        )
    config = transformers.LlavaOnevisionConfig(
        text_config=transformers.Qwen2Config(**TEXT),
        vision_config=transformers.SiglipVisionConfig(**CLIP, image_size=32),
        image_token_index=4, video_token_index=5, image_grid_pinpoints=points,
        vision_feature_layer=-1, vision_feature_select_strategy="full",
    )  # fmt: skip
    return config, transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(
            image_grid_pinpoints=points, size={"height": 32, "width": 32}
        ),
        tokenizer(),
        transformers.LlavaOnevisionVideoProcessor(),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
    )


def _internvl(kind):
    config = transformers.InternVLConfig(
        text_config=transformers.Qwen2Config(**TEXT),
        vision_config=dict(**CLIP | dict(patch_size=[8, 8]), image_size=[32, 32]),
        image_token_id=4,
        image_seq_length=4,
    )
    return config, transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(
            size={"height": 32, "width": 32}, min_patches=1, max_patches=4, crop_to_patches=True
        ),
        tokenizer(),
        transformers.InternVLVideoProcessor(),
        image_seq_length=4,
    )


def _gemma(kind):
    vision = transformers.SiglipVisionConfig(
        **CLIP, image_size=64, vision_use_head=False, projection_dim=32
    )
    if kind == "gemma3":
        text = transformers.Gemma3TextConfig(**TEXT, sliding_window=16, query_pre_attn_scalar=8)
        config = transformers.Gemma3Config(
            text_config=text, vision_config=vision, mm_tokens_per_image=16, image_token_index=4,
            boi_token_index=8, eoi_token_index=9,
        )  # fmt: skip
        images = transformers.Gemma3ImageProcessor(size={"height": 64, "width": 64})
        return config, transformers.Gemma3Processor(images, tokenizer(), image_seq_length=16)
    text = transformers.Gemma2Config(**TEXT, sliding_window=16, query_pre_attn_scalar=8)
    config = transformers.PaliGemmaConfig(
        text_config=text, vision_config=vision, image_token_index=4, projection_dim=32
    )
    images = transformers.SiglipImageProcessor(size={"height": 64, "width": 64})
    images.image_seq_length = 64
    words = tokenizer()
    processor = transformers.PaliGemmaProcessor(images, words)
    config.text_config.vocab_size = len(words)
    return config, processor


def _idefics(kind):
    vision = dict(**CLIP, image_size=32)
    text = transformers.LlamaConfig(**TEXT)
    cls = transformers.Idefics3Config if kind == "idefics3" else transformers.SmolVLMConfig
    config = cls(
        text_config=text, vision_config=vision, image_token_id=4, scale_factor=2, pad_token_id=0
    )
    images = transformers.Idefics3ImageProcessor(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
    )
    return config, transformers.Idefics3Processor(images, tokenizer(), image_seq_len=4)


def _florence(kind):
    vision = dict(
        depths=(1, 1), embed_dim=(8, 16), num_heads=(2, 2), num_groups=(2, 2), window_size=4,
        patch_size=(7, 3), patch_stride=(4, 2), patch_padding=(3, 1), patch_prenorm=(False, True),
        projection_dim=32, max_position_embeddings=16,
    )  # fmt: skip
    text = dict(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=80,
        max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=2, forced_eos_token_id=None, forced_bos_token_id=None,
    )  # fmt: skip
    config = transformers.Florence2Config(
        text_config=text, vision_config=vision, image_token_id=4, is_encoder_decoder=True
    )
    images = transformers.CLIPImageProcessor(
        size={"height": 48, "width": 48}, do_center_crop=False, resample=3
    )
    images.image_seq_length = 37
    return config, transformers.Florence2Processor(images, tokenizer())


_BUILDERS = {
    "llava": _llava, "llava_next": _llava, "llava_onevision": _llava, "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen, "qwen3_vl": _qwen, "internvl": _internvl, "gemma3": _gemma,
    "paligemma": _gemma, "idefics3": _idefics, "smolvlm": _idefics, "florence2": _florence,
}  # fmt: skip


def fresh(kind):
    """(model, processor) of a kind, random but the same each time."""
    torch.manual_seed(0)
    config, processor = _BUILDERS[kind](kind)
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 or not parameter.abs().sum():
                parameter.normal_(std=0.3 / max(1, parameter.shape[-1]) ** 0.25)
    # A random model must not end its answer early.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model, processor


@functools.cache
def tiny(kind):
    """`fresh`, made once; leave it unchanged."""
    return fresh(kind)


def clip_of(llava, **text):
    """(CLIPModel, tokenizer) whose vision half is the tower of a LLaVA."""
    torch.manual_seed(1)
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    sizes |= dict(vocab_size=80, max_position_embeddings=12)
    sizes |= dict(eos_token_id=2, bos_token_id=1, pad_token_id=0)
    config = transformers.CLIPConfig(
        text_config=sizes | text,
        vision_config=llava.config.vision_config.to_dict(),
        projection_dim=12,
    )
    clip = transformers.CLIPModel(config).eval()
    clip.vision_model.load_state_dict(llava.model.vision_tower.state_dict())
    return clip, tokenizer()


def plain(kind, images, prompts):
    """What the processor makes of pictures (flat, one list a prompt where it wants that)."""
    _, processor = tiny(kind)
    from PIL import Image

    images = [[Image.fromarray(p) for p in row] for row in images]
    if kind not in ("gemma3", "idefics3", "smolvlm"):
        images = [p for row in images for p in row]
    side = {} if kind == "florence2" else {"padding_side": "left"}
    return processor(images=images, text=prompts, return_tensors="pt", padding=True, **side)


def logits(model, inputs, steps=3, **more):
    """(steps, B, V) raw logits of each step that generate takes."""
    more = dict(max_new_tokens=steps, do_sample=False) | more
    out = model.generate(**inputs, output_logits=True, return_dict_in_generate=True, **more)
    return torch.stack(out.logits)
