"""The interval contains the true ratio as often as it says, and pairing removes what affected both."""

from __future__ import annotations

import numpy as np
import pytest

from twins_trt.profiling.statistics import bootstrap_median, ratio_of_medians


def rounds(rng: np.random.Generator, factor: float, count: int = 20) -> tuple[list[list[float]], list[list[float]]]:
    """Times of a candidate and a baseline that is `factor` times as slow. Rounds differ by up to five times."""
    weather = rng.uniform(1, 5, count)
    ours = [[w * rng.uniform(0.95, 1.05) for _ in range(5)] for w in weather]
    theirs = [[factor * w * rng.uniform(0.95, 1.05) for _ in range(5)] for w in weather]
    return ours, theirs


def test_what_slows_a_round_slows_both(rng: np.random.Generator) -> None:
    value, low, high = ratio_of_medians(*rounds(rng, 1.3))
    assert low is not None and high is not None
    assert value == pytest.approx(1.3, rel=0.02)
    assert 1.25 < low < 1.3 < high < 1.35


def test_the_interval_holds_the_truth_nineteen_times_of_twenty() -> None:
    held = 0
    for seed in range(100):
        _, low, high = ratio_of_medians(*rounds(np.random.default_rng(seed), 1.1))
        assert low is not None and high is not None
        held += low <= 1.1 <= high
    assert held >= 90


def test_the_same_twice_is_not_told_apart(rng: np.random.Generator) -> None:
    value, low, high = ratio_of_medians(*rounds(rng, 1.0))
    assert low is not None and high is not None
    assert low < 1.0 < high
    assert value == pytest.approx(1.0, rel=0.02)


def test_one_round_has_no_interval() -> None:
    assert ratio_of_medians([[1.0, 3.0, 2.0]], [[4.0]]) == (2.0, None, None)


def test_rounds_have_to_pair() -> None:
    with pytest.raises(ValueError, match="longer"):
        ratio_of_medians([[1.0]], [[1.0], [2.0]])


def test_the_interval_holds_the_median_and_narrows() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for count in (5, 500):
        values = rng.normal(1.5, 0.1, count).tolist()
        low, high = bootstrap_median(values)
        assert low <= np.median(values) <= high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3
    assert bootstrap_median([2.0] * 7) == (2.0, 2.0)
