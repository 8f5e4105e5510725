"""The tabs of the page: records in, HTML out. All text of a visitor goes through `esc`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import numpy as np

from litelvlm import viz
from litelvlm.bench import Spread
from litelvlm.methods import METHODS
from litelvlm.pruning import Reason
from litelvlm.ui import charts
from litelvlm.ui.limits import WORK_SIDE, enlarge_mask
from litelvlm.ui.pictures import data_url, esc, figure_bytes, png, view_size
from litelvlm.ui.work import Answer, Sweep, budgets

STAGES = {
    "clip_image": "CLIP reads the picture",
    "sam_image": "SAM reads the picture",
    "clip_text": "CLIP reads the phrase",
    "select": "Choose tokens",
    "project": "Project tokens",
    "llm_prefill": "Language model, prefill",
    "llm_decode": "Language model, writing",
    "mask_decode": "Mask decoder",
}
_REASON_CLASS = {
    Reason.SIMILARITY: "sim",
    Reason.CONTEXT: "ctx",
    Reason.RULE: "rule",
    Reason.MERGED: "merged",
}
_KEPT_WORDS = {
    Reason.SIMILARITY: "kept: least similar to the phrase",
    Reason.CONTEXT: "kept: recovered context",
    Reason.RULE: "kept: by the method’s own score",
    Reason.MERGED: "kept: merged",
}


# --------------------------------------------------------------------------------- small pieces
def notice(kind: str, title: str, text: str = "") -> str:
    """A box that says something. kind: "empty", "error", "warn" or "info"."""
    role = ' role="alert"' if kind == "error" else ""
    more = f"<p>{text}</p>" if text else ""
    return f'<div class="lv-notice lv-{kind}"{role}><strong>{title}</strong>{more}</div>'


def empty(what: str) -> str:
    """What a tab shows before the first answer."""
    return notice("empty", "Nothing here yet", esc(what))


def _colour(number: int) -> str:
    return "rgb({},{},{})".format(*viz.PHRASE_COLOURS[number % len(viz.PHRASE_COLOURS)])


def _stage(hw: tuple[int, int], inner: str, kind: str = "") -> str:
    height, width = hw
    return (
        f'<div class="lv-stage {kind}" style="aspect-ratio:{width}/{height};'
        f'--lv-ratio:{width / height:.4f}">{inner}</div>'
    )


def _layer(layer: np.ndarray, alt: str, kind: str = "") -> str:
    return f'<img class="lv-layer {kind}" src="{data_url(png(layer))}" alt="{esc(alt)}"/>'


def _swatch(kind: str) -> str:
    return f'<i class="lv-swatch lv-{kind}" aria-hidden="true"></i>'


def _percent(share: float | None) -> str:
    if share is None:
        return "–"
    return "<1 %" if 0 < share < 0.005 else f"{share * 100:.0f} %"


def _phrases(words: Sequence[str]) -> str:
    return ", ".join(f"“{word}”" for word in words)


# ------------------------------------------------------------------------------------------ status
def status(given: Answer, seconds: float, total: int) -> str:
    """The line under the button: what was found, with how many tokens, in what time."""
    found = sum(item.found for item in given.pruned)
    many = len(given.pruned)
    head = "Nothing found" if not found else f"Found {found} of {many}" if many > 1 else "Found"
    kept = given.pruned.costs.tokens_kept
    how = "picture already encoded" if given.reused else "picture encoded"
    parts = [head, f"{kept} of {total} image tokens", f"{seconds:.2f} s, {how}"]
    return f'<div class="lv-status" role="status">{" · ".join(parts)}</div>' + notes(given)


def notes(given: Answer) -> str:
    """Warnings about the phrases: unknown words, a cut phrase, a shrunk picture."""
    lines = []
    for item in given.pruned:
        if item.unknown_words:
            words = _phrases([esc(word) for word in item.unknown_words[:8]])
            lines.append(
                f"In “{esc(item.phrase)}” the model does not know {words}: it was never trained "
                "on these words, so the answer may be about something else."
            )
        lines += [f"“{esc(item.phrase)}”: {esc(warning)}." for warning in item.warnings]
    if given.picture.shrunk:
        height, width = given.picture.original_hw
        lines.append(
            f"The demo works on a copy of at most {WORK_SIDE} pixels; masks to download have the "
            f"picture’s own {width} × {height}."
        )
    return "".join(f'<div class="lv-note">{line}</div>' for line in dict.fromkeys(lines))


# ------------------------------------------------------------------------------------------- masks
def masks(given: Answer) -> str:
    """Pruned against unpruned: before/after, and both in one picture."""
    hw = view_size(given.picture.image.shape[:2])
    names = _phrases([item.phrase for item in given.pruned])
    kept, total = given.pruned.costs.tokens_kept, given.pruned.costs.tokens_total
    pruned = viz.mask_layer([item.mask for item in given.pruned], hw)
    full = viz.mask_layer([item.mask for item in given.unpruned], hw)
    outline = full.copy()
    outline[(outline[..., 3] < 255)] = 0  # only the line of the unpruned masks ...
    outline[outline[..., 3] == 255] = (255, 255, 255, 255)  # ... in white
    fill = pruned.copy()
    fill[fill[..., 3] == 255, 3] = 150
    compare = _stage(
        hw,
        _layer(pruned, f"Masks of {names} with {kept} of {total} image tokens", "lv-left")
        + _layer(full, f"Masks of {names} with all {total} image tokens", "lv-right")
        + '<span class="lv-handle" aria-hidden="true"></span>'
        + f'<span class="lv-tag lv-tag-left">{kept} tokens</span>'
        + f'<span class="lv-tag lv-tag-right">all {total}</span>'
        + '<input class="lv-range" type="range" min="0" max="100" step="1" value="50" '
        'aria-label="Border between the pruned masks on the left and the unpruned on the right"/>',
        "lv-compare",
    )
    overlay = _stage(
        hw,
        _layer(fill, f"Masks of {names} with {kept} image tokens, filled")
        + _layer(outline, f"Masks of {names} with all {total} image tokens, white outline"),
    )
    views = (
        '<div class="lv-views"><div class="lv-switch" role="group" aria-label="View">'
        '<button type="button" data-lv-view="compare">Before / after</button>'
        '<button type="button" data-lv-view="overlay">Overlay</button></div>'
        f'<div class="lv-view lv-view-compare">{compare}<p class="lv-caption">Drag: left of the '
        f"line the answer with {kept} tokens, right of it with all {total}.</p></div>"
        f'<div class="lv-view lv-view-overlay">{overlay}<p class="lv-caption">Filled: {kept} '
        f"tokens. White line: all {total} tokens.</p></div></div>"
    )
    rows = []
    for number, (item, reference, score) in enumerate(
        zip(given.pruned, given.unpruned, given.agreement, strict=True)
    ):
        if item.found and reference.found:
            state = f"agreement with the unpruned mask (IoU) <b>{score:.2f}</b>"
        elif reference.found:
            state = f"<b>lost</b>: found with all {total} tokens, not with {kept}"
        elif item.found:
            state = f"found with {kept} tokens only"
        else:
            state = "nothing found, with or without pruning"
        area = f"{_percent(item.area_fraction)} of the picture, " if item.found else ""
        said = item.text if item.text != given.unpruned[number].text else ""
        said = f' <span class="lv-said">“{esc(said[:160])}”</span>' if said else ""
        rows.append(
            f'<li><i class="lv-swatch" style="background:{_colour(number)}"></i>'
            f'<span><b class="lv-phrase">{esc(item.phrase)}</b> {area}{state}{said}</span></li>'
        )
    legend = f'<ul class="lv-legend">{"".join(rows)}</ul>'
    if not any(item.found for item in given.pruned):
        text = "Try another phrase" + (
            ", or a larger budget: with all tokens something is found."
            if any(item.found for item in given.unpruned)
            else ": with all tokens there is nothing either."
        )
        legend = notice("warn", f"Nothing found with {kept} tokens", text) + legend
    return views + legend


# ------------------------------------------------------------------------------------------ tokens
def tokens(given: Answer, index: int) -> str:
    """Which patches entered the language model for one phrase, and why."""
    item, facts = given.pruned[index], given.facts(index)
    hw = view_size(given.picture.image.shape[:2])
    layer = viz.token_layer(item.selection, hw)
    dropped = facts.total - sum(facts.kept.values())
    words = [f"{count} {viz.REASON_NAMES[reason]}" for reason, count in sorted(facts.kept.items())]
    alt = f"Token map of “{item.phrase}”: {', '.join(words)}, {dropped} dropped"
    if given.pruned.costs.method == "none":
        rows = [("rule", facts.total, "kept: all of them, nothing is pruned")]
    else:
        rows = [
            (_REASON_CLASS[Reason(r)], count, _KEPT_WORDS[Reason(r)])
            for r, count in sorted(facts.kept.items())
        ]
    rows.append(("dropped", dropped, "dropped before the language model"))
    if given.pruned.costs.layer_tokens is not None:
        rows[-1] = ("dropped", dropped, "dropped inside the language model")
    merged = facts.entered - sum(facts.kept.values())
    if merged:
        rows.insert(-1, ("merged", merged, "means of several patches, not drawn"))
    counts = "".join(
        f"<li>{_swatch(kind)}<span><b>{count}</b> {text}</span></li>" for kind, count, text in rows
    )
    lines = []
    if facts.recall is not None:
        lines.append(
            f"The kept patches cover <b>{_percent(facts.recall)}</b> of the mask’s area in view; "
            f"chance would give {_percent(sum(facts.kept.values()) / facts.total)}."
        )
    if facts.unseen > 0.005:
        lines.append(
            f"{_swatch('unseen')} CLIP is shown the middle square: <b>{_percent(facts.unseen)}</b> "
            "of this picture (hatched) never becomes a token. SAM sees all of it."
        )
    if facts.padding:
        lines.append(
            f"<b>{facts.padding}</b> of the kept patches lie in the padding above and below or "
            "beside the picture, which this model is shown as a square; they are not drawn."
        )
    method = METHODS[given.ask.method]
    lines.append(f"{esc(method.title)}: {esc(method.rule_text)}")
    text = "".join(f"<p>{line}</p>" for line in lines)
    return (
        _stage(hw, _layer(layer, alt))
        + f'<ul class="lv-legend lv-counts">{counts}</ul><div class="lv-text">{text}</div>'
    )


# -------------------------------------------------------------------------------------- similarity
def similarity(given: Answer, index: int) -> str:
    """CLIP's signed similarity of each patch to the phrase, and whether it is reversed."""
    item, facts = given.pruned[index], given.facts(index)
    values = given.similarity[index]
    cut = item.selection.threshold
    frame = item.selection.frame
    hw = view_size(given.picture.image.shape[:2])
    layer = viz.heat_layer(values, frame, hw, threshold=cut)
    scale = viz.colour_scale(values[viz.seen_patches(frame)])
    middle = "White is zero." if scale.signed else "White is the middle of the range."
    outlined = (
        " Outlined: kept as least similar."
        if cut is not None
        else " This method makes no such cut."
    )
    alt = f"CLIP similarity of each patch to “{item.phrase}”, {scale.low:.3g} to {scale.high:.3g}"
    inside = facts.inside[facts.seen] >= 0.5
    parts = [
        _stage(hw, _layer(layer, alt, "lv-fade"), "lv-grey"),
        '<label class="lv-opacity">Photo <input class="lv-opacity-range" type="range" min="0" '
        'max="100" value="100" aria-label="Strength of the heat map over the photo"/> Scores'
        "</label>",
        f"<h4>patch · phrase, raw dot product</h4>{charts.colour_bar(scale, cut)}"
        f'<p class="lv-caption">Blue: less like the phrase, red: more. {middle}{outlined}</p>',
    ]
    if inside.any() and not inside.all():
        parts.append(
            "<h4>Inside and outside the mask</h4>"
            f"{charts.histogram(values[facts.seen], inside, cut)}"
            f'<p class="lv-caption">{_swatch("inside")} {int(inside.sum())} patches inside the '
            f"mask {_swatch('outside')} {int((~inside).sum())} outside; share of each group.</p>"
        )
    return "".join(parts) + f'<div class="lv-text">{reversal(facts.auc)}</div>'


