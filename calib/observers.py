"""Observers: four ways to choose, from a histogram, the largest absolute value that INT8 keeps.

That value is called `amax`: x becomes round(x · 127 / amax), clipped to ±127. A larger amax rounds more coarsely, a
smaller one clips more. All observers read the same histogram.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from twins_trt.calib.histogram import Histogram
from twins_trt.calib.options import CalibrationOptions

LEVELS = 127
_CANDIDATES = 256  # ranges that entropy and MSE try, evenly spaced over the bins

Floats = npt.NDArray[np.float64]


def amax(observer: str, histogram: Histogram, options: CalibrationOptions) -> float:
    """The amax that `observer` chooses: at most the largest absolute value, 0 where all values are 0."""
    if histogram.exponent is None:
        return 0.0
    return min(_OBSERVERS[observer](histogram, options), histogram.largest)


def minmax(histogram: Histogram, options: CalibrationOptions) -> float:
    """The largest absolute value: nothing is clipped."""
    return histogram.largest


def percentile(histogram: Histogram, options: CalibrationOptions) -> float:
    """The upper edge of the bin at which `options.percentile` percent of all values, zeros included, are reached."""
    below = np.cumsum(histogram.counts) + histogram.zeros
    wanted = histogram.total * options.percentile / 100
    return float(np.searchsorted(below, wanted) + 1) * histogram.width


def mse(histogram: Histogram, options: CalibrationOptions) -> float:
    """The amax with the smallest mean squared error of rounding and clipping, of values at the middle of their bins."""
    top = _top(histogram)
    counts, middles = histogram.counts[:top].astype(np.float64), np.arange(top) + 0.5

    def error(kept: int) -> float:
        step = kept / LEVELS
        quantized = np.minimum(np.rint(middles / step), LEVELS) * step
        return float(counts @ (middles - quantized) ** 2)

    return _best(histogram, error)


def entropy(histogram: Histogram, options: CalibrationOptions) -> float:
    """The amax with the smallest Kullback-Leibler divergence of the quantized distribution from the original one.

    As in Migacz, "8-bit inference with TensorRT" (GTC 2017): clipped values count in the last bin of the original, and
    the quantized distribution spreads the weight of each level evenly over those bins of the level that are not empty.
    Levels are those of rounding to nearest. Exact zeros are left out, since every range represents them.
    """
    counts = histogram.counts.astype(np.float64)

    def divergence(kept: int) -> float:
        original = counts[:kept].copy()
        starts = _level_starts(kept)
        filled = original > 0
        per_level = np.add.reduceat(filled.astype(np.float64), starts)
        share = np.add.reduceat(original, starts) / np.maximum(per_level, 1)
        quantized = np.repeat(share, np.diff(np.append(starts, kept))) * filled
        original[-1] += counts[kept:].sum()
        mass = quantized.sum()
        if mass == 0:  # all values lie beyond this range
            return float("inf")
        p, q = original / original.sum(), quantized / mass
        seen = p > 0
        # Where the last bin was empty, clipped weight meets q = 0. The floor makes the divergence large, not infinite.
        return float(np.sum(p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))))

    return _best(histogram, divergence)


def _top(histogram: Histogram) -> int:
    """One more than the index of the last bin that is not empty."""
    return int(np.flatnonzero(histogram.counts)[-1]) + 1


def _best(histogram: Histogram, cost: Callable[[int], float]) -> float:
    """The amax, in whole bins, with the smallest cost; of equal costs the largest amax, which clips least."""
    top = _top(histogram)
    stride = max(1, histogram.bins // _CANDIDATES)
    kept = [*range(top, LEVELS, -stride)] or [top]
    return min(kept, key=cost) * histogram.width


@lru_cache(maxsize=1024)
def _level_starts(kept: int) -> npt.NDArray[np.intp]:
    """The first bin of each level that has one, where `kept` bins are rounded to `LEVELS` steps."""
    levels = np.minimum(np.rint((np.arange(kept) + 0.5) * (LEVELS / kept)), LEVELS)
    return np.flatnonzero(np.diff(levels, prepend=-1.0))


_OBSERVERS: dict[str, Callable[[Histogram, CalibrationOptions], float]] = {
    "entropy": entropy,
    "percentile": percentile,
    "mse": mse,
    "minmax": minmax,
}
