"""Stage "language": projector, LLaMA and [SEG] head learn from referring expressions.

The dual encoder and the SAM part are frozen, and all image tokens are given: pruning stays
training-free. Several expressions of a picture share one image prefix (each turn sees the prefix
and itself only), so that one pass over the expensive image tokens pays for eight answers.

A language model trained from nothing on masks alone does not learn which patches a word names.
Helpers at training time, all dropped afterwards: image tokens name what lies under them through
the tied word embedding and tell its box; the [SEG] state points at the referent's patches, tells
its box, and is pulled towards the prompt token that the mask branch knows for that box.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litelvlm.models.language import build_projector, build_seg_head
from litelvlm.nano.sprites import COLOURS
from litelvlm.nano.train import clip as clip_stage
from litelvlm.nano.train import masks as mask_stage
from litelvlm.nano.train.builders import build_language
from litelvlm.nano.train.common import (
    Run,
    autocast,
    optimisers,
    rank_and_world,
    seed_everything,
    to_device,
)
from litelvlm.nano.train.start import start_from_head, start_from_prompt
from litelvlm.nano.train.targets import (
    chw,
    low_mask,
    normalise,
    patch_targets,
    sam_boxes,
    sam_frame,
    sam_pixels,
    squared,
)
from litelvlm.nano.train.tokens import PromptTokens

if TYPE_CHECKING:
    from litelvlm.nano.scenes import SceneRecipe
    from litelvlm.nano.train.recipe import LanguagePlan, Recipe

HIDE = -1e4
PER_TURN = (
    "ids",
    "state",
    "cover",
    "fits",
    "landmark",
    "box",
    "frame_box",
    "masks",
    "real",
)


class Helpers(nn.Module):
    """Train-time heads on the language model's states; see the module's text."""

    def __init__(self, hidden: int, layers: tuple[int, ...], waves: int, width: int = 64) -> None:
        super().__init__()
        self.layers = layers
        self.spot = nn.Linear(hidden, waves)
        # Where the final [SEG] state keeps the waves of the box; fixed, see train/start.py.
        compass = torch.linalg.qr(torch.randn(hidden, waves))[0].T / 2
        self.register_buffer("compass", compass)
        self.norm = nn.ModuleList(nn.RMSNorm(hidden) for _ in layers)
        self.ask = nn.ModuleList(nn.Linear(hidden, width) for _ in layers)
        self.key = nn.ModuleList(nn.Linear(hidden, width) for _ in layers)
        self.name = nn.Linear(hidden, hidden)
        nn.init.eye_(self.name.weight)
        nn.init.zeros_(self.name.bias)
        self.place = nn.Linear(hidden, 4)
        self.box = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 4))

    def point(self, i: int, states: Tensor, image: Tensor) -> Tensor:
        """Pointer logits (B, E, N) of states (B, E, W) over image states (B, N, W)."""
        ask = self.ask[i](self.norm[i](states.float()))
        key = self.key[i](self.norm[i](image.float()))
        return ask @ key.transpose(1, 2) * (ask.shape[-1] ** -0.5)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (B, heads, L, d) by (1, 1, L, d) tables."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def packed(
    llama: nn.Module, prefix: Tensor, turns: Tensor, chunks: int = 4
) -> tuple[list[Tensor], Tensor]:
    """Run the decoder over one prefix and several independent turns after it.

    prefix (B, P, W); turns (B, E, L, W): each turn sees the prefix and itself, and its positions
    start at P, as if it stood alone. Gives what ``llama.model`` gives for each (prefix, turn).
    Returns the inputs of every layer and the final state before the last norm, each
    (B, P + E L, W), and the normed final state.
    """
    b, p, w = prefix.shape
    e, n = turns.shape[1:3]
    x = torch.cat([prefix, turns.reshape(b, e * n, w)], 1)
    device = x.device
    position = torch.arange(p, device=device)
    place = torch.cat([position, (p + torch.arange(n, device=device)).repeat(e)])[None]
    heads = llama.config.num_attention_heads
    causal_turn = torch.full((n, n), HIDE, device=device).triu(1)
    size = -(-p // chunks)
    causal_chunk = torch.full((size, size), HIDE, device=device).triu(1)
    states = []
    cos = sin = None
    for layer in llama.model.layers:
        states.append(x)
        attention = layer.self_attn
        h = _norm(layer.input_layernorm, x)
        shape = (b, -1, heads, w // heads)
        q = attention.q_proj(h).view(shape).transpose(1, 2)
        k = attention.k_proj(h).view(shape).transpose(1, 2)
        v = attention.v_proj(h).view(shape).transpose(1, 2)
        if cos is None:
            cos, sin = llama.model.rotary_emb(q.detach().float(), place)
            cos, sin = cos[:, None].to(q.dtype), sin[:, None].to(q.dtype)
        q = _rotate(q, cos, sin) * (w // heads) ** -0.5
        k = _rotate(k, cos, sin)
        out = []
        for start in range(0, p, size):
            stop = min(p, start + size)
            logits = q[:, :, start:stop] @ k[:, :, :stop].transpose(-1, -2)
            mask = causal_chunk[: stop - start, : stop - start].to(logits.dtype)
            logits = torch.cat([logits[..., :start], logits[..., start:] + mask], -1)
            out.append(logits.softmax(-1) @ v[:, :, :stop])
        qt, kt, vt = q[:, :, p:], k[:, :, p:], v[:, :, p:]
        five = (b, heads, e, n, w // heads)
        own = qt.reshape(five) @ kt.reshape(five).transpose(-1, -2)
        own = (own + causal_turn.to(own.dtype)).reshape(b, heads, e * n, n)
        weights = torch.cat([qt @ k[:, :, :p].transpose(-1, -2), own], -1).softmax(-1)
        mixed = weights[..., :p] @ v[:, :, :p]
        local = weights[..., p:].reshape(b, heads, e, n, n) @ vt.reshape(five)
        out.append(mixed + local.reshape(b, heads, e * n, w // heads))
        merged = torch.cat(out, 2).transpose(1, 2).reshape(b, -1, w)
        x = x + attention.o_proj(merged)
        x = x + layer.mlp(_norm(layer.post_attention_layernorm, x))
    states.append(x)
    return states, _norm(llama.model.norm, x)


def _norm(module: nn.Module, x: Tensor) -> Tensor:
    return F.rms_norm(x.float(), x.shape[-1:], module.weight, module.variance_epsilon)


@dataclass(frozen=True)
class LanguageBatches:
    """Makes batch ``number``: pictures, expressions, targets; picklable for workers.

    phases: (first batch, scene recipe, scenes per batch), in order of first batch.
    """

    phases: tuple[tuple[int, SceneRecipe, int], ...]
    turns: int
    length: int
    tokenizer: Path
    sam_side: int
    seed: int
    grid: int = 24
    patch: int = 14

    def __call__(self, number: int) -> dict[str, Any]:
        """One batch of B scenes with E turns; N patches, S = the SAM part's side.

        images (B, 3, H, W) uint8; window (B, 2); frames (B, S', S', 3) int16 (half of S for
        half-size pictures); kind (B, N); place (B, N, 4), the box of what lies under a patch;
        ids (B, E, L), state (B, E); cover (B, E, N); box (B, E, 4) x0, y0, x1, y1 and frame_box
        likewise, in units of the full picture's side; frame_place (B, N, 4) as frame_box, of what
        lies under a patch; fits and landmark (B, E, N) as cover, of all that the noun fits and of
        a relation's landmark; masks (B, E, S' / 4, S' / 4) uint8;
        sam_window (B, 2); real (B, E) bool, false for repeats that fill the batch.
        """
        from litelvlm.nano.scenes import make_scene, names

        prompt = PromptTokens(self.tokenizer)
        table = {n: i for i, n in enumerate(names())}
        rng = np.random.default_rng((self.seed, number))
        _, recipe, count = [p for p in self.phases if p[0] <= number][-1]
        out: dict[str, list[Any]] = {}
        full = self.grid * self.patch
        made = 0
        attempt = 0
        while made < count:
            seed = self.seed + (number * 4 + attempt // count) * 64 + attempt % count
            scene = make_scene(seed, recipe)
            attempt += 1
            usable = [e for e in scene.expressions if len(e.targets) == 1]
            if not usable:
                continue
            made += 1
            side = full if max(scene.labels.shape) > full // 2 else full // 2
            seen = squared(scene, side)
            kind, _, edges, cover = patch_targets(seen, table, self.patch)
            picks = _spread(rng, [e.kind for e in usable])[: self.turns]
            chosen = [usable[j] for j in picks]
            real = len(chosen)
            chosen += [chosen[0]] * (self.turns - real)
            ids, state = prompt.turns([e.text for e in chosen], self.length)
            # A half-size picture stands on a window of both towers' position tables; a quarter of
            # the side is a whole number of patches in both, so the windows agree exactly. Where
            # phrases speak of places it stands in the middle: left stays left of the middle.
            quarter = [0, 0] if side == full else [1, 1]
            if side < full and recipe.level < 2:
                quarter = rng.integers(0, 3, 2)
            window = np.array(quarter) * (self.grid // 4)
            sam_side = self.sam_side * side // full
            sam_window = np.array(quarter) * (self.sam_side // 64)
            y, x = np.divmod(np.arange(len(kind)), side // self.patch)
            centre = np.stack([x, y, x, y], 1) * self.patch + self.patch / 2
            place = (centre + edges * 100 + np.tile(window[::-1] * self.patch, 2)) / full
            height, width = scene.labels.shape
            corner = np.tile(sam_window[::-1] * 16, 2)
            things = np.array([o.box for o in scene.objects], np.float32)
            things = (sam_boxes(things, (height, width), sam_side) + corner) / self.sam_side
            masks, boxes, frame = {}, [], []
            for e in chosen:
                t = e.targets[0]
                if t not in masks:
                    masks[t] = low_mask(scene.labels == t + 1, sam_side // 4)
                box = np.array(seen.objects[t].box, np.float32)
                boxes.append((box + np.tile(window[::-1] * self.patch, 2)) / full)
                frame.append(things[t])
            row = {
                "images": chw(seen.image),
                "window": torch.from_numpy(window),
                "sam_window": torch.from_numpy(sam_window),
                "frames": torch.from_numpy(sam_frame(scene.image, sam_side)),
                "kind": torch.from_numpy(kind),
                "place": torch.from_numpy(place.astype(np.float32)),
                "frame_place": torch.from_numpy(things[cover[:, 1:].argmax(1)].astype(np.float32)),
                "ids": ids,
                "state": state,
                "cover": torch.from_numpy(np.stack([_share(cover, e.targets) for e in chosen])),
                "fits": torch.from_numpy(np.stack([_share(cover, e.fits) for e in chosen])),
                "landmark": torch.from_numpy(
                    np.stack(
                        [_share(cover, () if e.landmark is None else (e.landmark,)) for e in chosen]
                    )
                ),
                "box": torch.from_numpy(np.stack(boxes).astype(np.float32)),
                "frame_box": torch.from_numpy(np.stack(frame).astype(np.float32)),
                "masks": torch.from_numpy(np.stack([masks[e.targets[0]] for e in chosen])),
                "real": torch.arange(self.turns) < real,
            }
            for key, value in row.items():
                out.setdefault(key, []).append(value)
        batch = {key: torch.stack(values) for key, values in out.items()}
        longest = int((batch["ids"] != prompt.ids["pad"]).sum(-1).max())
        batch["ids"] = batch["ids"][..., :longest]
        most = int(batch["real"].sum(-1).max())
        for key in PER_TURN:
            batch[key] = batch[key][:, :most]
        return batch


def _spread(rng: np.random.Generator, kinds: Sequence[str]) -> np.ndarray:
    """A random order of phrases in which each kind's first comes before any kind's second.

    Kinds that fit few scenes, such as ordinals, are then not crowded out by places.
    """
    order = rng.permutation(len(kinds))
    met: dict[str, int] = {}
    rank = np.zeros(len(kinds))
    for i in order:
        rank[i] = met[kinds[i]] = met.get(kinds[i], 0) + 1
    return order[np.argsort(rank[order], kind="stable")]


def _share(cover: np.ndarray, objects: Sequence[int]) -> np.ndarray:
    """Share of each patch that some objects fill together: (N, objects + 1) -> (N,) float32."""
    return cover[:, [i + 1 for i in objects]].sum(1).astype(np.float32)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes (..., 4) x0, y0, x1, y1."""
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    inner = (high - low).clamp(min=0).prod(-1)
    areas = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1)
    return inner / (areas - inner).clamp(min=1e-6)


