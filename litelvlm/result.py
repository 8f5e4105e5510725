"""The records a user holds: what was found, which tokens were used, what it cost."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from difflib import SequenceMatcher
from typing import Any, ClassVar

import numpy as np

from litelvlm.geometry import MaskFrame, PatchFrame
from litelvlm.metrics import iou
from litelvlm.profiling import StageCost


@dataclass(frozen=True)
class TokenMap:
    """Which of the N patch tokens of one picture entered the language model for one phrase.

    Attributes:
        indices: (K,) int64, patch numbers ascending; merged tokens that stand for no single
            patch are left out.
        reason: (K,) uint8, values of `litelvlm.pruning.Reason`, aligned with `indices`.
        order: (K,) int64, patch numbers in the order in which they entered (-1: merged).
        similarity: (N,) float32, raw dot product of patch and phrase, any sign; None where the
            model offers none. Lowest first is what LiteLVLM ranks.
        context: (N,) float32, context score, highest first; None likewise.
        frame: where the patches lie in the picture.
    """

    indices: np.ndarray
    reason: np.ndarray
    order: np.ndarray
    similarity: np.ndarray | None
    context: np.ndarray | None
    frame: PatchFrame

    def kept(self, *reasons: int) -> np.ndarray:
        """(N,) bool, the patches kept; with `reasons`, only those kept for one of them."""
        chosen = np.isin(self.reason, reasons) if reasons else np.ones(len(self.indices), bool)
        kept = np.zeros(self.frame.count, bool)
        kept[self.indices[chosen]] = True
        return kept

    @property
    def threshold(self) -> float | None:
        """The highest similarity among the tokens kept for low similarity, or None."""
        kept = self.kept(0)
        if self.similarity is None or not kept.any():
            return None
        return float(self.similarity[kept].max())


@dataclass(frozen=True)
class Costs:
    """What one `ground` call cost. None stands for "not measured", never for zero.

    Attributes:
        stages: one entry a stage, in the order of the data flow.
        tokens_total: N, patch tokens of the picture.
        tokens_kept: image tokens that entered the language model, per phrase; for a method that
            prunes inside it: that reached its last layer.
        llm_tokens: length of the longest sequence that entered the language model: text + image.
        weight_bytes: bytes of all weights of the model.
        kv_cache_bytes: bytes of keys and values for `llm_tokens` positions of one phrase, or for
            `layer_tokens` in each layer.
        device: for example "cpu" or "cuda:0 (NVIDIA H200)".
        dtype: for example "float32".
        method: name of the selection method, "none" for the unpruned model.
        layer_tokens: tokens in each language-model layer where a method prunes inside it.
        attention_bytes: attention weights that such a method had to write out, all phrases.
    """

    stages: tuple[StageCost, ...]
    tokens_total: int
    tokens_kept: int
    llm_tokens: int
    weight_bytes: int
    kv_cache_bytes: int
    device: str
    dtype: str
    method: str
    layer_tokens: tuple[int, ...] | None = None
    attention_bytes: int | None = None

    def stage(self, name: str) -> StageCost | None:
        """The entry of one stage, or None if it did not run."""
        return next((cost for cost in self.stages if cost.stage == name), None)

    @property
    def total_ms(self) -> float:
        """Wall time of all stages, milliseconds."""
        return sum(cost.ms for cost in self.stages)

    def __str__(self) -> str:
        head = (
            f"{self.method}: {self.tokens_kept} of {self.tokens_total} image tokens, "
            f"{self.llm_tokens} in the language model · {self.device} · {self.dtype}"
        )
        return "\n".join([head, *(f"  {cost}" for cost in self.stages)])


@dataclass(frozen=True, kw_only=True, repr=False)
class TextResult:
    """The answer for one phrase or question.

    Attributes:
        image: (H, W, 3) uint8, the picture, upright.
        phrase: as given.
        text: the model's answer; in forced mode the answer template.
        token_map: which patches entered for this phrase, and why.
        unknown_words: words of the phrase outside the model's vocabulary, in order; always empty
            for a model with an open vocabulary.
        warnings: short notes for the user, for example that CLIP cut a long phrase.
        costs: of the call that answered, all its phrases together.
    """

    image: np.ndarray
    phrase: str
    text: str
    token_map: TokenMap
    unknown_words: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    costs: Costs | None = None

    measure: ClassVar[str] = "words"  # what `agreement` compares

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.phrase!r}, {self.text!r}, {self._kept})"

    @property
    def selection(self) -> TokenMap:
        """Deprecated spelling of `token_map`; a `Selection` is another type (`pruning`)."""
        warnings.warn("result.selection is called result.token_map", DeprecationWarning, 2)
        return self.token_map

    @property
    def region(self) -> np.ndarray:
        """(H, W) bool, what the answer points at: nothing, where it has no mask."""
        return np.zeros(self.image.shape[:2], bool)

    def agreement(self, other: TextResult) -> float:
        """0..1: the share of words that two answers have in common, in order; of masks the IoU."""
        pair = (self.text.split(), other.text.split())
        return SequenceMatcher(None, *pair, autojunk=False).ratio()

    @property
    def _kept(self) -> str:
        return f"{len(self.token_map.order)} of {self.token_map.frame.count} tokens"

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for `json.dumps`."""
        return {
            "phrase": self.phrase,
            "text": self.text,
            "similarity_tokens": int((self.token_map.reason == 0).sum()),
            "context_tokens": int((self.token_map.reason == 1).sum()),
            "tokens": self.token_map.indices.tolist(),
            "unknown_words": list(self.unknown_words),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True, kw_only=True, repr=False)
