"""TensorRT's own INT8 calibrators (8.6 to 10.x) over the stream of images that `calibrate` takes.

TensorRT calls this implicit quantization. It was deprecated in 10.1 and removed in 11. Engines of graphs with Q/DQ need
none of it.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from twins_trt.calib.images import (
    Fitter,
    is_noise,
    refuse_blank,
    refuse_noise,
    refuse_too_few,
    unbatched,
)
from twins_trt.calib.options import CalibrationOptions
from twins_trt.calib.ranges import write_atomically
from twins_trt.calib.tensorrt_cache import ALGORITHMS, CalibrationCache, version_number
from twins_trt.calib.tensors import graph_inputs, read_graph
from twins_trt.data.images import UInt8Array
from twins_trt.errors import BuildError, DataError, TwinsError, UsageError, missing

log = logging.getLogger("twins_trt")

CALIBRATORS = {"entropy": "IInt8EntropyCalibrator2", "minmax": "IInt8MinMaxCalibrator"}


class BatchMemory(Protocol):
    """The functions of a CUDA binding that a calibrator calls. pycuda has `mem_alloc`, `memcpy_htod` and `free`."""

    def allocate(self, size: int) -> int:
        """Allocates `size` bytes on the device. Returns the address."""

    def copy(self, address: int, array: npt.NDArray[Any]) -> None:
        """Copies a contiguous array to the device. Returns when the copy is complete."""

    def free(self, address: int) -> None:
        """Frees the memory at `address`."""


class Calibrator(Protocol):
    """A calibrator, which is also an object of TensorRT's class: assign it to `config.int8_calibrator`.

    error: what stopped the images, None if nothing did. batches: how many TensorRT has read.
    """

    error: Exception | None
    batches: int

    def close(self) -> None:
        """Frees the device memory and raises `error` if there is one. Call it after the build."""


def tensorrt_calibrator(
    graph: str | Path,
    images: Iterable[UInt8Array],
    *,
    memory: BatchMemory,
    algorithm: str = "entropy",
    cache: str | Path | None = None,
    options: CalibrationOptions | None = None,
    module: ModuleType | None = None,
) -> Calibrator:
    """A calibrator of TensorRT's own class for an FP32 graph. It feeds what a `Segmenter` would feed.

    images: as for `calibrate`. memory: holds the batches; nothing is allocated before TensorRT asks for one.
    algorithm: `entropy` (IInt8EntropyCalibrator2) or `minmax` (IInt8MinMaxCalibrator). cache: TensorRT's calibration
    cache. If the file exists it is used and no image is read; otherwise it is written at the end. options: only
    `minimum`, `fit` and `preprocessing` have an effect. module: TensorRT, by default the installed one.

    TensorRT builds on when a calibrator fails. Therefore an error ends the images, keeps the cache from being written,
    and is raised by `close`.

    Raises BuildError where this TensorRT has no calibrators (11, RTX), DataError where the cache is of another version
    or algorithm, UsageError for an unknown algorithm, MissingDependencyError without TensorRT.
    """
    if algorithm not in CALIBRATORS:
        raise UsageError(f"TensorRT has no calibrator {algorithm!r} here", f"use {' or '.join(CALIBRATORS)}")
    module = module or _tensorrt()
    base: Any = getattr(module, CALIBRATORS[algorithm], None)
    if base is None:
        name = "TensorRT-RTX" if "rtx" in module.__name__ else "TensorRT"
        raise BuildError(
            f"{name} {module.__version__} has no INT8 calibrators: it quantizes what the graph says, and nothing else",
            "put the ranges of twins-trt calibrate into the graph as Q/DQ: twins-trt build --precision int8",
        )
    options = options or CalibrationOptions()
    model = read_graph(graph)
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    fitter = Fitter(graph_inputs(model), metadata, fit=options.fit, preprocessing=options.preprocessing)
    path = None if cache is None else Path(cache)
    stored = _stored(path, module, algorithm)
    stream = _Stream(images, fitter, memory, options.minimum)
    return _calibrator(base, stream, stored, path)


def _calibrator(base: Any, stream: _Stream, stored: bytes | None, path: Path | None) -> Calibrator:
    """An instance of a subclass of TensorRT's calibrator `base` that reads `stream`.

    stored: the cache that it gives to TensorRT, None if there is none. path: where it writes the new one, if anywhere.
    """

    class StreamCalibrator(base):
        """TensorRT calls these methods. It would print and forget an exception, so they keep it in `error`."""

        def __init__(self) -> None:
            base.__init__(self)  # pybind11 wants the base by name, not super()
            self.error: Exception | None = None
            self.batches = 0

        def get_batch_size(self) -> int:
            return stream.batch

        def get_batch(self, names: list[str]) -> list[int] | None:
            if self.error is not None:
                return None
            try:
                address = stream.next_batch(names)
            except Exception as error:
                self.error = error
                log.error("calibration stops: %s", error)
                return None
            if address is None:
                return None
            self.batches += 1
            return [address]

        def read_calibration_cache(self) -> bytes | None:
            return stored

        def write_calibration_cache(self, content: Any) -> None:
            if path is None or self.error is not None or stored is not None:
                return
            try:
                write_atomically(path, bytes(content))
            except TwinsError as error:
                self.error = error
                log.error("%s", error)

        def close(self) -> None:
            stream.close()
            if self.error is not None:
                raise self.error

    calibrator: Calibrator = StreamCalibrator()
    return calibrator


class _Stream:
    """Puts one batch after another into the same memory of the device."""

    def __init__(self, images: Iterable[UInt8Array], fitter: Fitter, memory: BatchMemory, minimum: int) -> None:
        self._images: Iterator[UInt8Array] = unbatched(images)
        self._fitter = fitter
        self._memory = memory
        self._minimum = minimum
        self._address: int | None = None
        self._size = 0
        self._count = self._noisy = 0

    @property
    def batch(self) -> int:
        """Images per batch."""
        return self._fitter.batch

    def next_batch(self, names: list[str]) -> int | None:
        """The address of the next batch, None at the end. Images that do not fill the last batch are left out."""
        if names != [self._fitter.name]:
            raise UsageError(f"TensorRT asks for {', '.join(names)}, the graph's input is {self._fitter.name}")
        fitted = []
        for image in self._images:
            self._count += 1
            refuse_blank(image, f"image {self._count}")
            self._noisy += is_noise(image)
            fitted.append(self._fitter(image))
            if len(fitted) == self._fitter.batch:
                break
        if len(fitted) < self._fitter.batch:
            refuse_too_few(self._count, self._minimum)
            refuse_noise(self._noisy, self._count)
            if fitted:
                log.warning("%d images do not fill a batch of %d: left out", len(fitted), self._fitter.batch)
            return None
        batch = np.ascontiguousarray(np.stack(fitted))
        if batch.nbytes > self._size:
            self.close()
            self._address, self._size = self._memory.allocate(batch.nbytes), batch.nbytes
        assert self._address is not None  # allocated above
        self._memory.copy(self._address, batch)
        return self._address

    def close(self) -> None:
        """Frees the device memory."""
        if self._address is not None:
            self._memory.free(self._address)
        self._address, self._size = None, 0


def _stored(path: Path | None, module: ModuleType, algorithm: str) -> bytes | None:
    """The bytes of the cache; None if there is none. Raises DataError where it is of another version or algorithm."""
    if path is None or not path.exists():
        return None
    content = path.read_bytes()
    held = CalibrationCache.from_bytes(content)
    # TensorRT silently ignores the cache of another version: a stale one would look as if it were used.
    wanted = version_number(module.__version__), ALGORITHMS[algorithm]
    if (held.version, held.algorithm) != wanted:
        raise DataError(
            f"{path} is of TRT-{held.version}-{held.algorithm}, this is TRT-{wanted[0]}-{wanted[1]}",
            "remove the file, and TensorRT calibrates again",
        )
    return content


def _tensorrt() -> ModuleType:
    try:
        return importlib.import_module("tensorrt")
    except ImportError as error:
        raise missing("tensorrt", extra="tensorrt", purpose="TensorRT's own calibration") from error
