"""What a selection rule may know of the image tokens, and where it comes from.

    OwnClip     the model's own vision tower is a CLIP; the text half comes from the CLIP's file,
                whose vision half must be the model's own tower
    Guide       an open_clip model looks at the same picture; its patches are laid over the model's
                tokens by geometry
    TokensOnly  the tokens as the language model reads them

Each offers some fields of `methods.TokenView`; a rule whose needs are not offered is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from litelvlm.errors import InputError, ModelError
from litelvlm.geometry import PatchFrame
from litelvlm.methods import TokenView
from litelvlm.models.dual_encoder import BlockQKV, DualEncoder, ImageTokens
from litelvlm.models.files import equal_up_to_rounding
from litelvlm.models.guide import LENT, centres, lend
from litelvlm.models.names import CLIP_FILES
from litelvlm.plugin.families import Piece
from litelvlm.pruning import text_similarity

# (picture number, piece, (N, L) its tokens) -> what a rule sees, one row
Viewer = Callable[[int, Piece, Tensor], TokenView]


class TokensOnly:
    """Scores nothing: rules see the tokens as they enter the language model."""

    name = "tokens alone"
    offers = frozenset({"llm"})

    def look(self, images: Sequence[np.ndarray], texts: Sequence[str], seen: Any) -> Viewer:
        """A viewer for these pictures."""
        return lambda number, piece, tokens: TokenView(
            hidden=tokens[None], grid=piece.grid, llm=tokens[None]
        )

    def project(self, tokens: Tensor) -> Tensor:
        """Tokens that a rule merged, as the language model reads them."""
        return tokens


class Guide(TokensOnly):
    """A CLIP of open_clip that looks at the same picture and lends its patches' tensors.

    How they reach the model's tokens is told in `models.guide`.

    Args:
        clip: an open_clip model whose image tower is a plain ViT, or a `DualEncoder`.
        needs: fields of `TokenView` that will be read.
    """

    offers = LENT | {"llm"}

    def __init__(self, clip: Any, needs: frozenset[str]) -> None:
        if not isinstance(clip, DualEncoder):
            visual = getattr(clip, "visual", None)
            if visual is None:
                kind = type(clip).__name__
                raise InputError(f"guide must be an open_clip model or a DualEncoder, got {kind}")
            norm = {k: getattr(visual, k, None) for k in ("image_mean", "image_std")}
            clip = DualEncoder(clip, **{k: v for k, v in norm.items() if v is not None})
        self.encoder: DualEncoder = clip
        self.needs = needs
        self.name = f"guide: CLIP of {clip.layers} blocks on {clip.image_size} px"

    def look(self, images: Sequence[np.ndarray], texts: Sequence[str], seen: Any) -> Viewer:
        """A viewer for these pictures; each goes through the guide once a view."""
        encoder = self.encoder
        device = encoder.clip.visual.conv1.weight.device
        embeds = encoder.encode_text(texts) if "similarity" in self.needs else None
        encoded: dict[tuple[int, str], ImageTokens] = {}

        def seen_by(number: int, view: str) -> ImageTokens:
            if (number, view) not in encoded:
                pixels = encoder.pixels(images[number], view).to(device)
                encoded[number, view] = encoder.encode_image(pixels)
            return encoded[number, view]

        def viewer(number: int, piece: Piece, tokens: Tensor) -> TokenView:
            hw = images[number].shape[:2]
            # A model that sees the middle square is scored on that very square.
            middle = PatchFrame((1, 1), hw, "crop").square
            box = np.array(piece.box) * [hw[1], hw[0], hw[1], hw[0]]
            frame = PatchFrame(
                encoder.grid, hw, "crop" if np.allclose(box, middle) else "letterbox"
            )
            points = centres(piece.grid, box, frame.square).to(device)
            view = lend(encoder, seen_by(number, frame.view), self.needs, points)
            if embeds is not None:
                text = embeds[number][None, None]  # (1, T = 1, E)
                view |= {"text": text, "similarity": text_similarity(view["projected"], text)}
            hidden = tokens[None].to(device)
            return TokenView(hidden, piece.grid, encoder.heads, llm=hidden, **view)

        return viewer


class OwnClip(TokensOnly):
    """The model's own vision tower is a CLIP, as in LLaVA-1.5.

    Args:
        model: a LLaVA.
        needs: fields of `TokenView` that will be read; for "similarity" the text half is loaded.
        clip: where it comes from: a folder or hub repository with a `CLIPModel` and its tokenizer,
            or the pair (model, tokenizer); None takes the published one of that shape.

    Raises:
        ModelError: the CLIP cannot be loaded, or its vision half is not the model's tower.
    """

    offers = frozenset({"llm", "similarity", "last", "penultimate", "early"})

    def __init__(self, model: Any, needs: frozenset[str], clip: Any = None) -> None:
        tower = model.base_model.vision_tower
        self.tower = getattr(tower, "vision_model", tower)
        self.projector = model.base_model.multi_modal_projector
        self.needs = needs
        self.name = "own CLIP tower"
        self.clip = None
        if "similarity" in needs:
            self.clip, self.tokenizer, source = load_clip(clip, tower.config)
            check_same_tower(self.tower, self.clip.vision_model, source)
            self.clip.to(next(self.tower.parameters()).device).eval()
            self.name = f"own CLIP tower, text half of {source}"

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether a model's tokens are those of a CLIP's last block but one."""
        config: Any = model.config
        vision: Any = getattr(config, "vision_config", None)
        return (
            config.model_type == "llava"
            and vision.model_type == "clip_vision_model"
            and config.vision_feature_layer in (-2, vision.num_hidden_layers - 1)
            and config.vision_feature_select_strategy == "default"
        )

    def look(self, images: Sequence[np.ndarray], texts: Sequence[str], seen: Any) -> Viewer:
        """A viewer for these pictures, from the hidden states the model itself has computed."""
        states = seen.hidden_states  # inputs of each block, then the output of the last
        heads = self.tower.config.num_attention_heads
        blocks = len(states) - 1
        early = max(1, round(blocks * 5 / 24)) - blocks
        embeds = self._embed(texts) if self.clip is not None else None

        def viewer(number: int, piece: Piece, tokens: Tensor) -> TokenView:
            view: dict[str, Any] = {
                name: self._block(states[index - 1][number, None], index, heads)
                for name, index in {"last": -1, "penultimate": -2, "early": early}.items()
                if name in self.needs
            }
            hidden = states[-2][number, None, 1:]
            if embeds is not None:
                assert self.clip is not None
                states_out = self.tower.post_layernorm(hidden)
                projected = self.clip.visual_projection(
                    states_out.to(self.clip.visual_projection.weight.dtype)
                )
                text = embeds[number][None, None]
                view |= {
                    "projected": projected,
                    "text": text,
                    "similarity": text_similarity(projected, text),
                }
            return TokenView(hidden, piece.grid, heads, llm=tokens[None], **view)

        return viewer

    def project(self, tokens: Tensor) -> Tensor:
        """Merged CLIP tokens through the model's projector."""
        return self.projector(tokens)

    def _block(self, states: Tensor, index: int, heads: int) -> BlockQKV:
        """(1, 1 + N, D) input of block `index` -> its query, keys and values."""
        block = self.tower.encoder.layers[index]
        states = block.layer_norm1(states)
        keys = block.self_attn.k_proj(states)
        return BlockQKV(
            query=block.self_attn.q_proj(states[:, 0]),
            own_key=keys[:, 0],
            keys=keys[:, 1:],
            values=block.self_attn.v_proj(states[:, 1:]),
            heads=heads,
        )

    def _embed(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (T, E); what does not fit CLIP's context is cut."""
        assert self.clip is not None
        weight = self.clip.text_projection.weight
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return self.clip.get_text_features(**tokens.to(weight.device)).pooler_output


def load_clip(source: Any, vision: Any) -> tuple[Any, Any, str]:
    """(CLIPModel, its tokenizer, where it came from) for a vision tower of that configuration."""
    from transformers import AutoTokenizer, CLIPModel

    if isinstance(source, tuple) and len(source) == 2:
        return *source, "the given CLIP"
    if source is None:
        shape = (vision.hidden_size, vision.image_size, vision.patch_size)
        if shape not in CLIP_FILES:
            size = f"{vision.hidden_size} wide at {vision.image_size} px"
            raise ModelError(f"no published CLIP is {size}: give clip= or guide=")
        source = CLIP_FILES[shape]
    if not isinstance(source, (str, Path)):
        raise InputError(
            "clip must be a folder, a hub repository or a pair (CLIPModel, tokenizer), "
            f"got {type(source).__name__}"
        )
    try:
        clip = CLIPModel.from_pretrained(source)
        return clip, AutoTokenizer.from_pretrained(source), str(source)
    except (OSError, ValueError) as fault:
        reason = str(fault).splitlines()[0][:100]
        raise ModelError(f"{source}: the text half cannot be loaded ({reason})") from None


def check_same_tower(own: torch.nn.Module, other: torch.nn.Module, source: str) -> None:
    """Raise `ModelError` unless two vision towers hold the same weights, up to rounding.

    A text half means nothing to a tower it was not trained with. Quantised layers are left out;
    embeddings and norms are never quantised.
    """
    theirs = dict(other.named_parameters())
    for name, weight in own.named_parameters():
        if not weight.is_floating_point() or weight.is_meta:
            continue
        twin = theirs.get(name)
        if twin is None or twin.shape != weight.shape:
            raise ModelError(f"{source} is another architecture than the model's vision tower")
        if not equal_up_to_rounding(weight.detach(), twin.detach()):
            raise ModelError(
                f"the vision tower was trained further than {source} ({name} differs), so its "
                "text half says nothing: use guide= or a method without text"
            )
