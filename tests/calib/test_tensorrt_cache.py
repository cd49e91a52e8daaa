"""TensorRT's calibration cache: text, one float32 in hex a line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from calib_graphs import photos
from hypothesis import given
from hypothesis import strategies as st

from twins_trt.calib import CalibrationCache, CalibrationOptions, cache_of, calibrate
from twins_trt.calib.tensorrt_cache import version_number
from twins_trt.errors import DataError, UsageError

# The first lines of a cache that TensorRT 8.6.1 wrote for a detector with inputs in 0..1.
WRITTEN = (
    b"TRT-8601-EntropyCalibration2\nimages: 3b66eddc\n168: 3dc6cf6e\n(Unnamed Layer* 48) [Constant]_output: 3c010a14\n"
)


def test_what_tensorrt_writes_is_read() -> None:
    cache = CalibrationCache.from_bytes(WRITTEN)
    assert (cache.version, cache.algorithm) == (8601, "EntropyCalibration2")
    assert cache.scales["168"] == pytest.approx(0.09707533, rel=1e-6)
    # An amax of 1 is 1/127 = 3c010204; this one is hardly above it.
    assert cache.scales["(Unnamed Layer* 48) [Constant]_output"] * 127 == pytest.approx(1.00024, abs=1e-4)
    assert cache.to_bytes() == WRITTEN


@given(
    st.dictionaries(
        st.text(st.characters(categories=("L", "N", "P")), min_size=1),
        st.floats(0, width=32, allow_infinity=False),
        max_size=5,
    )
)
def test_round_trip(scales: dict[str, float]) -> None:
    cache = CalibrationCache(100300, "MinMaxCalibration", scales)
    assert CalibrationCache.from_bytes(cache.to_bytes()) == cache


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "begins with ''"),
        (b"hello\nx: 3c010204\n", "begins with 'hello'"),
        (b"TRT-8601-EntropyCalibration2\nx 3c010204\n", "line 2"),
        (b"TRT-8601-EntropyCalibration2\n\nx: 3c01020g\n", "line 3"),
        (b"TRT-8601-EntropyCalibration2\nx: 7f800000\n", "line 2 of the calibration cache has the scale inf"),
        (b"\xff\xfe\x00", "not text"),
    ],
)
def test_what_is_no_cache(content: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        CalibrationCache.from_bytes(content)


@pytest.mark.parametrize("scales", [{"x": float("nan")}, {"x": -1.0}, {"": 1.0}, {"a\nb": 1.0}])
def test_what_it_cannot_hold(scales: dict[str, float]) -> None:
    with pytest.raises(DataError, match="cannot hold"):
        CalibrationCache(8601, "EntropyCalibration2", scales).to_bytes()


def test_version_numbers() -> None:
    assert [version_number(v) for v in ("8.6.1", "10.3.0", "10.13.3.9")] == [8601, 100300, 101303]
    with pytest.raises(UsageError, match="'10' is no version"):
        version_number("10")


def test_our_ranges_as_a_cache(graph: Path) -> None:
    ranges = calibrate(graph, photos(4), options=CalibrationOptions(minimum=4))
    for algorithm, line in (("entropy", "TRT-8601-EntropyCalibration2"), ("minmax", "TRT-8601-MinMaxCalibration")):
        content = cache_of(ranges, "8.6.1", algorithm=algorithm)
        assert content.decode().splitlines()[0] == line
        scales = CalibrationCache.from_bytes(content).scales
        assert list(scales) == list(ranges.ranges)
        for name, scale in scales.items():
            assert scale == np.float32(ranges.amax(name, algorithm) / 127)
    named = CalibrationCache.from_bytes(cache_of(ranges, "10.3.0", observer="mse"))
    assert named.scales["attn/v"] == np.float32(ranges.amax("attn/v", "mse") / 127)
    with pytest.raises(UsageError, match="no calibrator 'legacy'"):
        cache_of(ranges, "8.6.1", algorithm="legacy")
    only = calibrate(graph, photos(4), options=CalibrationOptions(minimum=4, observers=("mse",)))
    assert CalibrationCache.from_bytes(cache_of(only, "10.3.0")).scales == named.scales
