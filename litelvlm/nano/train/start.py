"""Where the language model starts: the projector from the dual encoder's dense head, the [SEG]
head from the prompt tokens of the mask branch.

The dense head reads class, colour, place and box of what lies under a patch out of H, linearly.
Its rows make up the first layer of the projector, so that image tokens carry these facts from
the first step on, and the words of classes and colours start where the projector puts them. With
attention that starts as content matching, a word then attends to the patches it names. Nothing
is frozen: training moves everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from litelvlm.nano.sprites import COLOURS

if TYPE_CHECKING:
    from litelvlm.nano.train.clip import DenseHead
    from litelvlm.nano.train.grounder import Grounder
    from litelvlm.nano.train.masks import PromptToken

WORD = 0.1  # deviation of a word vector's entries


@torch.no_grad()
def start_from_head(grounder: Grounder, head: DenseHead, patches: Tensor) -> None:
    """Set projector and word vectors in place; `patches`, (B, N, W), is a sample of H."""
    first, second = grounder.projector[0], grounder.projector[2]
    hidden = first.out_features
    rows = patches.reshape(-1, patches.shape[-1]).float()
    named = head(rows[None])[0][0].argmax(-1) > 0
    # The head's norm, unfolded with the usual spread of a token that shows a thing:
    # facts = rows @ matrix.T + bias.
    spread = rows[named if named.any() else slice(None)].std(-1).median()
    gain = head.linear.weight * head.norm.weight / spread
    matrix = gain - gain.mean(1, keepdim=True)
    bias = head.linear.weight @ head.norm.bias + head.linear.bias
    classes, colours = head.sizes[0], head.sizes[1]
    facts = rows @ matrix.T + bias
    kind = facts[:, :classes]
    top = kind.max(-1).values
    on = named
    low = kind.flatten()[:: max(1, kind.numel() // 10**6)].quantile(0.985)
    high = top[on].mean() if on.any() else top.mean()
    scale = 3.0 / (high - low).clamp(min=1e-3)
    weights = [matrix[:classes] * scale]
    shifts = [(bias[:classes] - low) * scale]
    paint = facts[:, classes : classes + colours]
    middle, wide = paint.mean(), paint.std().clamp(min=1e-3)
    weights.append(matrix[classes : classes + colours] / wide)
    shifts.append((bias[classes : classes + colours] - middle) / wide)

    # Corners of the thing's box and the patch's place, each with both signs, in -2..2.
    edge, place = matrix[-6:-2] * (100 / 336), matrix[-2:]
    edge_b, place_b = bias[-6:-2] * (100 / 336), bias[-2:]
    corner, corner_b = edge + place.repeat(2, 1), edge_b + place_b.repeat(2)
    both = torch.cat([corner, place])
    both_b = torch.cat([corner_b, place_b])
    weights += [4 * both, -4 * both]
    shifts += [4 * both_b - 2, 2 - 4 * both_b]
    # Steps along the centre of the box: left of, right of, above, below a line.
    centre = (corner[:2] + corner[2:]) / 2
    centre_b = (corner_b[:2] + corner_b[2:]) / 2
    for line in (0.2, 0.35, 0.5, 0.65, 0.8):
        weights.append(10 * centre)
        shifts.append(10 * (centre_b - line))
    weight, shift = torch.cat(weights), torch.cat(shifts)
    count = min(len(weight), hidden)
    first.weight.mul_(1 / spread)
    first.weight[:count], first.bias[:count] = weight[:count], shift[:count]

    # Facts enter at right angles to each other while there is room: no fact hides another.
    width = second.out_features
    directions = torch.linalg.qr(torch.randn(max(width, count), max(width, count)))[0]
    directions = nn.functional.normalize(directions[:count, :width], dim=-1)
    sizes = torch.full((count,), 4.0)
    sizes[classes:] = 3.0
    sizes[classes + colours + 12 :] = 1.0
    nn.init.normal_(second.weight, std=0.5 * width**-0.5)
    nn.init.zeros_(second.bias)
    second.weight[:, :count] = (directions * sizes[:, None]).T
    words = grounder.llama.model.embed_tokens.weight
    words.normal_(std=WORD)
    ids = [*grounder.words.tolist(), *(grounder.tokens.word(c) for c in COLOURS)]
    for row, word in enumerate(ids[:count]):
        words[word] = directions[row] * WORD * width**0.5


@torch.no_grad()
def start_from_prompt(grounder: Grounder, prompt: PromptToken) -> None:
    """Set the [SEG] head in place: a copy of `prompt.net` behind a fixed read-out.

    `helpers.compass` reads the waves of a box from a few directions of the [SEG] state; a state
    that holds them there gives the prompt token of that box from the first step on.
    """
    first, second = grounder.seg_head[0], grounder.seg_head[2]
    inner = prompt.net[0].out_features
    compass = grounder.helpers.compass
    first.weight[:inner] = prompt.net[0].weight @ compass
    first.bias[:inner] = prompt.net[0].bias
    nn.init.zeros_(second.weight)
    second.weight[:, :inner] = prompt.net[2].weight
    second.bias.copy_(prompt.net[2].bias)
