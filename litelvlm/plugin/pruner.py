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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from litelvlm.errors import InputError, ModelError
from litelvlm.images import read_image
from litelvlm.methods import METHODS, SelectionOptions, get_method
from litelvlm.plugin.families import Family, Piece, Shown, family_of
from litelvlm.plugin.prompt import columns_of, compact_positions, runs_of, take
from litelvlm.plugin.scores import Guide, OwnClip, TokensOnly, Viewer
from litelvlm.pruning import Reason, Selection
from litelvlm.question import check_budget, check_choice, check_seed

_WHERE = "what the user asks"  # stands for the question when a chat template is read


@dataclass(frozen=True)
class PieceRecord:
    """What was kept of one grid of a picture.

    Attributes:
        grid: (rows, columns) of patches; N = rows * columns.
        box: x0, y0, x1, y1 of the grid as shares of the picture's width and height.
        indices: (K,) int64, patch numbers in the order in which they entered; -1: a merged token.
        reason: (K,) uint8, values of `litelvlm.pruning.Reason`, aligned with `indices`.
        similarity: (N,) float32 as ranked, lowest first; None where the rule reads none.
        context: (N,) float32 as ranked, highest first; None likewise.
    """

    grid: tuple[int, int]
    box: tuple[float, float, float, float]
    indices: np.ndarray
    reason: np.ndarray
    similarity: np.ndarray | None = None
    context: np.ndarray | None = None


@dataclass(frozen=True)
class PictureRecord:
    """What was kept of one picture.

    Attributes:
        prompt: number of the prompt it belongs to.
        pieces: its grids; most models have one, tiled models one a tile.
        tokens_total: image tokens of the unpruned prompt, those that end rows included.
        tokens_kept: image tokens that enter.
        method: name of the rule; "none" where all was kept.
        score: which score the rule read.
        text: what the text tower read; None where none did.
    """

    prompt: int
    pieces: tuple[PieceRecord, ...]
    tokens_total: int
    tokens_kept: int
    method: str
    score: str
    text: str | None