def to_corners(raw: Tensor) -> Tensor:
    """Raw box outputs (..., 4) -> x0, y0, x1, y1; centre by a sigmoid, size by a softplus."""
    centre = raw[..., :2].sigmoid()
    size = F.softplus(raw[..., 2:] - 1.5)
    return torch.cat([centre - size / 2, centre + size / 2], -1)


@dataclass
class Frozen:
    """The frozen parts that the language stage reads from."""

    clip: nn.Module
    sam: nn.Module
    prompt: nn.Module
    head: clip_stage.DenseHead

    @torch.no_grad()
    def features(self, batch: dict[str, Any], masks: bool) -> tuple[Tensor, Tensor | None]:
        """H (B, N, W) and, where asked for, the SAM part's embedding (B, C, h, w)."""
        pixels = normalise(batch["images"], clip_stage.MEAN, clip_stage.STD)
        patches, _ = clip_stage.patch_features(self.clip.visual, pixels, batch["window"])
        if not masks:
            return patches.float(), None
        frames = sam_pixels(batch["frames"], mask_stage.MEAN, mask_stage.STD)
        return patches.float(), mask_stage.encode(self.sam, frames, batch["sam_window"])


def load_frozen(recipe: Recipe, folder: Path, device: str) -> Frozen:
    """The dual encoder and SAM part from the checkpoints of the first two stages."""
    from litelvlm.nano.train.builders import build_dual_encoder, build_segmenter

    clip = build_dual_encoder(recipe.dual_encoder)
    state = torch.load(folder / "clip.pt", map_location="cpu", weights_only=False)
    clip.load_state_dict(state["modules"]["clip"])
    rows = len(state["modules"]["head"]["linear.weight"])
    width = recipe.dual_encoder["vision_cfg"]["width"]
    head = clip_stage.DenseHead(width, rows - len(COLOURS) - 7)
    head.load_state_dict(state["modules"]["head"])
    sam = build_segmenter(recipe.segmenter)
    prompt = mask_stage.PromptToken(recipe.segmenter["prompt_encoder_config"]["hidden_size"])
    state = torch.load(folder / "masks.pt", map_location="cpu", weights_only=False)
    sam.load_state_dict(state["modules"]["sam"])
    prompt.load_state_dict(state["modules"]["prompt"])
    for module in (clip, sam, prompt, head):
        module.to(device).eval().requires_grad_(False)
    return Frozen(clip, sam, prompt, head)


