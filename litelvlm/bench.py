"""Fair timing: runs with and without pruning take turns in one process, and medians are told.

    print(compare(pipe, scene, ["the red apple"], budget=192))
    print(bench(pipe, [576, 192, 64]).text())

Every variant runs once unmeasured (that run also counts FLOPs and memory), then the variants take
turns, and the order is turned round every other time, so that a machine that warms up or is shared
favours none. FLOPs are counted from the operators that run, two per multiply-add. How memory is
measured is told in `litelvlm.profiling`.
"""

from __future__ import annotations

import copy
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from litelvlm.errors import InputError
from litelvlm.pipeline import Pipeline
from litelvlm.profiling import StageCost
from litelvlm.question import check_budget
from litelvlm.result import GroundingResults
from litelvlm.scene import EncodedImage

Note = Callable[[str], None]  # told what runs next, for progress
LLM_STAGES = ("llm_prefill", "llm_decode")


@dataclass(frozen=True)
class Spread:
    """Repeated timings in milliseconds: median, least and most."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(times: Sequence[float]) -> Spread:
        """Of at least one timing."""
        return Spread(statistics.median(times), min(times), max(times))

    def __str__(self) -> str:
        return f"{_ms(self.median)} ({_ms(self.low)}..{_ms(self.high)})"


@dataclass(frozen=True)
class Comparison:
    """The same question with and without pruning, timed in turns.

    Attributes:
        pruned: the answers; its costs hold the medians, FLOPs and peak memory.
        unpruned: likewise.
        stages: by stage, (pruned, unpruned); None where a stage does not run in that variant.
        total: of all stages, (pruned, unpruned).
        repeats: timed runs of each variant.
    """

    pruned: GroundingResults
    unpruned: GroundingResults
    stages: dict[str, tuple[Spread | None, Spread | None]]
    total: tuple[Spread, Spread]
    repeats: int

    @property
    def speedup(self) -> float:
        """How many times faster the pruned run is, all stages after encoding together."""
        return self.total[1].median / self.total[0].median

    @property
    def memory_ratio(self) -> float | None:
        """How many times less activation memory the language model takes; None if unmeasured."""
        return _ratio(_llm_peak(self.unpruned), _llm_peak(self.pruned))

    def to_json(self) -> dict[str, Any]:
        """Plain data: medians with their spread, and the ratios (unpruned / pruned)."""

        def plain(pair: tuple[Spread | None, Spread | None]) -> dict[str, Any]:
            ours, theirs = pair
            return {
                "pruned_ms": asdict(ours) if ours else None,
                "unpruned_ms": asdict(theirs) if theirs else None,
                "ratio": _faster(theirs, ours),
            }

        return {
            "repeats": self.repeats,
            "stages": {name: plain(pair) for name, pair in self.stages.items()},
            "total": plain(self.total),
            "llm_peak_bytes_ratio": self.memory_ratio,
            "kv_cache_bytes_ratio": self.unpruned.costs.kv_cache_bytes
            / max(1, self.pruned.costs.kv_cache_bytes),
        }

    def __str__(self) -> str:
        ours, theirs = self.pruned.costs, self.unpruned.costs
        rows = [["", f"{theirs.tokens_kept} tokens", f"{ours.tokens_kept} tokens", "ratio"]]
        for name, (after, before) in [*self.stages.items(), ("together", self.total)]:
            rows.append(
                [f"{name}, ms", _cell(before), _cell(after), _times(_faster(before, after))]
            )
        for title, before_bytes, after_bytes in (
            ("LLM activations, MiB", _llm_peak(self.unpruned), _llm_peak(self.pruned)),
            ("KV cache, MiB", theirs.kv_cache_bytes, ours.kv_cache_bytes),
        ):
            ratio = _ratio(before_bytes, after_bytes)
            rows.append([title, _mib(before_bytes), _mib(after_bytes), _times(ratio)])
        rows.append(["tokens in the LLM", str(theirs.llm_tokens), str(ours.llm_tokens), ""])
        head = (
            f"{ours.method} · {ours.device} · {ours.dtype} · median (least..most) "
            f"of {self.repeats} turns"
        )
        return head + "\n" + _table(rows)


def compare(
    pipe: Pipeline,
    scene: EncodedImage,
    phrases: str | Sequence[str],
    budget: int,
    *,
    repeats: int = 3,
    count: bool = True,
    note: Note | None = None,
    **options: Any,
) -> Comparison:
    """Ask once with and once without pruning, in turns after a warm-up.

    Args:
        pipe: the model.
        scene: an encoded picture; encoding is not part of the comparison.
        phrases: one or several.
        budget: image tokens of the pruned variant, 1..N.
        repeats: timed runs of each variant, at least 1.
        count: also count FLOPs and peak memory (one more run of each variant).
        note: told what runs next.
        **options: of `Pipeline.ground`, for both variants.

    Raises:
        InputError: as `Pipeline.ground`, or fewer than one repeat.
    """
    budget = check_budget(budget, scene.count)
    runs = _in_turns(pipe, scene, phrases, [budget, None], repeats, count, note, options)
    (pruned, ours), (unpruned, theirs) = runs
    names = list(dict.fromkeys([*ours, *theirs]))
    names.sort(key=_ORDER.index)
    stages = {
        name: tuple(Spread.of(times[name]) if name in times else None for times in (ours, theirs))
        for name in names
    }
    total = tuple(
        Spread.of([sum(turn) for turn in zip(*times.values(), strict=True)])
        for times in (ours, theirs)
    )
    return Comparison(pruned, unpruned, stages, total, repeats)  # type: ignore[arg-type]


_ORDER = ("clip_text", "select", "project", "llm_prefill", "llm_decode", "mask_decode")


@dataclass(frozen=True)
class BenchRow:
    """One budget of a benchmark; times in milliseconds, sizes in bytes.

    Attributes:
        tokens: image tokens that entered the language model.
        llm_tokens: all tokens that entered it.
        prefill: of the language model.
        select: of scoring and choosing the tokens; None for the unpruned model.
        answer: from an encoded picture to the mask, all stages.
        llm_peak_bytes: peak of activation memory in the language model; None if unmeasured.
        kv_cache_bytes: keys and values of one sequence.
        llm_flops: of the prefill, two per multiply-add.
    """

    tokens: int
    llm_tokens: int
    prefill: Spread
    select: Spread | None
    answer: Spread
    llm_peak_bytes: int | None
    kv_cache_bytes: int
    llm_flops: int | None


@dataclass(frozen=True)
class SamTiming:
    """SAM's image encoder, this project's path and transformers' own, in turns.

    Attributes:
        ours, theirs: milliseconds.
        logit_difference: largest difference of the mask logits between the two.
        our_error, their_error: largest difference of the mask logits to float32.
        logit_scale: standard deviation of the float32 mask logits, to judge the others by.
        mask_agreement: share of pixels with the same side of zero in both.
    """

    ours: Spread
    theirs: Spread
    logit_difference: float
    our_error: float
    their_error: float
    logit_scale: float
    mask_agreement: float


@dataclass(frozen=True)
class BenchReport:
    """The table of a benchmark, with all that is needed to read it.

    Attributes:
        model: name; `random_weights` tells whether they were drawn.
        random_weights: costs do not depend on the weights, masks do.
        machine: processor or GPU.
        threads: CPU threads in use.
        dtype: of weights and activations.
        versions: of the libraries.
        repeats: timed runs of each row.
        phrases: number of phrases asked together.
        weight_bytes: of the whole model.
        encode: milliseconds of both image encoders, by stage.
        rows: one a budget, the unpruned model first.
        sam: None if it was not asked for.
    """

    model: str
    random_weights: bool
    machine: str
    threads: int
    dtype: str
    versions: dict[str, str]
    repeats: int
    phrases: int
    weight_bytes: int
    encode: dict[str, Spread]
    rows: tuple[BenchRow, ...]
    sam: SamTiming | None

    def first_ms(self, row: BenchRow) -> float:
        """What the first mask of a picture costs at one budget: both encoders and the answer."""
        return sum(spread.median for spread in self.encode.values()) + row.answer.median

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for `json.dumps`."""
        return {**asdict(self), "first_ms": [self.first_ms(row) for row in self.rows]}

    def text(self) -> str:
        """For a terminal."""
        return f"{self._head()}\n\n{_table(self._cells())}\n\n{self._foot()}"

    def markdown(self) -> str:
        """For a README."""
        first, *rest = self._cells()
        lines = [first, ["---"] + ["---:"] * (len(first) - 1), *rest]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"{self._head()}\n\n{table}\n\n{self._foot()}"

    def _head(self) -> str:
        weights = "random weights, " if self.random_weights else ""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"{self.model}: {weights}{self.dtype}, {self.weight_bytes / 2**30:.1f} GiB of weights; "
            f"{self.machine}, {self.threads} threads; {versions}. "
            f"Times in ms, median (least..most) of {self.repeats} turns, "
            f"{self.phrases} phrase{'s' if self.phrases > 1 else ''}."
        )

    def _cells(self) -> list[list[str]]:
        full = self.rows[0]
        first = self.first_ms(full)
        cells = [
            [
                "image tokens",
                "LLM tokens",
                "LLM prefill",
                "faster",
                "LLM activations, MiB",
                "less",
                "KV cache, MiB",
                "LLM TFLOP",
                "selection",
                "first answer, encoding included",
                "less time",
                "next answer, picture encoded",
                "faster than the first unpruned",
            ]
        ]
        for row in self.rows:
            cells.append(
                [
                    str(row.tokens),
                    str(row.llm_tokens),
                    str(row.prefill),
                    _times(full.prefill.median / row.prefill.median),
                    _mib(row.llm_peak_bytes),
                    _times(_ratio(full.llm_peak_bytes, row.llm_peak_bytes)),
                    _mib(row.kv_cache_bytes),
                    "-" if row.llm_flops is None else f"{row.llm_flops / 1e12:.3g}",
                    _cell(row.select),
                    _ms(self.first_ms(row)),
                    f"{1 - self.first_ms(row) / first:.0%}",
                    str(row.answer),
                    _times(first / row.answer.median),
                ]
            )
        return cells

    def _foot(self) -> str:
        encode = ", ".join(f"{name} {spread}" for name, spread in self.encode.items())
        lines = [f"Encoding a picture, once for all phrases and budgets: {encode}."]
        if self.sam:
            sam = self.sam
            lines.append(
                f"SAM encoder: {sam.ours} here, {sam.theirs} by transformers' default path, "
                f"{_times(sam.theirs.median / sam.ours.median)} faster. Mask logits (deviation "
                f"{sam.logit_scale:.3g}) differ from float32 by {sam.our_error:.2g} at most here, "
                f"{sam.their_error:.2g} there, from each other by {sam.logit_difference:.2g}; "
                f"{sam.mask_agreement:.2%} of mask pixels agree."
            )
        return "\n".join(lines)


