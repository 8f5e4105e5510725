"""Stage "clip": the dual encoder, by its contrastive loss on captions and referring phrases.

Two things are added to the usual recipe, both at training time only:

* a dense head on H (the input of the last block, which is what the language model will read)
  tells the class, the colour and the box of what lies under each patch and where the patch is,
  so that patch features become useful after 10^5 pictures instead of 10^8;
* pictures of half the side are trained on random windows of the position table, at the pixel
  scale of full pictures, which costs a quarter; full pictures follow at the end.

The image embedding is the mean over patches. Background patches then end up carrying the
picture's meaning, and the patches of the object that a phrase names are the LEAST similar to it:
the reversal that low-similarity pruning builds on. `litelvlm.nano.train.probe` measures it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litelvlm.models.prompt import plain
from litelvlm.nano.sprites import COLOURS
from litelvlm.nano.train.builders import build_dual_encoder
from litelvlm.nano.train.common import (
    Run,
    attention,
    autocast,
    optimisers,
    rank_and_world,
    seed_everything,
)
from litelvlm.nano.train.targets import IGNORE, chw, clip_pixels, patch_targets, squared, stacked

if TYPE_CHECKING:
    from litelvlm.nano.scenes import SceneRecipe
    from litelvlm.nano.train.recipe import Recipe


def block(layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """One open_clip residual attention block, (B, L, W) -> same, with the faster attention."""
    a = layer.attn
    b, n, w = x.shape
    qkv = F.linear(layer.ln_1(x), a.in_proj_weight, a.in_proj_bias)
    q, k, v = qkv.view(b, n, 3, a.num_heads, w // a.num_heads).permute(2, 0, 3, 1, 4)
    mixed = attention(q, k, v, bias).transpose(1, 2).reshape(b, n, w)
    x = x + layer.ls_1(a.out_proj(mixed))
    return x + layer.ls_2(layer.mlp(layer.ln_2(x)))


def patch_features(
    visual: nn.Module, pixels: Tensor, window: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The patch tokens H, and the image embedding.

    Args:
        visual: open_clip's image tower.
        pixels: (B, 3, h, w), normalised.
        window: (B, 2) int64, row and column of the picture's first patch in the position table;
            None for pictures of the full size.

    Returns:
        H, (B, N, W) without the class token, and the mean-pooled embedding, (B, E).
    """
    x = visual.conv1(pixels)
    rows, cols = x.shape[-2:]
    table = visual.positional_embedding
    side = visual.grid_size[1]
    grid = torch.arange(rows, device=x.device)[:, None] * side
    grid = (grid + torch.arange(cols, device=x.device)).flatten()[None]
    if window is not None:
        grid = grid + (window[:, 0] * side + window[:, 1])[:, None]
    x = x.flatten(2).transpose(1, 2) + table[1:][grid]
    first = (visual.class_embedding + table[0]).expand(len(x), 1, -1)
    x = visual.ln_pre(torch.cat([first.to(x.dtype), x], 1))
    blocks = visual.transformer.resblocks
    for layer in blocks[:-1]:
        x = block(layer, x)
    pooled = visual.ln_post(block(blocks[-1], x))[:, 1:].mean(1) @ visual.proj
    return x[:, 1:], pooled


def text_features(clip: nn.Module, ids: Tensor) -> Tensor:
    """Text embeddings, not normalised, as `clip.encode_text` gives them.

    The text tower is causal and reads the end-of-text state, so the columns after the longest text
    need not run.

    Args:
        clip: the dual encoder.
        ids: (T, context) int64.

    Returns:
        (T, E).
    """
    end = ids.argmax(-1)
    length = int(end.max()) + 1
    x = clip.token_embedding(ids[:, :length]) + clip.positional_embedding[:length]
    bias = torch.full((length, length), -1e4, device=ids.device).triu(1)
    for layer in clip.transformer.resblocks:
        x = block(layer, x, bias)
    return clip.ln_final(x[torch.arange(len(x), device=ids.device), end]) @ clip.text_projection


def projected(visual: nn.Module, patches: Tensor) -> Tensor:
    """Patch tokens in the shared space: (B, N, W) -> (B, N, E), `ln_post(H) @ proj`."""
    return visual.ln_post(patches) @ visual.proj


