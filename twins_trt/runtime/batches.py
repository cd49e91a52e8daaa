"""From pictures of any size to batches that an engine takes, and from its outputs to segmentations."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twins_trt.data.images import UInt8Array, read_image, to_rgb
from twins_trt.errors import EngineError, ImageError
from twins_trt.inference.fitting import (
    Fit,
    FitMode,
    fit_size,
    logits_to_mask,
    logits_to_probability,
    place,
    unfit_mask,
    unfit_plane,
)
from twins_trt.inference.interface import GraphInterface
from twins_trt.inference.runner import ModeRunner
from twins_trt.runtime.engines import Engine, OnStage
from twins_trt.runtime.engines.protocol import Pending, Pipelined, observed
from twins_trt.runtime.segmentation import Segmentation

Array = npt.NDArray[Any]
PROBABILITY = "probability"


@dataclass(frozen=True)
class Prepared:
    """A picture, uint8 [H, W, 3] RGB, how it fits into the graph, and the graph's input without the batch axis."""

    image: UInt8Array
    fit: Fit
    tensor: npt.NDArray[Any]


@dataclass(frozen=True)
class Done:
    """Frames that are segmented. See `stream.Started`."""

    segmentations: list[Segmentation]

    def result(self) -> list[Segmentation]:
        return self.segmentations

    def discard(self) -> None:
        """Does nothing: no call is running."""


@dataclass(frozen=True)
class UnderWay:
    """Frames under way in a pipelined engine. See `stream.Started`."""

    runner: BatchRunner
    chunk: Sequence[Prepared]
    outputs: tuple[str, ...]
    pending: Pending
    began: float
    observe: OnStage | None

    def result(self) -> list[Segmentation]:
        results = self.pending.result()
        if self.observe is not None:
            self.observe("run", time.perf_counter() - self.began)
        return self.runner.finish(self.chunk, self.outputs[0], results)

    def discard(self) -> None:
        self.pending.discard()


