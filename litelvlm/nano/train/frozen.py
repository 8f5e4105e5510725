"""The dual encoder and the SAM part, frozen, as the stage "language" reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from litelvlm.nano.sprites import COLOURS
from litelvlm.nano.train import clip as clip_stage
from litelvlm.nano.train import masks as mask_stage
from litelvlm.nano.train.builders import build_dual_encoder, build_segmenter
from litelvlm.nano.train.common import read_checkpoint
from litelvlm.nano.train.recipe import Recipe
from litelvlm.nano.train.targets import clip_pixels, sam_pixels


@dataclass
class Frozen:
    """The frozen parts that the language stage reads from."""

    clip: Any
    sam: Any
    prompt: Any
    head: Any = None

    @torch.no_grad()
    def features(self, batch: dict[str, Any], masks: bool) -> tuple[Tensor, Tensor | None]:
        """H (B, N, W) and, where asked for, the SAM part's embedding (B, C, h, w)."""
        pixels = clip_pixels(batch["images"])
        patches, _ = clip_stage.patch_features(self.clip.visual, pixels, batch["window"])
        if not masks:
            return patches.float(), None
        frames = sam_pixels(batch["frames"])
        return patches.float(), mask_stage.encode(self.sam, frames, batch["sam_window"])


def load_frozen(recipe: Recipe, folder: Path, device: str) -> Frozen:
    """The dual encoder and SAM part from the checkpoints of the first two stages."""
    clip = build_dual_encoder(recipe.dual_encoder)
    trained = read_checkpoint(folder / "clip.pt")["modules"]
    clip.load_state_dict(trained["clip"])
    rows = len(trained["head"]["linear.weight"])
    width = recipe.dual_encoder["vision_cfg"]["width"]
    head = clip_stage.DenseHead(width, rows - len(COLOURS) - 7)
    head.load_state_dict(trained["head"])
    sam = build_segmenter(recipe.segmenter)
    prompt = mask_stage.PromptToken(recipe.segmenter["prompt_encoder_config"]["hidden_size"])
    trained = read_checkpoint(folder / "masks.pt")["modules"]
    sam.load_state_dict(trained["sam"])
    prompt.load_state_dict(trained["prompt"])
    for module in (clip, sam, prompt, head):
        module.to(device).eval().requires_grad_(False)
    return Frozen(clip, sam, prompt, head)
