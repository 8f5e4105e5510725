"""The language model over transformers' LLaMA: image tokens and a question in, [SEG] states out.

Tokens enter as embeddings (`inputs_embeds`), so any number of image tokens runs without a change
to the library. Sequences of unequal length are padded on the right: attention is causal, so no
real token ever sees the padding, and one all-ones mask serves the whole batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
)

from litelvlm.errors import ModelError, one_line
from litelvlm.methods import InsideResult
from litelvlm.methods.inside import next_state
from litelvlm.models.packing import packed_rows
from litelvlm.models.prompt import PromptIds


@dataclass(frozen=True)
class Sequences:
    """A padded batch, ready for the language model.

    Attributes:
        embeds: (P, S, L), embedded tokens, text and image.
        positions: (P, S) int64, rotary positions; (3, P, S) for M-RoPE.
        lengths: true length of each row.
        image_start: where the image tokens begin, the same in every row.
        deep: (D, P, S, L) of DeepStack: added to the states after each of the first D layers.
    """

    embeds: Tensor
    positions: Tensor
    lengths: tuple[int, ...]
    image_start: int
    deep: Tensor | None = None


def join(batches: Sequence[Sequences]) -> Sequences:
    """The rows of several batches as one, padded on the right to the longest."""
    if len(batches) == 1:
        return batches[0]
    width = max(batch.embeds.shape[1] for batch in batches)
    short = [width - batch.embeds.shape[1] for batch in batches]
    deep = [
        F.pad(b.deep, (0, 0, 0, n))
        for b, n in zip(batches, short, strict=True)
        if b.deep is not None
    ]
    return Sequences(
        torch.cat([F.pad(b.embeds, (0, 0, 0, n)) for b, n in zip(batches, short, strict=True)]),
        torch.cat([F.pad(b.positions, (0, n)) for b, n in zip(batches, short, strict=True)], -2),
        tuple(length for batch in batches for length in batch.lengths),
        batches[0].image_start,
        torch.cat(deep, 1) if deep else None,
    )


@dataclass(frozen=True)
class Generation:
    """What the model wrote for one row.

    Attributes:
        ids: the new token ids, the end token included if it was reached.
        seg_states: (n, L), the state that predicted each [SEG] among them.
    """

    ids: tuple[int, ...]
    seg_states: Tensor


def build_llama(config: dict[str, Any]) -> LlamaForCausalLM:
    """LLaMA from keyword arguments of `LlamaConfig`, with fused attention (SDPA)."""
    settings = {"attn_implementation": "sdpa", **config}
    theta = settings.pop("rope_theta", 10000.0)  # in rope_parameters from transformers 5 on
    settings.setdefault("rope_parameters", {"rope_type": "default", "rope_theta": theta})
    return LlamaForCausalLM(LlamaConfig(**settings))


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder: tokenizer.json, else LLaMA's own tokenizer.model.

    Raises:
        ModelError: neither file is there or it cannot be read.
    """
    try:
        if (folder / "tokenizer.json").is_file():
            return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        if (folder / "tokenizer.model").is_file():
            return LlamaTokenizer.from_pretrained(str(folder))
    except Exception as fault:  # the tokenizer libraries raise bare Exceptions
        raise ModelError(f"{folder}: tokenizer cannot be read ({one_line(fault, 80)})") from None
    raise ModelError(f"{folder}: no tokenizer.json and no tokenizer.model")