class DenseHead(nn.Module):
    """Names what lies under each patch of C classes, linearly (train-time only)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.sizes = [classes + 1, len(COLOURS), 4, 2]
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, sum(self.sizes))

    def forward(self, patches: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        return self.linear(self.norm(patches)).float().split(self.sizes, -1)


@dataclass(frozen=True)
class ClipBatches:
    """Makes a batch by its number: pictures, texts, patch targets; picklable for workers.

    Half-size pictures by the recipe `small`, full ones by `full` from batch `switch` on.
    """

    small: SceneRecipe
    full: SceneRecipe
    switch: int
    scenes: int
    scenes_full: int
    texts: int
    context: int
    seed: int
    grid: int = 24

    def __call__(self, number: int) -> dict[str, Tensor]:
        """See `train_clip` for the shapes."""
        from open_clip import tokenize

        from litelvlm.nano.scenes import make_scene, names

        table = {n: i for i, n in enumerate(names())}
        rng = np.random.default_rng((self.seed, number))
        full = number >= self.switch
        recipe, count = (self.full, self.scenes_full) if full else (self.small, self.scenes)
        out: dict[str, list[Any]] = defaultdict(list)
        texts: list[str] = []
        for i in range(count):
            side = self.grid * 14 if full else self.grid * 7
            scene = squared(make_scene(self.seed + number * self.scenes + i, recipe), side)
            kind, colour, box, cover = patch_targets(scene, table)
            window = rng.integers(0, self.grid - side // 14 + 1, 2)
            y, x = np.divmod(np.arange(len(kind)), side // 14)
            place = (np.stack([x, y], 1) + window[::-1] + 0.5) / self.grid
            here = np.zeros(len(table), bool)
            here[[table[o.name] for o in scene.objects]] = True
            for key, value in (
                ("images", chw(scene.image)),
                ("kind", kind),
                ("colour", colour),
                ("box", box),
                ("place", place.astype(np.float32)),
                ("window", window),
                ("present", here),
            ):
                out[key].append(value)
            usable = [e for e in scene.expressions if e.targets]
            picks = rng.permutation(len(usable))[: self.texts - 1]
            said = [(scene.caption, tuple(range(len(scene.objects))))]
            said += [(plain(usable[j].text), usable[j].targets) for j in picks]
            for text, targets in said:
                texts.append(text)
                want = np.zeros(len(table), bool)
                want[[table[scene.objects[t].name] for t in targets]] = True
                share = cover[:, [t + 1 for t in targets]].sum(1).astype(np.float32)
                for key, value in (("owner", i), ("wanted", want), ("inside", share)):
                    out[key].append(value)
        return stacked(out) | {"texts": tokenize(texts, context_length=self.context)}


def contrastive(
    image: Tensor, text: Tensor, scale: Tensor, owner: Tensor, wanted: Tensor, present: Tensor
) -> Tensor:
    """InfoNCE in both directions over T texts and B pictures, false negatives left out.

    A picture of another scene that shows all a text names is no negative for it.

    Args:
        image: (B, E), unit vectors.
        text: (T, E), likewise.
        scale: of the logits.
        owner: (T,), the picture of each text.
        wanted: (T, C) bool, classes a text names.
        present: (B, C) bool, classes a picture shows.
    """
    logits = scale * text @ image.T
    own = F.one_hot(owner, len(image)).bool()
    missing = wanted.float() @ (~present).float().T
    logits = logits.masked_fill((missing < 0.5) & ~own, -1e4)
    to_image = F.cross_entropy(logits, owner)
    positive = logits[own]
    negatives = logits.masked_fill(own, -1e4).logsumexp(0)[owner]
    to_text = F.softplus(negatives - positive)
    return (to_image + to_text.mean()) / 2


def dense_losses(
    head: DenseHead, patches: Tensor, batch: dict[str, Tensor], edges: float, places: float
) -> dict[str, Tensor]:
    """Losses and accuracies of the dense head; `edges` and `places` weigh the box and place."""
    kind, colour, box, place = head(patches)
    truth = batch["kind"]
    on, off = truth > 0, truth == 0
    k_on = F.cross_entropy(kind[on], truth[on])
    k_off = F.cross_entropy(kind[off], truth[off])
    painted = batch["colour"] != IGNORE
    paint = colour.new_zeros(())
    if painted.any():
        paint = F.cross_entropy(colour[painted], batch["colour"][painted])
    edge = F.smooth_l1_loss(box[on], batch["box"][on], beta=0.1)
    # The language model must know where a patch lies: H has to carry it to the end.
    where = F.smooth_l1_loss(place, batch["place"], beta=0.05)
    with torch.no_grad():
        named = (kind[on].argmax(-1) == truth[on]).float().mean()
        clear = (kind[off].argmax(-1) == 0).float().mean()
        hue = (colour[painted].argmax(-1) == batch["colour"][painted]).float().mean()
    return {
        "loss": k_on + 0.5 * k_off + 0.3 * paint + edges * edge + places * where,
        "named": named,
        "clear": clear,
        "hue": hue,
        "edge": edge.detach(),
        "place": where.detach(),
    }


def reversal_loss(similarity: Tensor, inside: Tensor, margin: float) -> Tensor:
    """Hinge that asks a phrase's own patches to be less similar to it than the others.

    Args:
        similarity: (T, N), cosine of each text with each patch of its picture.
        inside: (T, N), share of the patch its referents fill.
        margin: of cosine.
    """
    own = (inside > 0.5).float()
    out = (inside <= 0).float()
    s_in = (similarity * own).sum(1) / own.sum(1).clamp(min=1)
    s_out = (similarity * out).sum(1) / out.sum(1).clamp(min=1)
    return (F.relu(s_in - s_out + margin) * (own.sum(1) > 0)).mean()


def train_clip(
    recipe: Recipe,
    folder: Path,
    device: str = "cpu",
    resume: bool = False,
    probe: Callable[[nn.Module, nn.Module], dict[str, float]] | None = None,
    limit: int | None = None,
) -> nn.Module:
    """Train the dual encoder; the checkpoint `clip.pt` holds `clip` and `head`."""
    from litelvlm.nano.scenes import names

    seed_everything(recipe.seed)
    plan = recipe.clip
    clip = build_dual_encoder(recipe.dual_encoder).to(device)
    visual = clip.visual
    head = DenseHead(visual.conv1.out_channels, len(names())).to(device)
    trained = optimisers([clip, head], plan.lr, plan.decay, plan.muon)
    modules = {"clip": clip, "head": head}
    run = Run(folder, "clip", modules, trained, plan.steps, plan.lr, plan.warmup)
    if resume:
        run.resume()
    batches = ClipBatches(
        small=plan.small,
        full=plan.full,
        switch=plan.switch * rank_and_world()[1],
        scenes=plan.batch,
        scenes_full=plan.batch_full,
        texts=plan.texts,
        context=recipe.dual_encoder["text_cfg"]["context_length"],
        seed=recipe.seed + 2 * 10**8,
        grid=visual.grid_size[0],
    )

    def learn(batch: dict[str, Any]) -> Tensor:
        with autocast(device, recipe.bf16):
            pixels = clip_pixels(batch["images"])
            patches, pooled = patch_features(visual, pixels, batch["window"])
            text = F.normalize(text_features(clip, batch["texts"]).float(), dim=-1)
            dense = dense_losses(head, patches, batch, plan.edges, plan.places)
            shared = projected(visual, patches)
        scale = clip.logit_scale.exp().clamp(max=50.0)
        image = F.normalize(pooled.float(), dim=-1)
        pair = contrastive(image, text, scale, batch["owner"], batch["wanted"], batch["present"])
        own = F.normalize(shared.float(), dim=-1)[batch["owner"]]
        similarity = (own @ text[:, :, None])[..., 0]
        reverse = reversal_loss(similarity, batch["inside"], plan.margin)
        with torch.no_grad():
            inside, outside = batch["inside"] > 0.5, batch["inside"] <= 0
            own_mean, other_mean = (
                (similarity * part).sum() / part.sum() for part in (inside, outside)
            )
        loss = dense.pop("loss")
        run.track(pair=pair, dense=loss, **dense, gap=own_mean - other_mean, reverse=reverse)
        return pair + plan.dense * loss + plan.reversal * reverse

    check = partial(probe, clip, head) if probe else None
    run.loop(batches, learn, check, device, recipe.workers, plan.probe_every, limit)
    return clip
