"""Collects the activations of an FP32 graph over a stream of images."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twins_trt.calib.collection import Collection, load_collection, save_collection
from twins_trt.calib.images import digest, is_noise, refuse_blank, refuse_noise, unbatched
from twins_trt.calib.observed_graph import ObservedGraph
from twins_trt.calib.options import CalibrationOptions
from twins_trt.calib.ranges import Ranges
from twins_trt.data.images import UInt8Array
from twins_trt.errors import DataError, UsageError
from twins_trt.progress import Progress, silent
from twins_trt.spelling import spelled

log = logging.getLogger("twins_trt")

MEMORY_MIB = 1024
_SAVE_EVERY = 8  # images; the state is written when so many were counted
_SAVE_SECONDS = 20.0  # or when so much time has passed, if images are slow


@dataclass(frozen=True)
class CollectRun:
    """How a collection runs; nothing here changes what is collected.

    state: a file with the work so far, written every few images. A run that was killed continues from it, given the
    same images in any order. The file stays at the end: it is the collection (see `load_collection`). A damaged one is
    renamed, with a warning in the log, and the work starts over.
    progress: called after every batch. total: how many images there are, for the ETA; lists and tuples need none.
    names: what errors call the images, in order. device: `cpu`, `cuda` or `auto`. threads: of the CPU; None for one per
    core. memory_mib: activations held at once, in MiB; tensors that need more are collected in several runs of the
    graph.
    Raises UsageError for an unknown device and for less than 1 MiB.
    """

    state: str | Path | None = None
    progress: Progress = silent
    total: int | None = None
    names: Sequence[str] | None = None
    device: str = "auto"
    threads: int | None = None
    memory_mib: int = MEMORY_MIB

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"there is no device {self.device!r}", "use auto, cpu or cuda")
        if self.memory_mib < 1:
            raise UsageError(f"memory_mib is {self.memory_mib}", "give at least 1")


def calibrate(
    graph: str | Path,
    images: Iterable[UInt8Array],
    *,
    options: CalibrationOptions | None = None,
    run: CollectRun | None = None,
) -> Ranges:
    """The ranges of a graph's activations over a stream of images.

    It is `collect` followed by `Collection.ranges`. Arguments are those of `collect`. Raises as both do.
    """
    return collect(graph, images, options=options, run=run).ranges()


def collect(
    graph: str | Path,
    images: Iterable[UInt8Array],
    *,
    options: CalibrationOptions | None = None,
    run: CollectRun | None = None,
) -> Collection:
    """Counts the activations of an FP32 graph over images, one batch at a time.

    graph: an ONNX file. images: any iterable of images uint8 [H, W, 3], RGB, or batches uint8 [N, H, W, 3], of any
    sizes; each is fitted to the graph as in `Segmenter`. options: what is collected, and how ranges are chosen. run:
    how the collection runs.

    Raises DataError for a blank image, a set of noise, activations that are not finite, images that do not fill a
    batch, and a state of another graph, options or images; ImageError for what is no image; UsageError for an FP16 or
    quantized graph; EngineError where ONNX Runtime refuses the graph; MissingDependencyError without onnx or
    onnxruntime.
    """
    options, run = options or CalibrationOptions(), run or CollectRun()
    names = run.names or ()
    work = _Collecting(graph, options, run, total=_count(images) if run.total is None else run.total)
    for index, image in enumerate(unbatched(images)):
        work.add(image, name=names[index] if index < len(names) else f"image {index + 1}")
    return work.finish()


@dataclass(frozen=True)
class _Waiting:
    """An image that waits until its batch is full. fitted: as the graph takes it, without the batch axis."""

    digest: bytes
    noisy: bool
    fitted: npt.NDArray[Any]


class _Collecting:
    """One run over a stream of images: it fills batches, counts them, writes the state and calls progress."""

    def __init__(self, graph: str | Path, options: CalibrationOptions, run: CollectRun, *, total: int | None) -> None:
        self._graph = ObservedGraph(graph, options, device=run.device, threads=run.threads, memory_mib=run.memory_mib)
        self._state = _State(None if run.state is None else Path(run.state))
        self._collection = self._state.resume(self._graph.empty())
        self._earlier = Counter(self._collection.digests)  # what the state holds and this run has not met yet
        self._minimum = options.minimum
        self._progress, self._total = run.progress, total
        self._batch: list[_Waiting] = []
        self._seen = self._counted = 0  # images given to this run, and those of them that it ran
        self._started = time.monotonic()

    def add(self, image: UInt8Array, *, name: str) -> None:
        """Takes the next image, uint8 [H, W, 3], and counts its batch when it is full. name: what errors call it."""
        self._seen += 1
        refuse_blank(image, name)
        identity = digest(image)
        if self._earlier[identity]:
            self._earlier[identity] -= 1
            return
        self._batch.append(_Waiting(identity, is_noise(image), self._graph.fitter(image)))
        if len(self._batch) == self._graph.fitter.batch:
            self._count_batch(name)

    def finish(self) -> Collection:
        """Writes the state and returns the collection.

        Raises DataError where images are left that do not fill a batch, and where the state has images that this run
        has not met.
        """
        if self._batch:
            raise DataError(
                f"the graph takes {self._graph.fitter.batch} images at once, and {len(self._batch)} are left over",
                f"give a multiple of {self._graph.fitter.batch} images, or a graph exported with {spelled('batch', 1)}",
            )
        if missed := self._earlier.total():
            raise DataError(
                f"{self._state.path} holds {missed} images that are not among the {self._seen} of this run",
                "give the same images as before, or remove the file to start over",
            )
        self._state.write(self._collection)
        return self._collection

    def _count_batch(self, name: str) -> None:
        batch, self._batch = self._batch, []
        collection = self._collection
        self._graph.count(np.stack([each.fitted for each in batch]), collection, name=name)
        collection.digests += [each.digest for each in batch]
        collection.noisy += sum(each.noisy for each in batch)
        self._counted += len(batch)
        done = len(collection.digests)
        if done >= self._minimum:
            refuse_noise(collection.noisy, done)
        per_image = (time.monotonic() - self._started) / self._counted  # seconds
        self._state.update(collection, len(batch))
        if self._total is None:
            self._progress("calibrate", f"{done} images", None)
        else:
            left = max(0, self._total - done) * per_image
            self._progress("calibrate", f"{done} of {self._total} images, {left:.0f} s left", done / self._total)


class _State:
    """The file that holds the work so far. Without a path nothing is read or written."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._unwritten = 0  # images
        self._written_at = time.monotonic()

    def resume(self, fresh: Collection) -> Collection:
        """The collection of an earlier run; `fresh` if there is none, or if it is damaged."""
        if self.path is None or not self.path.exists():
            return fresh
        try:
            stored = load_collection(self.path)
        except DataError as error:
            if isinstance(error.__cause__, (PermissionError, IsADirectoryError)):  # collecting again would not help
                raise
            # Not removed: the path may have been mistyped, and the file be something else.
            aside = self.path.with_name(f"{self.path.name}.damaged")
            os.replace(self.path, aside)
            log.warning("%s; collecting starts over, and what was there is now %s", error.cause, aside.name)
            return fresh
        if stored.key != fresh.key or list(stored.histograms) != list(fresh.histograms):
            raise DataError(
                f"{self.path} is of another graph or other settings: its key is {stored.key}, wanted is {fresh.key}",
                "remove the file to start over",
            )
        if stored.collected_with != fresh.collected_with:
            stored.collected_with = ", ".join(sorted({stored.collected_with, fresh.collected_with}))
        log.info("%s: continuing after %d images", self.path, len(stored.digests))
        return stored

    def update(self, collection: Collection, images: int) -> None:
        """Notes that `collection` has grown by `images`, and writes it every `_SAVE_EVERY` images or so."""
        self._unwritten += images
        if self._unwritten >= _SAVE_EVERY or time.monotonic() - self._written_at >= _SAVE_SECONDS:
            self.write(collection)

    def write(self, collection: Collection) -> None:
        """Writes the collection, if the file does not hold it yet."""
        if self.path is None or not self._unwritten:
            return
        save_collection(collection, self.path)
        self._unwritten, self._written_at = 0, time.monotonic()


def _count(images: Iterable[UInt8Array]) -> int | None:
    """How many images there are; None for a stream that cannot be counted in advance."""
    if not isinstance(images, (list, tuple)):
        return None
    return sum(len(each) if getattr(each, "ndim", 3) == 4 else 1 for each in images)