class GroundingResult(TextResult):
    """The answer of a model that answers with a mask.

    Attributes:
        mask: (H, W) bool; all False where nothing was found.
        low_res_logits: (h, w) float32, mask logits of SAM's padded square; None without [SEG] and
            for a model that writes outlines.
        mask_frame: brings them onto the picture, see `logits`.
        found: False where the model emitted no [SEG] or the mask is empty.
        quality: the mask branch's own estimate of the mask's IoU, about 0..1; None without [SEG].
        verdict: "found", "unsure" or "not found", by the quality and the model's calibration; None
            for a model without one.
    """

    mask: np.ndarray
    low_res_logits: np.ndarray | None
    mask_frame: MaskFrame | None
    found: bool
    quality: float | None = None
    verdict: str | None = None

    measure: ClassVar[str] = "IoU"

    def __repr__(self) -> str:
        found = f"{self.area_fraction:.1%} of the picture" if self.found else "nothing found"
        return f"GroundingResult({self.phrase!r}, {found}, {self._kept})"

    @property
    def region(self) -> np.ndarray:
        """The mask."""
        return self.mask

    def agreement(self, other: TextResult) -> float:
        """IoU of two masks, 0..1."""
        return iou(self.mask, other.region)

    @property
    def logits(self) -> np.ndarray:
        """(H, W) float32 mask logits on the picture; the mask is `logits > 0`. Infinite without."""
        import torch

        if self.low_res_logits is None or self.mask_frame is None:
            return np.where(self.mask, np.inf, -np.inf).astype(np.float32)
        return self.mask_frame.upscale(torch.from_numpy(self.low_res_logits)[None])[0].numpy()

    @property
    def area_fraction(self) -> float:
        """Share of the picture under the mask, 0..1."""
        return float(self.mask.mean())

    @property
    def mask_rle(self) -> dict[str, Any]:
        """The mask as COCO run-length encoding: {"size": [H, W], "counts": str}."""
        return _rle(self.mask)

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for `json.dumps`; the mask as COCO RLE."""
        own = {
            "found": self.found,
            "quality": self.quality,
            "verdict": self.verdict,
            "mask_rle": self.mask_rle,
            "area_fraction": self.area_fraction,
        }
        return super().to_json() | own


@dataclass(frozen=True, kw_only=True, repr=False)
class ClipResult(TextResult):
    """The answer for one phrase about a clip.

    Attributes:
        image: (H, W, 3) uint8, its first frame; `token_map` is of it too.
        frames: (T, H, W, 3) uint8, the clip.
        masks: (T, H, W) bool, frame by frame; all False where nothing was found.
        token_maps: of the key frames, the first of the clip.
        quality: the least of the mask branch's own estimates of the masks' IoU in the key frames;
            None without [SEG].
    """

    frames: np.ndarray
    masks: np.ndarray
    token_maps: tuple[TokenMap, ...]
    quality: float | None = None

    measure: ClassVar[str] = "IoU"

    def __repr__(self) -> str:
        seen = f"{int(self.masks.any((1, 2)).sum())} of {len(self.masks)} frames"
        return f"ClipResult({self.phrase!r}, in {seen}, {self._kept} a key frame)"

    @property
    def found(self) -> bool:
        """Whether there is a mask in any frame."""
        return bool(self.masks.any())

    @property
    def region(self) -> np.ndarray:
        """The masks."""
        return self.masks

    def agreement(self, other: TextResult) -> float:
        """IoU of two masks through all frames, 0..1."""
        return iou(self.masks, other.region)

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for `json.dumps`; a mask in COCO RLE each frame, tokens a key frame."""
        return super().to_json() | {
            "found": self.found,
            "quality": self.quality,
            "tokens": [tokens.indices.tolist() for tokens in self.token_maps],
            "frames": [
                {"area_fraction": float(mask.mean()), "mask_rle": _rle(mask)} for mask in self.masks
            ],
        }


def _rle(mask: np.ndarray) -> dict[str, Any]:
    """A mask as COCO run-length encoding: {"size": [H, W], "counts": str}."""
    from pycocotools import mask as coco

    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


@dataclass(frozen=True, repr=False)
class GroundingResults(Sequence[Any]):
    """The answers to all phrases of one call, in order, with the cost of the call.

    Attributes:
        items: one a phrase: `GroundingResult`s, or `TextResult`s of a model without masks.
        costs: of the whole call, all phrases together.
        settings: how it was asked: method, budget, split, order, positions, context, text, mode.
        model: name of the model that answered.
    """

    items: tuple[TextResult, ...]
    costs: Costs
    settings: dict[str, Any] = field(default_factory=dict)
    model: str = ""

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def __repr__(self) -> str:
        kept = f"{self.costs.tokens_kept} of {self.costs.tokens_total} tokens"
        return f"GroundingResults({len(self.items)} answers by {self.model!r}, {kept})"

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for `json.dumps`; masks as COCO RLE."""
        costs = self.costs
        names = ("tokens_total", "tokens_kept", "llm_tokens", "weight_bytes", "kv_cache_bytes")
        return {
            "model": self.model,
            "device": costs.device,
            "dtype": costs.dtype,
            "settings": self.settings,
            **{name: getattr(costs, name) for name in names},
            "results": [item.to_json() for item in self.items],
            "costs": [asdict(cost) for cost in costs.stages],
        }
