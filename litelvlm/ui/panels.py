"""The tabs of the page: records in, HTML out. All text of a visitor goes through `esc`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from litelvlm import viz
from litelvlm.methods import METHODS
from litelvlm.pruning import Reason
from litelvlm.result import GroundingResult
from litelvlm.ui import charts, patch_map
from litelvlm.ui.limits import WORK_SIDE
from litelvlm.ui.pictures import data_url, esc, layer_at, layer_image, png, stage, view_size
from litelvlm.ui.work import BLIND, Answer, Facts

_REASON_CLASS = {
    Reason.SIMILARITY: "sim",
    Reason.CONTEXT: "ctx",
    Reason.RULE: "rule",
    Reason.MERGED: "merged",
}
_CONTEXT = (
    '<abbr title="Patches that stand out in the picture whatever the phrase is: they bring back '
    'what the answer needs besides the least similar ones.">context</abbr>'
)
_KEPT_WORDS = {
    Reason.SIMILARITY: "kept: least similar to the phrase",
    Reason.CONTEXT: f"kept: {_CONTEXT}, recovered whatever the phrase",
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


def swatch(kind: str) -> str:
    """The little square of a kind of token."""
    return f'<i class="lv-swatch lv-{kind}" aria-hidden="true"></i>'


def _percent(share: float | None) -> str:
    if share is None:
        return "–"
    return "<1 %" if 0 < share < 0.005 else f"{share * 100:.0f} %"


def _phrases(words: Sequence[str]) -> str:
    return ", ".join(f"“{word}”" for word in words)


# ------------------------------------------------------------------------------------------ status
def status(given: Answer) -> str:
    """The line under the button: what was found, with how many tokens, in what time."""
    head = _outcome(given) if given.masks else "Answered"
    kept, total = given.pruned.costs.tokens_kept, given.pruned.costs.tokens_total
    how = "picture already encoded" if given.reused else "picture encoded"
    parts = [
        head,
        f"{kept} of {total} image tokens",
        "answered in advance" if given.seconds is None else f"{given.seconds:.2f} s, {how}",
    ]
    parts += [f"by {esc(given.model)}"] if given.model else []
    return f'<div class="lv-status" role="status">{" · ".join(parts)}</div>' + notes(given)


def _outcome(given: Answer) -> str:
    verdicts = [verdict(item) for item in given.pruned]
    found, unsure, many = verdicts.count("found"), verdicts.count("unsure"), len(verdicts)
    head = f"Found {found} of {many}" if many > 1 else "Found"
    if not found and not unsure:
        return "Nothing found"
    if unsure:
        return f"{head}, unsure of {unsure}" if many > 1 else "Unsure"
    return head


def verdict(item: GroundingResult) -> str:
    """ "found", "unsure" or "not found": calibrated where the model is, else by the mask alone."""
    return item.verdict or ("found" if item.found else "not found")


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


# ----------------------------------------------------------------------------------------- answers
def answers(given: Answer) -> str:
    """What was answered, pruned against unpruned."""
    return masks(given) if given.masks else texts(given)


def texts(given: Answer) -> str:
    """Answers in text side by side, question by question."""
    kept, total = given.pruned.costs.tokens_kept, given.pruned.costs.tokens_total
    parts = []
    for few, full, score in zip(given.pruned, given.unpruned, given.agreement, strict=True):
        told = "the same answer" if few.text == full.text else f"words in common: {score:.0%}"
        sides = "".join(
            f'<div class="lv-answer"><small>{tag}</small><p>{esc(item.text)}</p></div>'
            for tag, item in ((f"Pruned, {kept} tokens", few), (f"All {total}", full))
        )
        parts.append(
            f'<h4 class="lv-phrase">{esc(few.phrase)}</h4><div class="lv-sides">{sides}</div>'
            f'<p class="lv-caption">{told}</p>'
        )
    return "".join(parts)


def masks(given: Answer) -> str:
    """Pruned against unpruned: before/after, and both in one picture."""
    hw = view_size(given.picture.image.shape[:2])
    names = _phrases([item.phrase for item in given.pruned])
    kept, total = given.pruned.costs.tokens_kept, given.pruned.costs.tokens_total
    pruned = viz.mask_layer([item.mask for item in given.pruned], hw)
    full = viz.mask_layer([item.mask for item in given.unpruned], hw)
    few_words = f"Masks of {names} with {kept} of {total} image tokens"
    all_words = f"Masks of {names} with all {total} image tokens"
    few_tag, all_tag = f"Pruned, {kept} tokens", f"All {total}"
    line = (full[..., 3:] == 255) * np.uint8(255)
    outline = np.repeat(line, 4, axis=-1)  # only the line of the unpruned masks, in white
    fill = pruned.copy()
    fill[..., 3] = np.where(fill[..., 3] == 255, 150, fill[..., 3])
    few_url, all_url = data_url(png(pruned)), data_url(png(full))
    compare = stage(
        hw,
        layer_at(all_url, all_words, "lv-left")
        + layer_at(few_url, few_words, "lv-right")
        + '<span class="lv-handle" aria-hidden="true"></span>'
        + f'<span class="lv-tag lv-tag-left">{all_tag}</span>'
        + f'<span class="lv-tag lv-tag-right">{few_tag}</span>'
        + '<input class="lv-range" type="range" min="0" max="100" step="1" value="50" '
        'aria-label="Border between the unpruned masks on the left and the pruned on the right"/>',
        "lv-compare",
    )
    sides = "".join(
        stage(hw, layer_at(url, words) + f'<span class="lv-tag lv-tag-left">{tag}</span>')
        for url, words, tag in ((few_url, few_words, few_tag), (all_url, all_words, all_tag))
    )
    overlay = stage(
        hw,
        layer_image(fill, f"Masks of {names} with {kept} image tokens, filled")
        + layer_image(outline, f"Masks of {names} with all {total} image tokens, white outline"),
    )
    views = (
        '<div class="lv-views"><div class="lv-switch" role="group" aria-label="View">'
        '<button type="button" data-lv-view="sides">Side by side</button>'
        '<button type="button" data-lv-view="compare">Border</button>'
        '<button type="button" data-lv-view="overlay">Overlay</button></div>'
        f'<div class="lv-view lv-view-sides"><div class="lv-sides">{sides}</div></div>'
        f'<div class="lv-view lv-view-compare">{compare}<p class="lv-caption">Drag: left of the '
        f"line the answer with all {total} tokens, right of it with {kept}.</p></div>"
        f'<div class="lv-view lv-view-overlay">{overlay}<p class="lv-caption">Filled: {kept} '
        f"tokens. White line: all {total} tokens.</p></div></div>"
    )
    rows = []
    for number, (item, reference, score) in enumerate(
        zip(given.pruned, given.unpruned, given.agreement, strict=True)
    ):
        if item.found and reference.found:
            state = "" if verdict(item) == "found" else f"<b>{verdict(item)}</b>; "
            state += f"agreement with the unpruned mask (IoU) <b>{score:.2f}</b>"
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
    layer = viz.token_layer(item.token_map, hw)
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
        f"<li>{swatch(kind)}<span><b>{count}</b> {text}</span></li>" for kind, count, text in rows
    )
    lines = []
    if facts.recall is not None:
        lines.append(
            f"The kept patches cover <b>{_percent(facts.recall)}</b> of the mask’s area in view; "
            f"chance would give {_percent(sum(facts.kept.values()) / facts.total)}."
        )
    if given.pruned.costs.method != "none":
        count = len(item.token_map.indices)
        lines += [
            f"<b>{number} of {count}</b> tokens are the same "
            + ("without a phrase (context alone)." if name == BLIND else f"for “{esc(name)}”.")
            for name, number in given.same[index].items()
        ]
    if facts.unseen > 0.005:
        lines.append(
            f"{swatch('unseen')} CLIP is shown the middle square: <b>{_percent(facts.unseen)}</b> "
            "of this picture (hatched) never becomes a token. SAM sees all of it."
        )
    if facts.padding:
        lines.append(
            f"<b>{facts.padding}</b> of the kept patches lie in the padding above and below or "
            "beside the picture, which this model is shown as a square; they are not drawn."
        )
    method = METHODS[given.ask.method]
    split = given.pruned.settings["split"]
    if method.name == "litelvlm" and split != "paper":  # the rule in words is the paper's
        lines.append(f"{esc(method.title)}, split {esc(str(split))}: the counts above tell it.")
    else:
        lines.append(f"{esc(method.title)}: {esc(method.rule_text)}")
    text = "".join(f"<p>{line}</p>" for line in lines)
    return (
        stage(hw, layer_image(layer, alt) + patch_map.canvas(given, index))
        + patch_map.readout()
        + f'<ul class="lv-legend lv-counts">{counts}</ul><div class="lv-text">{text}</div>'
    )


# -------------------------------------------------------------------------------------- similarity
def similarity(given: Answer, index: int) -> str:
    """CLIP's signed similarity of each patch to the phrase, and whether it is reversed."""
    item, facts = given.pruned[index], given.facts(index)
    values = given.similarity[index]
    cut = item.token_map.threshold
    frame = item.token_map.frame
    hw = view_size(given.picture.image.shape[:2])
    outlined = (
        " Outlined: kept as least similar; in white while the slider moves."
        if cut is not None
        else " This method makes no such cut."
    )
    # The same scores twice: as places in a list, which anyone reads, and as CLIP gives them.
    ranks = np.asarray(patch_map.ranks(values))
    cut_rank = None if cut is None else int((values <= cut).sum())
    kinds = (
        (
            "rank",
            f"rank among all {len(values)} patches, 1 is least like the phrase",
            ranks,
            cut_rank,
        ),
        ("raw", "patch · phrase, raw dot product", values, cut),
    )
    inside = facts.inside[facts.seen] >= 0.5
    layers, charted = "", ""
    for kind, title, scores, edge in kinds:
        scale = viz.colour_scale(scores[viz.seen_patches(frame)])
        middle = " White is zero." if scale.signed else " White is the middle of the range."
        alt = f"{title} of “{item.phrase}”, {scale.low:.4g} to {scale.high:.4g}"
        heat = viz.heat_layer(scores, frame, hw, threshold=edge)
        layers += layer_image(heat, alt, f"lv-fade lv-view-{kind}")
        chart = (
            f"<h4>{title.capitalize()}</h4>{charts.colour_bar(scale, edge)}"
            f'<p class="lv-caption">Blue: less like the phrase, red: more.{middle}{outlined}</p>'
        )
        if inside.any() and not inside.all():
            chart += (
                "<h4>Inside and outside the mask</h4>"
                f"{charts.histogram(scores[facts.seen], inside, edge)}"
                f'<p class="lv-caption">{swatch("inside")} {int(inside.sum())} patches inside the '
                f"mask {swatch('outside')} {int((~inside).sum())} outside; share of each group.</p>"
            )
        charted += f'<div class="lv-view-{kind}">{chart}</div>'
    return (
        '<div class="lv-switch" role="group" aria-label="Scores">'
        '<button type="button" data-lv-view="rank">Rank</button>'
        '<button type="button" data-lv-view="raw">CLIP’s score</button></div>'
        + stage(hw, layers + patch_map.cut(given, index), "lv-grey")
        + '<label class="lv-opacity">Photo <input class="lv-opacity-range" type="range" min="0" '
        'max="100" value="100" aria-label="Strength of the heat map over the photo"/> Scores'
        f'</label>{charted}<div class="lv-text">{reversal(facts)}</div>'
    )


