"""The three endpoints for programs, and the only public ones: `/ground`, `/compare`, `/sweep`.

Each answers with a picture and a record. What a program, or a language model over MCP, gets to
read of the inputs is made from one table and from the page's own components, whose first values
are the defaults here too.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import gradio as gr
import numpy as np

from litelvlm import viz
from litelvlm.errors import InputError
from litelvlm.methods import METHODS
from litelvlm.question import CHOICES, SELECTION_OPTIONS
from litelvlm.ui import handout
from litelvlm.ui.callbacks import FAILED, Controls, check
from litelvlm.ui.components import Picture, Raw
from litelvlm.ui.desk import Desk
from litelvlm.ui.inputs import Inputs
from litelvlm.ui.limits import read_picture
from litelvlm.ui.pictures import pixels, view_size
from litelvlm.ui.work import RIVALS, Answer

log = logging.getLogger(__name__)

# Input -> what it means.
_INPUTS = {
    "image": "JPEG, PNG, WEBP, GIF, BMP, TIFF or AVIF, at most 50 megapixels.",
    "phrases": "what to look for, one a line; 1 to 6 phrases of at most 200 characters.",
    "budget": "image tokens that may enter the language model, a whole number from 1 to the "
    "model's total, which is the unpruned model.",
    "method": "how the tokens are chosen.",
    "split": "paper, released or a share from 0 to 1 of tokens kept for low similarity; empty is "
    "the model's default.",
    "order": "of the kept tokens; empty is the model's default.",
    "positions": "renumbered, or those of the unpruned prompt; empty is the model's default.",
    "context": "the score behind recovered context; empty is the model's default.",
    "text": "what CLIP reads; empty is the model's default.",
    "mode": "forced (the answer template is given) or generate (the model writes its answer).",
    "model": "one of this demo's models.",
    "methods": "names of methods to draw beside litelvlm, separated by commas or spaces.",
}
_MUST = ("image", "phrases")
_ASK = tuple(name for name in _INPUTS if name != "methods")
_SWEEP = ("image", "phrases", "methods", "model")
INPUTS = {"ground": _ASK, "compare": _ASK, "sweep": _SWEEP}


def register(desk: Desk, page: Inputs) -> None:
    """Tie the endpoints to their names; call it inside a Blocks, after the page's `inputs`."""
    total = desk.tokens()
    kinds: dict[str, dict[str, Any]] = {
        "budget": {"type": "integer", "minimum": 1, "maximum": total},
        "method": {"enum": list(METHODS)},
        "model": {"enum": list(desk.models.names)},
        "mode": {"enum": list(CHOICES["mode"])},
        **{name: {"enum": ["", *CHOICES[name]]} for name in SELECTION_OPTIONS if name != "split"},
    }
    defaults = {name: getattr(page, name).value for name in _ASK if name not in _MUST}
    defaults["methods"] = ", ".join(RIVALS)
    examples = defaults | {"phrases": "the red apple\nthe cat"}
    with gr.Column(visible=False):
        inputs: dict[str, Any] = {"image": Picture(type="filepath", image_mode=None, label="image")}
        for name in list(_INPUTS)[1:]:
            kind = {"type": "string"} | kinds.get(name, {})
            if name not in _MUST:
                kind["default"] = defaults[name]
            inputs[name] = Raw(defaults.get(name), label=name, kind=kind, example=examples[name])
        start = gr.Button("start", visible=False)
        picture = gr.Image(format="png", label="picture", type="numpy")
        record = gr.JSON(label="record")
        for endpoint in (ground, compare, sweep):
            names = INPUTS[endpoint.__name__]
            start.click(
                _declared(desk, endpoint, names, defaults),
                [inputs[name] for name in names],
                [picture, record],
                api_name=endpoint.__name__,
                api_visibility="public",
                concurrency_id="model",
                concurrency_limit=1,
                show_progress="hidden",
            )