class BatchRunner:
    """Runs pictures through an engine, those of one size together.

    fit: how a picture is fitted into a graph of fixed size. parts: runs each picture in parts instead of whole.
    observe: called with the times of the stages around the engine; it may be set at any time, and a stage keeps the one
    that it finds when it begins. Several threads may use one runner: an engine that does not allow several calls at
    once gets one at a time.
    """

    def __init__(
        self,
        engine: Engine,
        interface: GraphInterface,
        *,
        fit: FitMode,
        parts: ModeRunner | None = None,
        observe: OnStage | None = None,
    ) -> None:
        self.engine, self.interface, self.fit, self.observe = engine, interface, fit, observe
        self._parts = parts
        self._turn: contextlib.AbstractContextManager[Any]
        self._turn = contextlib.nullcontext() if engine.concurrent else threading.Lock()

    def decode(self, item: Any) -> UInt8Array:
        """The pixels of an image file, a Pillow image or an array. Raises ImageError."""
        with observed(self.observe, "decode"):
            return _pixels(item)

    def prepare(self, item: Any) -> Prepared:
        """A picture made ready for the graph. Raises ImageError."""
        image = self.decode(item)
        if self._parts is not None:
            size = (image.shape[0], image.shape[1])
            return Prepared(image, Fit(size, size, size), image)
        return self._place(image, fit_size(image.shape[:2], self.interface, self.fit))

    def segment(self, images: list[UInt8Array]) -> list[Segmentation]:
        """Segments pictures, those of one size together, as many at once as the graph takes. Raises EngineError."""
        if self._parts is not None:
            return [self._segment_in_parts(image) for image in images]
        largest = self.interface.batch_limits[1] or max(1, len(images))
        fits = [fit_size(image.shape[:2], self.interface, self.fit) for image in images]
        alike: dict[tuple[int, int], list[int]] = {}
        for i, fit in enumerate(fits):
            alike.setdefault(fit.canvas, []).append(i)
        done: dict[int, Segmentation] = {}
        for indices in alike.values():
            for start in range(0, len(indices), largest):
                chunk = indices[start : start + largest]
                prepared = [self._place(images[i], fits[i]) for i in chunk]
                done.update(zip(chunk, self._run_alike(prepared), strict=True))
        return [done[i] for i in range(len(images))]

    def start(self, chunk: Sequence[Prepared], wait: bool) -> Done | UnderWay | None:
        """Gives the frames of a stream to the engine. See `stream.Start`.

        Frames of one size go together and stay under way if the engine can do that; otherwise they are segmented here.
        """
        if self._parts is not None:
            return Done([self._segment_in_parts(prepared.image) for prepared in chunk]) if wait else None
        alike = all(p.tensor.shape == chunk[0].tensor.shape for p in chunk)
        if alike and isinstance(self.engine, Pipelined):
            names, batch = self._outputs(chunk), self._batch(chunk)
            began, observe = time.perf_counter(), self.observe
            pending = self.engine.submit(batch, outputs=names, wait=wait)
            return None if pending is None else UnderWay(self, chunk, names, pending, began, observe)
        if not wait:
            return None
        done: list[Segmentation] = []
        while len(done) < len(chunk):
            left = chunk[len(done) :]
            length = next((i for i, p in enumerate(left) if p.tensor.shape != left[0].tensor.shape), len(left))
            done += self._run_alike(left[:length])
        return Done(done)

    def finish(self, chunk: Sequence[Prepared], name: str, results: Mapping[str, Array]) -> list[Segmentation]:
        """Segmentations at the pictures' own sizes, from the output `name` of the batch, and its probabilities where
        the engine gave any. Raises EngineError."""
        expected = max(len(chunk), self.interface.batch_limits[0])
        for output, result in results.items():
            if len(result) != expected:
                raise EngineError(f"the engine gave {output} {list(result.shape)} for a batch of {expected}")
        done = []
        with observed(self.observe, "postprocess"):
            for i, prepared in enumerate(chunk):  # the padding of the batch is dropped
                one = {output: result[i] for output, result in results.items()}
                probability = self._probability(one, prepared.fit)
                if name == PROBABILITY:
                    assert probability is not None and self.interface.threshold is not None
                    mask = (probability > self.interface.threshold).astype(np.uint8)
                else:
                    mask = (unfit_mask if name == "mask" else logits_to_mask)(one[name], prepared.fit)
                done.append(replace(self._segmentation(mask, prepared.image), probability=probability))
        return done

    def _probability(self, one: Mapping[str, Array], fit: Fit) -> npt.NDArray[np.float32] | None:
        """Of the foreground, at the picture's own size. one: the outputs of one image."""
        if PROBABILITY in one:
            return unfit_plane(one[PROBABILITY], fit)
        if self.interface.threshold is not None and "logits" in one:
            return logits_to_probability(one["logits"], fit)
        return None

    def _segment_in_parts(self, image: UInt8Array) -> Segmentation:
        assert self._parts is not None
        return self._segmentation(self._parts(image, self._run_logits), image)

    def _segmentation(self, mask: UInt8Array, image: UInt8Array) -> Segmentation:
        return Segmentation(mask, self.interface.classes, self.interface.palette, image)

    def _run_logits(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        with self._turn, observed(self.observe, "run"):
            return self.engine(batch, outputs=("logits",))["logits"]

    def _place(self, image: UInt8Array, fit: Fit) -> Prepared:
        with observed(self.observe, "preprocess"):
            return Prepared(image, fit, place(image, fit, self.interface))

    def _run_alike(self, chunk: Sequence[Prepared]) -> list[Segmentation]:
        names, batch = self._outputs(chunk), self._batch(chunk)
        with self._turn, observed(self.observe, "run"):
            results = self.engine(batch, outputs=names)
        return self.finish(chunk, names[0], results)

    def _batch(self, chunk: Sequence[Prepared]) -> npt.NDArray[Any]:
        tensors = [prepared.tensor for prepared in chunk]
        tensors += tensors[-1:] * (self.interface.batch_limits[0] - len(tensors))  # a fixed batch has to be full
        return tensors[0][None] if len(tensors) == 1 else _side_by_side(tensors)

    def _outputs(self, chunk: Sequence[Prepared]) -> tuple[str, ...]:
        """The outputs to compute: logits if a resize follows and the graph gives them, else the mask if it gives one.

        The mask is smaller and needs no argmax. For a head with one logit, logits also tell the probability. A graph
        that gives the probability gives it too; one that gives nothing else has its mask from that.
        """
        has_mask, has_logits, has_probability = (
            self.interface.output(name) is not None for name in ("mask", "logits", PROBABILITY)
        )
        resized = any(prepared.fit.inner != prepared.fit.original for prepared in chunk)
        if has_logits and (resized or not has_mask or self.interface.threshold is not None):
            return ("logits",)
        wanted = (("mask", has_mask), (PROBABILITY, has_probability))
        return tuple(name for name, given in wanted if given)


def _side_by_side(tensors: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The tensors as one batch: where they lie, if that is one after another in one array, otherwise copied."""
    first = tensors[0]
    whole = first.base
    if isinstance(whole, np.ndarray) and whole.flags.c_contiguous:
        start = first.__array_interface__["data"][0]
        places = [tensor.__array_interface__["data"][0] for tensor in tensors]
        wanted = [start + i * first.nbytes for i in range(len(tensors))]
        if places == wanted and all(tensor.base is whole and tensor.flags.c_contiguous for tensor in tensors):
            offset = start - whole.__array_interface__["data"][0]
            flat = whole.reshape(-1).view(np.uint8)[offset : offset + len(tensors) * first.nbytes]
            return flat.view(first.dtype).reshape(len(tensors), *first.shape)
    return np.stack(tensors)


def _pixels(item: Any) -> UInt8Array:
    if isinstance(item, (str, Path)):
        return read_image(item)
    if hasattr(item, "getexif"):  # a Pillow image, known without importing Pillow
        item = to_rgb(item)
    if not isinstance(item, np.ndarray):
        raise ImageError(
            f"a {type(item).__name__} is not an image", "pass uint8 [H, W, 3] RGB, a Pillow image or a file"
        )
    if item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != 3 or 0 in item.shape:
        raise ImageError(f"an image must be uint8 [H, W, 3] RGB, not {item.dtype} {list(item.shape)}")
    return item
