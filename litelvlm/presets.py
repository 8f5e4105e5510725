"""The named models: their full configuration, and where their weights come from.

A preset is data. `glamm-refseg` is the published model at full size, `tiny-random` the same classes
at toy size for tests (its weights are drawn at load and mean nothing), `nano` the trained small
model whose folder carries its own config.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from litelvlm.config import ModelConfig, PromptConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Mean and spread of the RGB channels, 0..1 scale, that OpenAI's CLIP was trained with.
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


@dataclass(frozen=True)
class Preset:
    """One named model.

    Attributes:
        note: one line for users.
        config: the configuration; None where the folder's config.json is the only source.
        hub: Hugging Face repository of the weights, None if they are not on the hub.
        clip: Hugging Face repository of the dual encoder where `hub` lacks it.
        folder: name of the folder under the project's assets that holds the model.
        random_only: the model has no trained weights; loading draws them.
    """

    note: str
    config: ModelConfig | None = None
    hub: str | None = None
    clip: str | None = None
    folder: str | None = None
    random_only: bool = False


# The conversation of GLaMM ("llava_v1"); the image sentence's own wording is part of the format.
GLAMM_PROMPT = PromptConfig(
    system=(
        "A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions."
    ),
)


def _glamm_refseg() -> ModelConfig:
    """GLaMM-RefSeg: CLIP ViT-L/14 at 336 px, Vicuna 7B, SAM ViT-H."""
    return ModelConfig(
        name="glamm-refseg",
        dual_encoder={
            "embed_dim": 768,
            "vision_cfg": {
                "image_size": 336,
                "patch_size": 14,
                "width": 1024,
                "layers": 24,
                "head_width": 64,
                "mlp_ratio": 4.0,
            },
            "text_cfg": {
                "context_length": 77,
                "vocab_size": 49408,
                "width": 768,
                "heads": 12,
                "layers": 12,
                "mlp_ratio": 4.0,
            },
            "quick_gelu": True,  # OpenAI's weights demand it
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
        },
        language={
            "vocab_size": 32007,  # 32000 of LLaMA and 7 added
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        segmenter={
            "vision_config": {
                "hidden_size": 1280,
                "num_hidden_layers": 32,
                "num_attention_heads": 16,
                "global_attn_indexes": [7, 15, 23, 31],
                "image_size": 1024,
                "patch_size": 16,
                "window_size": 14,
                "mlp_ratio": 4.0,
                "mlp_dim": 5120,
                "output_channels": 256,
                "num_pos_feats": 128,
                "layer_norm_eps": 1e-6,
            },
            "prompt_encoder_config": {
                "hidden_size": 256,
                "image_size": 1024,
                "patch_size": 16,
                "image_embedding_size": 64,
                "mask_input_channels": 16,
                "layer_norm_eps": 1e-6,
            },
            "mask_decoder_config": {
                "hidden_size": 256,
                "mlp_dim": 2048,
                "num_hidden_layers": 2,
                "num_attention_heads": 8,
                "iou_head_hidden_dim": 256,
                # transformers' default is 1e-6; the two-way blocks were trained with 1e-5.
                "layer_norm_eps": 1e-5,
            },
        },
        prompt=GLAMM_PROMPT,
        tokens=_tokens(32000),
    )


def _tiny_random() -> ModelConfig:
    """Every class of the full model at toy size: 8 x 8 patches, 3 LLaMA layers, 256 px SAM."""
    return ModelConfig(
        name="tiny-random",
        dual_encoder={
            "embed_dim": 32,
            "vision_cfg": {
                "image_size": 112,
                "patch_size": 14,
                "width": 64,
                "layers": 4,
                "head_width": 16,
                "mlp_ratio": 2.0,
            },
            "text_cfg": {
                "context_length": 77,
                "vocab_size": 49408,
                "width": 48,
                "heads": 4,
                "layers": 3,
                "mlp_ratio": 2.0,
            },
            "quick_gelu": True,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
        },
        language={
            "vocab_size": 320,
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        segmenter={
            "vision_config": {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "global_attn_indexes": [1],
                "image_size": 256,
                "patch_size": 16,
                "window_size": 14,
                "mlp_ratio": 4.0,
                "mlp_dim": 128,
                "output_channels": 32,
                "num_pos_feats": 16,
                "layer_norm_eps": 1e-6,
            },
            "prompt_encoder_config": {
                "hidden_size": 32,
                "image_size": 256,
                "patch_size": 16,
                "image_embedding_size": 16,
                "mask_input_channels": 16,
                "layer_norm_eps": 1e-6,
            },
            "mask_decoder_config": {
                "hidden_size": 32,
                "mlp_dim": 2048,
                "num_hidden_layers": 2,
                "num_attention_heads": 8,
                "iou_head_hidden_dim": 256,
                "layer_norm_eps": 1e-5,
            },
        },
        prompt=GLAMM_PROMPT,
        tokens=_tokens(300),
    )


def _tokens(first: int) -> dict[str, int]:
    """Ids of LLaMA's three special tokens and of the seven that GLaMM adds from `first` on."""
    added = ("im_start", "im_end", "bbox", "point", "seg", "p", "p_end")
    return {"pad": 0, "bos": 1, "eos": 2} | {name: first + i for i, name in enumerate(added)}


