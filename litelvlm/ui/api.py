"""The three endpoints for programs, and the only public ones: `/ground`, `/compare`, `/sweep`.

What a program, or a language model over MCP, gets to read of them is made from one table of their
inputs; so it repeats the bounds.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
import numpy as np

from litelvlm import viz
from litelvlm.errors import InputError
from litelvlm.question import CHOICES, SELECTION_OPTIONS
from litelvlm.ui import handout
from litelvlm.ui.callbacks import Controls, check
from litelvlm.ui.components import Picture, Raw
from litelvlm.ui.desk import Desk
from litelvlm.ui.limits import read_picture
from litelvlm.ui.pictures import view_size
from litelvlm.ui.work import Answer, mask_of

_TEXT = {"type": "string"}
# Input -> what it means; one with a default need not be sent.
_INPUTS = {
    "image": "JPEG, PNG or WEBP, at most 50 megapixels.",
    "phrases": "what to look for, one a line or a list; 1 to 6 phrases of at most 200 characters.",
    "budget": "image tokens that may enter the language model, a whole number from 1 to the "
    "model's total (576 for full-size models); null keeps all.",
    "method": "how the tokens are chosen: litelvlm, litelvlm-released, random, grid, most-similar "
    "and others; an unknown name is answered with the list.",
    **{
        name: f"{' or '.join(CHOICES[name])}; null is the model's default."
        for name in SELECTION_OPTIONS
    },
    "split": "paper, released or a share from 0 to 1; null is the model's default.",
    "text": "what CLIP reads: phrase, question or templates; null is the model's default.",
    "mode": "forced (the answer template is given) or generate (the model writes its answer).",
    "model": "name of one of this demo's models; null is the first.",
}
_DEFAULTS = dict.fromkeys(_INPUTS) | {"method": "litelvlm", "mode": "forced"}
_MUST = ("image", "phrases")
_FEW = ("image", "phrases", "method", "model")


def register(desk: Desk) -> None:
    """Tie the endpoints to their names; call it inside a Blocks."""
    total = desk.tokens()
    kinds: dict[str, list[dict[str, Any]]] = {
        "budget": [{"type": "integer", "minimum": 1, "maximum": total}],
        "split": [_TEXT, {"type": "number"}],
    }
    examples = {
        "phrases": "the red apple\nthe cat",
        "budget": max(1, total // 3),
        "method": "litelvlm",
        "mode": "forced",
    }
    with gr.Column(visible=False):
        inputs: dict[str, Any] = {"image": Picture(type="filepath", image_mode=None, label="image")}
        for name in list(_INPUTS)[1:]:
            sent = name in _MUST or _DEFAULTS[name] is not None
            kind = _TEXT if sent else {"anyOf": [*kinds.get(name, [_TEXT]), {"type": "null"}]}
            inputs[name] = Raw(_DEFAULTS[name], label=name, kind=kind, example=examples.get(name))
        start = gr.Button("start", visible=False)
        overlay = gr.Image(format="png", label="overlay", type="numpy")
        record = gr.JSON(label="record")
        for endpoint, names, outputs in (
            (ground, tuple(_INPUTS), [overlay, record]),
            (compare, tuple(_INPUTS), [record]),
            (sweep, _FEW, [record]),
        ):
            start.click(
                _declared(desk, endpoint, names),
                [inputs[name] for name in names],
                outputs,
                api_name=endpoint.__name__,
                api_visibility="public",
                concurrency_id="model",
                concurrency_limit=1,
                show_progress="hidden",
            )


def _declared(desk: Desk, endpoint: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    """An endpoint as a function of its inputs, with the signature and text Gradio hands out."""

    def call(*values: Any) -> Any:
        given = dict(zip(names, values, strict=True))
        controls = Controls(picture=given.pop("image"), **given)
        try:
            picture = read_picture(controls.picture)
            model = controls.model or desk.models.names[0]
            return endpoint(desk, desk.answer(model, picture, check(desk, controls), None))
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from None

    head, _, returns = inspect.cleandoc(endpoint.__doc__ or "").partition("\n\nReturns:\n")
    told = "\n".join(f"    {name}: {_INPUTS[name]}" for name in names)
    one_line = " ".join(returns.split())
    call.__name__ = endpoint.__name__
    call.__doc__ = f"{head}\n\nArgs:\n{told}\n\nReturns:\n    {one_line}\n"
    either = inspect.Parameter.POSITIONAL_OR_KEYWORD
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, either)
            if name in _MUST
            else inspect.Parameter(name, either, default=_DEFAULTS[name])
            for name in names
        ]
    )
    return call


def ground(desk: Desk, given: Answer) -> tuple[np.ndarray, dict[str, Any]]:
    """Find what phrases refer to in a picture, with a limited number of image tokens.

    Returns:
        The picture with the masks drawn in, and a record: per phrase the mask as COCO run-length
        encoding at the picture's own size, whether anything was found, the tokens kept; and the
        cost of each stage.
    """
    import cv2

    height, width = view_size(given.picture.image.shape[:2])  # at most as large as the page's
    small = given.picture.image
    if small.shape[:2] != (height, width):
        small = cv2.resize(small, (width, height), interpolation=cv2.INTER_AREA)
    masks = viz.mask_layer([mask_of(item) for item in given.pruned], (height, width))
    return viz.compose(small, masks), handout.to_json(given)


def compare(desk: Desk, given: Answer) -> dict[str, Any]:
    """Ground phrases with and without pruning, and measure both side by side.

    Returns:
        A record with "pruned" and "unpruned" (the masks only in the first), per phrase the
        agreement of the two masks (IoU), and per stage the median, smallest and largest
        milliseconds of repeated runs taken in turns.
    """
    given = desk.measure(given)
    measured = given.measured
    assert measured is not None
    record: dict[str, Any] = {"pruned": handout.to_json(given), "agreement_iou": given.agreement}
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
    return record


def sweep(desk: Desk, given: Answer) -> dict[str, Any]:
    """How the answer and its cost change with the token budget, against two simple controls.

    Returns:
        A record: "unpruned_prefill_ms", and per method a list of points with the budget, the mean
        agreement (IoU) with the unpruned masks and the median milliseconds of the prefill.
    """
    last = list(desk.sweep(given))[-1]
    return {
        "unpruned_prefill_ms": last.unpruned_ms,
        "curves": {
            curve.method: [
                {"budget": budget, "agreement_iou": score, "prefill_ms": ms}
                for budget, score, ms in curve.points
            ]
            for curve in last.curves
        },
    }
