"""Timing several things side by side, and what to say of the times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from twins_trt.profiling.statistics import bootstrap_median

Run = Callable[[], object]


def time_rounds(runs: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of every run in every round.

    A round times all of them once, so that whatever else the machine does meets all alike. Each is run before it is
    timed: what ran before it left other weights in the caches, and threads that are still waiting for more work.
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
    """`ratio`, with its 95 % interval `ratio_low` to `ratio_high`: the median of the rounds' own ratios."""
    ratios = [one / other for one, other in zip(slow, fast, strict=True)]
    low, high = bootstrap_median(ratios)
    return {"ratio": round(statistics.median(ratios), 3), "ratio_low": round(low, 3), "ratio_high": round(high, 3)}


def median_ms(seconds: Sequence[float]) -> float:
    return round(1e3 * statistics.median(seconds), 1)
