"""Stage "language": projector, LLaMA and [SEG] head learn from referring expressions.

The dual encoder and the SAM part are frozen, and all image tokens are given: pruning stays
training-free. Several expressions of a picture share one image prefix (each turn sees the prefix
and itself only), so that one pass over the expensive image tokens pays for eight answers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from litelvlm.nano.scenes import names
from litelvlm.nano.train.common import (
    Run,
    autocast,
    optimisers,
    rank_and_world,
    seed_everything,
    to_device,
)
from litelvlm.nano.train.frozen import Frozen, load_frozen
from litelvlm.nano.train.grounder import Grounder
from litelvlm.nano.train.language_batches import LanguageBatches
from litelvlm.nano.train.recipe import Recipe
from litelvlm.nano.train.start import start_from_head, start_from_prompt
from litelvlm.nano.train.tokens import PromptTokens


def train_language(
    recipe: Recipe,
    folder: Path,
    device: str = "cpu",
    resume: bool = False,
    probe: Callable[[Grounder, Frozen], dict[str, float]] | None = None,
    limit: int | None = None,
) -> Grounder:
    """Train the grounding part; the checkpoint `language.pt` holds `grounder`
    and the tuned `decoder`."""
    seed_everything(recipe.seed)
    plan = recipe.language_plan
    frozen = load_frozen(recipe, folder, device)
    tokenizer = folder / "tokenizer.json"
    tokens = PromptTokens(tokenizer)
    grounder = Grounder(recipe, tokens, list(names())).to(device)
    trained = optimisers([grounder], plan.lr, plan.decay, plan.muon)
    # The mask decoder is tuned gently near the end; its image encoder never.
    decoder = frozen.sam.mask_decoder
    trained[0].add_param_group(
        {"params": list(decoder.parameters()), "weight_decay": 0.0, "scale": plan.decoder}
    )
    modules = {"grounder": grounder, "decoder": decoder}
    run = Run(folder, "language", modules, trained, plan.steps, plan.lr, plan.warmup)
    resumed = resume and run.resume()
    world = rank_and_world()[1]
    batches = LanguageBatches(
        phases=tuple((first * world, scenes, count) for first, scenes, count in plan.phases),
        turns=plan.turns,
        length=plan.length,
        tokenizer=tokenizer,
        sam_side=recipe.segmenter["vision_config"]["image_size"],
        seed=recipe.seed + 3 * 10**8,
    )
    if not resumed:
        sample = to_device(batches(0), device)
        start_from_head(grounder, frozen.head, frozen.features(sample, False)[0])
        start_from_prompt(grounder, frozen.prompt)

    def learn(batch: dict[str, Any]) -> Tensor:
        masks = run.step >= plan.masks_from
        decoder.requires_grad_(run.step >= plan.decoder_from)
        with autocast(device, recipe.bf16):
            patches, embedding = frozen.features(batch, masks)
            out = grounder.losses(frozen, patches, embedding, batch, plan)
        run.track(**out)
        return out["loss"]

    check = partial(probe, grounder, frozen) if probe else None
    run.loop(batches, learn, check, device, recipe.workers, plan.probe_every, limit)
    return grounder
