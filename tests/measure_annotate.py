"""Answers per second of `annotate` against a loop over `pipe(picture, phrase)`.

    python tests/measure_annotate.py --pictures 16 --phrases 4 --budgets 576 192 128 64

Both run the same pictures and phrases in turns, after a warm-up; the best turn of each is printed,
which is the least disturbed one.
"""

from __future__ import annotations

import argparse
import time

import torch

import litelvlm
from litelvlm.annotate.rows import Task, annotate
from litelvlm.nano.scenes import make_scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--phrases", type=int, default=4, help="of each picture")
    parser.add_argument("--loop", type=int, default=2, help="pictures that the loop runs")
    parser.add_argument("--budgets", type=int, nargs="+", default=[576, 192, 128, 64])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pipe = litelvlm.load(args.model)
    tasks = []
    for number in range(args.pictures):
        scene = make_scene(4_000_000 + number)
        phrases = [each.text for each in scene.expressions] * args.phrases
        tasks.append(Task(str(number), scene.image, tuple(phrases[: args.phrases])))

    def loop(budget: int) -> float:
        part = tasks[: args.loop]
        start = time.perf_counter()
        for task in part:
            for phrase in task.phrases:
                pipe(task.picture, phrase, budget)
        return len(part) * args.phrases / (time.perf_counter() - start)

    def together(budget: int) -> float:
        start = time.perf_counter()
        for place in range(0, len(tasks), 8):
            annotate(pipe, tasks[place : place + 8], budget)
        return len(tasks) * args.phrases / (time.perf_counter() - start)

    pipe(tasks[0].picture, tasks[0].phrases[0], 64)
    print(f"{args.pictures} pictures x {args.phrases} phrases, {pipe!r}, {args.threads} threads")
    print("budget  loop  annotate  ratio   (answers per second)")
    best = {budget: [0.0, 0.0] for budget in args.budgets}
    for _ in range(args.turns):
        for budget, pair in best.items():
            pair[:] = max(pair[0], loop(budget)), max(pair[1], together(budget))
    for budget, (alone, batched) in best.items():
        print(f"{budget:6d} {alone:5.2f} {batched:9.2f} {batched / alone:6.1f}", flush=True)


if __name__ == "__main__":
    main()
