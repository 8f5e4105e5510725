"""Picture + phrase + token budget -> mask, token map and cost.

    picture ─► clip_image ─┬─► select(budget) ─► project ─► llm_prefill ─► [SEG] state ─┐
    phrase ──► clip_text ──┘                                                            ▼
    picture ─► sam_image ─────────────────────────────────────────────────────────► mask_decode

`encode` does what depends on the picture alone, once; `ground` does the rest for any phrase and
budget. Nothing is remembered between calls: state is the `EncodedImage` that the caller holds.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from litelvlm.methods import (
    METHODS,
    InsideResult,
    Method,
    SelectionOptions,
    TokenView,
    get_method,
)
from litelvlm.config import CONTEXTS, POSITIONS, TEXTS, ModelConfig
from litelvlm.errors import InputError, MemoryShortError
from litelvlm.geometry import PatchFrame
from litelvlm.images import read_image
from litelvlm.models.bundle import GroundingModel
from litelvlm.models.dual_encoder import DualEncoder, ImageTokens
from litelvlm.models.language import LanguageModel, Sequences
from litelvlm.models.prompt import PromptIds, build_prompt, plain
from litelvlm.models.segmenter import Segmenter, SegmenterScene
from litelvlm.profiling import PROFILES, Profiler, StageCost
from litelvlm.pruning import ORDERS, SPLITS, Reason, Selection, gather_tokens, text_similarity
from litelvlm.result import Costs, GroundingResult, GroundingResults, TokenMap

MODES = ("forced", "generate")
MAX_PHRASE = 1000  # characters
MAX_PHRASES = 64

# Wordings that CLIP reads with text="templates"; their embeddings are averaged.
CLIP_TEMPLATES = ("{}", "a photo of {}", "a picture with {}", "where is {}?", "{} in this image")

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class EncodedImage:
    """A picture after both image encoders; ask it as many phrases and budgets as you like.

    Attributes:
        image: (H, W, 3) uint8, the picture, upright.
        tokens: what CLIP says.
        segmenter: what SAM says.
        frame: where CLIP's patches lie in the picture.
        costs: of the two encoders.
        model: name of the model that encoded it.
    """

    image: np.ndarray
    tokens: ImageTokens
    segmenter: SegmenterScene
    frame: PatchFrame
    costs: tuple[StageCost, ...]
    model: str


def _guarded(method: F) -> F:
    """Run without gradients, and turn "out of memory" into an error that says so."""

    @functools.wraps(method)
    def wrapper(self: Pipeline, *args: Any, **kwargs: Any) -> Any:
        try:
            with torch.inference_mode():
                return method(self, *args, **kwargs)
        except (torch.OutOfMemoryError, MemoryError):
            fault = f"out of memory on {self.device}"
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):
                raise
            fault = f"out of memory on {self.device}"
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        raise MemoryShortError(f"{fault}; try fewer phrases, a smaller budget or a smaller picture")

    return wrapper  # type: ignore[return-value]


class Pipeline:
    """A pixel-grounding model with token pruning. Make one with `litelvlm.load`.

    Args:
        model: all weights, in evaluation mode.
        config: its configuration.
        tokenizer: of the language model; `encode(text, add_special_tokens=False)` and `decode`.
        vocabulary: words the model was trained on; None for an open vocabulary.
    """

    def __init__(
        self,
        model: GroundingModel,
        config: ModelConfig,
        tokenizer: Any,
        vocabulary: frozenset[str] | None = None,
    ) -> None:
        encoder = config.dual_encoder
        statistics = {k: encoder[k] for k in ("image_mean", "image_std") if k in encoder}
        self.model = model
        self.config = config
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.encoder = DualEncoder(model.dual_encoder, **statistics)
        self.language = LanguageModel(model.language, config.tokens["seg"], config.tokens["eos"])
        self.segmenter = Segmenter(model.segmenter, config.segmenter_place)
        self.weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())

    def __repr__(self) -> str:
        return f"Pipeline({self.name!r}, device={str(self.device)!r}, dtype={self.dtype})"

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.config.name

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.language.llama.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are held in."""
        return self.language.llama.dtype

    @property
    def tokens_total(self) -> int:
        """N, patch tokens of a picture."""
        return self.encoder.grid[0] * self.encoder.grid[1]

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the selection methods."""
        return tuple(METHODS)

    def __call__(
        self, image: Any, phrases: str | Sequence[str], budget: Any = None, **options: Any
    ):  # type: ignore[no-untyped-def]
        """`encode`, then `ground`; see there. An `EncodedImage` is taken as it is."""
        if not isinstance(image, EncodedImage):
            encode = {k: options.pop(k) for k in ("view",) if k in options}
            if "profile" in options:
                encode["profile"] = options["profile"]
            image = self.encode(image, **encode)
        return self.ground(image, phrases, budget, **options)

    @_guarded
    def encode(self, image: Any, *, view: str | None = None, profile: str = "time") -> EncodedImage:
        """Run both image encoders.

        Args:
            image: path, Pillow image or (H, W, 3) uint8 RGB array (see `images.read_image`).
            view: what CLIP sees: "crop" (the middle square) or "letterbox" (all of it, padded);
                None takes what the model was trained with.
            profile: "time", or "full" to measure FLOPs and memory too, at twice the time.

        Returns:
            An `EncodedImage`.

        Raises:
            InputError: not a picture, too large, or an unknown option.
        """
        _one_of("profile", profile, PROFILES)
        pixels = read_image(image)
        view = self.config.selection.view if view is None else view
        frame = PatchFrame(self.encoder.grid, (pixels.shape[0], pixels.shape[1]), view)
        profiler = Profiler(self.device, profile)
        tokens = profiler.run(
            "clip_image",
            lambda: self.encoder.encode_image(self.encoder.pixels(pixels, view).to(self.device)),
        )
        embedding = profiler.run(
            "sam_image",
            lambda: self.segmenter.encode(self.segmenter.pixels(pixels).to(self.device)),
        )
        scene = SegmenterScene(embedding, self.segmenter.frame(frame.image_hw))
        return EncodedImage(pixels, tokens, scene, frame, tuple(profiler.costs), self.name)

    @_guarded
    def ground(
        self,
        scene: EncodedImage,
        phrases: str | Sequence[str],
        budget: int | None = None,
        *,
        method: str = "litelvlm",
        split: str | float | None = None,
        order: str | None = None,
        positions: str | None = None,
        context: str | None = None,
        text: str | None = None,
        mode: str = "forced",
        joint: bool = False,
        seed: int = 0,
        max_new_tokens: int = 32,
        profile: str = "time",
    ) -> GroundingResults:
        """Find what each phrase refers to.

        Args:
            scene: from `encode`.
            phrases: one or several; each gets its own tokens, prompt and mask, in one batch.
            budget: image tokens that enter the language model, 1..N; None or N: unpruned.
            method: name of a selection method (`pipe.methods`).
            split, order, positions, context, text: see `config.SelectionConfig`; None takes the
                model's own default (for positions, first the method's).
            mode: "forced" puts the answer template into the prompt (one prefill); "generate" lets
                the model write its answer: without [SEG] nothing is found, several are united.
            joint: True asks all phrases in one prompt that shares one selection, as the released
                evaluation does. Forced mode only.
            seed: of methods that draw at random.
            max_new_tokens: bound on the answer in generate mode.
            profile: "time", or "full" to measure FLOPs and memory too, at twice the time.

        Returns:
            One result a phrase, in order, and the cost of the call.

        Raises:
            InputError: bad phrase, budget or option; the message names it.
        """
        if not isinstance(scene, EncodedImage):
            raise InputError(f"scene must come from pipe.encode, got {type(scene).__name__}")
        if scene.model != self.name:
            raise InputError(f"the picture was encoded by {scene.model!r}, this is {self.name!r}")
        phrases = check_phrases(phrases)
        budget = self.tokens_total if budget is None else check_budget(budget, self.tokens_total)
        rule = get_method(method)
        default = self.config.selection
        options = SelectionOptions(
            split=_check_split(default.split if split is None else split),
            order=_one_of("order", default.order if order is None else order, ORDERS),
            context=_one_of("context", default.context if context is None else context, CONTEXTS),
            seed=seed,
        )
        positions = _one_of(
            "positions", positions or rule.positions or default.positions, POSITIONS
        )
        text = _one_of("text", default.text if text is None else text, TEXTS)
        _one_of("mode", mode, MODES)
        _one_of("profile", profile, PROFILES)
        if joint and mode == "generate":
            raise InputError("joint=True needs mode='forced': only the last turn could be written")
        if joint and budget < len(phrases):
            raise InputError(f"budget {budget} is below the number of phrases, {len(phrases)}")
        pruned = budget < self.tokens_total
        inside = pruned and rule.where == "inside"
        if inside and mode == "generate":
            raise InputError(
                f"method {method!r} prunes inside the language model: forced mode only"
            )

        profiler = Profiler(self.device, profile)
        prompts = self._prompts(phrases, joint, mode)
        rows = len(prompts)
        tokens = scene.tokens
        hidden = tokens.hidden.expand(rows, -1, -1)

        selection = None
        if pruned and not inside:
            texts = [plain(phrase) for phrase in phrases]
            embeds = profiler.run("clip_text", self._clip_text, texts, text)
            embeds = embeds[None] if joint else embeds[:, None]  # (rows, T, E)
            selection = profiler.run(
                "select", self._select, tokens, hidden, embeds, rule, budget, options
            )
            if selection.indices.shape[0] != rows:
                raise RuntimeError(f"{method}: {selection.indices.shape[0]} selections for {rows}")
        image = profiler.run("project", self._project, hidden, selection)
        places = None
        if positions == "original" and selection is not None:
            places = selection.indices
        sequences = self.language.assemble(prompts, image, places, self.tokens_total)
        kept = self.tokens_total if selection is None else selection.indices.shape[1]
        expected = tuple(prompt.length(kept) for prompt in prompts)
        if sequences.lengths != expected or sequences.embeds.shape[1] != max(expected):
            raise RuntimeError(f"{sequences.embeds.shape[1]} tokens would enter, not {expected}")
        self._check_length(
            prompts,
            kept if places is None else self.tokens_total,
            max_new_tokens if mode == "generate" else 0,
        )

        layer_tokens, kept_inside, attention_bytes = None, None, None
        answers = [self.config.prompt.answer] * len(phrases)
        if mode == "generate":
            states, answers = self._generate(profiler, sequences, max_new_tokens)
        elif inside:
            states, outcome = self._prune_inside(profiler, sequences, prompts, rule, budget)
            layer_tokens, kept_inside = outcome.layer_tokens, outcome.kept
            attention_bytes = outcome.attention_bytes
        else:
            every = profiler.run("llm_prefill", self.language.prefill, sequences)
            states = self._seg_states(every, prompts, kept)
        masks = profiler.run("mask_decode", self._decode, scene.segmenter, states)

        results = []
        for index, phrase in enumerate(phrases):
            row = 0 if joint else index
            results.append(
                self._result(
                    scene,
                    phrase,
                    masks[index],
                    answers[index],
                    self._token_map(
                        scene.frame, selection, kept_inside, row, index if joint else 0
                    ),
                    self._warnings(phrase, text) if selection is not None else (),
                )
            )
        costs = Costs(
            stages=tuple(profiler.costs),
            tokens_total=self.tokens_total,
            tokens_kept=kept if kept_inside is None else kept_inside.shape[1],
            llm_tokens=sequences.embeds.shape[1],
            weight_bytes=self.weight_bytes,
            kv_cache_bytes=_cache_bytes(
                self.language.kv_bytes_per_token, layer_tokens or (sequences.embeds.shape[1],)
            ),
            device=_device_name(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            method=method if pruned else "none",
            layer_tokens=layer_tokens,
            attention_bytes=attention_bytes,
        )
        settings = {
            "method": method if pruned else "none",
            "budget": budget,
            "split": options.split,
            "order": options.order,
            # Methods inside the language model number by their own rule.
            "positions": rule.positions if inside else positions,
            "context": options.context,
            "text": text,
            "mode": mode,
            "joint": joint,
            "seed": seed,
            "view": scene.frame.view,
        }
        return GroundingResults(tuple(results), costs, settings, self.name)

    def unknown_words(self, phrase: str) -> tuple[str, ...]:
        """Words of a phrase the model was never trained on; empty for an open vocabulary."""
        if self.vocabulary is None:
            return ()
        words = re.findall(r"[^\W_]+(?:'[^\W_]+)?", phrase.lower())
        return tuple(dict.fromkeys(word for word in words if word not in self.vocabulary))

    def text_embeddings(self, phrases: Sequence[str], text: str = "phrase") -> Tensor:
        """(T, E): what CLIP makes of each phrase in one of the forms of `config.TEXTS`."""
        with torch.inference_mode():
            return self._clip_text([plain(phrase) for phrase in phrases], text)

    def similarity(
        self, scene: EncodedImage, phrases: Sequence[str], text: str = "phrase"
    ) -> Tensor:
        """(T, N) float32: the score that LiteLVLM ranks, lowest first."""
        with torch.inference_mode():
            projected = self.encoder.project(scene.tokens)
            return text_similarity(projected, self.text_embeddings(phrases, text))[0]

    # The steps of `ground`, each a function of its arguments.

    def _prompts(self, phrases: list[str], joint: bool, mode: str) -> list[PromptIds]:
        def encode(piece: str) -> list[int]:
            return self.tokenizer.encode(piece, add_special_tokens=False)

        turns = [phrases] if joint else [[phrase] for phrase in phrases]
        return [
            build_prompt(
                turn, self.config.prompt, self.config.tokens, encode, answered=mode == "forced"
            )
            for turn in turns
        ]

    def _clip_text(self, texts: list[str], form: str) -> Tensor:
        many = [wording for text in texts for wording in self._wordings(text, form)]
        embeds = self.encoder.encode_text(many)
        return embeds.view(len(texts), -1, embeds.shape[-1]).mean(1)

    def _wordings(self, text: str, form: str) -> list[str]:
        """What CLIP reads for one phrase; the embeddings of several wordings are averaged."""
        if form == "question":
            return [self.config.prompt.question.format(phrase=text)]
        if form == "templates":
            return [template.format(text) for template in CLIP_TEMPLATES]
        return [text]

    def _select(
        self,
        tokens: ImageTokens,
        hidden: Tensor,
        embeds: Tensor,
        rule: Method,
        budget: int,
        options: SelectionOptions,
    ) -> Selection:
        rows = hidden.shape[0]

        def view(index: int) -> Any:
            return self.encoder.block(tokens, index).expand(rows)

        llm = None
        if "llm" in rule.needs:  # once a picture, not once a phrase
            llm = self.model.projector(tokens.hidden).expand(rows, -1, -1)
        projected = self.encoder.project(tokens).expand(rows, -1, -1)
        chosen: Any = rule.rule(
            TokenView(
                hidden=hidden,
                similarity=text_similarity(projected, embeds),
                text=embeds,
                projected=projected,
                grid=tokens.grid,
                heads=self.encoder.heads,
                last=view(-1),
                penultimate=view(-2) if "penultimate" in rule.needs else None,
                early=view(self.encoder.early) if "early" in rule.needs else None,
                llm=llm,
            ),
            budget,
            options,
        )
        return chosen

    def _project(self, hidden: Tensor, selection: Selection | None) -> Tensor:
        if selection is None:
            return self.model.projector(hidden[:1]).expand(hidden.shape[0], -1, -1)
        tokens = selection.tokens
        if tokens is None:
            tokens = gather_tokens(hidden, selection.indices)
        return self.model.projector(tokens.to(hidden.dtype))

    def _check_length(self, prompts: list[PromptIds], image_tokens: int, new: int) -> None:
        limit = self.language.llama.config.max_position_embeddings
        longest = max(prompt.length(image_tokens) for prompt in prompts) + new
        if longest > limit:
            raise InputError(f"the prompt needs {longest} positions, the model has {limit}")

    def _seg_states(self, states: Tensor, prompts: list[PromptIds], kept: int) -> list[Tensor]:
        """One (1, L) state a phrase: the one that predicts its [SEG]."""
        found = []
        for row, prompt in enumerate(prompts):
            for place in prompt.seg_states(self.language.seg_id, kept):
                found.append(states[row, place : place + 1])
        return found

    def _generate(
        self, profiler: Profiler, sequences: Sequences, max_new_tokens: int
    ) -> tuple[list[Tensor], list[str]]:
        cache, state = profiler.run("llm_prefill", self.language.start, sequences)
        written = profiler.run(
            "llm_decode", self.language.decode, sequences, cache, state, max_new_tokens
        )
        end = self.language.eos_id
        texts = [
            self.tokenizer.decode([token for token in answer.ids if token != end]).strip()
            for answer in written
        ]
        return [answer.seg_states for answer in written], texts

    def _prune_inside(
        self,
        profiler: Profiler,
        sequences: Sequences,
        prompts: list[PromptIds],
        rule: Method,
        budget: int,
    ) -> tuple[list[Tensor], InsideResult]:
        span = (sequences.image_start, sequences.image_start + self.tokens_total)
        # The rules look at the last real token of each row, so they must know the padding.
        lengths = torch.tensor(sequences.lengths, device=self.device)
        mask = torch.arange(sequences.embeds.shape[1], device=self.device) < lengths[:, None]
        outcome: Any = profiler.run(
            "llm_prefill",
            rule.rule,
            self.language.llama.model,
            sequences.embeds,
            mask,
            sequences.positions,
            span,
            budget,
        )
        states = []
        for row, prompt in enumerate(prompts):
            for place in prompt.seg_states(self.language.seg_id, self.tokens_total):
                states.append(outcome.hidden[row, outcome.places[row] == place])
        return states, outcome

    def _decode(
        self, scene: SegmenterScene, states: list[Tensor]
    ) -> list[tuple[Tensor, Tensor] | None]:
        """Per phrase (h, w) logits and the (H, W) mask; None without [SEG], several are united."""
        counts = [len(state) for state in states]
        if not sum(counts):
            return [None] * len(states)
        prompts = self.model.seg_head(torch.cat(states))
        logits, _ = self.segmenter.decode(scene.embedding, prompts)
        masks: list[tuple[Tensor, Tensor] | None] = []
        for piece in logits.float().split(counts):
            if len(piece):
                low_res = piece.amax(0)
                masks.append((low_res, scene.frame.upscale(low_res[None])[0] > 0))
            else:
                masks.append(None)
        return masks

    def _token_map(
        self,
        frame: PatchFrame,
        selection: Selection | None,
        inside: Tensor | None,
        row: int,
        phrase: int,
    ) -> TokenMap:
        if selection is None:
            order = np.arange(frame.count) if inside is None else inside[row].cpu().numpy()
            reason = np.full(len(order), Reason.RULE, np.uint8)
            similarity = context = None
        else:
            order = selection.indices[row].cpu().numpy()
            reason = selection.reason[row].cpu().numpy()
            similarity = _array(selection.similarity, row, phrase)
            context = _array(selection.context, row)
        ascending = np.argsort(order, kind="stable")
        ascending = ascending[order[ascending] >= 0]
        return TokenMap(order[ascending], reason[ascending], order, similarity, context, frame)

    def _warnings(self, phrase: str, form: str) -> tuple[str, ...]:
        if not any(map(self.encoder.is_cut, self._wordings(plain(phrase), form))):
            return ()
        limit = self.encoder.context_length
        return (f"CLIP reads {limit} tokens; the end of this phrase does not reach its score",)

    def _result(
        self,
        scene: EncodedImage,
        phrase: str,
        found: tuple[Tensor, Tensor] | None,
        answer: str,
        token_map: TokenMap,
        warnings: tuple[str, ...],
    ) -> GroundingResult:
        frame = scene.segmenter.frame
        mask = np.zeros(frame.image_hw, bool) if found is None else found[1].cpu().numpy()
        return GroundingResult(
            image=scene.image,
            phrase=phrase,
            mask=mask,
            low_res_logits=None if found is None else found[0].cpu().numpy(),
            mask_frame=frame,
            text=answer,
            found=bool(mask.any()),
            selection=token_map,
            unknown_words=self.unknown_words(phrase),
            warnings=warnings,
        )


def check_phrases(phrases: str | Sequence[str]) -> list[str]:
    """A list of usable phrases, or `InputError` naming what is wrong with them."""
    given = [phrases] if isinstance(phrases, str) else phrases
    if not isinstance(given, Sequence) or not all(isinstance(phrase, str) for phrase in given):
        raise InputError(f"phrases must be text or a list of texts, got {str(phrases)[:60]!r}")
    if not 1 <= len(given) <= MAX_PHRASES:
        raise InputError(f"give 1 to {MAX_PHRASES} phrases, got {len(given)}")
    for phrase in given:
        if len(phrase) > MAX_PHRASE:
            raise InputError(f"a phrase has {len(phrase)} characters, at most {MAX_PHRASE}")
        if not plain(phrase):
            raise InputError(f"a phrase has no word: {phrase[:40]!r}")
    return list(given)


def check_budget(budget: Any, total: int) -> int:
    """A budget in 1..total as an int, or `InputError` naming what was given."""
    expected = f"budget must be a whole number from 1 to {total}"
    if isinstance(budget, float) and math.isfinite(budget) and budget == int(budget):
        budget = int(budget)
    try:
        number = operator.index(budget)
    except TypeError:
        raise InputError(f"{expected}, got {str(budget)[:40]!r}") from None
    if isinstance(budget, bool) or not 1 <= number <= total:
        raise InputError(f"{expected}, got {str(budget)[:40]}")
    return number


def _check_split(split: Any) -> str | float:
    if isinstance(split, (int, float)) and not isinstance(split, bool) and 0 <= split <= 1:
        return float(split)
    if split in SPLITS:
        return split
    raise InputError(f"split must be {', '.join(SPLITS)} or 0..1, got {str(split)[:40]!r}")


def _one_of(kind: str, given: Any, known: Sequence[str]) -> str:
    if given not in known:
        raise InputError(f"{kind} must be one of {', '.join(known)}, got {str(given)[:40]!r}")
    return given


def _cache_bytes(per_token: int, layer_tokens: Sequence[int]) -> int:
    """Bytes of keys and values; every layer holds those of the tokens it was given."""
    return per_token * sum(layer_tokens) // len(layer_tokens)


def _array(scores: Tensor | None, *index: int) -> np.ndarray | None:
    return None if scores is None else scores[index].float().cpu().numpy()


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)