def bench(
    pipe: Pipeline,
    budgets: Sequence[int],
    *,
    picture: Any = None,
    phrases: str | Sequence[str] = "the red apple on the left",
    repeats: int = 3,
    sam: bool = True,
    random_weights: bool = False,
    note: Note | None = None,
    **options: Any,
) -> BenchReport:
    """Measure a model at several budgets; the unpruned model is always among them.

    Args:
        pipe: the model.
        budgets: image tokens, each 1..N.
        picture: as for `Pipeline.encode`; None takes a generated one, 480 x 640.
        phrases: one or several.
        repeats: timed runs of each variant, at least 1.
        sam: also time SAM's encoder against transformers' own path.
        random_weights: noted in the report.
        note: told what runs next.
        **options: of `Pipeline.ground`.

    Raises:
        InputError: a budget outside 1..N, or fewer than one repeat.
    """
    total = pipe.tokens_total
    chosen = sorted({check_budget(budget, total) for budget in budgets} - {total}, reverse=True)
    if picture is None:
        picture = _generated_picture()
    say = note or (lambda _: None)
    say("encoding the picture")
    scene = pipe.encode(picture)  # warm-up
    encode: dict[str, list[float]] = {}
    for _ in range(repeats):
        scene = pipe.encode(picture)
        for cost in scene.costs:
            encode.setdefault(cost.stage, []).append(cost.ms)

    variants: list[int | None] = [None, *chosen]
    runs = _in_turns(pipe, scene, phrases, variants, repeats, True, note, options)
    rows = []
    for results, times in runs:
        costs = results.costs
        prefill = costs.stage("llm_prefill")
        rows.append(
            BenchRow(
                tokens=costs.tokens_kept,
                llm_tokens=costs.llm_tokens,
                prefill=Spread.of(times["llm_prefill"]),
                select=Spread.of(times["select"]) if "select" in times else None,
                answer=Spread.of([sum(turn) for turn in zip(*times.values(), strict=True)]),
                llm_peak_bytes=_llm_peak(results),
                kv_cache_bytes=costs.kv_cache_bytes,
                llm_flops=prefill.flops if prefill else None,
            )
        )
    return BenchReport(
        model=pipe.name,
        random_weights=random_weights,
        machine=machine(pipe.device),
        threads=torch.get_num_threads(),
        dtype=str(pipe.dtype).removeprefix("torch."),
        versions=versions(),
        repeats=repeats,
        phrases=len(runs[0][0]),
        weight_bytes=pipe.weight_bytes,
        encode={stage: Spread.of(times) for stage, times in encode.items()},
        rows=tuple(rows),
        sam=_time_sam(pipe, scene, repeats, say) if sam else None,
    )


