"""The range file: the range of every tensor by every observer, and the graph, images and options it is valid for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twins_trt.calib.images import data_key, digest, unbatched
from twins_trt.calib.options import CalibrationOptions
from twins_trt.calib.tensors import graph_sha256
from twins_trt.codec import decode, encode
from twins_trt.errors import DataError, UsageError
from twins_trt.files import whole_file
from twins_trt.spelling import speaking, spelled

VERSION = 1
_AGAIN = "calibrate again: twins-trt calibrate GRAPH --data KIND:PATH --out {path}"


@dataclass(frozen=True)
class TensorRange:
    """The range of one activation.

    min, max: the smallest and the largest value seen. amax: by observer, the value that INT8's 127 stands for.
    channels: the largest magnitude of each channel behind a LayerNorm, empty for other tensors.
    """

    min: float
    max: float
    amax: Mapping[str, float]
    channels: tuple[float, ...] = ()


@dataclass(frozen=True)
class Ranges:
    """Ranges of the activations of one graph.

    graph_sha256: of the FP32 graph's file. data_key: of the images, see the function `data_key`. images: how many.
    collected_with: runtime, version and provider; not part of the key. ranges: by the tensor's name in the graph.
    """

    graph_sha256: str
    data_key: str
    settings: CalibrationOptions
    images: int
    collected_with: str
    ranges: Mapping[str, TensorRange]

    @property
    def key(self) -> str:
        """sha256 over graph, images and options: it changes with a single weight, pixel or option."""
        return range_key(self.graph_sha256, self.data_key, self.settings)

    @property
    def observers(self) -> tuple[str, ...]:
        """The observers that chose ranges; the first is the default."""
        return self.settings.observers

    def amax(self, tensor: str, observer: str | None = None) -> float:
        """The largest absolute value that INT8 keeps of `tensor`: x becomes round(x · 127 / amax), clipped to ±127.

        0 for a tensor whose values were all 0. Raises UsageError for an observer that chose no ranges, DataError for a
        tensor that was not observed.
        """
        observer = observer or self.observers[0]
        if observer not in self.observers:
            raise UsageError(
                f"the ranges have no observer {observer!r}",
                f"use one of {', '.join(self.observers)}, or calibrate with {spelled('observers', observer)}",
            )
        if tensor not in self.ranges:
            raise DataError(
                f"the ranges have no tensor {tensor!r}",
                "calibrate the graph that has it; observed are the inputs of Conv, Gemm and MatMul",
            )
        return self.ranges[tensor].amax[observer]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        return {"version": VERSION, "key": self.key, **encode(self)}

    @classmethod
    def from_json(cls, values: Any, *, name: str = "the range file") -> Ranges:
        """The inverse of `to_json`. Raises DataError with the field that is missing, mistyped, altered or newer."""
        if not isinstance(values, dict):
            raise DataError(f"{name} holds {type(values).__name__}, not an object", _AGAIN.format(path=name))
        fields = dict(values)
        version, key = fields.pop("version", None), fields.pop("key", None)
        if version != VERSION:
            raise DataError(
                f"{name}: version is {version!r}, this twins-trt reads {VERSION}", "pip install --upgrade twins-trt"
            )
        try:
            with speaking(None):  # errors name the file's fields, in Python and on the command line
                ranges = decode(cls, fields)
        except ValueError as error:  # UsageError, from the checks of the options, is one too
            cause = error.cause if isinstance(error, UsageError) else str(error)
            raise DataError(f"{name}: {cause}", _AGAIN.format(path=name)) from error
        if key != ranges.key:
            raise DataError(
                f"{name}: its key is {key}, but graph, data and settings in it give {ranges.key}: it was altered",
                _AGAIN.format(path=name),
            )
        for tensor, each in ranges.ranges.items():
            numbers = [each.min, each.max, *each.amax.values(), *each.channels]
            values_ok = np.isfinite(numbers).all() and min((*each.amax.values(), *each.channels)) >= 0
            if set(each.amax) != set(ranges.observers) or not values_ok:
                raise DataError(f"{name}: ranges.{tensor} is {encode(each)}", _AGAIN.format(path=name))
        return ranges


def range_key(graph: str, data: str, options: CalibrationOptions) -> str:
    """The key of a calibration: of a graph's sha256, a `data_key` and options."""
    parts = {"graph": graph, "data": data, "settings": encode(options)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, allow_nan=False).encode()).hexdigest()


def save_ranges(ranges: Ranges, path: str | Path) -> Path:
    """Writes the range file, whole or not at all. Raises DataError where it cannot be written."""
    path = Path(path)
    write_atomically(path, (json.dumps(ranges.to_json(), indent=1, allow_nan=False) + "\n").encode())
    return path


def load_ranges(
    path: str | Path,
    *,
    graph: str | Path,
    images: Iterable[npt.NDArray[np.uint8]] | None = None,
    options: CalibrationOptions | None = None,
) -> Ranges:
    """Reads a range file and checks that it belongs to `graph`, and to `images` and `options` where they are given.

    graph: the FP32 graph's file. images: as for `calibrate`; they are only read and hashed.
    Raises DataError for a file of another graph, other images or options, with both keys, and for one that is damaged.
    """
    path = Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", _AGAIN.format(path=path)) from error
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}", _AGAIN.format(path=path)) from error
    ranges = Ranges.from_json(values, name=str(path))
    wanted = {
        "graph": graph_sha256(graph),
        "data": ranges.data_key if images is None else data_key(digest(image) for image in unbatched(images)),
        "settings": ranges.settings if options is None else options,
    }
    held = {"graph": ranges.graph_sha256, "data": ranges.data_key, "settings": ranges.settings}
    if different := [part for part in wanted if wanted[part] != held[part]]:
        key = range_key(str(wanted["graph"]), str(wanted["data"]), options or ranges.settings)
        raise DataError(
            f"{path} is of another {' and other '.join(different)}: its key is {ranges.key}, wanted is {key}",
            _AGAIN.format(path=path),
        )
    return ranges


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name and renames it. Raises DataError where that fails."""
    try:
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror}", "check that the folder exists and has room"
        ) from error