# The written form of the special tokens in `ModelConfig.tokens`.
TOKEN_TEXTS = {
    "pad": "<unk>",  # GLaMM pads with the unknown token
    "bos": "<s>",
    "eos": "</s>",
    "im_start": "<im_start>",
    "im_end": "<im_end>",
    "bbox": "<bbox>",
    "point": "<point>",
    "seg": "[SEG]",
    "p": "<p>",
    "p_end": "</p>",
}

PRESETS: dict[str, Preset] = {
    "nano": Preset(
        note="small model trained by this project on generated scenes; runs on a laptop CPU",
        folder="nano",
    ),
    "glamm-refseg": Preset(
        note="GLaMM-RefSeg: CLIP ViT-L/14-336, Vicuna 7B, SAM ViT-H; 16.8 GB to download",
        config=_glamm_refseg(),
        hub="MBZUAI/GLaMM-RefSeg",
        clip="openai/clip-vit-large-patch14-336",
    ),
    "tiny-random": Preset(
        note="toy size, random weights: for tests of the machinery, its masks mean nothing",
        config=_tiny_random(),
        random_only=True,
    ),
}

# Joined letter pairs of the toy tokenizer; any choice does, the number fills ids 259..299.
_LETTERS = "thheineranreonatenndtiesorteofedisitalarsttontngsehaasouiolevecomedehiriroicneeara"
_PAIRS = [_LETTERS[at : at + 2] for at in range(0, len(_LETTERS), 2)]


def tiny_tokenizer() -> Tokenizer:
    """The tokenizer of `tiny-random`, built in code: bytes, 41 letter pairs, special tokens.

    Ids: 0 `<unk>`, 1 `<s>`, 2 `</s>`, 3..258 the bytes, 259..299 the pairs, 300..306 GLaMM's own.
    It adds no begin token by itself, and any text comes back from its ids unchanged.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    entries = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *_PAIRS]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    merges = [(pair[0], pair[1]) for pair in _PAIRS]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in TOKEN_TEXTS.values()]
    )
    return tokenizer


def stand_in_tokenizer() -> Tokenizer:
    """A tokenizer for full-size models with random weights, whose cost depends on lengths alone.

    It cuts words into pieces of at most nine letters, which gives about as many tokens as LLaMA's
    own tokenizer (its file comes with the weights): 34 up to "USER:" of GLaMM's prompt, for 35.
    Every piece gets the id of the unknown token.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    pieces = Regex(r"\w{1,9}|[^\w\s]|\n")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="removed", invert=True)
    return tokenizer
