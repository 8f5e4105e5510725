"""What the plug-in costs and saves, measured in pairs: plain beside pruned, taking turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from litelvlm.errors import ModelError
from litelvlm.loading import check_device, check_dtype
from litelvlm.plugin.pruner import Pruner
from litelvlm.plugin.record import PrunedInputs
from litelvlm.profiling import count


@dataclass(frozen=True)
class Run:
    """One prompt through the language model.

    Attributes:
        image_tokens: that entered.
        prompt_tokens: length of the prompt, image tokens included.
        prepare_ms: processor, vision tower and selection; median.
        prefill_ms: language model on the whole prompt, to the first token; median.
        flops: of the prefill, two a multiply-add.
        peak_bytes: most bytes of activations alive at once in the prefill.
        answer: what the model wrote; None where it was not asked to.
    """

    image_tokens: int
    prompt_tokens: int
    prepare_ms: float
    prefill_ms: float
    flops: int
    peak_bytes: int
    answer: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Paired:
    """Medians of turns that alternate.

    Attributes:
        plain_ms: processor and `generate` of one token on the untouched model.
        full_ms: the same through the plug-in with all tokens.
        full_ratio: median over the turns of the second by the first.
        unpruned: language model on all tokens.
        pruned: language model on the budget.
        prefill_ratio: median over the turns of pruned by unpruned prefill time.
        selection_ms: of scoring, choosing and shortening: `prepare` at the budget beyond `prepare`
            with all tokens.
    """

    plain_ms: float
    full_ms: float
    full_ratio: float
    unpruned: Run
    pruned: Run
    prefill_ratio: float
    selection_ms: float

    @property
    def flop_ratio(self) -> float:
        """Pruned by unpruned FLOPs of the prefill."""
        return self.pruned.flops / self.unpruned.flops

    @property
    def selection_share(self) -> float:
        """Selection by the prefill time it saves."""
        return self.selection_ms / (self.unpruned.prefill_ms - self.pruned.prefill_ms)

    def __str__(self) -> str:
        return (
            f"plug-in by plain at full budget: {self.full_ratio:.3f} "
            f"({self.full_ms:.0f} by {self.plain_ms:.0f} ms)\n"
            f"prefill at {self.pruned.image_tokens} of {self.unpruned.image_tokens} image tokens: "
            f"{self.prefill_ratio:.3f} ({self.pruned.prefill_ms:.0f} by "
            f"{self.unpruned.prefill_ms:.0f} ms), FLOPs {self.flop_ratio:.3f}\n"
            f"selection: {self.selection_ms:.1f} ms, {self.selection_share:.2%} of what it saves"
        )


def load(
    name: str | Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
) -> tuple[Any, Any]:
    """(model, processor) of a local folder or a hub repository; its own code is never run.

    Raises:
        ModelError: it is not there, or transformers cannot read it as a vision-language model.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    place, kind = check_device(device), check_dtype(dtype)
    model: Any
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            name, dtype=kind or "auto", revision=revision
        )
        processor = AutoProcessor.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError, ImportError) as fault:
        reason = str(fault).strip().splitlines()[0][:120]
        raise ModelError(f"{name}: cannot be loaded ({reason})") from None
    return model.to(place).eval(), processor


def prompt_for(pruner: Pruner, question: str, pictures: int = 1) -> str:
    """A prompt of one turn: by the processor's chat template, else by the family's."""
    processor = pruner.processor
    if pruner.family.placed:
        return question
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}] * pictures + [{"type": "text", "text": question}]
        turn = [{"role": "user", "content": content}]
        return processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    return pruner.family.prompt.format(image=processor.image_token * pictures, question=question)


def answer(pruner: Pruner, inputs: PrunedInputs, max_new_tokens: int) -> str:
    """The model's greedy answer."""
    out = pruner.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    start = inputs["input_ids"].shape[1] if pruner.left else 0
    return pruner.processor.tokenizer.decode(out[0, start:], skip_special_tokens=True).strip()


