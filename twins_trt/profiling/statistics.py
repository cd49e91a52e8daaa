"""Statistics of samples: quantiles where there are enough of them, and bootstrap intervals for ratios of medians."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

DRAWS = 2000
"""How many times a bootstrap resamples."""


def quantile(samples: Sequence[float], share: float) -> float | None:
    """The `share` quantile, 0 to 1, by linear interpolation.

    None where fewer than one sample lies beyond it: the slowest of 20 calls says nothing about one call in a hundred.
    """
    if not samples or len(samples) * (1 - share) < 1 - 1e-9:
        return None
    return float(np.quantile(np.asarray(samples, np.float64), share))


def jitter(samples: Sequence[float]) -> float | None:
    """The mean absolute difference of neighbouring calls, in the samples' unit; None for fewer than two."""
    return float(np.abs(np.diff(np.asarray(samples, np.float64))).mean()) if len(samples) > 1 else None


def ratio_of_medians(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], *, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float | None, float | None]:
    """How many times as fast as `theirs` we are: (ratio, low, high).

    ours, theirs: for every round the times of its calls. Rounds of the same number belong together: whatever else the
    machine did then affected both. So each round gives one ratio, of its two medians. The result is the median of these
    ratios, and the interval comes from resampling rounds. A single round gives no interval: low and high are None.
    """
    pairs = [float(np.median(slow) / np.median(fast)) for fast, slow in zip(ours, theirs, strict=True)]
    value = float(np.median(pairs))
    if len(pairs) < 2:
        return value, None, None
    return value, *bootstrap_median(pairs, confidence=confidence, seed=seed)


def ratio_of_unpaired(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], *, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float | None, float | None]:
    """Computes `ratio_of_medians` for rounds that do not belong together.

    The ratio is that of the two sides' medians over rounds, and each side is resampled by itself. The interval covers
    differences between rounds, not what differed between the two runs.
    """
    medians = [np.array([np.median(calls) for calls in side]) for side in (ours, theirs)]
    value = float(np.median(medians[1]) / np.median(medians[0]))
    if min(map(len, medians)) < 2:
        return value, None, None
    rng = np.random.default_rng(seed)
    fast, slow = (np.median(rng.choice(each, (DRAWS, len(each))), axis=1) for each in medians)
    return value, *_interval(slow / fast, confidence)


def bootstrap_median(values: Sequence[float], *, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """(low, high): the percentile interval of the median of `values` over resamples."""
    rng = np.random.default_rng(seed)
    draws: npt.NDArray[np.float64] = rng.choice(np.asarray(values, np.float64), (DRAWS, len(values)))
    return _interval(np.median(draws, axis=1), confidence)


def _interval(values: npt.NDArray[np.float64], confidence: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
