"""The tab of time and memory: stages side by side, and tiles."""

from __future__ import annotations

from collections.abc import Iterable

from litelvlm.bench import Spread
from litelvlm.ui.panels import swatch
from litelvlm.ui.pictures import esc
from litelvlm.ui.work import Answer

PAPER = (
    '<p class="lv-caption" id="lv-paper">The paper’s own figures, for GLaMM on a GPU that it does '
    "not name: 22 % less time and 2.3 times less stored activation with 192 of 576 tokens, 30 % "
    "and 3.9 times with 64. They are not this machine’s.</p>"
)
STAGES = {
    "vision": "the vision tower reads the picture",
    "clip_image": "CLIP reads the picture",
    "sam_image": "SAM reads the picture",
    "clip_text": "CLIP reads the phrase",
    "select": "Choose tokens",
    "project": "Project tokens",
    "llm_prefill": "Language model, prefill",
    "llm_decode": "Language model, writing",
    "mask_decode": "Mask decoder",
}


# -------------------------------------------------------------------------------------------- cost
def cost(given: Answer) -> str:
    """Time of each stage with and without pruning, and what else it costs."""
    measured = given.measured
    ours: dict[str, Spread] = {}
    full: dict[str, Spread] = {}
    if measured is not None:
        ours = {stage: pair[0] for stage, pair in measured.stages.items() if pair[0]}
        full = {stage: pair[1] for stage, pair in measured.stages.items() if pair[1]}
        how = (
            f"Median of {measured.repeats} runs each after a warm-up, taken in turns; the "
            "line marks the fastest and the slowest."
        )
    else:
        ours = {c.stage: Spread(c.ms, c.ms, c.ms) for c in given.pruned.costs.stages}
        full = {c.stage: Spread(c.ms, c.ms, c.ms) for c in given.unpruned.costs.stages}
        how = "One run each, just now: good for a first look. Measure again for the spread."
    stages = [stage for stage in STAGES if stage in ours or stage in full]
    once = {c.stage: c.ms for c in given.encode_costs}
    top = max([s.high for s in (*ours.values(), *full.values())] + list(once.values()) + [1e-6])
    kept, total = given.pruned.costs.tokens_kept, given.pruned.costs.tokens_total
    rows = "".join(_bar_row(STAGES[s], [("pruned", ours.get(s)), ("full", full.get(s))], top)
                   for s in stages)  # fmt: skip
    shared = "".join(
        _bar_row(STAGES[stage], [("once", Spread(ms, ms, ms))], top) for stage, ms in once.items()
    )
    sums = [sum(spread.median for spread in group.values()) for group in (ours, full)]
    table = (
        f'<div class="lv-key-line">{swatch("pruned")} {kept} tokens {swatch("full")} all {total} '
        f"tokens</div><div class='lv-bars'>{rows}"
        f'<div class="lv-bar-row lv-sum"><span>Sum</span><span></span><span>{sums[0]:.1f}<br>'
        f"{sums[1]:.1f} ms</span></div></div>"
        f'<p class="lv-caption">{how} Device: {esc(given.pruned.costs.device)}, '
        f"{esc(given.pruned.costs.dtype)}.</p>"
        f"<h4>Once per picture, the same for both</h4><div class='lv-bars'>{shared}</div>"
        '<p class="lv-caption">Moving the slider does not repeat these.</p>'
    )
    return f'<div class="lv-tiles">{"".join(_tiles(given, ours, full))}</div>{table}{PAPER}'


def _bar_row(name: str, bars: Iterable[tuple[str, Spread | None]], top: float) -> str:
    shapes, numbers = "", []
    for kind, spread in bars:
        if spread is None:
            shapes += '<span class="lv-track"></span>'
            numbers.append("–")
            continue
        whisker = ""
        if spread.high > spread.low:
            low, high = 100 * spread.low / top, 100 * spread.high / top
            whisker = f'<i class="lv-whisker" style="left:{low:.2f}%;width:{high - low:.2f}%"></i>'
        shapes += (
            f'<span class="lv-track"><i class="lv-fill lv-{kind}" '
            f'style="width:{100 * spread.median / top:.2f}%"></i>{whisker}</span>'
        )
        numbers.append(f"{spread.median:.1f} ms")
    return (
        f'<div class="lv-bar-row"><span>{name}</span><span class="lv-pair">{shapes}</span>'
        f"<span>{'<br>'.join(numbers)}</span></div>"
    )


def _tiles(given: Answer, ours: dict[str, Spread], full: dict[str, Spread]) -> list[str]:
    a, b = given.pruned.costs, given.unpruned.costs
    tiles = [
        _tile(
            "Tokens in the language model",
            f"{a.llm_tokens} <small>of {b.llm_tokens}</small>",
            "text + image, counted as they entered",
        )
    ]
    if "llm_prefill" in ours and "llm_prefill" in full:
        mine, all_of_it = ours["llm_prefill"], full["llm_prefill"]
        factor = all_of_it.median / max(mine.median, 1e-6)
        many = given.measured.repeats if given.measured else 1
        word = "wall clock, one run each" if many == 1 else f"wall clock, median of {many}"
        tiles.append(_tile("Prefill", f"{factor:.1f}× <small>as fast</small>", word))
    tiles.append(
        _tile(
            "KV cache",
            f"{_bytes(a.kv_cache_bytes)} <small>of {_bytes(b.kv_cache_bytes)}</small>",
            "per phrase, computed from the tokens",
        )
    )
    measured = given.measured
    if measured is None:
        tiles.append(_tile("Work of the prefill", "–", "counted by “Measure again”"))
        tiles.append(_tile("Peak of activations", "–", "counted by “Measure again”"))
    else:
        pair = [r.costs.stage("llm_prefill") for r in (measured.pruned, measured.unpruned)]
        if pair[0] and pair[1] and pair[0].flops is not None and pair[1].flops is not None:
            tiles.append(
                _tile(
                    "Work of the prefill",
                    f"{_flops(pair[0].flops)} <small>of {_flops(pair[1].flops)}</small>",
                    "counted from the operators that ran",
                )
            )
        if pair[0] and pair[1] and None not in (pair[0].peak_bytes, pair[1].peak_bytes):
            tiles.append(
                _tile(
                    "Peak of activations",
                    f"{_bytes(pair[0].peak_bytes)} <small>of {_bytes(pair[1].peak_bytes)}</small>",
                    "prefill, above the weights"
                    + (", tally of tensors" if a.device == "cpu" else ", from the allocator"),
                )
            )
    tiles.append(_tile("Weights", _bytes(a.weight_bytes), "the same with and without pruning"))
    return tiles


def _tile(name: str, value: str, how: str) -> str:
    return f'<div class="lv-tile"><span>{name}</span><b>{value}</b><em>{how}</em></div>'


def _bytes(count: int | None) -> str:
    if count is None:
        return "–"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def _flops(count: int) -> str:
    for unit, size in (("TFLOP", 1e12), ("GFLOP", 1e9)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e6:.3g} MFLOP"
