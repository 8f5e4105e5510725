"""What the demo computes, as records: no drawing and no Gradio here."""

from __future__ import annotations

import logging
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from litelvlm import viz
from litelvlm.bench import Comparison, compare
from litelvlm.errors import InputError
from litelvlm.methods import get_method
from litelvlm.metrics import reversal_auc, token_recall
from litelvlm.question import Question
from litelvlm.result import GroundingResult
from litelvlm.selecting import check_method
from litelvlm.ui.limits import Picture

if TYPE_CHECKING:
    from litelvlm.pipeline import Pipeline
    from litelvlm.profiling import StageCost
    from litelvlm.result import GroundingResults
    from litelvlm.scene import EncodedImage

log = logging.getLogger(__name__)
MARKS = (32, 64, 128, 192, 288, 576)
BLIND = "without a phrase"
RIVALS = ("random", "grid")  # drawn beside LiteLVLM unless others are chosen
LEAST = 8  # smallest budget the slider offers


@dataclass(frozen=True)
class Answer:
    """Everything the tabs show; one visitor's, held in his session.

    Attributes:
        picture: as uploaded.
        scene: the encoded picture, None where it cannot be kept between calls.
        ask: the question.
        pruned, unpruned: the two results, phrase by phrase.
        similarity: (T, N) float32, CLIP's similarity, whatever the method.
        encode_costs: stages of the image encoders.
        same: what the kept tokens have in common with other choices, phrase by phrase: name of the
            other -> number of equal tokens. "without a phrase" is the context rule alone.
        measured: repeated measurements, once asked for.
        reused: whether the encoded picture was already there.
        model: the model that answered, by the name the demo offers it under.
        seconds: it took to answer; None for one that was there before the visitor.
    """

    picture: Picture
    scene: EncodedImage | None
    ask: Question
    pruned: GroundingResults
    unpruned: GroundingResults
    similarity: np.ndarray
    encode_costs: tuple[StageCost, ...]
    same: tuple[dict[str, int], ...] = ()
    measured: Comparison | None = None
    reused: bool = False
    model: str = ""
    seconds: float | None = None

    @property
    def masks(self) -> bool:
        """Whether the model answers with masks; else in text."""
        return isinstance(self.pruned[0], GroundingResult)

    @property
    def topic(self) -> object:
        """What methods and budgets are compared about: the question without its own two."""
        ask = replace(self.ask, budget=None, method="litelvlm")
        return self.model, self.picture.key, ask

    @property
    def agreement(self) -> list[float]:
        """How alike the pruned and the unpruned answer are, one a phrase."""
        return [a.agreement(b) for a, b in zip(self.pruned, self.unpruned, strict=True)]

    def facts(self, index: int) -> Facts:
        """What can be read off the token map and the similarity of one phrase."""
        item = self.pruned[index]
        frame = item.token_map.frame
        inside = frame.coverage(item.region)
        others = [frame.coverage(other.region) for other in self.pruned if other is not item]
        elsewhere = np.max([np.zeros(frame.count), *others], axis=0)
        ground = (elsewhere < 0.5) | (inside >= 0.5)
        things = (elsewhere >= 0.5) | (inside >= 0.5)
        # Patches of the padding say nothing about the picture.
        seen = frame.coverage(np.ones(frame.image_hw, bool)) >= 0.5
        x0, y0, x1, y1 = item.token_map.frame.seen_box
        height, width = item.token_map.frame.image_hw
        return Facts(
            kept={r: int((item.token_map.reason == r).sum()) for r in set(item.token_map.reason)},
            entered=len(item.token_map.order),
            total=item.token_map.frame.count,
            recall=token_recall(item.token_map.kept(), inside),
            unseen=1.0 - max(0.0, (x1 - x0) * (y1 - y0)) / (width * height),
            auc=reversal_auc(self.similarity[index][seen & ground], inside[seen & ground]),
            auc_things=reversal_auc(self.similarity[index][things], inside[things]),
            shares={
                reason: token_recall(item.token_map.kept(reason), inside)
                for reason in set(item.token_map.reason)
            },
            inside=inside,
            seen=seen,
            padding=int((item.token_map.kept() & ~viz.seen_patches(frame)).sum()),
        )


