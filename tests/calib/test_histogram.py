"""Counting is exact: whatever the order, the growth and the shards."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twins_trt.calib.histogram import Histogram
from twins_trt.errors import UsageError

BINS = 1024
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
PARTS = st.lists(st.lists(FLOATS, max_size=8), min_size=1, max_size=6)


def histogram_of(*parts: list[float] | np.ndarray) -> Histogram:
    histogram = Histogram.empty(BINS)
    for part in parts:
        histogram.add(np.array(part, np.float32))
    return histogram


def counted_by_hand(values: np.ndarray) -> Histogram:
    """The definition: the smallest power of two as bin width with which the largest value fits."""
    sizes = np.abs(values.astype(np.float64))
    expected = Histogram(np.zeros(BINS, np.int64), zeros=int((sizes == 0).sum()))
    if values.size:
        expected.min, expected.max = float(values.min()), float(values.max())
    if sizes.any():
        exponent = -140
        while sizes.max() >= BINS * 2.0**exponent:
            exponent += 1
        expected.exponent = exponent
        for size in sizes[sizes > 0]:
            expected.counts[math.floor(size / 2.0**exponent)] += 1
    return expected


@given(PARTS)
@settings(max_examples=150, deadline=None)
def test_counts_are_those_of_the_definition(parts: list[list[float]]) -> None:
    assert histogram_of(*parts) == counted_by_hand(np.array([v for part in parts for v in part], np.float32))


@given(PARTS, st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_order_and_shards_change_no_count(parts: list[list[float]], random: object) -> None:
    whole = histogram_of(*parts)
    shuffled = list(parts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert histogram_of(*shuffled) == whole
    shards = [histogram_of(part) for part in shuffled]
    merged = Histogram.empty(BINS)
    for shard in shards:
        merged.merge(shard)
    assert merged == whole


def test_many_values_in_several_chunks(rng: np.random.Generator) -> None:
    values = (rng.standard_normal(3_000_000) * rng.choice([0, 1, 40], 3_000_000)).astype(np.float32)
    histogram = histogram_of(values[:10], values[10:])
    assert histogram.total == values.size
    assert histogram.zeros == np.count_nonzero(values == 0)
    edges = np.arange(BINS + 1) * histogram.width
    assert np.array_equal(histogram.counts, np.histogram(np.abs(values[values != 0].astype(np.float64)), edges)[0])
    assert (histogram.min, histogram.max) == (values.min(), values.max())
    assert histogram.width * BINS / 2 <= histogram.largest < histogram.width * BINS


def test_nothing_and_zeros() -> None:
    empty = histogram_of()
    assert (empty.total, empty.largest, empty.width) == (0, 0.0, 0.0)
    empty.add(np.zeros((0, 3), np.float32))
    assert empty.total == 0
    zeros = histogram_of([0.0, -0.0, 0.0])
    assert (zeros.total, zeros.zeros, zeros.exponent, zeros.largest) == (3, 3, None, 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_and_not_counted(bad: float) -> None:
    histogram = histogram_of([1.0])
    with pytest.raises(ValueError, match="not finite"):
        histogram.add(np.array([1.0, bad, 2.0], np.float32))
    assert histogram == histogram_of([1.0])


def test_other_bins_do_not_merge() -> None:
    with pytest.raises(UsageError, match="1024 and 2048 bins"):
        histogram_of([1.0]).merge(Histogram.empty(2048))
