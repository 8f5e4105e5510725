"""The three endpoints for programs, and the only public ones: `/ground`, `/compare`, `/sweep`.

The docstrings are what a program, or a language model over MCP, gets to read; so they repeat the
bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np

from litelvlm import viz
from litelvlm.errors import InputError
from litelvlm.ui import handout
from litelvlm.ui.callbacks import Controls, check
from litelvlm.ui.components import Picture, Raw
from litelvlm.ui.desk import Desk
from litelvlm.ui.limits import read_picture
from litelvlm.ui.pictures import view_size
from litelvlm.ui.work import Answer

_TEXT = {"type": "string"}


def _answered(desk: Desk, given: Controls) -> Answer:
    model = given.model or desk.models.names[0]
    try:
        picture = read_picture(given.picture)
        return desk.answer(model, picture, check(desk, given), None)
    except InputError as error:
        raise gr.Error(str(error), print_exception=False) from None


@dataclass(frozen=True)
class Endpoints:
    """The endpoints of one demo, as methods that Gradio ties to their names."""

    desk: Desk

    def ground(
        self,
        image: str,
        phrases: str,
        budget: int | None = None,
        method: str = "litelvlm",
        split: str | float | None = None,
        order: str | None = None,
        positions: str | None = None,
        context: str | None = None,
        text: str | None = None,
        mode: str = "forced",
        model: str | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Find what phrases refer to in a picture, with a limited number of image tokens.

        Args:
            image: JPEG, PNG or WEBP, at most 50 megapixels.
            phrases: what to look for, one a line or a list; 1 to 6 phrases of at most 200 characters.
            budget: image tokens that may enter the language model, a whole number from 1 to the model's total (576 for full-size models); null keeps all.
            method: how the tokens are chosen: litelvlm, litelvlm-released, random, grid, most-similar and others; an unknown name is answered with the list.
            split: paper, released or a share from 0 to 1; null is the model's default.
            order: raster or released; null is the model's default.
            positions: compact or original; null is the model's default.
            context: released or attention; null is the model's default.
            text: what CLIP reads: phrase, question or templates; null is the model's default.
            mode: forced (the answer template is given) or generate (the model writes its answer).
            model: name of one of this demo's models; null is the first.

        Returns:
            The picture with the masks drawn in, and a record: per phrase the mask as COCO run-length encoding at the picture's own size, whether anything was found, the tokens kept; and the cost of each stage.
        """  # noqa: E501
        controls = Controls(
            model, image, phrases, budget, method, split, order, positions, context, text, mode
        )
        given = _answered(self.desk, controls)
        return _overlay(given), handout.to_json(given)

    def compare(
        self,
        image: str,
        phrases: str,
        budget: int | None = None,
        method: str = "litelvlm",
        split: str | float | None = None,
        order: str | None = None,
        positions: str | None = None,
        context: str | None = None,
        text: str | None = None,
        mode: str = "forced",
        model: str | None = None,
    ) -> dict[str, Any]:
        """Ground phrases with and without pruning, and measure both side by side.

        Args:
            image: JPEG, PNG or WEBP, at most 50 megapixels.
            phrases: what to look for, one a line or a list; 1 to 6 phrases of at most 200 characters.
            budget: image tokens of the pruned run, a whole number from 1 to the model's total (576 for full-size models); null keeps all.
            method: how the tokens are chosen: litelvlm, litelvlm-released, random, grid, most-similar and others; an unknown name is answered with the list.
            split: paper, released or a share from 0 to 1; null is the model's default.
            order: raster or released; null is the model's default.
            positions: compact or original; null is the model's default.
            context: released or attention; null is the model's default.
            text: what CLIP reads: phrase, question or templates; null is the model's default.
            mode: forced (the answer template is given) or generate (the model writes its answer).
            model: name of one of this demo's models; null is the first.

        Returns:
            A record with "pruned" and "unpruned" (the masks only in the first), per phrase the agreement of the two masks (IoU), and per stage the median, smallest and largest milliseconds of repeated runs taken in turns.
        """  # noqa: E501
        controls = Controls(
            model, image, phrases, budget, method, split, order, positions, context, text, mode
        )
        given = _answered(self.desk, controls)
        try:
            given = self.desk.measure(given)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from None
        assert given.measured is not None
        record: dict[str, Any] = {
            "pruned": handout.to_json(given),
            "agreement_iou": given.agreement,
        }
        record["unpruned"] = {
            "llm_tokens": given.unpruned.costs.llm_tokens,
            "kv_cache_bytes": given.unpruned.costs.kv_cache_bytes,
        }
        measured = given.measured
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

    def sweep(
        self,
        image: str,
        phrases: str,
        method: str = "litelvlm",
        model: str | None = None,
    ) -> dict[str, Any]:
        """How the answer and its cost change with the token budget, against two simple controls.

        Args:
            image: JPEG, PNG or WEBP, at most 50 megapixels.
            phrases: what to look for, one a line or a list; 1 to 6 phrases of at most 200 characters.
            method: how the tokens are chosen: litelvlm, litelvlm-released, random, grid, most-similar and others; an unknown name is answered with the list.
            model: name of one of this demo's models; null is the first.

        Returns:
            A record: "unpruned_prefill_ms", and per method a list of points with the budget, the mean agreement (IoU) with the unpruned masks and the median milliseconds of the prefill.
        """  # noqa: E501
        controls = Controls(model, image, phrases, None, method)
        given = _answered(self.desk, controls)
        try:
            last = list(self.desk.sweep(given))[-1]
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from None
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