@dataclass(frozen=True)
class Facts:
    """Figures of one phrase.

    Attributes:
        kept: reason -> number of patches.
        entered: image tokens that entered the language model.
        total: N.
        recall: share of the mask's patches that were kept, None without a mask.
        unseen: share of the picture outside CLIP's view.
        auc: chance that a patch inside scores higher than one of the ground, which is all but the
            masks of the other phrases; None without a mask.
        auc_things: the same against the patches of the other phrases' masks; None without one.
        shares: reason -> share of the mask's patches that were kept for it.
        inside: (N,) share of each patch under the mask.
        seen: (N,) bool, patches that lie in the picture by at least half, not in the padding.
        padding: patches kept that lie wholly in the padding.
    """

    kept: dict[int, int]
    entered: int
    total: int
    recall: float | None
    unseen: float
    auc: float | None
    auc_things: float | None
    shares: dict[int, float | None]
    inside: np.ndarray
    seen: np.ndarray
    padding: int


def answer(
    pipe: Pipeline,
    picture: Picture,
    ask: Question,
    before: Answer | None = None,
    *,
    hold: bool = True,
) -> Answer:
    """Ground the phrases with and without pruning, reusing what an earlier answer holds.

    Args:
        pipe: the model.
        picture: the upload.
        ask: the question.
        before: the visitor's last answer; its encoded picture and unpruned result are used again
            where they fit.
        hold: keep the encoded picture in the answer.

    Returns:
        A new `Answer`; `before` is not changed.
    """
    same = (
        before is not None
        and before.scene is not None
        and before.picture.key == picture.key
        and before.scene.model == pipe.name
    )
    scene = before.scene if same and before is not None else pipe.encode(picture.image)
    assert scene is not None
    pruned = pipe.answer(scene, ask)
    if same and before is not None and _unpruned(before.ask) == _unpruned(ask):
        unpruned = before.unpruned
    else:
        unpruned = pipe.answer(scene, _unpruned(ask))
    similarity = _similarity(pipe, scene, pruned, ask.phrases, ask.text)
    return Answer(
        picture=picture,
        scene=scene if hold else None,
        ask=ask,
        pruned=pruned,
        unpruned=unpruned,
        similarity=similarity,
        encode_costs=scene.costs,
        same=_in_common(pipe, scene, pruned, ask),
        reused=same,
    )


def _unpruned(ask: Question) -> Question:
    """The question, asked of all tokens."""
    return Question(ask.phrases, mode=ask.mode, max_new_tokens=ask.max_new_tokens)


def _in_common(
    pipe: Pipeline, scene: EncodedImage, results: GroundingResults, ask: Question
) -> tuple[dict[str, int], ...]:
    """Per phrase: how many of its tokens the other phrases keep too, and a rule blind to any."""
    kept = [set(item.token_map.indices.tolist()) for item in results]
    found: list[dict[str, int]] = [
        {
            other.phrase: len(kept[number] & kept[place])
            for place, other in enumerate(results)
            if place != number
        }
        for number in range(len(kept))
    ]
    if ask.budget != scene.count and "context" in pipe.methods:
        (blind,) = pipe.select(scene, ask.phrases[0], ask.budget, method="context")
        for number, own in enumerate(kept):
            found[number][BLIND] = len(own & set(blind.indices.tolist()))
    return tuple(found)


def _similarity(
    pipe: Pipeline,
    scene: EncodedImage,
    results: GroundingResults,
    phrases: Sequence[str],
    text: str | None,
) -> np.ndarray:
    """(T, N) float32, taken from the results where the method used it."""
    known = [item.token_map.similarity for item in results]
    if all(scores is not None for scores in known):
        return np.stack(known)  # type: ignore[arg-type]
    form = text or pipe.family.defaults.text
    return pipe.similarity(scene, phrases, form).float().cpu().numpy()


def measure(pipe: Pipeline, given: Answer, repeats: int = 5) -> Answer:
    """Time the pruned and the unpruned run again, in turns after a warm-up, and count their work.

    Returns:
        The same answer with `measured` filled.
    """
    scene = given.scene or pipe.encode(given.picture.image)
    ask = given.ask
    assert ask.budget is not None  # `callbacks.check` fills it in
    measured = compare(pipe, scene, ask.phrases, ask.budget, repeats=repeats, **ask.chosen())
    return replace(given, measured=measured)