def reversal(facts: Facts) -> str:
    """The measured reversal, and what it and the kept shares mean here."""
    if facts.auc is None:
        return "<p>Reversal: not measurable without a mask that some patches lie inside of.</p>"
    lines = [
        f"Reversal (AUC) <b>{facts.auc:.2f}</b> against the ground: the chance that a patch inside "
        f"the mask scores higher than one of the ground; {_relation(facts.auc)}."
    ]
    if facts.auc_things is not None:
        lines.append(
            f"<b>{facts.auc_things:.2f}</b> against the masks of your other phrases; "
            f"{_relation(facts.auc_things)}."
        )
    alike, context = facts.shares.get(Reason.SIMILARITY), facts.shares.get(Reason.CONTEXT)
    if alike is not None:
        text = f"Kept for low similarity: <b>{_percent(alike)}</b> of the mask"
        text += "" if context is None else f"; recovered as {_CONTEXT}: <b>{_percent(context)}</b>"
        if context is not None and context > alike:
            text += ". Here context carries the answer, not the similarity"
        lines.append(f"{text}.")
    return "".join(f"<p>{line}</p>" for line in lines)


def _relation(auc: float) -> str:
    """What an AUC says about the scores of the mask."""
    if auc < 0.4:
        return "<b>reversed</b>, what the phrase names is <i>least</i> like it"
    if auc <= 0.6:
        return "<b>no clear relation</b>, 0.5 would be chance"
    return "<b>not reversed</b>, what the phrase names is <i>more</i> like it"