class PrunedInputs(Mapping[str, Any]):
    """Arguments for `model.generate(**inputs)`.

    The vision features come in a fresh container at each access, because `generate` changes the
    one it gets when it expands beams: the same inputs may be used again.

    Attributes:
        record: one `PictureRecord` a picture, in the order of the placeholders.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        record: tuple[PictureRecord, ...],
        features: tuple[type, dict[str, Any]],
    ) -> None:
        self.record = record
        self._tensors = tensors
        self._features = features

    def __getitem__(self, name: str) -> Any:
        if name == "mm_encoder_outputs":
            kind, fields = self._features
            return {"image": kind(**fields)}
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._tensors
        yield "mm_encoder_outputs"

    def __len__(self) -> int:
        return len(self._tensors) + 1


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
        self.options = _check_options(options)
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
        prompts = [text] if isinstance(text, str) else list(text)
        pictures, owner = self._pictures(images, prompts)
        questions = self._questions(question, prompts)
        with torch.no_grad():
            encoded = self._encode(pictures, prompts, owner)
            return self._prune(encoded, pictures, owner, questions, budget, positions)

    def _scorer(self, guide: Any, clip: Any) -> TokensOnly:
        rule, name = self.method, self.family.name
        if rule.where != "before":
            raise InputError(
                f"method {rule.name!r} prunes inside the language model, which the plug-in leaves "
                "as it is; methods that work: "
                + ", ".join(m.name for m in METHODS.values() if m.where == "before")
            )
        own = guide is None and OwnClip.fits(self.model)
        kind: type[TokensOnly] = Guide if guide is not None else OwnClip if own else TokensOnly
        if missing := rule.needs - kind.offers:
            able = ", ".join(m.name for m in METHODS.values() if m.needs <= kind.offers)
            raise InputError(
                f"method {rule.name!r} needs {', '.join(sorted(missing))}, which {name} does not "
                f"offer: give guide= a CLIP; methods that work without: {able}"
            )
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

    def _prune(
        self,
        encoded: Any,
        pictures: Sequence[np.ndarray],
        owner: Sequence[int],
        questions: list[str] | None,
        budget: Any,
        positions: str,
    ) -> PrunedInputs:
        base, config = self.model.base_model, self.model.config
        names = inspect.signature(base.get_image_features).parameters
        given = {name: encoded[name] for name in names if name in encoded}
        if isinstance(self.scorer, OwnClip):
            given["output_hidden_states"] = True
        seen = base.get_image_features(**given, return_dict=True)
        entries = list(seen.pooler_output)
        features = torch.cat(entries)
        ids, attention = encoded["input_ids"], encoded["attention_mask"]
        mask = ids == config.image_token_id
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
        counts = [sum(piece.count for piece in pieces) for pieces in layout]
        if len(layout) != len(pictures) or sum(counts) != len(features):
            raise ModelError(
                f"{self.family.name}: {len(features)} image tokens do not fit a layout of {counts}"
            )
        budgets = _budgets(budget, [sum(piece.patches for piece in p) for p in layout])
        texts = None if questions is None else [questions[row] for row in owner]
        viewer = None
        if any(b < sum(piece.patches for piece in p) for b, p in zip(budgets, layout, strict=True)):
            viewer = self.scorer.look(pictures, texts or [], seen)

        kept: list[_Kept] = []
        record = []
        start = 0
        for number, (pieces, most) in enumerate(zip(layout, budgets, strict=True)):
            mine = []
            for piece, share in zip(pieces, _shares(most, pieces), strict=True):
                tokens = features[start : start + piece.count]
                mine.append(self._select(viewer, number, piece, tokens, share))
                start += piece.count
            kept += mine
            pruned = most < sum(piece.patches for piece in pieces)
            record.append(
                PictureRecord(
                    prompt=owner[number],
                    pieces=tuple(one.record for one in mine if one.record is not None),
                    tokens_total=counts[number],
                    tokens_kept=sum(len(one.offsets) for one in mine),
                    method=self.method.name if pruned else "none",
                    score=self.scorer.name if pruned else "none",
                    text=texts[number] if texts and pruned else None,
                )
            )
        flat = [piece for pieces in layout for piece in pieces]
        chosen = _chosen(features, flat, kept)
        columns = columns_of(
            mask, attention, [(p.count, k.offsets) for p, k in zip(flat, kept, strict=True)]
        )
        counts = [int(mask[row, stay].sum()) for row, stay in enumerate(columns)]
        # Where the features are one tensor, pieces of one size make its rows, else prompts do.
        stacked = isinstance(seen.pooler_output, Tensor)
        sizes = [len(one.offsets) for one in kept if len(one.offsets)]
        level = self.left and stacked and len(set(sizes)) > 1
        tensors = self._shorten(encoded, mask, columns, counts if level else None, positions)
        if stacked and not level:
            counts = sizes if self.left else [sum(counts)]
        fields: dict[str, Any] = {"pooler_output": _entries(chosen, counts, stacked)}
        if (planes := getattr(seen, "deepstack_features", None)) is not None:
            kept_planes = [_chosen(torch.cat(list(p)), flat, kept, merge=False) for p in planes]
            fields["deepstack_features"] = [_entries(p, counts, False) for p in kept_planes]
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
            offsets, merged = _close_rows(piece, offsets, merged, tokens)
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
            axes = torch.stack([_pad(row, new_order.shape[1], self.left) for row in rows], dim=1)
        tensors["position_ids"] = torch.cat([new_order[None], axes])
        return tensors


def check_model(model: Any) -> Family:
    """The family of a model that is ready to be pruned, or one sentence saying why it is not."""
    import transformers

    config: Any = getattr(model, "config", None)
    kind = type(model).__name__
    if not hasattr(config, "model_type") or not hasattr(model, "generate"):
        raise InputError(
            "model must come from AutoModelForImageTextToText.from_pretrained, "
            f"got {kind if not isinstance(model, str) else repr(model[:60])}"
        )
    if type(model).__module__.startswith("transformers_modules"):
        raise ModelError(
            f"{kind} runs its repository's own code, whose token layout is not known; load the "
            "version that is part of transformers (without trust_remote_code)"
        )
    family = family_of(config.model_type)
    # Florence-2 takes the features in generate, which passes them to its encoder.
    takes = "mm_encoder_outputs" in inspect.signature(model.forward).parameters
    if not takes and not config.is_encoder_decoder:
        raise ModelError(
            f"{kind} of transformers {transformers.__version__} takes no features from outside; "
            "5.18 or newer does"
        )
    if not hasattr(model, "hf_device_map") and any(p.is_meta for p in model.parameters()):
        raise ModelError(f"{kind} is on the meta device, it has no weights; load them first")
    if model.training:
        raise InputError(f"{kind} is in training mode; call model.eval() first")
    return family


def question_in(processor: Any, prompt: str) -> str:
    """The user's words in a prompt: without placeholders, special tokens and the chat frame."""
    token = processor.image_token
    content = [{"type": "image"}, {"type": "text", "text": _WHERE}]
    if getattr(processor, "chat_template", None):
        turn = [{"role": "user", "content": content}]
        frame = processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        head, tail = frame.split(token)[0], frame.rpartition(_WHERE)[2]
        prompt = prompt.removeprefix(head).removesuffix(tail)
    for special in {token, *processor.tokenizer.all_special_tokens}:
        prompt = prompt.replace(special, " ")
    return " ".join(prompt.split())


