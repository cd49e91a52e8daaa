"""Histograms of absolute values that merge exactly: neither order nor sharding changes a single count.

A bin is a power of two wide. So `floor(|x| / width)` is exact in floating point, and doubling the width halves the
index exactly. The width is the smallest with which the largest value fits. So width and counts depend on the values
alone, not on their order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from twins_trt.errors import UsageError

Counts = npt.NDArray[np.int64]
_CHUNK = 1 << 20  # values counted at a time, so that temporary arrays stay small beside the activations
_SMALLEST_EXPONENT = -140  # the smallest float32 is 2**-149; finer bins would gain nothing


@dataclass
class Histogram:
    """Counts of |x| in equal bins that start at 0.

    counts: of the values other than 0, int64 [bins]. exponent: a bin is 2**exponent wide; None while there are only
    zeros. zeros: how many values were 0. min, max: of the signed values.
    """

    counts: Counts
    exponent: int | None = None
    zeros: int = 0
    min: float = math.inf
    max: float = -math.inf

    @classmethod
    def empty(cls, bins: int) -> Histogram:
        """A histogram of nothing."""
        return cls(np.zeros(bins, np.int64))

    @property
    def bins(self) -> int:
        return len(self.counts)

    @property
    def width(self) -> float:
        """The width of a bin; 0 where all values are 0."""
        return 0.0 if self.exponent is None else math.ldexp(1.0, self.exponent)

    @property
    def total(self) -> int:
        """How many values were counted."""
        return self.zeros + int(self.counts.sum())

    @property
    def largest(self) -> float:
        """The largest absolute value; 0 where there are no values."""
        return max(-self.min, self.max, 0.0) if self.total else 0.0

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Counts float32 values of any shape. Raises ValueError, and counts nothing, where one is not finite."""
        flat = values.reshape(-1)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):  # min and max keep NaN
            raise ValueError("values are not finite")
        self._grow(max(-low, high, 0.0))
        self.min, self.max = min(self.min, low), max(self.max, high)
        if self.exponent is None:
            self.zeros += flat.size
            return
        # In float64: the reciprocal of a tiny width overflows float32.
        scale = math.ldexp(1.0, -self.exponent)
        single = scale < 2.0**100
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK]
            size = np.abs(part) if single else np.abs(part.astype(np.float64))
            size *= size.dtype.type(scale)
            counted = np.bincount(size.astype(np.int32), minlength=self.bins)
            zeros = part.size - int(np.count_nonzero(part))
            counted[0] -= zeros
            self.zeros += zeros
            self.counts += counted

    def merge(self, other: Histogram) -> None:
        """Adds the counts of another histogram. Raises UsageError where the numbers of bins differ."""
        if other.bins != self.bins:
            raise UsageError(f"histograms of {self.bins} and {other.bins} bins cannot be merged", "use one setting")
        self.zeros += other.zeros
        self.min, self.max = min(self.min, other.min), max(self.max, other.max)
        if other.exponent is None:
            return
        if self.exponent is None:
            self.exponent = other.exponent
        wider = max(self.exponent, other.exponent)
        self.counts = _coarsened(self.counts, wider - self.exponent)
        self.counts += _coarsened(other.counts, wider - other.exponent)
        self.exponent = wider

    def _grow(self, largest: float) -> None:
        """Doubles the width until `largest` fits."""
        if largest == 0:
            return
        # frexp: largest = m * 2**e with 0.5 <= m < 1, so 2**e is the smallest power of two above it.
        needed = max(math.frexp(largest)[1] - int(math.log2(self.bins)), _SMALLEST_EXPONENT)
        if self.exponent is None:
            self.exponent = needed
        elif needed > self.exponent:
            self.counts = _coarsened(self.counts, needed - self.exponent)
            self.exponent = needed

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        ours, theirs = ((h.exponent, h.zeros, h.min, h.max) for h in (self, other))
        return ours == theirs and np.array_equal(self.counts, other.counts)


def _coarsened(counts: Counts, doublings: int) -> Counts:
    """The same counts in as many bins, each 2**doublings times as wide."""
    if doublings == 0:
        return counts.copy()
    coarse = np.zeros_like(counts)
    group = min(1 << min(doublings, 62), len(counts))
    coarse[: len(counts) // group] = counts.reshape(-1, group).sum(1)
    return coarse
