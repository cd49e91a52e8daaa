"""TensorRT's calibration cache: a text file with one scale per tensor.

    TRT-8601-EntropyCalibration2
    image: 3c010a14

The first line has the version of TensorRT and the algorithm. Each other line has scale = amax / 127 as a float32 in
hex, the most significant byte first. Tensors that TensorRT keeps have their names in the ONNX graph.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from twins_trt.calib.ranges import Ranges
from twins_trt.errors import DataError, UsageError

ALGORITHMS = {"entropy": "EntropyCalibration2", "minmax": "MinMaxCalibration"}
LEVELS = 127

_HEADER = re.compile(r"TRT-(\d+)-(\w+)")
_LINE = re.compile(r"(.+): ([0-9a-fA-F]{1,8})")


@dataclass(frozen=True)
class CalibrationCache:
    """The content of a calibration cache.

    version: of TensorRT, as in `8601` and `100300`. algorithm: as TensorRT writes it, one of `ALGORITHMS`'s values.
    scales: by tensor, the value of one step of INT8, rounded to float32.
    """

    version: int
    algorithm: str
    scales: Mapping[str, float]

    def to_bytes(self) -> bytes:
        """The bytes of the file. Raises DataError for a scale or a name that it cannot hold."""
        lines = [f"TRT-{self.version}-{self.algorithm}"]
        for name, scale in self.scales.items():
            if not (math.isfinite(scale) and scale >= 0) or not name or "\n" in name:
                raise DataError(f"a calibration cache cannot hold the scale {scale} of {name!r}", "calibrate again")
            lines.append(f"{name}: {struct.pack('>f', scale).hex()}")
        return ("\n".join(lines) + "\n").encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> CalibrationCache:
        """The inverse of `to_bytes`. Raises DataError with the line that cannot be read."""
        try:
            lines = content.decode().splitlines()
        except UnicodeDecodeError as error:
            raise DataError("this is no calibration cache: it is not text", "let TensorRT calibrate again") from error
        header = _HEADER.fullmatch(lines[0].strip()) if lines else None
        if header is None:
            raise DataError(
                f"this is no calibration cache: it begins with {lines[0][:40] if lines else ''!r}",
                "the first line is TRT-VERSION-ALGORITHM",
            )
        scales = {}
        for number, line in enumerate(lines[1:], 2):
            if not line.strip():
                continue
            match = _LINE.fullmatch(line.strip())
            if match is None:
                raise DataError(f"line {number} of the calibration cache is {line!r}", "let TensorRT calibrate again")
            (scale,) = struct.unpack(">f", bytes.fromhex(match[2].zfill(8)))
            if not math.isfinite(scale):
                raise DataError(f"line {number} of the calibration cache has the scale {scale}", "calibrate again")
            scales[match[1]] = scale
        return cls(int(header[1]), header[2], scales)


def version_number(version: str) -> int:
    """A version as in the first line: 8601 for 8.6.1, 100300 for 10.3.0. Raises UsageError for other texts."""
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if match is None:
        raise UsageError(f"{version!r} is no version of TensorRT", "write it as in 10.3.0")
    major, minor, patch = map(int, match.groups())
    return (major * 1000 if major < 10 else major * 10000) + minor * 100 + patch


def cache_of(ranges: Ranges, version: str, *, algorithm: str = "entropy", observer: str | None = None) -> bytes:
    """Our ranges as a calibration cache of TensorRT `version` (`8.6.1`). With it TensorRT asks for no images.

    algorithm: `entropy` or `minmax`, that of the calibrator that reads the cache: TensorRT ignores other caches.
    observer: gives the ranges, by default the one named like the algorithm, else the first. Tensors whose values were
    all 0 are left out. TensorRT does not run a layer in INT8 whose tensors have no scale. Raises UsageError for an
    unknown version, algorithm or observer.
    """
    if algorithm not in ALGORITHMS:
        raise UsageError(f"TensorRT has no calibrator {algorithm!r} here", f"use {' or '.join(ALGORITHMS)}")
    if observer is None and algorithm in ranges.observers:
        observer = algorithm
    scales = {name: ranges.amax(name, observer) / LEVELS for name in ranges.ranges}
    kept = {name: scale for name, scale in scales.items() if scale > 0}
    return CalibrationCache(version_number(version), ALGORITHMS[algorithm], kept).to_bytes()
