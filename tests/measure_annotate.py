"""What `litelvlm annotate` costs: answers per second, and memory over a long run.

    python tests/measure_annotate.py --pictures 16 --phrases 4 --budgets 576 192 128 64
    python tests/measure_annotate.py --memory 5000 --model tiny-random
    python tests/measure_annotate.py --ray 1000 --workers 2

The first compares `annotate` with a loop over `pipe(picture, phrase)` on the same pictures, phrases
and budget. All take turns after a warm-up; medians are printed, of wall time and of the process's
CPU time, which other programs on the machine disturb less. The second runs the command on so many
small pictures of many sizes and prints what it holds in memory on the way. The third runs the
command on rendered scenes plainly and with `--ray`, both with as many threads, and prints wall and
CPU time of all processes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

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
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", type=int, metavar="PICTURES", help="measure memory instead")
    parser.add_argument("--ray", type=int, metavar="PICTURES", help="measure Ray instead")
    parser.add_argument("--workers", type=int, default=2, help="of Ray")
    args = parser.parse_args()
    if args.memory:
        memory(args.model, args.memory, args.threads)
    elif args.ray:
        ray_overhead(args.model, args.ray, args.workers, args.threads)
    else:
        pace(args)


def pace(args: argparse.Namespace) -> None:
    """Print answers per second of the loop and of `annotate` at each budget."""
    torch.set_num_threads(args.threads)
    pipe = litelvlm.load(args.model)
    tasks = []
    for number in range(args.pictures):
        scene = make_scene(4_000_000 + number)
        phrases = [each.text for each in scene.expressions] * args.phrases
        tasks.append(Task(str(number), scene.image, tuple(phrases[: args.phrases])))

    def loop(budget: int) -> None:
        for task in tasks[: args.loop]:
            for phrase in task.phrases:
                pipe(task.picture, phrase, budget)

    def together(budget: int) -> None:
        for place in range(0, len(tasks), 8):
            annotate(pipe, tasks[place : place + 8], budget)

    def rates(work: Callable[[], None], pictures: int) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        spent = time.perf_counter() - wall, time.process_time() - cpu
        return pictures * args.phrases / spent[0], pictures * args.phrases / spent[1]

    pipe(tasks[0].picture, tasks[0].phrases[0], 64)
    taken: dict[int, list[tuple[float, ...]]] = {budget: [] for budget in args.budgets}
    for _ in range(args.turns):
        for budget, rows in taken.items():
            alone = rates(partial(loop, budget), args.loop)
            rows.append((*alone, *rates(partial(together, budget), args.pictures)))
    print(f"{args.pictures} pictures x {args.phrases} phrases, {pipe!r}, {args.threads} threads")
    print("answers per second      wall                     CPU")
    print("budget   loop annotate  ratio    loop annotate  ratio")
    for budget, rows in taken.items():
        loop_wall, loop_cpu, wall, cpu = map(statistics.median, zip(*rows, strict=True))
        print(
            f"{budget:6d} {loop_wall:6.2f} {wall:8.2f} {wall / loop_wall:6.1f}"
            f"  {loop_cpu:6.2f} {cpu:8.2f} {cpu / loop_cpu:6.1f}"
        )


def ray_overhead(model: str, count: int, workers: int, threads: int) -> None:
    """Print wall time and CPU time of the command without and with Ray, and compare the rows."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        lines = []
        for number in range(count):
            scene = make_scene(5_000_000 + number)
            Image.fromarray(scene.image).resize((320, 240)).save(folder / f"{number:06d}.png")
            phrases = [each.text for each in scene.expressions[:2]] or ["a thing"]
            lines.append(json.dumps({"picture": f"{number:06d}.png", "phrases": phrases}))
        (folder / "table.jsonl").write_text("\n".join(lines))
        command = [sys.executable, "-m", "litelvlm", "annotate", str(folder / "table.jsonl")]
        command += ["--model", model, "--budget", "5" if model == "tiny-random" else "128"]
        command += ["--device", "cpu", "--threads"]
        found = []
        for name, more in (
            ("plain", [str(threads * workers)]),
            ("ray", [str(threads), "--ray", "--workers", str(workers)]),
        ):
            out = folder / name
            wall, spent = timed([*command, *more, "--out", str(out)])
            detail = ", ".join(f"{part} {used:.0f}" for part, used in spent.most_common(6))
            print(f"{name:6} {wall:6.0f} s, CPU {spent.total():6.0f} s ({detail})", flush=True)
            rows = (out / "journal.jsonl").read_text().splitlines()[1:]
            found.append(
                sorted((r["id"], r["number"], r["rle"]) for x in rows for r in json.loads(x))
            )
        same = sum(one == other for one, other in zip(*found, strict=True))
        print(f"{same} of {len(found[0])} rows have the same mask to the pixel")


def timed(command: list[str]) -> tuple[float, Counter[str]]:
    """Seconds of a command, and CPU seconds of its processes by name."""
    start, seen = time.perf_counter(), dict[int, tuple[str, float]]()
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        own = psutil.Process(process.pid)
        while process.poll() is None:
            for each in [own, *own.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    used = each.cpu_times()
                    name = " ".join(each.cmdline()[:1])[-40:] if each != own else "the command"
                    seen[each.pid] = (
                        name.rpartition("/")[2] or each.name(),
                        used.user + used.system,
                    )
            time.sleep(0.2)
    spent: Counter[str] = Counter()
    for name, used in seen.values():
        spent[name] += used
    return time.perf_counter() - start, spent


def memory(model: str, count: int, threads: int) -> None:
    """Print the resident memory of the command at every tenth of its pictures."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "in").mkdir()
        (folder / "phrases.txt").write_text("the red cup\na dog on the left\n")
        rng = np.random.default_rng(0)
        for number in range(count):
            noise = rng.integers(0, 255, (4, 4, 3)).astype(np.uint8)
            picture = Image.fromarray(noise).resize(tuple(rng.integers(60, 600, 2).tolist()))
            picture.save(folder / f"in/{number:06d}.jpg")
        command = [sys.executable, "-m", "litelvlm", "annotate", str(folder / "in")]
        command += ["--phrases", str(folder / "phrases.txt"), "--out", str(folder / "out")]
        command += ["--model", model, "--budget", "5" if model == "tiny-random" else "64"]
        command += ["--threads", str(threads), "--device", "cpu"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            watched, journal, done, told = psutil.Process(process.pid), folder / "out", 0, 0
            file, held = None, 0
            while process.poll() is None:
                time.sleep(0.02)
                if file is None and (journal / "journal.jsonl").is_file():
                    file = (journal / "journal.jsonl").open("rb")
                done += file.read().count(b"\n") if file else 0
                held = watched.memory_info().rss or held
                if done > told + count // 10:
                    told += count // 10
                    print(f"{told:6d} pictures  {held / 2**20:6.0f} MiB", flush=True)
            print(f"at the end        {held / 2**20:6.0f} MiB")


if __name__ == "__main__":
    main()
