"""Methods x budgets on any data: encode every picture once, ask in every way, keep the score.

    pipe = litelvlm.load("nano")
    records = evaluate(pipe, SceneSource("val"), ["litelvlm", "random"], [192, 64])
    for row in summarise(records): print(row.title, row.budget, row.giou)

`litelvlm evaluate` does the same from the command line, writes the report and runs on many
processes: pictures are dealt out, every process keeps its own records, and what a picture gets does
not depend on which process has it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, groupby, islice
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from litelvlm.data.samples import Sample, SampleList, Source, by_picture
from litelvlm.data.vqa import VqaItem
from litelvlm.evaluation.plan import (
    DRAWN,
    UNPRUNED,
    Plan,
    Variant,
    picture_seed,
    variants_of,
)
from litelvlm.evaluation.questions import answered
from litelvlm.evaluation.records import Item, Key, Memory, Store, Unit, merge
from litelvlm.evaluation.summary import summarise
from litelvlm.metrics import overlap, reversal_auc, token_recall
from litelvlm.question import Question

if TYPE_CHECKING:
    from litelvlm.pipeline import Pipeline
    from litelvlm.result import GroundingResults
    from litelvlm.scene import EncodedImage

__all__ = ["evaluate", "run", "summarise"]

log = logging.getLogger(__name__)


def evaluate(
    pipe: Pipeline,
    samples: Source | Iterable[Sample],
    methods: Sequence[str] = ("all",),
    budgets: Sequence[int] = (),
    *,
    store: Store | Memory | None = None,
    share: tuple[int, int] = (0, 1),
    progress: bool = False,
    **settings: Any,
) -> list[Unit]:
    """Run methods x budgets over samples.

    Args:
        pipe: a loaded model.
        samples: a source (`SceneSource`, `RefCOCO`, `Folder`, `Questions`) or samples.
        methods: names, or `name:option=value,...`; "all" stands for every method.
        budgets: image tokens kept, 1..N.
        store: where records go and what is already done; None keeps them in memory.
        share: (i, n), run every n-th picture from the i-th on.
        progress: show a bar on stderr.
        **settings: the other fields of `Plan`: protocol, mode, seeds, view, batch, profile, limit.

    Returns:
        One `Unit` for each picture, variant, budget and seed of this share, in a fixed order.
        Failed ones carry `error`.

    Raises:
        InputError: unknown method or setting, budget out of range, data that cannot be read.
    """
    source: Any = samples
    if not hasattr(samples, "samples"):
        source = SampleList("samples", list(samples))
    if "seeds" in settings:
        settings["seeds"] = tuple(settings["seeds"])
    plan = Plan(tuple(variants_of(methods)), tuple(budgets), **settings)
    kept = Memory() if store is None else store
    return run(pipe, source, plan, kept, share=share, progress=progress)


def run(
    pipe: Pipeline,
    source: Source,
    plan: Plan,
    store: Store | Memory,
    *,
    share: tuple[int, int] = (0, 1),
    progress: bool = False,
) -> list[Unit]:
    """`evaluate` for a ready plan. Units already in the store are not run again."""
    plan.check(pipe.tokens_total)
    asked = Question(("any",), mode=plan.mode, joint=plan.protocol == "released")
    pipe.family.capabilities.check(asked, pipe.name)
    units = plan.units(pipe.tokens_total)
    groups: Iterable[list[Sample]] = by_picture(source.samples(share))
    if plan.limit is not None:
        # Of the first so many pictures of the whole, those that fell to this share.
        groups = islice(groups, -(-max(plan.limit - share[0], 0) // share[1]))
    wanted: list[Key] = []
    # A list where the bar is shown: the number of pictures tells the time that is left.
    shown = list(groups) if progress else groups
    for group in tqdm(shown, source.name, unit="picture", smoothing=0.05, disable=not progress):
        picture = group[0].picture
        keys = {unit: (source.name, picture, unit[0].label, *unit[1:]) for unit in units}
        wanted += keys.values()
        todo = [unit for unit, key in keys.items() if not store.done(key)]
        if todo:
            store.add(_picture(pipe, source.name, group, plan, todo))
    for sentence in source.refused:
        log.warning("%s", sentence)
    if source.missing:
        log.warning("%s: %d pictures are missing", source.name, len(source.missing))
    return merge(store.units[key] for key in wanted)


def _picture(
    pipe: Pipeline,
    source: str,
    samples: list[Sample],
    plan: Plan,
    units: list[tuple[Variant, int, int]],
) -> Iterable[Unit]:
    """Encode one picture and run its units; whatever fails is recorded."""
    picture = samples[0].picture
    try:
        scene = pipe.encode(samples[0].read_image(), profile=plan.profile, view=plan.view)
        targets = {}
        for sample in samples:
            if isinstance(sample, VqaItem):
                continue
            mask = sample.read_mask(scene.frame.image_hw)
            targets[sample.id] = mask, scene.frame.coverage(mask)
    except Exception as fault:
        return [_failed(source, picture, unit, fault) for unit in units]
    done = []
    for unit in units:
        try:
            done.append(_unit(pipe, source, samples, scene, targets, plan, unit))
        except Exception as fault:
            done.append(_failed(source, picture, unit, fault))
    return done


def _unit(
    pipe: Pipeline,
    source: str,
    samples: list[Sample],
    scene: EncodedImage,
    targets: dict[str, tuple[np.ndarray, np.ndarray]],
    plan: Plan,
    unit: tuple[Variant, int, int],
) -> Unit:
    """One picture under one variant, budget and seed; `targets`: masks and what patches cover."""
    variant, budget, seed = unit
    picture = samples[0].picture
    own = picture_seed(seed, picture)
    joint, wording = plan.protocol == "released", None
    if joint:
        samples, wording = _draw(pipe, samples, own)
    unpruned = variant.name == UNPRUNED
    options: dict[str, Any] = {
        "mode": plan.mode,
        "joint": joint,
        "seed": own,
        "profile": plan.profile,
        "wording": wording,
        **dict(variant.options),
    }
    if not unpruned:
        options.update(budget=budget, method=variant.name)
    items: list[Any] = []
    kept: list[np.ndarray] = []
    stages: dict[str, Any] = {}
    if unpruned:
        stages = {cost.stage: (cost.ms, cost.peak_bytes, cost.flops) for cost in scene.costs}
    for part in _parts(samples, plan.batch):
        if isinstance(part[0], VqaItem):
            options["wording"] = (part[0].wording, "")
        results = pipe.ground(scene, [sample.text for sample in part], **options)
        _add(stages, results)
        kept += [result.token_map.kept() for result in results]
        if isinstance(part[0], VqaItem):
            items += answered(source, part, results)
        else:
            items += _found(pipe, scene, part, results, targets, unpruned)
    costs = results.costs
    layers = costs.layer_tokens
    text = costs.llm_tokens - (costs.tokens_total if layers else costs.tokens_kept)
    return Unit(
        source=source,
        picture=picture,
        variant=variant.label,
        budget=budget,
        seed=seed,
        items=tuple(items),
        tokens=costs.tokens_kept,
        mean_tokens=float(np.mean(layers)) - text if layers else float(costs.tokens_kept),
        stages=stages,
        kv_bytes=costs.kv_cache_bytes,
        attention_bytes=(costs.attention_bytes or 0) // len(results),
        same=_same(kept, [targets[s.id][0] for s in samples]) if targets and not unpruned else None,
    )


def _same(kept: list[np.ndarray], targets: list[np.ndarray]) -> float | None:
    """Mean share of kept patches, (N,) bool, that expressions with different targets share."""
    shares = [
        (a & b).sum() / a.sum()
        for (a, one), (b, other) in combinations(zip(kept, targets, strict=True), 2)
        if not np.array_equal(one, other)
    ]
    return float(np.mean(shares)) if shares else None


def _parts(samples: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    """Samples that go into one call: at most so many, questions of one wording together."""
    for _, group in groupby(samples, key=lambda sample: getattr(sample, "wording", None)):
        same = list(group)
        yield from (same[start : start + most] for start in range(0, len(same), most))


def _found(
    pipe: Pipeline,
    scene: EncodedImage,
    samples: Sequence[Sample],
    results: GroundingResults,
    targets: dict[str, tuple[np.ndarray, np.ndarray]],
    unpruned: bool,
) -> Iterator[Item]:
    """What each expression's mask is worth."""
    aucs: Sequence[float | None] = [None] * len(samples)
    if unpruned:
        similarity = pipe.similarity(scene, [sample.text for sample in samples]).cpu().numpy()
        aucs = [
            reversal_auc(scores, targets[sample.id][1])
            for sample, scores in zip(samples, similarity, strict=True)
        ]
    for sample, result, auc in zip(samples, results, aucs, strict=True):
        target, share = targets[sample.id]
        both, either = overlap(result.mask, target)
        recall = token_recall(result.token_map.kept(), share)
        yield Item(sample.id, sample.text, sample.kind, both, either, recall, auc, result.found)


