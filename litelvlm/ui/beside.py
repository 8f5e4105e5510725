"""Methods side by side at one budget: token map, mask, agreement and time of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from litelvlm import viz
from litelvlm.bench import Spread
from litelvlm.errors import InputError
from litelvlm.methods import METHODS, get_method
from litelvlm.result import GroundingResults
from litelvlm.selecting import check_method
from litelvlm.ui.pictures import esc, layer_image, stage, view_size
from litelvlm.ui.work import Answer

if TYPE_CHECKING:
    from litelvlm.pipeline import Pipeline

FEWEST, MOST = 2, 4


@dataclass(frozen=True)
class Side:
    """One method: its answers, and the time of all stages after the picture is encoded."""

    method: str
    results: GroundingResults
    time: Spread


@dataclass(frozen=True)
class Beside:
    """The same question answered by several methods.

    Attributes:
        sides: one a method.
        topic: of the answer they belong to, see `Answer.topic`.
        repeats: timed runs of each.
    """

    sides: tuple[Side, ...]
    topic: object
    repeats: int


def beside(pipe: Pipeline, given: Answer, names: Sequence[str], repeats: int = 3) -> Beside:
    """Ask each method; time them in turns, after a warm-up.

    Raises:
        InputError: fewer than two methods or more than four, or one the model cannot run.
    """
    names = tuple(dict.fromkeys(names))
    if not FEWEST <= len(names) <= MOST:
        raise InputError(f"choose {FEWEST} to {MOST} methods to compare, got {len(names)}")
    for name in names:
        check_method(get_method(name), pipe.family.capabilities.scores, pipe.name)
    scene = given.scene or pipe.encode(given.picture.image)
    asks = [replace(given.ask, method=name) for name in names]
    results = [pipe.answer(scene, ask) for ask in asks]
    times: list[list[float]] = [[] for _ in asks]
    for turn in range(repeats):  # the order turns round, so that none gains by its place
        for place in range(len(asks))[:: -1 if turn % 2 else 1]:
            times[place].append(pipe.answer(scene, asks[place]).costs.total_ms)
    sides = zip(names, results, map(Spread.of, times), strict=True)
    return Beside(tuple(Side(*side) for side in sides), given.topic, repeats)


def html(found: Beside, given: Answer, index: int) -> str:
    """A column a method, for one phrase."""
    hw = view_size(given.picture.image.shape[:2])
    full = given.unpruned[index]
    ink = viz.PHRASE_COLOURS[index % len(viz.PHRASE_COLOURS)]
    line = viz.mask_layer([full.region], hw, colours=[(255, 255, 255)], fill=0.0)
    columns = []
    for side in found.sides:
        item, title = side.results[index], METHODS[side.method].title
        agreement = f"{item.agreement(full):.2f}"
        kept = f"{len(item.token_map.order)} tokens"
        tokens = layer_image(
            viz.token_layer(item.token_map, hw), f"Token map of “{item.phrase}” by {title}: {kept}"
        )
        told = f"agreement ({item.measure}) <b>{agreement}</b>"
        if given.masks:
            masks = layer_image(
                viz.mask_layer([item.region], hw, colours=[ink]),
                f"Mask of “{item.phrase}” by {title}, agreement {agreement}",
            ) + layer_image(line, "White line: the mask with all tokens")
            answer = stage(hw, masks)
            told = told if item.found else "<b>nothing found</b>"
        else:
            answer = f'<p class="lv-said">{esc(item.text)}</p>'
        columns.append(
            f'<div class="lv-rival" data-lv-method="{esc(side.method)}"><h4>{esc(title)}</h4>'
            f'{stage(hw, tokens)}{answer}<p class="lv-caption">{kept}, {told}, '
            f"<b>{side.time.median:.1f} ms</b> ({side.time.low:.1f}–{side.time.high:.1f})</p></div>"
        )
    kept, total = found.sides[0].results.settings["budget"], full.token_map.frame.count
    return (
        f'<p class="lv-caption">“{esc(full.phrase)}” with <b>{kept} of {total}</b> tokens. Above: '
        "what each method keeps; below: its answer"
        + (", and as a white line the mask with all tokens" if given.masks else "")
        + ". Agreement is with the answer from all tokens.</p>"
        f'<div class="lv-rivals">{"".join(columns)}</div><p class="lv-caption">Time: all stages '
        f"after the picture is encoded, median of {found.repeats} runs in turns (least–most).</p>"
    )


def figure(found: Beside, given: Answer) -> Any:
    """The same for every phrase, as one matplotlib figure."""
    columns = {
        f"{METHODS[side.method].title}\n{side.results.costs.tokens_kept} tokens, "
        f"{side.time.median:.1f} ms": side.results
        for side in found.sides
    }
    return viz.methods_figure(columns, given.unpruned)