def wrap_tokenizer(tokenizer: Any) -> Any:
    """A `tokenizers.Tokenizer` as a transformers tokenizer, like those of `load_tokenizer`."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def cache_argument(model: nn.Module) -> str:
    """What a transformers model calls its key-value cache: "cache" from 5.24 on."""
    known = inspect.signature(model.forward).parameters
    return "cache" if "cache" in known else "past_key_values"


class LanguageModel:
    """A LLaMA that reads embedded image tokens between two pieces of text.

    Args:
        llama: the module, from `build_llama`.
        seg_id: id of the [SEG] token; None for a model without one.
        eos_id: id of the end token.
        own: whether [SEG]'s own state is handed out, not the one that predicts it.
    """

    def __init__(
        self, llama: LlamaForCausalLM, seg_id: int | None, eos_id: int, own: bool = False
    ) -> None:
        self.llama = llama
        self.seg_id = seg_id
        self.eos_id = eos_id
        self.own = own

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one position adds to the cache."""
        config: Any = self.llama.config
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        element = self.llama.dtype.itemsize
        return 2 * config.num_hidden_layers * config.num_key_value_heads * head * element

    def assemble(
        self, prompts: Sequence[PromptIds], image: Tensor, places: Tensor | None, total: int
    ) -> Sequences:
        """Put image tokens into their prompts.

        Args:
            prompts: P prompts that begin alike.
            image: (P, K, L), projected image tokens in the order in which they enter.
            places: (P, K), patch number of each token, to keep "original" positions: a kept token
                stands where it stands in the unpruned prompt, and so does the text after it; a
                merged token (-1) takes the place of the last patch.
                None numbers what is there consecutively ("compact").
            total: N, image tokens of the unpruned prompt.

        Returns:
            The padded batch.
        """
        device = image.device
        kept = image.shape[1]
        start = len(prompts[0].before)
        longest = max(len(prompt.after) for prompt in prompts)
        embed = self.llama.get_input_embeddings()
        pad = 0  # any id: nothing attends to padding
        before = torch.tensor([prompt.before for prompt in prompts], device=device)
        after = torch.tensor(
            [[*prompt.after, *[pad] * (longest - len(prompt.after))] for prompt in prompts],
            device=device,
        )
        embeds = torch.cat([embed(before), image, embed(after)], dim=1)  # (P, S, L)

        rows = len(prompts)
        if places is None:
            positions = torch.arange(start + kept + longest, device=device).expand(rows, -1)
        else:
            text = torch.arange(start + total + longest, device=device).expand(rows, -1)
            places = torch.where(places < 0, total - 1, places)
            # (P, before), (P, K), (P, after) -> (P, S)
            positions = torch.cat([text[:, :start], start + places, text[:, start + total :]], 1)
        lengths = tuple(prompt.length(kept) for prompt in prompts)
        return Sequences(embeds, positions, lengths, start)

    def prefill(self, sequences: Sequences, pictures: Sequence[int] = ()) -> Tensor:
        """Run all tokens once: (P, S, L) states after the final norm. No cache is kept.

        Args:
            sequences: P prompts.
            pictures: prompts of each picture, in order, to run once what they begin with.
        """
        packing = packed_rows(
            sequences.embeds, sequences.positions, min(sequences.lengths), pictures
        )
        if packing:
            states = packing.unpack(
                self.llama.model(
                    inputs_embeds=packing.pack(sequences.embeds),
                    position_ids=packing.pack(sequences.positions),
                    attention_mask=packing.mask(sequences.embeds.shape[1]),
                    use_cache=False,
                ).last_hidden_state
            )
        else:
            states = self._read(sequences, use_cache=False)
        if states.shape[:2] != sequences.embeds.shape[:2]:
            raise RuntimeError(f"{sequences.embeds.shape} went in, {states.shape} came out")
        return states

    def start(self, sequences: Sequences) -> tuple[DynamicCache, Tensor]:
        """Prefill with a cache: the cache, and the (P, L) state that predicts the first token."""
        cache = DynamicCache(config=self.llama.config)
        name = cache_argument(self.llama.model)
        states = self._read(sequences, use_cache=True, **{name: cache})
        last = torch.tensor(sequences.lengths, device=states.device) - 1
        return cache, states[torch.arange(len(last), device=states.device), last]

    def _read(self, sequences: Sequences, **cache: Any) -> Tensor:
        # Without a mask, transformers takes gaps in the positions for packed sequences.
        mask = torch.ones(sequences.embeds.shape[:2], device=sequences.embeds.device)
        if sequences.deep is not None:
            cache["visual_pos_masks"] = mask.bool()
            cache["deepstack_visual_embeds"] = list(sequences.deep.flatten(1, 2))
        return self.llama.model(
            inputs_embeds=sequences.embeds,
            position_ids=sequences.positions,
            attention_mask=mask,
            **cache,
        ).last_hidden_state

    def prune(
        self,
        sequences: Sequences,
        kept: int,
        rule: Callable[..., InsideResult],
        budget: int,
        **cache: Any,
    ) -> InsideResult:
        """Run all tokens once by a rule that drops image tokens on the way.

        Args:
            sequences: as for `prefill`.
            kept: image tokens in each row.
            rule: of `methods.inside`.
            budget: of the rule.
            **cache: handed on to each layer.
        """
        embeds, device = sequences.embeds, sequences.embeds.device
        # The rules look at the last real token of each row, so they must know the padding.
        lengths = torch.tensor(sequences.lengths, device=device)
        mask = torch.arange(embeds.shape[1], device=device) < lengths[:, None]
        span = (sequences.image_start, sequences.image_start + kept)
        return rule(self.llama.model, embeds, mask, sequences.positions, span, budget, **cache)

    def start_pruned(
        self, sequences: Sequences, kept: int, rule: Callable[..., InsideResult], budget: int
    ) -> tuple[InsideResult, DynamicCache]:
        """`prune` with a cache, for `decode_pruned`."""
        cache = DynamicCache(config=self.llama.config)
        name = cache_argument(self.llama.model)
        return self.prune(sequences, kept, rule, budget, **{name: cache}), cache

    def decode(
        self, sequences: Sequences, cache: DynamicCache, state: Tensor, max_new_tokens: int
    ) -> list[Generation]:
        """Greedy decoding after `start`; rows stop at the end token. The cache grows.

        Args:
            sequences: as given to `start`.
            cache: from `start`; what an earlier call added to it is forgotten first.
            state: (P, L), from `start`.
            max_new_tokens: at most so many tokens a row.

        Returns:
            One `Generation` a row.
        """
        rows, width = sequences.embeds.shape[:2]
        _forget(cache, width)
        lengths = torch.tensor(sequences.lengths, device=state.device)
        last = sequences.positions[..., torch.arange(rows, device=state.device), lengths - 1]
        mask = (torch.arange(width, device=state.device) < lengths[:, None]).long()
        name = cache_argument(self.llama.model)

        def step(embeds: Tensor, written: int) -> Tensor:
            return self.llama.model(
                inputs_embeds=embeds,
                position_ids=last[..., None] + written,
                attention_mask=torch.cat([mask, mask.new_ones(rows, written)], dim=1),
                use_cache=True,
                **{name: cache},
            ).last_hidden_state

        return self._greedy(state, step, max_new_tokens)

    def decode_pruned(
        self, sequences: Sequences, outcome: InsideResult, cache: DynamicCache, max_new_tokens: int
    ) -> list[Generation]:
        """`decode` after `start_pruned`: every layer goes on with what reached it."""
        _forget(cache, outcome.layer_tokens[0])
        name = cache_argument(self.llama.model)
        ends = torch.tensor(sequences.lengths, device=outcome.places.device) - 1
        row, place = torch.nonzero(outcome.places == ends[:, None], as_tuple=True)

        def step(embeds: Tensor, written: int) -> Tensor:
            return next_state(self.llama.model, embeds, outcome, written, **{name: cache})

        return self._greedy(outcome.hidden[row, place], step, max_new_tokens)

    def _greedy(
        self, state: Tensor, step: Callable[[Tensor, int], Tensor], max_new_tokens: int
    ) -> list[Generation]:
        """The likeliest token, again and again.

        Args:
            state: (P, L), predicts the first token.
            step: ((P, 1, L) embedded token, its number from 1 on) -> (P, 1, L) its state.
            max_new_tokens: at most so many tokens a row.
        """
        rows = len(state)
        ids: list[list[int]] = [[] for _ in range(rows)]
        found: list[list[Tensor]] = [[] for _ in range(rows)]
        running = [True] * rows
        for number in range(1, max_new_tokens + 1):
            token = self.llama.lm_head(state).argmax(-1)  # (P,)
            for index, value in enumerate(token.tolist()):
                if running[index]:
                    ids[index].append(value)
                    if value == self.seg_id and not self.own:
                        found[index].append(state[index])  # the state that predicts [SEG]
                    running[index] = value != self.eos_id
            if not any(running) or number == max_new_tokens:
                break
            state = step(self.llama.get_input_embeddings()(token)[:, None], number)[:, 0]
            for index, value in enumerate(token.tolist()):
                if self.own and value == self.seg_id and running[index]:
                    found[index].append(state[index])
        empty = state.new_zeros(0, state.shape[-1])
        return [
            Generation(tuple(new), torch.stack(states) if states else empty)
            for new, states in zip(ids, found, strict=True)
        ]


def _forget(cache: DynamicCache, length: int) -> None:
    """Take what was written after a prompt of `length` tokens out of a cache."""
    if (written := cache.get_seq_length() - length) > 0:
        cache.crop(-written)


def build_projector(image_width: int, width: int, kind: str = "mlp") -> nn.Module:
    """Patch tokens (…, D) -> language-model tokens (…, L).

    Args:
        image_width: D.
        width: L.
        kind: "mlp" (LLaVA-1.5's `mlp2x_gelu`) or "linear" (the first LLaVA's one layer).
    """
    if kind not in ("mlp", "linear"):
        raise ModelError(f"projector is {kind!r}, expected mlp or linear")
    if kind == "linear":
        return nn.Linear(image_width, width)
    return nn.Sequential(nn.Linear(image_width, width), nn.GELU(), nn.Linear(width, width))


def build_seg_head(width: int, prompt_width: int) -> nn.Sequential:
    """GLaMM's `text_hidden_fcs`: [SEG] states (…, L) -> SAM prompt embeddings (…, C)."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, prompt_width))
