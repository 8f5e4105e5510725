"""A model at several budgets: the table, and all that is needed to read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from litelvlm.bench.compare import Note, in_turns, llm_peak
from litelvlm.bench.figures import (
    Spread,
    cell_text,
    machine,
    mib_text,
    ms_text,
    ratio_of,
    times_text,
    versions,
)
from litelvlm.bench.sam import SamTiming, time_sam
from litelvlm.memory import peak_resident
from litelvlm.pipeline import Pipeline
from litelvlm.question import check_budget
from litelvlm.tables import markdown_table, text_table

HEADS = (
    *("image tokens", "LLM tokens", "LLM prefill", "faster", "LLM decode"),
    *("LLM activations, MiB", "less"),
    *("KV cache, MiB", "LLM TFLOP", "selection", "first answer, encoding included", "less time"),
    *("next answer, picture encoded", "faster than the first unpruned"),
)


@dataclass(frozen=True)
class BenchRow:
    """One budget of a benchmark; times in milliseconds, sizes in bytes.

    Attributes:
        tokens: image tokens that entered the language model.
        llm_tokens: all tokens that entered it.
        prefill: of the language model.
        decode: of the tokens it writes; None where it writes none.
        select: of scoring and choosing the tokens; None for the unpruned model.
        answer: from an encoded picture to the mask or the first word, all stages.
        llm_peak_bytes: peak of activation memory in the language model; None if unmeasured.
        kv_cache_bytes: keys and values of one sequence.
        llm_flops: of the prefill, two per multiply-add.
    """

    tokens: int
    llm_tokens: int
    prefill: Spread
    decode: Spread | None
    select: Spread | None
    answer: Spread
    llm_peak_bytes: int | None
    kv_cache_bytes: int
    llm_flops: int | None


@dataclass(frozen=True)
class BenchReport:
    """The table of a benchmark, with all that is needed to read it.

    Attributes:
        model: name; `random_weights` tells whether they were drawn.
        random_weights: costs do not depend on the weights, masks do.
        machine: processor or GPU.
        threads: CPU threads in use.
        dtype: of weights and activations.
        bits: of the language model's weights, where they are stored in fewer.
        versions: of the libraries.
        repeats: timed runs of each row.
        phrases: number of phrases asked together.
        weight_bytes: of the whole model.
        loaded_bytes, peak_bytes: most main memory the process held, libraries included, before the
            benchmark (so while the model was loaded) and up to its end; None if unmeasured.
        encode: milliseconds of the image encoders, by stage.
        rows: one a budget, the unpruned model first.
        sam: None if it was not asked for.
    """

    model: str
    random_weights: bool
    machine: str
    threads: int
    dtype: str
    bits: int | None
    versions: dict[str, str]
    repeats: int
    phrases: int
    weight_bytes: int
    loaded_bytes: int | None
    peak_bytes: int | None
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
        return f"{self._head()}\n\n{text_table([HEADS, *self._cells()])}\n\n{self._foot()}"

    def markdown(self) -> str:
        """For a README."""
        table = "\n".join(markdown_table(HEADS, self._cells()))
        return f"{self._head()}\n\n{table}\n\n{self._foot()}"

    def _head(self) -> str:
        weights = "random weights, " if self.random_weights else ""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        bits = f" ({self.bits} bits)" if self.bits else ""
        held = ""
        if self.loaded_bytes and self.peak_bytes:
            loaded, peak = (size / 2**30 for size in (self.loaded_bytes, self.peak_bytes))
            held = f" (main memory of the process: {loaded:.1f} at most to load, {peak:.1f} to run)"
        return (
            f"{self.model}: {weights}{self.dtype}{bits}, {self.weight_bytes / 2**30:.1f} GiB of "
            f"weights{held}; {self.machine}, {self.threads} threads; {versions}. "
            f"Times in ms, median (least..most) of {self.repeats} turns, "
            f"{self.phrases} phrase{'s' if self.phrases > 1 else ''}."
        )

    def _cells(self) -> list[list[str]]:
        full = self.rows[0]
        first = self.first_ms(full)
        return [
            [
                str(row.tokens),
                str(row.llm_tokens),
                str(row.prefill),
                times_text(full.prefill.median / row.prefill.median),
                cell_text(row.decode),
                mib_text(row.llm_peak_bytes),
                times_text(ratio_of(full.llm_peak_bytes, row.llm_peak_bytes)),
                mib_text(row.kv_cache_bytes),
                "-" if row.llm_flops is None else f"{row.llm_flops / 1e12:.3g}",
                cell_text(row.select),
                ms_text(self.first_ms(row)),
                f"{1 - self.first_ms(row) / first:.0%}",
                str(row.answer),
                times_text(first / row.answer.median),
            ]
            for row in self.rows
        ]

    def _foot(self) -> str:
        encode = ", ".join(f"{name} {spread}" for name, spread in self.encode.items())
        lines = [f"Encoding a picture, once for all phrases and budgets: {encode}."]
        if self.sam:
            sam = self.sam
            lines.append(
                f"SAM encoder: {sam.ours} here, {sam.theirs} by transformers' default path, "
                f"{times_text(sam.theirs.median / sam.ours.median)} faster. Mask logits (deviation "
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
    bits: int | None = None,
    note: Note | None = None,
    **options: Any,
) -> BenchReport:
    """Measure a model at several budgets; the unpruned model is always among them.

    Args:
        pipe: the model.
        budgets: image tokens, each 1..N of the picture.
        picture: as for `Pipeline.encode`; None takes a generated one, 480 x 640.
        phrases: one or several.
        repeats: timed runs of each variant, at least 1.
        sam: also time SAM's encoder against transformers' own path.
        random_weights, bits: of `load`; noted in the report.
        note: told what runs next.
        **options: of `Pipeline.ground`.

    Raises:
        InputError: a budget outside 1..N, or fewer than one repeat.
    """
    loaded = peak_resident()
    if picture is None:
        picture = _generated_picture()
    say = note or (lambda _: None)
    say("encoding the picture")
    scene = pipe.encode(picture)  # warm-up
    total = scene.count
    chosen = sorted({check_budget(budget, total) for budget in budgets} - {total}, reverse=True)
    encode: dict[str, list[float]] = {}
    for _ in range(repeats):
        scene = pipe.encode(picture)
        for cost in scene.costs:
            encode.setdefault(cost.stage, []).append(cost.ms)

    variants: list[int | None] = [None, *chosen]
    runs = in_turns(pipe, scene, phrases, variants, repeats, True, note, options)
    rows = []
    for results, times in runs:
        costs = results.costs
        prefill = costs.stage("llm_prefill")
        rows.append(
            BenchRow(
                tokens=costs.tokens_kept,
                llm_tokens=costs.llm_tokens,
                prefill=Spread.of(times["llm_prefill"]),
                decode=Spread.of(times["llm_decode"]) if "llm_decode" in times else None,
                select=Spread.of(times["select"]) if "select" in times else None,
                answer=Spread.of([sum(turn) for turn in zip(*times.values(), strict=True)]),
                llm_peak_bytes=llm_peak(results),
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
        bits=bits,
        versions=versions(),
        repeats=repeats,
        phrases=len(runs[0][0]),
        weight_bytes=pipe.weight_bytes,
        loaded_bytes=loaded,
        peak_bytes=peak_resident(),
        encode={stage: Spread.of(times) for stage, times in encode.items()},
        rows=tuple(rows),
        sam=time_sam(pipe, scene, repeats, say) if sam and pipe.family.segmenter else None,
    )


def _generated_picture() -> np.ndarray:
    """A (480, 640, 3) picture of soft colours and a disc; the same every time."""
    rows, columns = np.mgrid[0:480, 0:640].astype(np.float32)
    picture = np.stack([rows / 480, columns / 640, (rows + columns) / 1120], axis=-1) * 200
    picture[np.hypot(rows - 260, columns - 200) < 90] = (210, 40, 40)
    return picture.astype(np.uint8)
