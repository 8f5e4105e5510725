"""The recipe: sizes, schedules and scene mixes of each training stage, per scale."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from litelvlm.errors import unknown
from litelvlm.models.names import CLIP_MEAN, CLIP_STD
from litelvlm.nano.scenes import SceneRecipe


@dataclass(frozen=True)
class PicturePlan:
    """A stage on pictures: batches of half-size ones up to step `switch`, of full ones after it."""

    steps: int
    switch: int
    batch: int
    batch_full: int
    lr: float
    small: SceneRecipe
    full: SceneRecipe
    warmup: int = 200
    decay: float = 0.05
    muon: float = 6.0  # rate of Muon's matrices in units of lr; see train/common.py
    probe_every: int = 500


@dataclass(frozen=True)
class ClipPlan(PicturePlan):
    """Stage "clip"."""

    texts: int = 4  # per picture: the caption and three phrases
    dense: float = 1.0  # weight of the dense head
    edges: float = 5.0  # in it, of the box of what lies under a patch
    places: float = 10.0  # in it, of the patch's own place
    reversal: float = 2.0  # weight of the hinge that keeps the reversal; see train/clip.py
    margin: float = 0.15  # of cosine


@dataclass(frozen=True)
class MaskPlan(PicturePlan):
    """Stage "masks"."""

    prompts: int = 4  # per picture
    noise: float = 0.25  # of a prompt token's own deviation: [SEG] tokens never hit exactly


@dataclass(frozen=True)
class LanguagePlan:
    """Stage "language".

    Attributes:
        phases: (first step, scenes, scenes per batch), easy to hard.
        turns: expressions per picture; masked: those of them whose masks are drawn; length:
            tokens per turn.
        masks_from: step from which masks are asked of the model.
        decoder_from: step from which the mask decoder learns too, at `decoder` times the rate.
        text, name, place, spot, wave, point, ask, attend, box, token, mask, quality: weights of
            the losses.
    """

    steps: int
    lr: float
    phases: tuple[tuple[int, SceneRecipe, int], ...]
    masks_from: int
    decoder_from: int
    decoder: float = 0.3
    turns: int = 16
    masked: int = 8
    length: int = 32
    vocabulary: int = 2048
    warmup: int = 200
    decay: float = 0.05
    muon: float = 1.5  # more destroys what the projector starts with
    text: float = 0.3
    name: float = 2.0
    place: float = 1.0
    spot: float = 4.0
    wave: float = 8.0
    point: float = 0.5
    ask: float = 1.0
    attend: float = 1.0
    box: float = 1.0
    token: float = 1.0
    mask: float = 2.0
    quality: float = 0.0  # of the mask branch's estimate, which is to be 0 of what is missing
    probe_every: int = 500


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a training run but the machine."""

    scale: str
    dual_encoder: dict[str, Any]
    segmenter: dict[str, Any]
    language: dict[str, Any]
    clip: ClipPlan
    masks: MaskPlan
    language_plan: LanguagePlan
    seed: int = 1
    bf16: bool = True
    workers: int = 1


def _dual_encoder(width: int, layers: int, text_width: int, text_layers: int) -> dict[str, Any]:
    return {
        "embed_dim": 128,
        "vision_cfg": {
            "layers": layers,
            "width": width,
            "head_width": 64,
            "patch_size": 14,
            "image_size": 336,
            # The mean over patches makes low similarity mark the referent; see train/clip.py.
            "pool_type": "avg",
        },
        "text_cfg": {
            "context_length": 32,
            "vocab_size": 49408,
            "width": text_width,
            "heads": text_width // 64,
            "layers": text_layers,
        },
        "quick_gelu": False,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }


def _segmenter(width: int, layers: int, prompt: int) -> dict[str, Any]:
    return {
        "vision_config": {
            "hidden_size": width,
            "output_channels": prompt,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 32,
            "image_size": 320,
            "patch_size": 16,
            "use_rel_pos": False,
            "window_size": 10,
            "global_attn_indexes": [layers // 2, layers - 1],
            "num_pos_feats": prompt // 2,
            "mlp_ratio": 4.0,
            "initializer_range": 0.02,
        },
        "prompt_encoder_config": {
            "hidden_size": prompt,
            "image_size": 320,
            "patch_size": 16,
            "mask_input_channels": 4,
        },
        "mask_decoder_config": {
            "hidden_size": prompt,
            "mlp_dim": 2 * prompt,
            "num_attention_heads": 4,
            "num_multimask_outputs": 1,
            "iou_head_hidden_dim": 64,
            "layer_norm_eps": 1e-5,
        },
    }


def _language(width: int, layers: int, inner: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        # A long period keeps attention by content alive over 576 image tokens.
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    }


# Half-size pictures show things at the pixel scale that full pictures have after letterboxing.
_HALF = SceneRecipe(
    canvas=(168, 168), objects=(1, 5), object_px=(26, 130), expressions=6, none=0.0, repaint=0.5
)
_HALF_MASKS = replace(_HALF, expressions=0)
_FULL = SceneRecipe(expressions=6, none=0.0, typos=0.0, repaint=0.5)
_FULL_MASKS = replace(_FULL, expressions=0)
_LANGUAGE = SceneRecipe(expressions=20, none=0.0, several=0.0, repaint=0.35)
_EASY = SceneRecipe(
    canvas=(168, 168),
    objects=(1, 3),
    object_px=(30, 110),
    level=1,
    expressions=12,
    none=0.0,
    several=0.0,
)
_HARD = replace(_EASY, objects=(1, 6), object_px=(24, 100), level=3)


def recipe(scale: str) -> Recipe:
    """The recipe of a scale. All but "tiny" make the same architecture.

    "tiny" is for tests, seconds; "small" for 2 CPU cores, about six hours; "full" for a
    GPU, hours.

    Raises:
        InputError: unknown scale.
    """
    if scale == "tiny":
        return Recipe(
            scale="tiny",
            dual_encoder=_dual_encoder(64, 3, 64, 1),
            segmenter=_segmenter(64, 2, 32),
            language=_language(64, 2, 128),
            clip=ClipPlan(40, 36, 8, 2, 1e-3, _HALF, _FULL, warmup=5, probe_every=10**6),
            masks=MaskPlan(40, 36, 8, 2, 1e-3, _HALF_MASKS, _FULL_MASKS, warmup=5),
            language_plan=LanguagePlan(
                30,
                1e-3,
                ((0, _EASY, 4), (26, _LANGUAGE, 2)),
                masks_from=20,
                decoder_from=26,
                turns=4,
                vocabulary=600,
                warmup=5,
                length=40,
            ),
            workers=0,
        )
    if scale == "small":
        return Recipe(
            scale="small",
            dual_encoder=_dual_encoder(192, 7, 128, 3),
            segmenter=_segmenter(160, 5, 128),
            language=_language(256, 6, 704),
            clip=ClipPlan(9000, 8200, 32, 12, 1e-3, _HALF, _FULL),
            masks=MaskPlan(9800, 5000, 12, 6, 1e-3, _HALF_MASKS, _FULL_MASKS),
            language_plan=LanguagePlan(
                12600,
                1e-3,
                ((0, _EASY, 6), (150, _HARD, 6), (1800, _LANGUAGE, 3)),
                masks_from=900,
                decoder_from=5200,
                warmup=100,
                probe_every=1000,
            ),
            workers=0,
        )
    if scale == "full":
        small = recipe("small")
        return replace(
            small,
            scale="full",
            clip=ClipPlan(20000, 14000, 256, 96, 1e-3, _HALF, _FULL, warmup=1000),
            masks=MaskPlan(16000, 12000, 128, 48, 8e-4, _HALF_MASKS, _FULL_MASKS, warmup=1000),
            language_plan=LanguagePlan(
                40000,
                6e-4,
                ((0, _EASY, 64), (3000, _HARD, 64), (9000, _LANGUAGE, 32)),
                masks_from=6000,
                decoder_from=34000,
                warmup=1000,
            ),
            workers=12,
        )
    raise unknown("scale", scale, ("tiny", "small", "full"))