@dataclass(frozen=True)
class Curve:
    """One line of the budget curve: method, and (budget, agreement 0..1, prefill ms) points."""

    method: str
    points: tuple[tuple[int, float, float], ...] = ()


@dataclass(frozen=True)
class Sweep:
    """A budget curve in the making.

    Attributes:
        curves: one a method.
        done, total: runs finished and planned.
        unpruned_ms: prefill time with all tokens.
        phrases: averaged over.
        topic: of the answer it belongs to, see `Answer.topic`.
    """

    curves: tuple[Curve, ...]
    done: int
    total: int
    unpruned_ms: float
    phrases: tuple[str, ...] = ()
    topic: object = None


def budgets(total: int) -> list[int]:
    """The budgets that are marked on the slider and drawn in the curve, for a model of N tokens."""
    marks = [mark for mark in MARKS if mark < total]
    if len(marks) < 3:  # a toy model
        marks = sorted({max(1, round(total * share)) for share in (0.125, 0.25, 0.5)})
    return [*marks, total]


def sweep(
    pipe: Pipeline, given: Answer, methods: Sequence[str] = RIVALS, repeats: int = 3
) -> Iterator[Sweep]:
    """Agreement with the unpruned answer and prefill time over budgets, run by run.

    LiteLVLM and the method of the answer beside `methods`. Random tokens are drawn anew for each
    repeat and averaged; times are medians over the repeats.

    Yields:
        The curve so far, after each budget.
    """
    scene = given.scene or pipe.encode(given.picture.image)
    ask = given.ask
    names = tuple(dict.fromkeys(("litelvlm", ask.method, *methods)))
    for name in names:
        check_method(get_method(name), pipe.family.capabilities.scores, pipe.name)
    steps = [(budget, name) for budget in budgets(scene.count)[:-1] for name in names]
    points: dict[str, list[tuple[int, float, float]]] = {name: [] for name in names}
    full = [pipe.answer(scene, _unpruned(ask)) for _ in range(repeats)]
    unpruned_ms = statistics.median(_prefill(run) for run in full)
    start = tuple(Curve(name) for name in names)
    state = Sweep(start, 0, len(steps), unpruned_ms, ask.phrases, given.topic)
    yield state
    for done, (budget, name) in enumerate(steps, 1):
        runs = [
            pipe.answer(scene, replace(ask, budget=budget, method=name, seed=turn))
            for turn in range(repeats)
        ]
        scores = [a.agreement(b) for run in runs for a, b in zip(run, full[0], strict=True)]
        time_ms = statistics.median(_prefill(run) for run in runs)
        points[name].append((budget, statistics.fmean(scores), time_ms))
        curves = tuple(Curve(key, tuple(values)) for key, values in points.items())
        yield replace(state, curves=curves, done=done)


def _prefill(run: GroundingResults) -> float:
    stage = run.costs.stage("llm_prefill")
    return stage.ms if stage else 0.0


class Models:
    """The pipelines of the demo, loaded once each, on first use.

    Args:
        names: as `litelvlm.load` takes them.
        load: what turns a name into a pipeline.
    """

    def __init__(self, names: Sequence[str], load: Callable[[str], Pipeline]) -> None:
        self.names = tuple(names)
        self._load = load
        self._pipes: dict[str, Pipeline] = {}
        self._lock = threading.Lock()

    def get(self, name: str | None = None) -> Pipeline:
        """The pipeline of that name, or `InputError`: not offered, or it cannot be loaded."""
        name = name or self.names[0]
        if name not in self.names:
            raise InputError(f"This demo has no model “{str(name)[:40]}”: {', '.join(self.names)}.")
        with self._lock:
            if name not in self._pipes:
                log.info("loading %s", name)
                self._pipes[name] = self._load(name)
            return self._pipes[name]

    def fault(self) -> str | None:
        """Why the first model cannot be loaded, in one line, or None."""
        try:
            self.get()
        except InputError as error:
            return str(error)
        return None