def reversal(auc: float | None) -> str:
    """The measured reversal and what it means here, one sentence."""
    if auc is None:
        return "<p>Reversal: not measurable without a mask that some patches lie inside of.</p>"
    if auc < 0.4:
        text = (
            "<b>reversed</b>: what the phrase names is <i>least</i> like it, "
            "so keeping the lowest scores keeps the object"
        )
    elif auc <= 0.6:
        text = (
            "<b>no clear relation</b>: here the lowest scores are hardly better than chance, "
            "and the context tokens carry the answer"
        )
    else:
        text = (
            "<b>not reversed</b>: here the object is <i>more</i> like the phrase, "
            "so keeping the lowest scores tends to drop it"
        )
    return (
        f"<p>Reversal (AUC) <b>{auc:.2f}</b>: the chance that a patch inside the mask scores "
        f"higher than one outside. 0.5 would be no relation; {text}.</p>"
    )


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
        f'<div class="lv-key-line">{_swatch("pruned")} {kept} tokens {_swatch("full")} all {total} '
        f"tokens</div><div class='lv-bars'>{rows}"
        f'<div class="lv-bar-row lv-sum"><span>Sum</span><span></span><span>{sums[0]:.1f}<br>'
        f"{sums[1]:.1f} ms</span></div></div>"
        f'<p class="lv-caption">{how} Device: {esc(given.pruned.costs.device)}, '
        f"{esc(given.pruned.costs.dtype)}.</p>"
        f"<h4>Once per picture, the same for both</h4><div class='lv-bars'>{shared}</div>"
        '<p class="lv-caption">Moving the slider does not repeat these.</p>'
    )
    return f'<div class="lv-tiles">{"".join(_tiles(given, ours, full))}</div>{table}'


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


