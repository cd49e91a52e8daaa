"""When a candidate is warm, and when the clocks are steady: with times and clocks that are written down."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import pytest

from twins_trt.profiling import steady
from twins_trt.profiling.results import Conditions, Settling, WarmUp


def warm_up(times: Iterable[float], limit_s: float) -> WarmUp:
    """The warm-up of calls that say they took these seconds."""
    account = iter(times)
    return steady.warm_up(lambda: next(account), limit_s=limit_s)


def test_warm_up_waits_for_two_windows_that_agree() -> None:
    window = steady.WINDOW
    falling = [*[0.020] * window, *[0.012] * window, *[0.0101] * window, *[0.0100] * window]
    assert (warm_up(falling, 30.0).stable, warm_up(falling, 30.0).calls) == (True, 4 * window)
    outlier = [0.010, 0.9, 0.010, 0.010, 0.010] * 2  # a single hiccup is not what the median is about
    assert (warm_up(outlier, 30.0).stable, warm_up(outlier, 30.0).calls) == (True, 2 * window)


def test_warm_up_ends_when_its_time_is_over() -> None:
    restless = (0.001 * 2**i for i in itertools.count() for _ in range(steady.WINDOW))
    found = warm_up(restless, 0.0)
    assert (found.stable, found.calls) == (False, steady.WINDOW)


class Script:
    """A machine of two candidates. By window: the seconds of a call of each, and the clock of the GPU, MHz."""

    def __init__(self, *windows: tuple[float, float, float]) -> None:
        self.windows, self.number, self.now, self.order = windows, 0, 0.0, ""

    def call(self, which: int) -> float:
        self.order += "ab"[which]
        seconds = self.windows[min(self.number, len(self.windows) - 1)][which]
        self.now += seconds
        return seconds

    def glance(self) -> Conditions:
        clock = self.windows[min(self.number, len(self.windows) - 1)][2]
        self.number += 1
        return Conditions(clocks_mhz={"gpu": clock, "cpu": 1000.0 * self.number})  # no governor holds that one still

    def settle(self, limit_s: float = 100.0) -> Settling:
        calls = [lambda: self.call(0), lambda: self.call(1)]
        return steady.settle(calls, self.glance, limit_s=limit_s, clock=lambda: self.now)


SAME = (0.1, 0.2, 918.0)


def test_three_windows_that_agree_are_enough() -> None:
    script = Script(SAME)
    assert script.settle() == Settling(3.6, 3, True)  # 0.3 s a turn, so a window of 1 s has four
    assert script.order == "ab" * 12


@pytest.mark.parametrize(
    ("windows", "count"),
    [
        ([(0.12, 0.2, 918.0), SAME], 4),  # one of them became faster
        ([(0.1, 0.21, 918.0), SAME], 4),  # the other one
        ([(0.1, 0.2, 612.0), (0.1, 0.2, 918.0)], 4),  # the clock rose
        ([SAME, (0.1, 0.2, 700.0), SAME], 5),  # and fell again
        ([(0.102, 0.204, 918.0), SAME], 3),  # 2 % is noise
    ],
)
def test_times_and_clocks_have_to_agree(windows: Sequence[tuple[float, float, float]], count: int) -> None:
    found = Script(*windows).settle()
    assert (found.windows, found.steady) == (count, True)


def test_the_limit_ends_what_never_becomes_steady() -> None:
    restless = Script(*((0.1 * 1.1**i, 0.2, 918.0) for i in range(50)))
    found = restless.settle(limit_s=10.0)
    assert (found.steady, found.seconds) == (False, pytest.approx(10.0, abs=1.5))


def test_calls_longer_than_a_window_run_once_in_it() -> None:
    script = Script((5.0, 4.0, 918.0))
    assert script.settle() == Settling(27.0, 3, True)
    assert script.order == "ab" * 3