class Grounder(nn.Module):
    """Everything stage "language" trains, and its loss."""

    def __init__(self, recipe: Recipe, tokens: PromptTokens, classes: list[str]) -> None:
        super().__init__()
        config = recipe.language | {"vocab_size": tokens.tokenizer.get_vocab_size()}
        ids = tokens.ids
        config |= {"pad_token_id": ids["pad"], "bos_token_id": ids["bos"]}
        self.llama = build_language(config | {"eos_token_id": ids["eos"]})
        hidden = config["hidden_size"]
        self.projector = build_projector(recipe.dual_encoder["vision_cfg"]["width"], hidden)
        self.seg_head = build_seg_head(
            hidden, recipe.segmenter["prompt_encoder_config"]["hidden_size"]
        )
        layers = config["num_hidden_layers"]
        token = mask_stage.PromptToken(self.seg_head[2].out_features)
        waves = token.net[0].in_features
        self.helpers = Helpers(hidden, ((layers + 1) // 2, layers - 1, layers), waves)
        self.tokens = tokens
        words = [tokens.word("background"), *(tokens.word(name) for name in classes)]
        self.register_buffer("words", torch.tensor(words), persistent=False)
        self.register_buffer("before", torch.tensor(tokens.before), persistent=False)
        self.register_buffer("between", torch.tensor(tokens.between), persistent=False)

    def forward(self, patches: Tensor, ids: Tensor) -> tuple[list[Tensor], Tensor, slice]:
        """States of ``packed`` for patches (B, N, W_clip) and turns (B, E, L)."""
        embed = self.llama.model.embed_tokens
        b = len(patches)
        image = self.projector(patches)
        before = embed(self.before).expand(b, -1, -1).to(image.dtype)
        between = embed(self.between).expand(b, -1, -1).to(image.dtype)
        prefix = torch.cat([before, image, between], 1)
        states, final = packed(self.llama, prefix, embed(ids).to(image.dtype))
        first = len(self.before)
        return states, final, slice(first, first + patches.shape[1])

    def answer(self, patches: Tensor, ids: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Prompt tokens (B, E, C) and helper boxes (B, E, 4) for turns; see ``PromptTokens``."""
        _, final, _ = self(patches, ids)
        b, e, n = ids.shape
        start = final.shape[1] - e * n
        index = start + torch.arange(e, device=ids.device) * n + state
        asked = final[torch.arange(b, device=ids.device)[:, None], index]
        return self.seg_head(asked).float(), to_corners(self.helpers.box(asked).float())

    def attended(
        self, layer: int, states: Tensor, asked: Tensor, state: Tensor, first: int = 0
    ) -> Tensor:
        """Log attention of two heads of a layer, ``first`` and its neighbour, from [SEG] states
        to the prefix.

        states: (B, S, W) input of the layer; asked: (B, E) places of the [SEG] states in it;
        state: (B, E) their places in their turns. Returns (B, 2, E, P): the prefix is the text
        before, the image tokens, the text between; the rest of the attention is on the turn.
        """
        module = self.llama.model.layers[layer]
        attention, heads = module.self_attn, self.llama.config.num_attention_heads
        b, e = asked.shape
        d = states.shape[-1] // heads
        taught = min(2, heads - first)
        device = states.device
        p = int(asked[0, 0] - state[0, 0])
        n = (states.shape[1] - p) // e
        normed = _norm(module.input_layernorm, states)
        rows = torch.arange(b, device=device)[:, None]
        own = slice(first * d, (first + taught) * d)
        q = F.linear(normed[rows, asked], attention.q_proj.weight[own]).view(b, e, taught, d)
        k = F.linear(normed, attention.k_proj.weight[own]).view(b, -1, taught, d)
        q, k = q.transpose(1, 2).float(), k.transpose(1, 2).float()
        place = torch.arange(p, device=device)
        place = torch.cat([place, p + torch.arange(n, device=device).repeat(e)])[None]
        cos, sin = self.llama.model.rotary_emb(q, p + state)
        q = _rotate(q, cos[:, None], sin[:, None]) * d**-0.5
        cos, sin = self.llama.model.rotary_emb(k, place)
        k = _rotate(k, cos[:, None], sin[:, None])
        far = q @ k[:, :, :p].transpose(-1, -2)
        near = (q[:, :, :, None] @ k[:, :, p:].view(b, taught, e, n, d).transpose(-1, -2))[
            :, :, :, 0
        ]
        later = torch.arange(n, device=device) > state[..., None]
        near = near.masked_fill(later[:, None], HIDE)
        return torch.cat([far, near], -1).log_softmax(-1)[..., :p]

    def losses(
        self,
        frozen: Frozen,
        patches: Tensor,
        embedding: Tensor | None,
        batch: dict[str, Any],
        plan: LanguagePlan,
    ) -> dict[str, Tensor]:
        """All losses and measures of a batch; "loss" is the weighted sum."""
        out: dict[str, Tensor] = {}
        ids, real = batch["ids"], batch["real"]
        b, e, n = ids.shape
        states, final, span = self(patches, ids)
        p = final.shape[1] - e * n
        index = p + torch.arange(e, device=ids.device) * n + batch["state"]
        rows = torch.arange(b, device=ids.device)[:, None]
        asked = final[rows, index]

        # What comes next in each turn: the answer, and which phrases are true of the picture.
        turns = final[:, p:].reshape(b, e, n, -1)[:, :, :-1]
        logits = self.llama.lm_head(turns).float()
        truth = ids[:, :, 1:].masked_fill(ids[:, :, 1:] == self.tokens.ids["pad"], -100)
        out["text"] = F.cross_entropy(logits.flatten(0, 2), truth.flatten(), ignore_index=-100)

        # Image tokens name what lies under them: all objects' patches, some of the background's.
        kind = batch["kind"]
        background = (kind == 0) & (torch.rand(kind.shape, device=kind.device) < 0.15)
        chosen = (kind > 0) | background
        name = 0.0
        for state in (states[self.helpers.layers[0]], states[-1]):
            word = self.helpers.name(_norm(self.llama.model.norm, state[:, span][chosen]))
            scores = (word @ self.llama.model.embed_tokens.weight[self.words].T).float()
            name = name + F.cross_entropy(scores, kind[chosen]) / 2
        out["name"] = name
        on = kind[chosen] > 0
        late = states[self.helpers.layers[1]][:, span][kind > 0].float()
        here = self.helpers.place(self.helpers.norm[1](late))
        out["place"] = F.smooth_l1_loss(here.float(), batch["place"][kind > 0], beta=0.05) * 4
        out["named"] = (scores.argmax(-1) == kind[chosen])[on].float().mean()

        # In the frame of the mask branch: the shift from one frame to the other is learned here.
        goal = frozen.prompt.waves(batch["frame_place"])[kind > 0]
        out["spot"] = asked.new_zeros((), dtype=torch.float32)
        for layer in (len(states) - 3, len(states) - 2):
            own = _norm(self.llama.model.norm, states[layer][:, span][kind > 0])
            miss = F.smooth_l1_loss(self.helpers.spot(own).float(), goal, beta=0.2)
            out["spot"] = out["spot"] + miss / 2

        inside = batch["cover"] > 0.4
        seen = inside.any(-1) & real
        point = 0.0
        for i, layer in enumerate(self.helpers.layers):
            logp = self.helpers.point(i, states[layer][rows, index], states[layer][:, span]).float()
            logp = logp.log_softmax(-1)
            mass = logp.masked_fill(~inside, HIDE).logsumexp(-1)
            point = point - mass[seen].mean() / len(self.helpers.layers)
        out["point"] = point
        hit = inside.gather(-1, logp.argmax(-1, keepdim=True))[..., 0]
        out["pointed"] = hit[seen].float().mean()

        # The state names what is asked for; half way up two heads attend to all that its noun
        # fits and two to a relation's landmark; above, two heads attend to the referent alone.
        wanted = kind.gather(1, batch["cover"].argmax(-1))
        known = seen & (wanted > 0)
        middle = self.helpers.layers[0]
        word = self.helpers.name(_norm(self.llama.model.norm, states[middle][rows, index]))
        scores = (word @ self.llama.model.embed_tokens.weight[self.words].T).float()
        out["ask"] = F.cross_entropy(scores[known], wanted[known])
        out["asked"] = (scores.argmax(-1) == wanted)[known].float().mean()
        fits, landmark = batch["fits"] > 0.4, batch["landmark"] > 0.4
        taught = [
            (middle, 0, fits, "on_target"),
            (middle, 2, landmark, "on_landmark"),
            (middle + 1, 0, inside, "on_target"),
            (middle + 2, 0, inside, "on_target"),
        ]
        attend = asked.new_zeros((), dtype=torch.float32)
        for layer, head, target, key in taught:
            some = target.any(-1) & real
            outside = layer >= len(self.llama.model.layers)
            if outside or head >= self.llama.config.num_attention_heads or not some.any():
                continue
            logp = self.attended(layer, states[layer], index, batch["state"], head)[..., span]
            mass = logp.masked_fill(~target[:, None], HIDE).logsumexp(-1).transpose(1, 2)[some]
            attend = attend - mass.mean()
            out[key] = mass.exp().mean()
        out["attend"] = attend

        box = to_corners(self.helpers.box(asked).float())
        out["box"] = F.l1_loss(box[real], batch["box"][real]) * 4
        iou = box_iou(box, batch["box"])[real]
        out["box_iou"] = iou.mean()
        out["box"] = out["box"] + (1 - iou).mean()

        found = F.linear(asked.float(), self.helpers.compass)
        truth = frozen.prompt.waves(batch["frame_box"])
        out["wave"] = F.smooth_l1_loss(found[real], truth[real], beta=0.2)

        sparse = self.seg_head(asked).float()
        goal = frozen.prompt(batch["frame_box"]).float()
        spread = goal.flatten(0, 1).var(0).mean().clamp(min=1e-4)
        out["token"] = F.mse_loss(sparse[real], goal[real]) / spread

        loss = (
            plan.text * out["text"]
            + plan.name * out["name"]
            + plan.place * out["place"]
            + plan.spot * out["spot"]
            + plan.wave * out["wave"]
            + plan.point * out["point"]
            + plan.ask * out["ask"]
            + plan.attend * out["attend"]
            + plan.box * out["box"]
            + plan.token * out["token"]
        )
        if embedding is not None:
            # A mask costs as much as a turn, so only some turns draw theirs.
            some = slice(plan.masked)
            logit, _ = mask_stage.decode(
                frozen.sam, embedding, sparse[:, some, None], batch["sam_window"]
            )
            drawn = real[:, some]
            masked, giou = mask_stage.mask_loss(
                logit[drawn].float(), batch["masks"][:, some][drawn].float() / 255
            )
            out["mask"], out["giou"] = masked.mean(), giou.mean()
            loss = loss + plan.mask * out["mask"]
        out["loss"] = loss
        return out


def train_language(
    recipe: Recipe,
    folder: Path,
    device: str = "cpu",
    resume: bool = False,
    probe: Callable[[Grounder, Frozen], dict[str, float]] | None = None,
    limit: int | None = None,
) -> Grounder:
    """Train the grounding part; the checkpoint ``language.pt`` holds ``grounder``
    and the tuned ``decoder``."""
    from litelvlm.nano.scenes import names

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

    def check() -> dict[str, float]:
        return probe(grounder, frozen) if probe else {}

    run.loop(
        batches, learn, check, device, recipe.workers, probe_every=plan.probe_every, limit=limit
    )
    return grounder