# ------------------------------------------------------------------------------------ budget curve
def curve(given: Sweep, total: int) -> str:
    """Agreement and prefill time over budgets, for the chosen method, random and grid."""
    names = [METHODS[line.method].title for line in given.curves]
    ticks = budgets(total)
    slowest = max(
        [given.unpruned_ms, 1e-3] + [ms for line in given.curves for _, _, ms in line.points]
    )
    agreement = charts.lines(
        [(n, [(b, s) for b, s, _ in c.points]) for n, c in zip(names, given.curves, strict=True)],
        title="Agreement with the unpruned mask (IoU)",
        ticks=ticks,
        top=1.0,
        digits=2,
    )
    time = charts.lines(
        [(n, [(b, ms) for b, _, ms in c.points]) for n, c in zip(names, given.curves, strict=True)],
        title="Prefill of the language model, ms",
        ticks=ticks,
        top=slowest * 1.15,
        level=(given.unpruned_ms, "all tokens"),
        digits=1 if slowest < 20 else 0,
    )
    keys = " ".join(
        f'<span class="lv-keyed">{charts.line_key(number)} {esc(name)}</span>'
        for number, name in enumerate(names)
    )
    done = 100 * given.done / max(1, given.total)
    bar = (
        f'<div class="lv-progress" role="progressbar" aria-valuenow="{done:.0f}" aria-valuemin="0" '
        f'aria-valuemax="100" aria-label="Budget curve"><i style="width:{done:.1f}%"></i></div>'
        if given.done < given.total
        else ""
    )
    return (
        f'{bar}<div class="lv-key-line">{keys}</div><div class="lv-charts">{agreement}{time}</div>'
        f'<p class="lv-caption">{given.done} of {given.total} points. Mean over '
        f"{len(given.phrases)} phrase{'s' if len(given.phrases) != 1 else ''}; random draws "
        "anew three times; time is the median of three. Agreement is with this model’s own "
        f"unpruned mask, not with the truth.</p>{_curve_table(given, names)}"
    )