def measure(
    pruner: Pruner,
    images: Sequence[Any],
    prompt: str,
    budgets: Sequence[Any],
    *,
    question: str | None = None,
    positions: str | None = None,
    repeats: int = 3,
    max_new_tokens: int = 0,
) -> list[Run]:
    """Each budget in turn, `repeats` rounds after a warm-up that counts FLOPs and memory.

    Args:
        pruner: a model and a rule.
        images: pictures of the prompt.
        prompt: with placeholders.
        budgets: as in `Pruner.prepare`; None is the unpruned model.
        question: for the text tower.
        positions: as in `Pruner.prepare`.
        repeats: timed rounds, at least 1.
        max_new_tokens: length of the answers; 0 asks for none.

    Returns:
        One `Run` a budget, in order; times are medians.
    """
    times: list[list[tuple[float, float]]] = [[] for _ in budgets]
    counted = []
    made: list[PrunedInputs] = []

    def prepare(budget: Any) -> PrunedInputs:
        return pruner.prepare(images, prompt, budget, positions=positions, question=question)

    for budget in budgets:
        made.append(prepare(budget))
        counted.append(count(_first_token, pruner.model, made[-1]))
    for _ in range(repeats):
        for index, budget in enumerate(budgets):
            start = time.perf_counter()
            inputs = prepare(budget)
            _wait(pruner.model)
            middle = time.perf_counter()
            _first_token(pruner.model, inputs)
            times[index].append((middle - start, time.perf_counter() - middle))
    runs = []
    for inputs, taken, (flops, peak) in zip(made, times, counted, strict=True):
        ready, prefill = (statistics.median(part) * 1e3 for part in zip(*taken, strict=True))
        text = answer(pruner, inputs, max_new_tokens) if max_new_tokens else None
        tokens = sum(record.tokens_kept for record in inputs.record)
        length = inputs["input_ids"].shape[1]
        runs.append(Run(tokens, length, ready, prefill, flops, peak, text))
    return runs


def paired(pruner: Pruner, image: Any, prompt: str, budget: Any, *, repeats: int = 7) -> Paired:
    """The plug-in against the untouched model, and a budget against all tokens.

    All take turns in one process after a warm-up, so that a busy machine slows all alike.

    Args:
        pruner: a model and a rule.
        image: one picture: path, Pillow image or array.
        prompt: with its placeholder.
        budget: as in `Pruner.prepare`.
        repeats: timed rounds.
    """
    from PIL import Image

    from litelvlm.images import read_image

    model, processor = pruner.model, pruner.processor
    picture = Image.fromarray(read_image(image))

    def plain() -> None:
        shown = [[picture]] if pruner.family.nested else [picture]
        inputs = processor(images=shown, text=[prompt], return_tensors="pt")
        _first_token(model, inputs.to(model.device, model.dtype))

    def prepare(one: Any) -> PrunedInputs:
        inputs = pruner.prepare(picture, prompt, one)
        _wait(model)
        return inputs

    unpruned, pruned = measure(pruner, [picture], prompt, [None, budget], repeats=1)
    inputs = [prepare(one) for one in (None, budget)]
    jobs: list[Callable[[], Any]] = [
        plain,
        lambda: _first_token(model, prepare(None)),
        lambda: _first_token(model, inputs[0]),
        lambda: _first_token(model, inputs[1]),
        lambda: prepare(None),
        lambda: prepare(budget),
    ]
    turns = []
    for turn in range(repeats + 1):
        order = jobs if turn % 2 else jobs[::-1]  # neither is always the first
        taken = {job: _timed(job) for job in order}
        turns.append([taken[job] for job in jobs])
    turns = turns[1:]  # the first warms up
    median = [statistics.median(column) * 1e3 for column in zip(*turns, strict=True)]
    return Paired(
        plain_ms=median[0],
        full_ms=median[1],
        full_ratio=statistics.median(turn[1] / turn[0] for turn in turns),
        unpruned=_with_prefill(unpruned, median[2]),
        pruned=_with_prefill(pruned, median[3]),
        prefill_ratio=statistics.median(turn[3] / turn[2] for turn in turns),
        selection_ms=statistics.median(turn[5] - turn[4] for turn in turns) * 1e3,
    )


def _with_prefill(run: Run, ms: float) -> Run:
    return Run(**{**run.to_json(), "prefill_ms": ms})


def _timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _first_token(model: Any, inputs: Any) -> None:
    """The language model on the whole prompt."""
    model.generate(**inputs, max_new_tokens=1, do_sample=False)
    _wait(model)


def _wait(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
