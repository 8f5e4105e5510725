"""Fair timing: runs with and without pruning take turns in one process, and medians are told.

    print(compare(pipe, scene, ["the red apple"], budget=192))
    print(bench(pipe, [576, 192, 64]).text())

Every variant runs once unmeasured (that run also counts FLOPs and memory), then the variants take
turns, and the order is turned round every other time, so that a machine that warms up or is shared
favours none. FLOPs are counted from the operators that run, two per multiply-add. How memory is
measured is told in `litelvlm.profiling`.
"""

from litelvlm.bench.compare import Comparison, compare
from litelvlm.bench.figures import Spread, machine, versions
from litelvlm.bench.report import BenchReport, BenchRow, bench

__all__ = [
    "BenchReport",
    "BenchRow",
    "Comparison",
    "Spread",
    "bench",
    "compare",
    "machine",
    "versions",
]