def _curve_table(given: Sweep, names: Sequence[str]) -> str:
    rows = [
        f"<tr><td>{esc(name)}</td><td>{budget}</td><td>{score:.3f}</td><td>{ms:.1f}</td></tr>"
        for name, line in zip(names, given.curves, strict=True)
        for budget, score, ms in line.points
    ]
    if not rows:
        return ""
    return (
        "<details class='lv-details'><summary>The numbers</summary><table><tr><th>method</th>"
        f"<th>tokens</th><th>IoU</th><th>prefill, ms</th></tr>{''.join(rows)}</table></details>"
    )


# ------------------------------------------------------------------------------------------ use it
def snippet(given: Answer, device: str | None, dtype: str | None) -> str:
    """Python lines that reproduce exactly this result."""
    load = [repr(given.model)]
    load += [f"device={device!r}"] if device else []
    load += [f"dtype={dtype!r}"] if dtype else []
    ask = given.ask
    options = [f"method={ask.method!r}"] if ask.method != "litelvlm" else []
    options += [f"{name}={value!r}" for name, value in ask.options]
    options += [f"mode={ask.mode!r}"] if ask.mode != "forced" else []
    more = "".join(f", {option}" for option in options)
    lines = ["import litelvlm"]
    source = '"your-picture.jpg"'
    if given.picture.shrunk:
        lines += ["from litelvlm.images import read_image", "from litelvlm.ui.limits import fit"]
        source = f"fit(read_image({source}), {WORK_SIDE})"
    lines += [
        "",
        f"pipe = litelvlm.load({', '.join(load)})",
        f"scene = pipe.encode({source})",
        f"results = pipe.ground(scene, {list(ask.phrases)!r}, budget={ask.budget}{more})",
        "for result in results:",
        "    print(result.phrase, result.found, result.area_fraction)",
        "print(results.costs)",
        'litelvlm.show(results, "figure.png")',
    ]
    return "\n".join(lines) + "\n"


