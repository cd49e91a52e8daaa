"""Times several things side by side, and compares the times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from twins_trt.profiling.statistics import bootstrap_median

Run = Callable[[], object]


def time_rounds(runs: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of every run in every round.

    A round times all of them once, so that whatever else the machine does affects all alike. Each runs once before it
    is timed: the run before it left other weights in the caches, and threads that are still waiting for work.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def times_as_fast(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """`ratio`: the median over rounds of slow over fast; `ratio_low`, `ratio_high`: its 95 % interval."""
    ratios = [one / other for one, other in zip(slow, fast, strict=True)]
    low, high = bootstrap_median(ratios)
    return {"ratio": round(statistics.median(ratios), 3), "ratio_low": round(low, 3), "ratio_high": round(high, 3)}


def median_ms(seconds: Sequence[float]) -> float:
    """The median in milliseconds."""
    return round(1e3 * statistics.median(seconds), 1)
