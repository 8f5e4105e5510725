"""GLaMM's files: its original checkpoints, its published and toy sizes, its tokens and prompt.

The original names are `model.layers...`, `model.mm_projector...`, `model.text_hidden_fcs.0...` and
`model.grounding_encoder...` (SAM's own names); CLIP lies in a repository of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litelvlm.config import FORMAT, ModelConfig, PromptConfig, SelectionConfig
from litelvlm.errors import ModelError
from litelvlm.models.files import ModelSource, folder_beside, index, read_object
from litelvlm.models.names import (
    CLIP_MEAN,
    CLIP_STD,
    COMPUTED,
    Place,
    clip_config,
    place_clip,
    place_ours,
    place_sam,
    sam_config,
    sam_sizes,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The conversation of GLaMM ("llava_v1"); the image sentence's own wording is part of the format.
PROMPT = PromptConfig(
    system=(
        "A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions."
    ),
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


def published_config() -> ModelConfig:
    """GLaMM-RefSeg and its like: CLIP ViT-L/14 at 336 px, Vicuna 7B, SAM ViT-H."""
    return sized_config("glamm-refseg", PROMPT, 336, 4096, 1e-5)


def sized_config(
    name: str,
    prompt: PromptConfig,
    pixels: int,
    length: int,
    eps: float,
    *,
    llama: tuple[int, int, int, int] = (4096, 11008, 32, 32),
    projector: str = "mlp",
) -> ModelConfig:
    """CLIP ViT-L/14, a LLaMA and SAM ViT-H, as published.

    Args:
        name: of the model; `prompt`: its conversation.
        pixels: side of the picture that CLIP sees.
        length: positions of the language model; `eps`: of its norms.
        llama: its width, the perceptron's width, layers and heads; 7B by default.
        projector: see `config.ModelConfig`.
    """
    width, mlp, layers, heads = llama
    return ModelConfig(
        name=name,
        dual_encoder=_clip(
            embed=768,
            vision={"image_size": pixels, "width": 1024, "layers": 24, "head_width": 64},
            text={"width": 768, "heads": 12, "layers": 12},
            mlp_ratio=4.0,
        ),
        # 32000 tokens of LLaMA and 7 added
        language=_llama(32007, width, mlp, layers=layers, heads=heads, length=length)
        | {"rms_norm_eps": eps},
        segmenter=sam_sizes(
            grid=64,
            width=1280,
            depth=32,
            heads=16,
            whole=[7, 15, 23, 31],
            mlp=5120,
            out=256,
            hidden=256,
            frequencies=128,
        ),
        prompt=prompt,
        tokens=_tokens(32000),
        projector=projector,
    )


def toy_config() -> ModelConfig:
    """Every class of the full model at toy size: 8 x 8 patches, 3 LLaMA layers, 256 px SAM."""
    return ModelConfig(
        name="tiny-random",
        dual_encoder=_clip(
            embed=32,
            vision={"image_size": 112, "width": 64, "layers": 4, "head_width": 16},
            text={"width": 48, "heads": 4, "layers": 3},
            mlp_ratio=2.0,
        ),
        language=_llama(320, 64, 160, layers=3, heads=4, length=2048),
        segmenter=sam_sizes(
            grid=16,
            width=32,
            depth=2,
            heads=2,
            whole=[1],
            mlp=128,
            out=32,
            hidden=32,
            frequencies=16,
        ),
        prompt=PROMPT,
        tokens=_tokens(300),
    )


def _clip(
    *, embed: int, vision: dict[str, Any], text: dict[str, Any], mlp_ratio: float
) -> dict[str, Any]:
    """The `dual_encoder` part: a CLIP of OpenAI's kind, 14-pixel patches."""
    return {
        "embed_dim": embed,
        "vision_cfg": {"patch_size": 14, "mlp_ratio": mlp_ratio, **vision},
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "mlp_ratio": mlp_ratio,
            **text,
        },
        "quick_gelu": True,  # OpenAI's weights demand it
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }


def _llama(
    vocabulary: int, width: int, mlp: int, *, layers: int, heads: int, length: int
) -> dict[str, Any]:
    """The `language` part: LLaMA as Vicuna has it."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": length,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def recognises(raw: dict[str, Any]) -> bool:
    """Whether a config.json is of this family, in our layout or in the original one."""
    return raw.get("format") == FORMAT or "mm_vision_tower" in raw


# Relatives whose config.json looks like GLaMM's: class -> why they do not load.
_REFUSED = {
    "PixelLMForCausalLM": "PixelLM, whose mask decoder is its own",
}


def open_folder(folder: Path, raw: dict[str, Any], tower: str | Path | None) -> ModelSource:
    """Open a model folder whose config.json is recognised.

    Args:
        folder: holds config.json, the weights and the tokenizer.
        raw: the parsed config.json.
        tower: folder or hub id of the dual encoder for the original layout, whose files lack it;
            None takes `mm_vision_tower` of its config.json.

    Raises:
        ModelError: naming the file and the fault.
    """
    if raw.get("format") == FORMAT:
        entries, ignored = index([(folder, place_ours)])
        config = ModelConfig.from_json(folder / "config.json")
        return ModelSource(config, folder, FORMAT, entries, ignored)
    return open_original(folder, raw, tower, place_glamm, PROMPT, "glamm")


def open_original(
    folder: Path,
    raw: dict[str, Any],
    tower: str | Path | None,
    place: Callable[[str], Place | None],
    prompt: PromptConfig,
    layout: str,
) -> ModelSource:
    """Open a checkpoint in the layout that GLaMM took over from LLaVA and LISA.

    Args:
        folder: holds config.json, the weights, added_tokens.json and the tokenizer.
        raw: the parsed config.json.
        tower: as for `open_folder`.
        place: where each tensor goes.
        prompt: the conversation of the family.
        layout: name of it.

    Raises:
        ModelError: naming the file and the fault.
    """
    for kind in raw.get("architectures") or ():
        if kind in _REFUSED:
            raise ModelError(f"{folder / 'config.json'}: a model of {_REFUSED[kind]}")
    clip = folder_beside(folder, tower or raw["mm_vision_tower"])
    # The checkpoint comes second: where it repeats the tower, its own values count.
    entries, ignored = index([(clip, place_clip), (folder, place)])
    shapes = {name: entry.shape for name, entry in entries.items()}
    if not any(name.startswith("segmenter.") for name in shapes):
        raise ModelError(
            f"{folder}: {layout} without a mask branch; a variant that only writes does not load"
        )
    preprocessor = clip / "preprocessor_config.json"
    added = read_object(folder / "added_tokens.json")
    try:
        dual = clip_config(
            read_object(clip / "config.json"),
            read_object(preprocessor) if preprocessor.is_file() else None,
        )
        segmenter = sam_config(shapes)
        vocabulary = shapes["language.model.embed_tokens.weight"][0]
    except KeyError as fault:
        raise ModelError(f"{folder}: the weights lack {fault}") from None
    except ValueError as fault:
        raise ModelError(f"{clip / 'config.json'}: {fault}") from None
    tokens = {key: added[text] for key, text in TOKEN_TEXTS.items() if text in added}
    if "seg" not in tokens or "im_start" not in tokens or "im_end" not in tokens:
        raise ModelError(
            f"{folder / 'added_tokens.json'}: [SEG], <im_start> or <im_end> is missing"
        )
    pad = raw.get("pad_token_id")
    tokens |= {
        "pad": pad if isinstance(pad, int) and pad >= 0 else 0,  # -1 stands for none at times
        "bos": raw.get("bos_token_id", 1),
        "eos": raw.get("eos_token_id", 2),
    }
    if max(tokens.values()) >= vocabulary:
        raise ModelError(f"{folder}: token id {max(tokens.values())} >= vocabulary {vocabulary}")
    language = language_config(folder, raw, tokens, vocabulary)
    config = ModelConfig(
        name=folder.name,
        dual_encoder=dual,
        language=language,
        segmenter=segmenter,
        prompt=prompt,
        tokens=tokens,
        selection=SelectionConfig(),
        projector="linear" if "projector.weight" in shapes else "mlp",
    )
    return ModelSource(config, folder, layout, entries, ignored)


def language_config(
    folder: Path, raw: Mapping[str, Any], tokens: dict[str, int], vocabulary: int
) -> dict[str, Any]:
    """The `language` part from config.json, or `ModelError` naming a setting that it lacks."""
    for setting in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        if not isinstance(raw.get(setting), int):
            raise ModelError(f"{folder / 'config.json'}: {setting} is {raw.get(setting)!r}")
    heads = raw["num_attention_heads"]
    language = _llama(
        vocabulary,  # config.json files of fine-tuned models often forget the added
        raw["hidden_size"],
        raw["intermediate_size"],
        layers=raw["num_hidden_layers"],
        heads=heads,
        length=raw.get("max_position_embeddings", 2048),
    )
    return language | {
        "num_key_value_heads": raw.get("num_key_value_heads") or heads,
        "rms_norm_eps": raw.get("rms_norm_eps", 1e-6),
        "rope_theta": raw.get("rope_theta") or 10000.0,
        "hidden_act": raw.get("hidden_act", "silu"),
        "tie_word_embeddings": bool(raw.get("tie_word_embeddings", False)),
        **{f"{name}_token_id": tokens[name] for name in ("bos", "eos", "pad")},
    }


def place_glamm(key: str) -> Place | None:
    """Where a tensor of a GLaMM checkpoint goes; None where it is knowingly left out.

    A name that fits no rule comes back unchanged, so that a strict loader reports it.
    """
    if key.startswith("model.region_encoder.") or COMPUTED.search(key):
        return None
    if key.startswith(("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head.")):
        return Place(f"language.{key}")
    for original, ours in (
        ("model.mm_projector.", "projector."),
        ("model.text_hidden_fcs.0.", "seg_head."),
    ):
        if key.startswith(original):
            return Place(ours + key.removeprefix(original))
    if key.startswith("model.grounding_encoder."):
        return Place(f"segmenter.{place_sam(key.removeprefix('model.grounding_encoder.'))}")
    for tower in ("vision", "text"):
        if key.startswith(f"model.vision_tower.{tower}_tower."):
            return place_clip(key.removeprefix(f"model.vision_tower.{tower}_tower."), tower)
    return Place(key)


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