def downloads(given: Answer, figures: bool = False) -> str:
    """Links that hold their file themselves; the figure only when asked for, it takes a second."""
    links = []
    for number, item in enumerate(given.pruned, 1):
        mask = enlarge_mask(item.mask, given.picture.original_hw)
        file = png(mask.astype(np.uint8) * 255, 6)
        links.append(
            _link(file, "image/png", f"mask-{number}.png", f"Mask of “{item.phrase[:40]}”")
        )
    record = to_json(given)
    rle = [{"phrase": r["phrase"], "segmentation": r["mask_rle"]} for r in record["results"]]
    links.append(_link(_json(rle), "application/json", "masks-coco-rle.json", "Masks as COCO RLE"))
    links.append(_link(_json(record), "application/json", "result.json", "Everything as JSON"))
    if figures:
        picture = viz.figure(given.pruned)
        for kind, mime in (("png", "image/png"), ("svg", "image/svg+xml")):
            file = figure_bytes(picture, kind)
            links.append(_link(file, mime, f"figure.{kind}", f"Figure, {kind.upper()}"))
    return f'<div class="lv-links">{"".join(links)}</div>'


def to_json(given: Answer) -> dict:
    """The result record of the demo: the library's, with masks at the picture's own size."""
    from dataclasses import replace

    items = tuple(
        replace(item, mask=enlarge_mask(item.mask, given.picture.original_hw))
        for item in given.pruned
    )
    record = replace(given.pruned, items=items).to_json()
    height, width = given.picture.original_hw
    record["image"] = {"width": width, "height": height, "sha256": given.picture.key}
    for result, score in zip(record["results"], given.agreement, strict=True):
        result["agreement_with_unpruned_iou"] = round(score, 4)
    return record


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode()


def _link(content: bytes, kind: str, name: str, text: str) -> str:
    size = f"{len(content) / 1e3:.0f} kB" if len(content) >= 1000 else f"{len(content)} B"
    return (
        f'<a class="lv-link" download="{esc(name)}" href="{data_url(content, kind)}">'
        f"{esc(text)} <small>{esc(name)}, {size}</small></a>"
    )
