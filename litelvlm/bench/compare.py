"""The same question with and without pruning, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from litelvlm.bench.figures import (
    Spread,
    cell_text,
    faster,
    mib_text,
    ratio_of,
    times_text,
)
from litelvlm.errors import InputError
from litelvlm.pipeline import Pipeline
from litelvlm.profiling import StageCost
from litelvlm.question import check_budget
from litelvlm.result import GroundingResults
from litelvlm.scene import EncodedImage
from litelvlm.tables import text_table

Note = Callable[[str], None]  # told what runs next, for progress
LLM_STAGES = ("llm_prefill", "llm_decode")
_ORDER = ("clip_text", "select", "project", "llm_prefill", "llm_decode", "mask_decode")


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
        return ratio_of(llm_peak(self.unpruned), llm_peak(self.pruned))

    def to_json(self) -> dict[str, Any]:
        """Plain data: medians with their spread, and the ratios (unpruned / pruned)."""

        def plain(pair: tuple[Spread | None, Spread | None]) -> dict[str, Any]:
            ours, theirs = pair
            return {
                "pruned_ms": asdict(ours) if ours else None,
                "unpruned_ms": asdict(theirs) if theirs else None,
                "ratio": faster(theirs, ours),
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
            ratio = times_text(faster(before, after))
            rows.append([f"{name}, ms", cell_text(before), cell_text(after), ratio])
        for title, before_bytes, after_bytes in (
            ("LLM activations, MiB", llm_peak(self.unpruned), llm_peak(self.pruned)),
            ("KV cache, MiB", theirs.kv_cache_bytes, ours.kv_cache_bytes),
        ):
            ratio = times_text(ratio_of(before_bytes, after_bytes))
            rows.append([title, mib_text(before_bytes), mib_text(after_bytes), ratio])
        rows.append(["tokens in the LLM", str(theirs.llm_tokens), str(ours.llm_tokens), ""])
        head = (
            f"{ours.method} · {ours.device} · {ours.dtype} · median (least..most) "
            f"of {self.repeats} turns"
        )
        return head + "\n" + text_table(rows)


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
    runs = in_turns(pipe, scene, phrases, [budget, None], repeats, count, note, options)
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


def in_turns(
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
    if not pipe.family.capabilities.masks:  # to the first token of the answer
        options = {"mode": "generate", "max_new_tokens": 1, **options}

    def ask(budget: int | None, profile: str) -> GroundingResults:
        return pipe.ground(scene, phrases, budget, profile=profile, **options)

    first = []
    for budget in budgets:
        say(f"warm-up at {budget or scene.count} tokens")
        first.append(ask(budget, "full" if count else "time"))
    times: list[dict[str, list[float]]] = [{} for _ in budgets]
    for turn, index in turns(repeats, len(budgets)):
        say(f"turn {turn + 1} of {repeats} at {budgets[index] or scene.count} tokens")
        for cost in ask(budgets[index], "time").costs.stages:
            times[index].setdefault(cost.stage, []).append(cost.ms)
    return [
        (_with_medians(results, spent), spent) for results, spent in zip(first, times, strict=True)
    ]


def turns(repeats: int, variants: int) -> Iterator[tuple[int, int]]:
    """(turn, variant): every other turn the other way round."""
    for turn in range(repeats):
        order = range(variants) if turn % 2 == 0 else reversed(range(variants))
        yield from ((turn, index) for index in order)


def _with_medians(results: GroundingResults, times: dict[str, list[float]]) -> GroundingResults:
    stages = tuple(
        StageCost(cost.stage, statistics.median(times[cost.stage]), cost.peak_bytes, cost.flops)
        for cost in results.costs.stages
    )
    return replace(results, costs=replace(results.costs, stages=stages))


def llm_peak(results: GroundingResults) -> int | None:
    """Most bytes of activations in the language model; None where unmeasured."""
    peaks = [cost.peak_bytes for cost in results.costs.stages if cost.stage in LLM_STAGES]
    known = [peak for peak in peaks if peak is not None]
    return max(known, default=None)