def _check_options(options: dict[str, Any]) -> SelectionOptions:
    known = ("split", "order", "context", "seed")
    if extra := set(options) - set(known):
        raise InputError(f"unknown option {min(extra)!r}; known: {', '.join(known)}")
    checked: dict[str, Any] = {
        name: check_seed(value) if name == "seed" else check_choice(name, value)
        for name, value in options.items()
    }
    return SelectionOptions(**checked)


def _budgets(budget: Any, totals: Sequence[int]) -> list[int]:
    """Patches to keep of each picture."""
    given = list(budget) if isinstance(budget, (list, tuple)) else [budget] * len(totals)
    if len(given) != len(totals):
        raise InputError(f"{len(given)} budgets for {len(totals)} pictures")
    chosen = []
    for number, (one, total) in enumerate(zip(given, totals, strict=True)):
        if one is None:
            chosen.append(total)
        elif isinstance(one, float) and 0 < one <= 1:
            chosen.append(max(1, round(one * total)))
        else:
            try:
                chosen.append(check_budget(one, total))
            except InputError as fault:
                where = f" (picture {number})" if len(totals) > 1 else ""
                raise InputError(f"{fault}{where}; a float in 0..1 is a share") from None
    return chosen


def _shares(budget: int, pieces: Sequence[Piece]) -> list[int]:
    """A picture's budget over its pieces, by their size; largest remainders first."""
    total = sum(piece.patches for piece in pieces)
    parts = [divmod(budget * piece.patches, total) for piece in pieces]
    shares = [whole for whole, _ in parts]
    order = sorted(range(len(pieces)), key=lambda i: -parts[i][1])
    for i in order[: budget - sum(shares)]:
        shares[i] += 1
    return shares


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


def _entries(features: Tensor, counts: Sequence[int], stacked: bool) -> Any:
    """(M', L) of all prompts -> entries of those sizes, in the form the model hands out."""
    entries = features.split([count for count in counts if count])
    if not stacked:
        return entries
    longest = max(counts)
    gaps = [longest - len(entry) for entry in entries]
    return torch.stack(
        [torch.nn.functional.pad(e, (0, 0, gap, 0)) for e, gap in zip(entries, gaps, strict=True)]
    )


def _close_rows(
    piece: Piece, offsets: Tensor, merged: Tensor | None, tokens: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Add the token that ends the row after each row that keeps a patch."""
    width = piece.grid[1] + 1
    rows = offsets // width
    last = torch.cat([rows[1:] != rows[:-1], torch.tensor([True])])
    ends = rows[last] * width + piece.grid[1]
    order = torch.cat([offsets, ends]).argsort(stable=True)
    if merged is not None:
        order = order.to(merged.device)
        merged = torch.cat([merged, tokens[ends.to(tokens.device)]])[order]
    return torch.cat([offsets, ends])[order.cpu()], merged


def _pad(values: Tensor, length: int, left: bool) -> Tensor:
    gap = length - values.shape[-1]
    return torch.nn.functional.pad(values, (gap, 0) if left else (0, gap))


def _array(scores: Tensor | None, *index: int) -> np.ndarray | None:
    return None if scores is None else scores[index].float().cpu().numpy()