def _overlay(given: Answer) -> np.ndarray:
    """(h, w, 3) uint8, the picture with its masks, at most as large as the page shows it."""
    import cv2

    height, width = view_size(given.picture.image.shape[:2])
    small = given.picture.image
    if small.shape[:2] != (height, width):
        small = cv2.resize(small, (width, height), interpolation=cv2.INTER_AREA)
    return viz.compose(small, viz.mask_layer([item.mask for item in given.pruned], (height, width)))


def register(desk: Desk) -> None:
    """Tie the endpoints to their names; call it inside a Blocks."""
    endpoints = Endpoints(desk)
    total = desk.tokens()
    budget = {"type": "integer", "minimum": 1, "maximum": total}
    with gr.Column(visible=False):
        inputs: dict[str, Any] = {
            "image": Picture(type="filepath", image_mode=None, label="image"),
            "phrases": _raw("phrases", _TEXT, "the red apple\nthe cat"),
            "budget": _raw("budget", _optional(budget), max(1, total // 3)),
            "method": _raw("method", _TEXT, "litelvlm", "litelvlm"),
            "split": _raw("split", _optional(_TEXT, {"type": "number"})),
            "order": _raw("order", _optional(_TEXT)),
            "positions": _raw("positions", _optional(_TEXT)),
            "context": _raw("context", _optional(_TEXT)),
            "text": _raw("text", _optional(_TEXT)),
            "mode": _raw("mode", _TEXT, "forced", "forced"),
            "model": _raw("model", _optional(_TEXT)),
        }
        start = gr.Button("start", visible=False)
        overlay = gr.Image(format="png", label="overlay", type="numpy")
        record = gr.JSON(label="record")
        few = [inputs[name] for name in ("image", "phrases", "method", "model")]
        _tie(start, endpoints.ground, list(inputs.values()), [overlay, record])
        _tie(start, endpoints.compare, list(inputs.values()), [record])
        _tie(start, endpoints.sweep, few, [record])


def _raw(name: str, kind: dict[str, Any], example: Any = None, value: str | None = None) -> Raw:
    return Raw(value, label=name, kind=kind, example=example)


def _optional(*kinds: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [*kinds, {"type": "null"}]}


def _tie(start: gr.Button, method: Callable[..., Any], inputs: list, outputs: list) -> None:
    start.click(
        method,
        inputs,
        outputs,
        api_name=method.__name__,
        api_visibility="public",
        concurrency_id="model",
        concurrency_limit=1,
        show_progress="hidden",
    )
