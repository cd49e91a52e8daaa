"""Waits until what is measured has become steady: the calls of one candidate, then the clocks under all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from twins_trt.profiling.results import Conditions, Settling, WarmUp

# Warm enough: the medians of the last two windows of calls differ by less than TOLERANCE.
WINDOW, TOLERANCE = 5, 0.05

# Settled: over the last SETTLED windows of WINDOW_S seconds, no median and no clock differs by more than SPREAD.
# A governor needs some tenths of a second to raise a clock, and a power limit about as long to lower it again.
SETTLED, WINDOW_S, SPREAD = 3, 1.0, 0.03
CLOCKS = ("gpu", "memory")
"""Clocks that have to be steady. The processor's is a mean over cores, most of which are idle: it never is."""


def warm_up(call: Callable[[], float], *, limit_s: float) -> WarmUp:
    """Calls until the medians of the last two windows of calls agree, or `limit_s` seconds are over.

    call: runs once and returns its seconds. The first window always runs whole.
    """
    start = time.perf_counter()
    times: list[float] = []
    while True:
        times += [call() for _ in range(WINDOW)]
        stable = False
        if len(times) >= 2 * WINDOW:
            last, previous = np.median(times[-WINDOW:]), np.median(times[-2 * WINDOW : -WINDOW])
            stable = bool(abs(last / previous - 1) < TOLERANCE)
        spent = time.perf_counter() - start
        if stable or spent > limit_s:
            return WarmUp(len(times), round(spent, 2), stable)


def settle(
    calls: Sequence[Callable[[], float]],
    glance: Callable[[], Conditions],
    *,
    limit_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Settling:
    """Runs all in turn, without a pause, until clocks and latencies are steady, or `limit_s` seconds are over.

    A short warm-up ends while the clocks still rise, or before heat and the power limit lower them again. What is
    measured then holds for the first second of a day. calls: each runs once and returns its seconds. glance: the
    machine's state, which is asked for at the end of a window. clock: seconds. The first window always runs whole.
    """
    start = clock()
    windows: list[dict[str, float]] = []
    while True:
        opened, times = clock(), [[each()] for each in calls]
        while clock() - opened < WINDOW_S:
            for each, seconds in zip(calls, times, strict=True):
                seconds.append(each())
        clocks = glance().clocks_mhz
        medians = {str(i): float(np.median(each)) for i, each in enumerate(times)}
        windows.append(medians | {name: clocks[name] for name in CLOCKS if name in clocks})
        spent = clock() - start
        steady = len(windows) >= SETTLED and _agree(windows[-SETTLED:])
        if steady or spent >= limit_s:
            return Settling(round(spent, 2), len(windows), steady)


def _agree(windows: Sequence[Mapping[str, float]]) -> bool:
    values = ([window[name] for window in windows if name in window] for name in windows[-1])
    return all(max(each) <= (1 + SPREAD) * min(each) for each in values)
