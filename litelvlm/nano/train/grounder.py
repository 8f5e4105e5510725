"""The grounding part in training: projector, LLaMA, [SEG] head, helpers, and the loss.

A language model trained from nothing on masks alone does not learn which patches a word names.
Helpers at training time, all dropped afterwards: image tokens name what lies under them through
the tied word embedding and tell its box; the [SEG] state points at the referent's patches, tells
its box, and is pulled towards the prompt token that the mask branch knows for that box.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litelvlm.models.language import build_projector, build_seg_head
from litelvlm.nano.train import masks as mask_stage
from litelvlm.nano.train.builders import build_language
from litelvlm.nano.train.frozen import Frozen
from litelvlm.nano.train.packed import HIDE, packed, rms_norm, rotate
from litelvlm.nano.train.recipe import LanguagePlan, Recipe
from litelvlm.nano.train.tokens import PromptTokens


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


def seg_places(final: Tensor, ids: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (B, 1) and places (B, E) in `final` (B, P + E L, W) of what predicts each [SEG].

    ids: (B, E, L) turns; state: (B, E) their places in the turns.
    """
    b, e, n = ids.shape
    first = final.shape[1] - e * n + torch.arange(e, device=ids.device) * n
    return torch.arange(b, device=ids.device)[:, None], first + state


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
        """States of `packed` for patches (B, N, W_clip) and turns (B, E, L); rows of the image."""
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
        """Prompt tokens (B, E, C) and helper boxes (B, E, 4) for turns; see `PromptTokens`."""
        _, final, _ = self(patches, ids)
        rows, index = seg_places(final, ids, state)
        asked = final[rows, index]
        return self.seg_head(asked).float(), to_corners(self.helpers.box(asked).float())

    def attended(
        self, layer: int, states: Tensor, asked: Tensor, state: Tensor, first: int = 0
    ) -> Tensor:
        """Log attention of heads `first` and `first + 1` of a layer, from the [SEG] states.

        Args:
            layer, first: numbers of the layer and of the head.
            states: (B, S, W), its input.
            asked: (B, E), places of the [SEG] states in it.
            state: (B, E), their places in their turns.

        Returns:
            (B, 2, E, P): over the prefix (the text before, the image tokens, the text between);
            the rest of the attention is on the turn.
        """
        module = self.llama.model.layers[layer]
        attention, heads = module.self_attn, self.llama.config.num_attention_heads
        b, e = asked.shape
        d = states.shape[-1] // heads
        taught = min(2, heads - first)
        device = states.device
        p = int(asked[0, 0] - state[0, 0])
        n = (states.shape[1] - p) // e
        normed = rms_norm(module.input_layernorm, states)
        rows = torch.arange(b, device=device)[:, None]
        own = slice(first * d, (first + taught) * d)
        q = F.linear(normed[rows, asked], attention.q_proj.weight[own]).view(b, e, taught, d)
        k = F.linear(normed, attention.k_proj.weight[own]).view(b, -1, taught, d)
        q, k = q.transpose(1, 2).float(), k.transpose(1, 2).float()  # (B, 2, E, d), (B, 2, S, d)
        place = torch.arange(p, device=device)
        place = torch.cat([place, p + torch.arange(n, device=device).repeat(e)])[None]
        cos, sin = self.llama.model.rotary_emb(q, p + state)
        q = rotate(q, cos[:, None], sin[:, None]) * d**-0.5
        cos, sin = self.llama.model.rotary_emb(k, place)
        k = rotate(k, cos[:, None], sin[:, None])
        far = q @ k[:, :, :p].transpose(-1, -2)  # (B, 2, E, P)
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
        rows, index = seg_places(final, ids, batch["state"])
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
            word = self.helpers.name(rms_norm(self.llama.model.norm, state[:, span][chosen]))
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
            own = rms_norm(self.llama.model.norm, states[layer][:, span][kind > 0])
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
        word = self.helpers.name(rms_norm(self.llama.model.norm, states[middle][rows, index]))
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

        weighed = (
            "text",
            "name",
            "place",
            "spot",
            "wave",
            "point",
            "ask",
            "attend",
            "box",
            "token",
        )
        loss = sum(getattr(plan, part) * out[part] for part in weighed)
        if embedding is not None:
            # A mask costs as much as a turn, so only some turns draw theirs.
            some = slice(plan.masked)
            logit, quality = mask_stage.decode(
                frozen.sam, embedding, sparse[:, some, None], batch["sam_window"]
            )
            drawn = real[:, some]
            masked, giou = mask_stage.mask_loss(
                logit[drawn].float(), batch["masks"][:, some][drawn].float() / 255
            )
            out["mask"], out["giou"] = masked.mean(), giou.mean()
            loss = loss + plan.mask * out["mask"]
            if plan.quality:
                missing = batch["missing"][:, some]
                miss = torch.cat([(quality[drawn] - giou), quality[missing]])
                out["quality"] = miss.square().mean()
                loss = loss + plan.quality * out["quality"]
        out["loss"] = loss
        return out
