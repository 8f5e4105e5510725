"""From a model's reply to the records a user holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from litelvlm.families.base import Answer, Family, Reply
from litelvlm.profiling import StageCost
from litelvlm.pruning import Selection
from litelvlm.question import Question
from litelvlm.result import Costs, GroundingResult, GroundingResults, TextResult, TokenMap
from litelvlm.scene import EncodedImage
from litelvlm.selecting import token_map


def record(
    family: Family,
    scene: EncodedImage,
    asked: Question,
    selection: Selection | None,
    reply: Reply,
    stages: tuple[StageCost, ...],
    weight_bytes: int,
) -> GroundingResults:
    """The answers to a settled question about one picture, with their token maps and the cost.

    Args:
        family: the model that answered.
        scene: the picture.
        asked: the question.
        selection: of the tokens, made before the language model; None where none was.
        reply: what the model said.
        stages: what each step cost.
        weight_bytes: of the whole model.
    """
    costs = _costs(family, scene, asked, selection, reply, stages, weight_bytes)
    items = []
    for index, answer in enumerate(reply.answers):
        row, phrase = (0, index) if asked.joint else (index, 0)
        kept = None if reply.inside is None else reply.inside.kept[row]
        tokens = token_map(scene.frame, selection, row, phrase, kept)
        items.append(_result(family, scene, asked, index, answer, tokens, costs))
    settings = asked.settings(scene.count, scene.frame.view)
    scored = asked.budget != scene.count and bool(asked.rule.needs)
    settings["scores"] = family.scorer if scored else "none"
    return GroundingResults(tuple(items), costs, settings, family.name)


def _result(
    family: Family,
    scene: EncodedImage,
    asked: Question,
    index: int,
    answer: Answer,
    tokens: TokenMap,
    costs: Costs,
) -> TextResult:
    phrase = asked.phrases[index]
    read = asked.budget != scene.count and "similarity" in asked.rule.needs
    common: dict[str, Any] = {
        "image": scene.image,
        "phrase": phrase,
        "text": answer.text,
        "token_map": tokens,
        "unknown_words": family.unknown_words(phrase),
        "warnings": family.text_warnings(phrase, str(asked.text)) if read else (),
        "costs": costs,
    }
    if not family.capabilities.masks:
        return TextResult(**common)
    empty = np.zeros(scene.frame.image_hw, bool)
    mask = empty if answer.mask is None else answer.mask.cpu().numpy()
    return GroundingResult(
        **common,
        mask=mask,
        low_res_logits=None if answer.logits is None else answer.logits.cpu().numpy(),
        mask_frame=None if scene.segmenter is None else scene.segmenter.frame,
        found=bool(mask.any()),
        quality=answer.quality,
        verdict=_verdict(family.confidence, bool(mask.any()), answer.quality),
    )


def _verdict(least: dict[str, float] | None, found: bool, quality: float | None) -> str | None:
    if least is None:
        return None
    if not found or quality is None or quality < least["unsure"]:
        return "not found"
    return "found" if quality >= least["found"] else "unsure"


def _costs(
    family: Family,
    scene: EncodedImage,
    asked: Question,
    selection: Selection | None,
    reply: Reply,
    stages: tuple[StageCost, ...],
    weight_bytes: int,
) -> Costs:
    inside = reply.inside
    kept = scene.count if selection is None else selection.indices.shape[1]
    layers = (reply.llm_tokens,) if inside is None else inside.layer_tokens
    device = str(family.device)
    if family.device.type == "cuda":
        device += f" ({torch.cuda.get_device_name(family.device)})"
    return Costs(
        stages=stages,
        tokens_total=scene.count,
        tokens_kept=kept if inside is None else inside.kept.shape[1],
        llm_tokens=reply.llm_tokens,
        weight_bytes=weight_bytes,
        # Every layer holds keys and values of the tokens it was given.
        kv_cache_bytes=family.kv_bytes_per_token * sum(layers) // len(layers),
        device=device,
        dtype=str(family.dtype).removeprefix("torch."),
        method="none" if asked.budget == scene.count else asked.method,
        layer_tokens=None if inside is None else inside.layer_tokens,
        attention_bytes=None if inside is None else inside.attention_bytes,
    )
