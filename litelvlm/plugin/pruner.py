"""`Pruner`: pictures and prompts in, arguments of `model.generate` with fewer image tokens out.

    pruner = Pruner(model, processor, method="divprune")
    inputs = pruner.prepare("photo.jpg", prompt, budget=0.33)
    model.generate(**inputs, max_new_tokens=64)

The vision tower runs here, once; the features that are kept go to the model as its own argument
`mm_encoder_outputs`. The model is not touched, and nothing is remembered between calls.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from litelvlm.errors import InputError, ModelError
from litelvlm.images import read_image
from litelvlm.methods import METHODS, SelectionOptions, get_method
from litelvlm.models.mrope import compact_positions
from litelvlm.plugin.checks import check_model, check_options, question_in, read_budgets
from litelvlm.plugin.families import Layout, Piece, Shown
from litelvlm.plugin.prompt import (
    close_rows,
    columns_of,
    entries_of,
    pad_to,
    runs_of,
    shares_of,
    take,
)
from litelvlm.plugin.record import PictureRecord, PieceRecord, PrunedInputs
from litelvlm.plugin.scores import Guide, OwnClip, TokensOnly, Viewer
from litelvlm.pruning import Reason, Selection
from litelvlm.question import check_choice
from litelvlm.selecting import check_method


@dataclass(frozen=True)
class _Kept:
    """What stays of one piece: (k,) offsets among its tokens, (k, L) or None for "as they are"."""

    offsets: Tensor
    tokens: Tensor | None
    record: PieceRecord | None


class Pruner:
    """Prunes the image tokens of a Hugging Face vision-language model, from the outside.

    Args:
        model: from `AutoModelForImageTextToText.from_pretrained`, in evaluation mode; quantised,
            compiled or spread over devices as you like.
        processor: from `AutoProcessor.from_pretrained`.
        method: name of a rule that runs before the language model (`litelvlm info`).
        guide: an open_clip model (plain ViT) that scores the same picture and text for models
            whose own tower has no text half.
        clip: the CLIP that a LLaVA-1.5's tower came from, for its text half: a folder, a hub
            repository, or (CLIPModel, tokenizer); None takes the published one.
        options: `split`, `order`, `context`, `seed`, as in `methods.SelectionOptions`.

    Raises:
        InputError: a rule inside the language model, or one that needs a score that is not there;
            unknown options.
        ModelError: a model that cannot be pruned, and why.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        method: str = "litelvlm",
        guide: Any = None,
        *,
        clip: Any = None,
        **options: Any,
    ) -> None:
        self.family = check_model(model)
        if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
            kind = type(processor).__name__
            raise InputError(f"processor must come from AutoProcessor.from_pretrained, got {kind}")
        self.model = model
        self.processor = processor
        self.method = get_method(method)
        self.options = check_options(options)
        self.scorer = self._scorer(guide, clip)
        self.left = not model.config.is_encoder_decoder  # generate appends to decoder prompts

    def prepare(
        self,
        images: Any,
        text: str | Sequence[str],
        budget: Any = None,
        *,
        positions: str | None = None,
        question: str | Sequence[str] | None = None,
    ) -> PrunedInputs:
        """Encode pictures, choose tokens, and shorten the prompts.

        Args:
            images: one picture (path, Pillow image or (H, W, 3) uint8 array), or a list for all
                placeholders in order, or a list of pictures for each prompt.
            text: a prompt, or several, each with the model's image placeholders, for example from
                `processor.apply_chat_template`.
            budget: patches that enter the language model a picture: a whole number in 1..N, or a
                share in 0..1 as a float; a list holds one a picture. None: all, unpruned.
            positions: "original": kept tokens keep the positions of the unpruned prompt;
                "compact": positions without gaps. None takes original where the model has it.
            question: what the text tower reads, one for all prompts or one each; None reads the
                prompt without its special tokens and chat frame.

        Returns:
            Arguments for `model.generate`, on the model's device, and the record.

        Raises:
            InputError: in one sentence, what was given and what is expected.
        """
        check_model(self.model)
        default = "original" if self.family.axes else "compact"
        positions = check_choice("positions", positions or default)
        if positions == "original" and not self.family.axes:
            raise InputError(
                f"positions='original' is not possible for {self.family.name}: its encoder numbers "
                "the tokens it gets; use 'compact'"
            )
        prompts: list[Any] = list(text) if isinstance(text, (list, tuple)) else [text]
        pictures, owner = self._pictures(images, prompts)
        questions = self._questions(question, prompts)
        with torch.no_grad():
            encoded = self._encode(pictures, prompts, owner)
            return self._prune(encoded, pictures, owner, questions, budget, positions)

    def _scorer(self, guide: Any, clip: Any) -> TokensOnly:
        rule = self.method
        if rule.where != "before":
            raise InputError(
                f"method {rule.name!r} prunes inside the language model, which the plug-in leaves "
                "as it is; methods that work: "
                + ", ".join(m.name for m in METHODS.values() if m.where == "before")
            )
        own = guide is None and OwnClip.fits(self.model)
        kind: type[TokensOnly] = Guide if guide is not None else OwnClip if own else TokensOnly
        check_method(rule, kind.offers, self.family.name, ": give guide= a CLIP")
        if guide is not None:
            return Guide(guide, rule.needs)
        return OwnClip(self.model, rule.needs, clip) if own else TokensOnly()

    def _pictures(self, images: Any, prompts: Sequence[str]) -> tuple[list[np.ndarray], list[int]]:
        """Pictures in the order of their placeholders, and the prompt each belongs to."""
        if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise InputError("text must be a prompt or a list of prompts")
        video = getattr(self.processor, "video_token", None)
        if video and any(video in prompt for prompt in prompts):
            raise InputError(f"a prompt holds {video}: only pictures are pruned, not videos")
        token = self.processor.image_token
        if self.family.placed:
            counts = [1] * len(prompts)
            if any(token in prompt for prompt in prompts):
                raise InputError(
                    f"leave {token} out of the text: {self.family.name}'s processor puts it there"
                )
        else:
            counts = [prompt.count(token) for prompt in prompts]
        if not all(counts):
            raise InputError(f"prompt {counts.index(0)} has no image placeholder; write {token}")
        given = list(images) if isinstance(images, (list, tuple)) else [images]
        if any(isinstance(item, (list, tuple)) for item in given):
            sizes = [len(item) if isinstance(item, (list, tuple)) else 1 for item in given]
            if sizes != counts:
                raise InputError(
                    f"pictures a prompt are {sizes}, image placeholders {token} are {counts}"
                )
            given = [
                one
                for item in given
                for one in (item if isinstance(item, (list, tuple)) else [item])
            ]
        if len(given) != sum(counts):
            raise InputError(
                f"{len(given)} pictures for {sum(counts)} image placeholders {token} in the text"
            )
        owner = [number for number, count in enumerate(counts) for _ in range(count)]
        return [read_image(item) for item in given], owner

    def _questions(
        self, question: str | Sequence[str] | None, prompts: Sequence[str]
    ) -> list[str] | None:
        """What the text tower reads for each prompt; None where the rule reads no text."""
        if "similarity" not in self.method.needs:
            return None
        if question is None:
            read = [question_in(self.processor, prompt) for prompt in prompts]
        else:
            read = [question] * len(prompts) if isinstance(question, str) else list(question)
        if len(read) != len(prompts):
            raise InputError(f"{len(read)} questions for {len(prompts)} prompts")
        if not all(isinstance(one, str) and one.strip() for one in read):
            raise InputError("the text tower has nothing to read: give question=")
        return read

    def _encode(
        self, pictures: Sequence[np.ndarray], prompts: Sequence[str], owner: Sequence[int]
    ) -> Any:
        """The processor's output on the model's device."""
        from PIL import Image

        images: list[Any] = [Image.fromarray(picture) for picture in pictures]
        if self.family.nested:
            images = [
                [image for image, row in zip(images, owner, strict=True) if row == number]
                for number in range(len(prompts))
            ]
        side = {"padding_side": "left"} if self.left and len(prompts) > 1 else {}
        encoded = self.processor(
            images=images, text=list(prompts), return_tensors="pt", padding=True, **side
        )
        return encoded.to(self.model.device, self.model.dtype)

    def _see(
        self, encoded: Any, pictures: Sequence[np.ndarray]
    ) -> tuple[Any, Tensor, Tensor, Layout]:
        """What the vision tower hands out, (M, L) its tokens, (B, L) placeholders, the pieces."""
        base, config = self.model.base_model, self.model.config
        names = inspect.signature(base.get_image_features).parameters
        given = {name: encoded[name] for name in names if name in encoded}
        if isinstance(self.scorer, OwnClip):
            given["output_hidden_states"] = True
        seen = base.get_image_features(**given, return_dict=True)
        entries = list(seen.pooler_output)
        features = torch.cat(entries)
        mask = encoded["input_ids"] == config.image_token_id
        if int(mask.sum()) != len(features):
            raise InputError(
                f"{int(mask.sum())} image placeholders in the text for {len(features)} image "
                "tokens of the pictures"
            )
        runs = runs_of(mask)
        if self.family.axes == 4 and len(runs) != len(pictures):
            raise InputError(
                f"{len(pictures)} pictures stand in {len(runs)} runs of placeholders: "
                f"{self.family.name} needs other tokens between them"
            )
        layout = self.family.layout(
            Shown(
                config=config,
                processor=self.processor,
                encoded=encoded,
                sizes=[(picture.shape[0], picture.shape[1]) for picture in pictures],
                features=features,
                entries=[len(entry) for entry in entries],
                runs=runs,
                newline=getattr(base, "image_newline", None),
            )
        )
        counts = _counts(layout)
        if len(layout) != len(pictures) or sum(counts) != len(features):
            raise ModelError(
                f"{self.family.name}: {len(features)} image tokens do not fit a layout of {counts}"
            )
        return seen, features, mask, layout

    def _prune(
        self,
        encoded: Any,
        pictures: Sequence[np.ndarray],
        owner: Sequence[int],
        questions: list[str] | None,
        budget: Any,
        positions: str,
    ) -> PrunedInputs:
        seen, features, mask, layout = self._see(encoded, pictures)
        budgets = read_budgets(budget, [sum(piece.patches for piece in p) for p in layout])
        texts = None if questions is None else [questions[row] for row in owner]
        viewer = None
        if any(b < sum(piece.patches for piece in p) for b, p in zip(budgets, layout, strict=True)):
            viewer = self.scorer.look(pictures, texts or [], seen)

        kept: list[_Kept] = []
        record = []
        start = 0
        for number, (pieces, most, total) in enumerate(
            zip(layout, budgets, _counts(layout), strict=True)
        ):
            mine = []
            for piece, share in zip(pieces, shares_of(most, pieces), strict=True):
                tokens = features[start : start + piece.count]
                mine.append(self._select(viewer, number, piece, tokens, share))
                start += piece.count
            kept += mine
            pruned = most < sum(piece.patches for piece in pieces)
            record.append(
                PictureRecord(
                    prompt=owner[number],
                    pieces=tuple(one.record for one in mine if one.record is not None),
                    tokens_total=total,
                    tokens_kept=sum(len(one.offsets) for one in mine),
                    method=self.method.name if pruned else "none",
                    score=self.scorer.name if pruned else "none",
                    text=texts[number] if texts and pruned else None,
                )
            )
        flat = [piece for pieces in layout for piece in pieces]
        chosen = _chosen(features, flat, kept)
        stays = [(p.count, k.offsets) for p, k in zip(flat, kept, strict=True)]
        columns = columns_of(mask, encoded["attention_mask"], stays)
        counts = [int(mask[row, stay].sum()) for row, stay in enumerate(columns)]
        # Where the features are one tensor, pieces of one size make its rows, else prompts do.
        stacked = isinstance(seen.pooler_output, Tensor)
        sizes = [len(one.offsets) for one in kept if len(one.offsets)]
        level = self.left and stacked and len(set(sizes)) > 1
        tensors = self._shorten(encoded, mask, columns, counts if level else None, positions)
        if stacked and not level:
            counts = sizes if self.left else [sum(counts)]
        fields: dict[str, Any] = {"pooler_output": entries_of(chosen, counts, stacked)}
        if (planes := getattr(seen, "deepstack_features", None)) is not None:
            kept_planes = [_chosen(torch.cat(list(p)), flat, kept, merge=False) for p in planes]
            fields["deepstack_features"] = [entries_of(p, counts, False) for p in kept_planes]
        return PrunedInputs(tensors, tuple(record), (type(seen), fields))

    def _select(
        self, viewer: Viewer | None, number: int, piece: Piece, tokens: Tensor, share: int
    ) -> _Kept:
        """Choose `share` of the patches of one piece; row ends follow rows that keep a patch."""
        everything = torch.arange(piece.count)
        if not piece.patches:
            return _Kept(everything, None, None)
        if share == piece.patches:
            numbers = np.arange(piece.patches)
            why = np.full(piece.patches, Reason.RULE, np.uint8)
            return _Kept(everything, None, PieceRecord(piece.grid, piece.box, numbers, why))
        if not share:
            empty = np.zeros(0, np.int64)
            nothing = PieceRecord(piece.grid, piece.box, empty, empty.astype(np.uint8))
            return _Kept(everything[:0], None, nothing)
        assert viewer is not None
        patches = piece.patch_offsets.to(tokens.device)
        options = SelectionOptions(
            self.options.split,
            self.options.order,
            self.options.context,
            self.options.seed + number,  # each picture its own
        )
        found = self.method.rule(viewer(number, piece, tokens[patches]), share, options)
        assert isinstance(found, Selection)
        indices, reason = found.indices[0].cpu(), found.reason[0].cpu()
        merged = None
        if found.tokens is not None:
            merged = self.scorer.project(found.tokens.to(tokens.device, self.model.dtype))[0]
        if piece.newline:  # rows are closed, so they must stay rows
            order = indices.where(indices >= 0, piece.patches).argsort(stable=True)
            indices, reason = indices[order], reason[order]
            merged = None if merged is None else merged[order.to(merged.device)]
        # A merged token that stands for no patch takes the place of the last one.
        places = indices.where(indices >= 0, piece.patches - 1)
        offsets = piece.patch_offsets[places]
        if piece.newline:
            offsets, merged = close_rows(piece, offsets, merged, tokens)
        row = PieceRecord(
            piece.grid, piece.box, indices.numpy(), reason.numpy(),
            _array(found.similarity, 0, 0), _array(found.context, 0),
        )  # fmt: skip
        return _Kept(offsets, merged, row)

    def _shorten(
        self,
        encoded: Any,
        mask: Tensor,
        columns: Sequence[Tensor],
        counts: Sequence[int] | None,
        positions: str,
    ) -> dict[str, Tensor]:
        """Ids, mask, token types and positions of the tokens that enter.

        `counts` of image tokens a prompt, if given, are evened out by placeholders among the
        padding, which nothing attends to.
        """
        attention = encoded["attention_mask"]
        pad = self.processor.tokenizer.pad_token_id or 0
        length = max(len(chosen) for chosen in columns)
        even = counts or ()
        if even:
            words = [len(chosen) - n for chosen, n in zip(columns, even, strict=True)]
            length = max(words) + max(even)
        cut = functools.partial(take, columns=columns, length=length, left=self.left)
        tensors = {"input_ids": cut(encoded["input_ids"], pad), "attention_mask": cut(attention, 0)}
        for row, count in enumerate(even):
            tensors["input_ids"][row, : max(even) - count] = self.model.config.image_token_id
        if "token_type_ids" in encoded:
            tensors["token_type_ids"] = cut(encoded["token_type_ids"], 0)
        if self.family.axes == 0:
            return tensors
        # The text axis numbers the shortened prompt under M-RoPE and is the only one elsewhere.
        order = (attention.cumsum(-1) - 1).clamp(min=0)
        new_order = (tensors["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        if self.family.axes == 1:
            kept = cut(order, 0)
            tensors["position_ids"] = kept if positions == "original" else new_order
            return tensors
        axes, _ = self.model.base_model.get_rope_index(
            encoded["input_ids"],
            mm_token_type_ids=mask.int(),
            image_grid_thw=encoded["image_grid_thw"],
            attention_mask=attention,
        )
        if positions == "original":
            axes = cut(axes, 0)
        else:
            number = (mask & ~mask.roll(1, 1)).flatten().cumsum(0).view_as(mask)
            number = number.where(mask, -1)
            rows = [
                compact_positions(axes[:, row, chosen], number[row, chosen])
                for row, chosen in enumerate(columns)
            ]
            axes = torch.stack([pad_to(row, new_order.shape[1], self.left) for row in rows], dim=1)
        tensors["position_ids"] = torch.cat([new_order[None], axes])
        return tensors


def _counts(layout: Layout) -> list[int]:
    """Tokens of each picture."""
    return [sum(piece.count for piece in pieces) for pieces in layout]


def _chosen(
    features: Tensor, pieces: Sequence[Piece], kept: Sequence[_Kept], *, merge: bool = True
) -> Tensor:
    """(M, L) of all tokens -> those that enter, in order; merged ones in place of their patch."""
    parts, start = [], 0
    for piece, one in zip(pieces, kept, strict=True):
        if merge and one.tokens is not None:
            parts.append(one.tokens.to(features.device, features.dtype))
        else:
            parts.append(features[start + one.offsets.to(features.device)])
        start += piece.count
    return torch.cat(parts)


def _array(scores: Tensor | None, *index: int) -> np.ndarray | None:
    return None if scores is None else scores[index].float().cpu().numpy()
