"""Every observer against its definition, computed another way."""

from __future__ import annotations

import math

import numpy as np
import pytest

from twins_trt.calib import OBSERVERS, CalibrationOptions
from twins_trt.calib.histogram import Histogram
from twins_trt.calib.observers import amax
from twins_trt.errors import UsageError

OPTIONS = CalibrationOptions()
SHAPES = {
    "normal": lambda rng: rng.standard_normal(200_000),
    "laplace": lambda rng: rng.laplace(size=200_000),
    "relu": lambda rng: np.maximum(rng.standard_normal(200_000), 0),
    "uniform": lambda rng: rng.uniform(-3, 3, 200_000),
    "outlier": lambda rng: np.append(rng.standard_normal(200_000), [60.0, -41.0]),
}


def histogram_of(values: np.ndarray, bins: int = OPTIONS.bins) -> Histogram:
    histogram = Histogram.empty(bins)
    histogram.add(values.astype(np.float32))
    return histogram


def quantization_error(values: np.ndarray, top: float) -> float:
    scale = top / 127
    return float(np.mean((values - np.clip(np.rint(values / scale), -127, 127) * scale) ** 2))


@pytest.mark.parametrize("shape", SHAPES)
def test_minmax_keeps_all_and_the_others_no_more(shape: str, rng: np.random.Generator) -> None:
    values = SHAPES[shape](rng).astype(np.float32)
    histogram = histogram_of(values)
    largest = float(np.abs(values).max())
    assert amax("minmax", histogram, OPTIONS) == largest
    for observer in OBSERVERS:
        assert 0 < amax(observer, histogram, OPTIONS) <= largest


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("percent", [90.0, 99.0, 99.99, 100.0])
def test_percentile_within_a_bin(shape: str, percent: float, rng: np.random.Generator) -> None:
    values = np.abs(SHAPES[shape](rng).astype(np.float32))
    histogram = histogram_of(values)
    found = amax("percentile", histogram, CalibrationOptions(percentile=percent))
    exact = float(np.percentile(values, percent, method="inverted_cdf"))
    assert exact <= found <= exact + histogram.width


@pytest.mark.parametrize("shape", SHAPES)
def test_mse_is_the_least_error_of_the_values_themselves(shape: str, rng: np.random.Generator) -> None:
    values = SHAPES[shape](rng).astype(np.float32).astype(np.float64)
    found = quantization_error(values, amax("mse", histogram_of(values), OPTIONS))
    largest = np.abs(values).max()
    best = min(quantization_error(values, top) for top in np.linspace(largest / 40, largest, 300))
    assert found <= 1.02 * best


def divergence(counts: np.ndarray, kept: int) -> float:
    """The divergence bin by bin and level by level, as the paper describes it."""
    reference = [float(count) for count in counts[:kept]]
    reference[-1] += float(counts[kept:].sum())
    levels: dict[int, list[int]] = {}
    for index in range(kept):
        levels.setdefault(round((index + 0.5) * 127 / kept), []).append(index)
    quantized = [0.0] * kept
    for members in levels.values():
        filled = [index for index in members if counts[index]]
        for index in filled:
            quantized[index] = sum(float(counts[member]) for member in members) / len(filled)
    total, mass = sum(reference), sum(quantized)
    return sum(
        p / total * math.log(p / total / max(q / mass, 1e-12)) for p, q in zip(reference, quantized, strict=True) if p
    )


@pytest.mark.parametrize("shape", ["normal", "relu", "outlier"])
def test_entropy_is_the_least_divergence(shape: str, rng: np.random.Generator) -> None:
    histogram = histogram_of(SHAPES[shape](rng)[-20_000:], bins=1024)
    options = CalibrationOptions(bins=1024)
    found = amax("entropy", histogram, options)
    top = int(np.flatnonzero(histogram.counts)[-1]) + 1
    costs = {kept: divergence(histogram.counts, kept) for kept in range(top, 127, -4)}
    best = min(costs.values())
    assert costs[min(costs, key=lambda kept: abs(kept * histogram.width - found))] == pytest.approx(best, abs=1e-12)


def test_outliers_are_clipped_and_uniform_values_are_not(rng: np.random.Generator) -> None:
    outlier, uniform = histogram_of(SHAPES["outlier"](rng)), histogram_of(SHAPES["uniform"](rng))
    # Of 200 000 values two are far out; only the squared error still cares for them.
    for observer, limit in (("entropy", 10), ("percentile", 10), ("mse", 45)):
        assert amax(observer, outlier, OPTIONS) < limit
        assert amax(observer, uniform, OPTIONS) > 2.9


def test_scaling_the_values_by_a_power_of_two_scales_the_range(rng: np.random.Generator) -> None:
    values = rng.laplace(size=50_000)
    for observer in OBSERVERS:
        ranges = [amax(observer, histogram_of(values * 2.0**k), OPTIONS) / 2.0**k for k in (0, -20, 15)]
        assert ranges[0] == ranges[1] == ranges[2]


@pytest.mark.parametrize("observer", OBSERVERS)
def test_zeros_and_a_single_value(observer: str) -> None:
    assert amax(observer, histogram_of(np.zeros(9)), OPTIONS) == 0
    # Alone it must not be clipped.
    assert amax(observer, histogram_of(np.array([0.0, -0.3])), OPTIONS) == pytest.approx(0.3, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"observers": ()}, "observers cannot be none"),
        ({"observers": ("entropy", "entropy")}, "observers cannot be entropy, entropy"),
        ({"observers": ("kl",)}, "observers cannot be kl"),
        ({"percentile": 101.0}, "percentile is 101"),
        ({"bins": 3000}, "bins is 3000"),
        ({"bins": 64}, "bins is 64"),
        ({"minimum": 0}, "minimum is 0"),
        ({"fit": "crop"}, "no fit 'crop'"),
    ],
)
def test_options_that_cannot_be(options: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        CalibrationOptions(**options)
