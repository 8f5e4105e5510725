"""Scores of benchmarks with text answers: of each answer, and of a whole benchmark.

vqav2, textvqa, gqa, scienceqa   mean over the questions, %
pope                             F1, mean over the splits, %
mme                              sum over the perception tasks, 0..2,000
mmbench                          right under every rotation of the choices, %
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from litelvlm import answers
from litelvlm.data.vqa import VqaItem
from litelvlm.evaluation.plan import UNPRUNED
from litelvlm.evaluation.records import Answered, Unit
from litelvlm.evaluation.summary import UnitsRow, grouped, percent, units_facts
from litelvlm.metrics import mean_and_deviation
from litelvlm.result import TextResult
from litelvlm.tables import markdown_table

SCORES: dict[str, Callable[[str, VqaItem], float]] = {
    "vqav2": lambda said, item: answers.vqa_accuracy(said, item.answers),
    "textvqa": lambda said, item: answers.textvqa_accuracy(said, item.answers),
    "gqa": lambda said, item: answers.exact(said, item.answers),
    "pope": lambda said, item: float(answers.yes_or_no(said) == item.answers[0]),
    "mme": lambda said, item: float(answers.yes_no_other(said) == item.answers[0]),
    "scienceqa": lambda said, item: float(answers.letter(said, item.choices) == item.answers[0]),
    "mmbench": lambda said, item: float(answers.letter(said, item.choices) == item.answers[0]),
}
# MME's other tasks are of perception.
_COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)


@dataclass(frozen=True)
class AnswerRow(UnitsRow):
    """Score of a benchmark.

    Attributes:
        questions: answered per seed.
        score: see above; mean over the seeds; None where nothing was answered.
        deviation: sample deviation over the seeds; None for one seed.
        relative: percent of the unpruned row; None without one.
        parts: what the score is made of, and what is told beside it.
    """

    questions: int
    score: float | None
    deviation: float | None
    relative: float | None = None
    parts: dict[str, float] = field(default_factory=dict)


def answered(
    source: str, items: Sequence[VqaItem], results: Iterable[TextResult]
) -> Iterator[Answered]:
    """The records of some answers."""
    for item, result in zip(items, results, strict=True):
        score = SCORES[source](result.text, item)
        yield Answered(item.id, item.text, item.kind, result.text, item.answers[0], score)


def total(source: str, units: Iterable[Unit]) -> tuple[float, dict[str, float]]:
    """Score of a whole benchmark, and its parts; of at least one answer."""
    rows = [(unit.picture, item) for unit in units for item in unit.items]
    kinds: dict[str, list[Answered]] = defaultdict(list)
    for _, item in rows:
        kinds[item.kind].append(item)
    if source == "pope":
        parts: dict[str, float] = {}
        for kind, its in kinds.items():
            found = answers.pope_scores([i.answer for i in its], [i.label for i in its])
            parts |= {f"{kind} {name}": 100 * value for name, value in found.items()}
        f1 = [value for name, value in parts.items() if name.endswith(" f1")]
        return sum(f1) / len(f1), parts
    if source == "mme":
        tasks = answers.mme_scores((i.kind, picture, i.answer, i.label) for picture, i in rows)
        cognition = sum(value for task, value in tasks.items() if task in _COGNITION)
        return sum(tasks.values()) - cognition, {"cognition": cognition, **tasks}
    if source == "mmbench":
        return 100 * answers.circular_accuracy((i.kind, i.score == 1) for _, i in rows), {}
    return 100 * sum(item.score for _, item in rows) / len(rows), {}


def summarise_answers(units: Iterable[Unit]) -> list[AnswerRow]:
    """One row for each source, variant and budget: unpruned first, then by budget, as run."""
    rows: list[AnswerRow] = []
    whole: dict[str, float | None] = {}
    for (source, variant, _), its in grouped(units).items():
        by_seed: dict[int, list[Unit]] = defaultdict(list)
        for unit in its:
            by_seed[unit.seed].append(unit)
        scored = [total(source, own) for own in by_seed.values() if any(u.items for u in own)]
        score, deviation = mean_and_deviation([value for value, _ in scored])
        if variant == UNPRUNED:
            whole[source] = score
        rows.append(
            AnswerRow(
                **units_facts(its),
                questions=sum(len(unit.items) for unit in next(iter(by_seed.values()))),
                score=score,
                deviation=deviation,
                relative=percent(score, whole.get(source)),
                parts=scored[0][1] if scored else {},
            )
        )
    return rows


def answer_table(rows: Sequence[AnswerRow]) -> list[str]:
    """Scores on every benchmark, and the mean of their shares of the unpruned model's."""
    sources = list(dict.fromkeys(row.source for row in rows))
    table = {(row.budget, row.variant, row.source): row for row in rows}
    pairs = list(dict.fromkeys((row.budget, row.variant) for row in rows))
    lines = []
    for pair in sorted(pairs, key=lambda pair: -pair[0]):
        its = [table.get((*pair, source)) for source in sources]
        there = [row for row in its if row is not None]
        cells = ["–" if row is None or row.score is None else f"{row.score:.1f}" for row in its]
        shares = [row.relative for row in there if row.relative is not None]
        relative = f"{sum(shares) / len(shares):.1f}" if len(shares) == len(sources) else "–"
        tokens = sum(row.mean_tokens for row in there) / len(there)
        lines.append([pair[0], there[0].title, *cells, relative, f"{tokens:.0f}"])
    heads = ["tokens", "method", *sources, "Rel. %", "tokens, mean over layers"]
    return markdown_table(heads, lines, (1,))


def part_table(rows: Sequence[AnswerRow]) -> list[str]:
    """The parts of one benchmark's score, one column each; empty where it has none."""
    names = list(dict.fromkeys(name for row in rows for name in row.parts))
    if not names:
        return []
    lines = [
        [row.budget, row.title, *(f"{row.parts[n]:.1f}" if n in row.parts else "–" for n in names)]
        for row in rows
    ]
    return markdown_table(["tokens", "method", *names], lines, (1,))