def _draw(pipe: Pipeline, samples: list[Sample], seed: int) -> tuple[list[Sample], tuple[str, str]]:
    """The released protocol: at most three expressions, one random question and answer."""
    rng = random.Random(seed)
    drawn = rng.sample(samples, min(DRAWN, len(samples)))
    # The model's own stands first. A closed vocabulary is asked only what it can read.
    (question, *questions), (answer, *answers) = pipe.family.wordings
    questions = [q for q in questions if not pipe.unknown_words(q.format(phrase=""))]
    answers = [a for a in answers if not pipe.unknown_words(a.replace("[SEG]", ""))]
    return drawn, (rng.choice(questions or [question]), rng.choice(answers or [answer]))


def _add(stages: dict[str, Any], results: GroundingResults) -> None:
    """Sum times and FLOPs over the calls of a unit, keep the highest peak."""
    for cost in results.costs.stages:
        ms, peak, flops = stages.get(cost.stage, (0.0, None, None))
        peaks = [each for each in (peak, cost.peak_bytes) if each is not None]
        works = [each for each in (flops, cost.flops) if each is not None]
        stages[cost.stage] = (
            ms + cost.ms,
            max(peaks) if peaks else None,
            sum(works) if works else None,
        )


def _failed(source: str, picture: str, unit: tuple[Variant, int, int], fault: Exception) -> Unit:
    variant, budget, seed = unit
    reason = f"{type(fault).__name__}: {' '.join(str(fault).split())}"[:300]
    log.warning("%s %s %s %d: %s", source, picture, variant.label, budget, reason)
    return Unit(source, picture, variant.label, budget, seed, error=reason)