def _declared(
    desk: Desk, endpoint: Callable[..., Any], names: Sequence[str], defaults: dict[str, Any]
) -> Callable[..., Any]:
    """An endpoint as a function of its inputs, with the signature and text Gradio hands out."""

    def call(*values: Any) -> Any:
        given: dict[str, Any] = {
            name: defaults.get(name) if value is None else value
            for name, value in zip(names, values, strict=True)
        }
        more = {"methods": _listed(given.pop("methods"))} if "methods" in given else {}
        controls = Controls(picture=given.pop("image"), **given)
        try:
            picture = read_picture(controls.picture)
            answer = desk.answer(str(controls.model), picture, check(desk, controls), None)
            drawn, record = endpoint(desk, answer, **more)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from None
        except Exception:
            log.exception("an endpoint failed")
            raise gr.Error(FAILED, print_exception=False) from None
        return drawn, record

    head, _, returns = inspect.cleandoc(endpoint.__doc__ or "").partition("\n\nReturns:\n")
    told = "\n".join(f"    {name}: {_INPUTS[name]}" for name in names)
    one_line = " ".join(returns.split())
    call.__name__ = endpoint.__name__
    call.__doc__ = f"{head}\n\nArgs:\n{told}\n\nReturns:\n    {one_line}\n"
    either = inspect.Parameter.POSITIONAL_OR_KEYWORD
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, either, default=defaults.get(name, inspect.Parameter.empty))
            for name in names
        ]
    )
    return call


def _listed(names: Any) -> tuple[str, ...]:
    """Names from text, separated by commas or spaces; or from a list."""
    return tuple(re.split(r"[,\s]+", names.strip(", \n")) if isinstance(names, str) else names)


def ground(desk: Desk, given: Answer) -> tuple[np.ndarray, dict[str, Any]]:
    """Find what phrases refer to in a picture, with a limited number of image tokens.

    Returns:
        The picture with the masks drawn in, and a record: per phrase the mask as COCO run-length
        encoding at the picture's own size, whether anything was found, the tokens kept; and the
        cost of each stage.
    """
    height, width = view_size(given.picture.image.shape[:2])  # at most as large as the page's
    small = given.picture.image
    if small.shape[:2] != (height, width):
        small = cv2.resize(small, (width, height), interpolation=cv2.INTER_AREA)
    masks = viz.mask_layer([item.region for item in given.pruned], (height, width))
    return viz.compose(small, masks), handout.to_json(given)


def compare(desk: Desk, given: Answer) -> tuple[np.ndarray, dict[str, Any]]:
    """Ground phrases with and without pruning, and measure both side by side.

    Returns:
        The token maps and masks of both side by side, and a record with "pruned" and "unpruned"
        (the masks only in the first), per phrase the agreement of the two masks (IoU) or texts
        (words), and per stage the median, smallest and largest milliseconds of repeated runs taken
        in turns.
    """
    given = desk.measure(given)
    measured = given.measured
    assert measured is not None
    record: dict[str, Any] = {"pruned": handout.to_json(given), _agreement(given): given.agreement}
    record["unpruned"] = {
        "llm_tokens": given.unpruned.costs.llm_tokens,
        "kv_cache_bytes": given.unpruned.costs.kv_cache_bytes,
    }
    for number, (side, results) in enumerate(
        (("pruned", measured.pruned), ("unpruned", measured.unpruned))
    ):
        record[side]["measured"] = [
            {
                "stage": cost.stage,
                "ms_median": spread.median,
                "ms_min": spread.low,
                "ms_max": spread.high,
                "runs": measured.repeats,
                "flops": cost.flops,
                "peak_bytes": cost.peak_bytes,
            }
            for cost in results.costs.stages
            if (spread := measured.stages[cost.stage][number]) is not None
        ]
    kept, total = given.pruned.costs.tokens_kept, given.pruned.costs.tokens_total
    columns = {f"{kept} of {total} tokens": given.pruned, f"all {total}": given.unpruned}
    return pixels(viz.methods_figure(columns, given.unpruned)), record


def _agreement(given: Answer) -> str:
    return f"agreement_{given.pruned[0].measure.lower()}"


def sweep(desk: Desk, given: Answer, methods: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """How the answer and its cost change with the token budget, beside other methods.

    Returns:
        The curves, and a record: "unpruned_prefill_ms", and per method a list of points with the
        budget, the mean agreement with the unpruned answers (IoU of masks, words of texts) and the
        median milliseconds of the prefill.
    """
    last = list(desk.sweep(given, methods))[-1]
    record = {
        "unpruned_prefill_ms": last.unpruned_ms,
        "curves": {
            curve.method: [
                {"budget": budget, _agreement(given): score, "prefill_ms": ms}
                for budget, score, ms in curve.points
            ]
            for curve in last.curves
        },
    }
    lines = {
        METHODS[curve.method].title: [(budget, score) for budget, score, _ in curve.points]
        for curve in last.curves
    }
    return pixels(viz.curve_figure(lines)), record