def machine(device: torch.device) -> str:
    """What runs the model: the GPU's name, or the processor's with its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    from importlib.metadata import version

    from litelvlm._version import __version__

    return {
        "litelvlm": __version__,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "Python": platform.python_version(),
    }


# --- measuring -------------------------------------------------------------------------------


def _in_turns(
    pipe: Pipeline,
    scene: EncodedImage,
    phrases: str | Sequence[str],
    budgets: Sequence[int | None],
    repeats: int,
    count: bool,
    note: Note | None,
    options: dict[str, Any],
) -> list[tuple[GroundingResults, dict[str, list[float]]]]:
    """Per budget: the answers, costs at their medians, and the times of every stage."""
    if repeats < 1:
        raise InputError(f"repeats must be at least 1, got {repeats}")
    say = note or (lambda _: None)
    options = {key: value for key, value in options.items() if key != "profile"}

    def ask(budget: int | None, profile: str) -> GroundingResults:
        return pipe.ground(scene, phrases, budget, profile=profile, **options)

    first = []
    for budget in budgets:
        say(f"warm-up at {budget or pipe.tokens_total} tokens")
        first.append(ask(budget, "full" if count else "time"))
    times: list[dict[str, list[float]]] = [{} for _ in budgets]
    for turn in range(repeats):
        order = list(range(len(budgets)))
        for index in order if turn % 2 == 0 else reversed(order):
            say(f"turn {turn + 1} of {repeats} at {budgets[index] or pipe.tokens_total} tokens")
            for cost in ask(budgets[index], "time").costs.stages:
                times[index].setdefault(cost.stage, []).append(cost.ms)
    return [
        (_with_medians(results, spent), spent) for results, spent in zip(first, times, strict=True)
    ]


def _with_medians(results: GroundingResults, times: dict[str, list[float]]) -> GroundingResults:
    stages = tuple(
        StageCost(cost.stage, statistics.median(times[cost.stage]), cost.peak_bytes, cost.flops)
        for cost in results.costs.stages
    )
    return replace(results, costs=replace(results.costs, stages=stages))


def _llm_peak(results: GroundingResults) -> int | None:
    peaks = [cost.peak_bytes for cost in results.costs.stages if cost.stage in LLM_STAGES]
    known = [peak for peak in peaks if peak is not None]
    return max(known, default=None)


def _time_sam(pipe: Pipeline, scene: EncodedImage, repeats: int, say: Note) -> SamTiming:
    """Both paths through SAM's encoder in turns, and both against float32."""
    segmenter, device = pipe.family.segmenter, pipe.device
    encoder = segmenter.sam.vision_encoder
    pixels = segmenter.pixels(scene.image).to(device, segmenter.sam.dtype)
    paths: list[Callable[[], Tensor]] = [
        lambda: segmenter.encode(pixels),
        lambda: encoder(pixels).last_hidden_state,
    ]
    times: list[list[float]] = [[], []]
    with torch.inference_mode():
        embeddings = []
        for index, path in enumerate(paths):  # warm-up
            say(f"SAM encoder, {('this project', 'transformers')[index]}")
            embeddings.append(path())
        for turn in range(repeats):
            for index in (0, 1) if turn % 2 == 0 else (1, 0):
                say(f"SAM encoder, turn {turn + 1} of {repeats}")
                times[index].append(_clock(paths[index], device))
        say("SAM encoder in float32")
        embeddings.append(_in_float32(encoder, pixels))
        # One prompt and a float32 decoder, so that only the encoder differs.
        decoder = copy.deepcopy(segmenter.sam.mask_decoder).float()
        generator = torch.Generator().manual_seed(0)
        prompt = torch.randn(1, 1, 1, embeddings[0].shape[1], generator=generator).to(device)
        positions = segmenter.sam.get_image_wide_positional_embeddings().float()
        dense = segmenter.sam.prompt_encoder.no_mask_embed.weight.float().view(1, -1, 1, 1)
        ours, theirs, exact = (
            decoder(
                image_embeddings=embedding.float(),
                image_positional_embeddings=positions,
                sparse_prompt_embeddings=prompt,
                dense_prompt_embeddings=dense.expand_as(embedding),
                multimask_output=False,
            )[0]
            for embedding in embeddings
        )
    return SamTiming(
        ours=Spread.of(times[0]),
        theirs=Spread.of(times[1]),
        logit_difference=float((ours - theirs).abs().max()),
        our_error=float((ours - exact).abs().max()),
        their_error=float((theirs - exact).abs().max()),
        logit_scale=float(exact.std()),
        mask_agreement=float(((ours > 0) == (theirs > 0)).float().mean()),
    )


