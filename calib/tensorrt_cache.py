"""TensorRT's calibration cache: a text file with one scale per tensor.

    TRT-8601-EntropyCalibration2
    image: 3c010a14

The first line is the version of TensorRT and the algorithm; the others hold scale = amax / 127 as a float32, in hex,
the most significant byte first. Names are those of the ONNX graph for every tensor that TensorRT keeps.
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
    """version: of TensorRT, as in `8601` and `100300`. algorithm: as TensorRT writes it. scales: by tensor, each what
    one step of INT8 stands for, rounded to float32."""

    version: int
    algorithm: str
    scales: Mapping[str, float]

    def to_bytes(self) -> bytes:
        """The file. Raises DataError for a scale or a name that it cannot hold."""
        lines = [f"TRT-{self.version}-{self.algorithm}"]
        for name, scale in self.scales.items():
            if not (math.isfinite(scale) and scale >= 0) or not name or "\n" in name:
                raise DataError(f"a calibration cache cannot hold the scale {scale} of {name!r}", "calibrate again")
            lines.append(f"{name}: {struct.pack('>f', scale).hex()}")
        return ("\n".join(lines) + "\n").encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> CalibrationCache:
        """The inverse of `to_bytes`. Raises DataError with the line that is none of a calibration cache."""
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
    """What the first line calls a version: 8601 for 8.6.1, 100300 for 10.3.0. Raises UsageError for no version."""
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if match is None:
        raise UsageError(f"{version!r} is no version of TensorRT", "write it as in 10.3.0")
    major, minor, patch = map(int, match.groups())
    return (major * 1000 if major < 10 else major * 10000) + minor * 100 + patch


def cache_of(ranges: Ranges, version: str, *, algorithm: str = "entropy", observer: str | None = None) -> bytes:
    """Our ranges as the cache of a TensorRT `version` (`8.6.1`): its builder then asks for no batch, and no GPU memory.

    algorithm: whose cache it is, `entropy` or `minmax`; TensorRT ignores that of another calibrator. observer: whose
    ranges are written, by default that of the same name if the ranges have it, else their first. Tensors that were 0
    throughout are left out; TensorRT leaves a layer whose tensors the cache does not name out of INT8. Raises
    UsageError for an unknown version, algorithm or observer.
    """
    if algorithm not in ALGORITHMS:
        raise UsageError(f"TensorRT has no calibrator {algorithm!r} here", f"use {' or '.join(ALGORITHMS)}")
    if observer is None and algorithm in ranges.observers:
        observer = algorithm
    scales = {name: ranges.amax(name, observer) / LEVELS for name in ranges.ranges}
    kept = {name: scale for name, scale in scales.items() if scale > 0}
    return CalibrationCache(version_number(version), ALGORITHMS[algorithm], kept).to_bytes()