def _in_float32(encoder: Any, pixels: Tensor) -> Tensor:
    """The library's encoder in float32, one layer at a time: a whole copy may not fit."""

    def exact(module: torch.nn.Module) -> torch.nn.Module:
        return copy.deepcopy(module).float()

    states = exact(encoder.patch_embed)(pixels.float())
    if encoder.pos_embed is not None:
        states = states + encoder.pos_embed.float()
    for layer in encoder.layers:
        states = exact(layer)(states)
    return exact(encoder.neck)(states)


def _clock(work: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) * 1e3


def _generated_picture() -> np.ndarray:
    """A (480, 640, 3) picture of soft colours and a disc; the same every time."""
    rows, columns = np.mgrid[0:480, 0:640].astype(np.float32)
    picture = np.stack([rows / 480, columns / 640, (rows + columns) / 1120], axis=-1) * 200
    picture[np.hypot(rows - 260, columns - 200) < 90] = (210, 40, 40)
    return picture.astype(np.uint8)


# --- telling ---------------------------------------------------------------------------------


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _mib(size: int | None) -> str:
    if size is None:
        return "-"
    mib = size / 2**20
    return f"{mib:,.0f}" if mib >= 100 else f"{mib:.1f}" if mib >= 1 else f"{mib:.3f}"


def _ratio(before: float | None, after: float | None) -> float | None:
    return before / after if before is not None and after else None


def _faster(before: Spread | None, after: Spread | None) -> float | None:
    return before.median / after.median if before and after else None


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def _cell(spread: Spread | None) -> str:
    return "-" if spread is None else str(spread)


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned with spaces: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
