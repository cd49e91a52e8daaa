"""From a bundle and pictures to segmentations."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, Union, overload

import numpy as np
import numpy.typing as npt

from twins_trt.data.images import read_image, to_rgb
from twins_trt.errors import EngineError, ImageError, TwinsError, UsageError
from twins_trt.inference.fitting import Fit, FitMode, fit_size, logits_to_mask, place, unfit_mask
from twins_trt.inference.interface import GraphInterface
from twins_trt.inference.runner import Mode, ModeRunner, resolve_mode
from twins_trt.runtime.bundle import TRIES, Bundle, open_bundle, replaced_error
from twins_trt.runtime.engines import Engine, RuntimeOptions, open_engine
from twins_trt.runtime.engines.protocol import Pending, Pipelined, RunsOnDevice, observed
from twins_trt.runtime.segmentation import Segmentation
from twins_trt.runtime.stream import Frame, stream_frames
from twins_trt.spelling import spelled

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

    from twins_trt.data.palette import Colour

UInt8Array = npt.NDArray[np.uint8]
Picture: TypeAlias = Union[UInt8Array, "PillowImage", str, Path]

FITS = ("stretch", "letterbox")

log = logging.getLogger("twins_trt")


@dataclass(frozen=True)
class _Prepared:
    image: UInt8Array
    fit: Fit
    tensor: npt.NDArray[Any]


@dataclass(frozen=True)
class _Done:
    """Frames that are segmented. See `stream.Started`."""

    segmentations: list[Segmentation]

    def result(self) -> list[Segmentation]:
        return self.segmentations

    def discard(self) -> None:
        """Nothing runs any more."""


@dataclass(frozen=True)
class _Started:
    """Frames under way in a pipelined engine. See `stream.Started`."""

    segmenter: Segmenter
    chunk: Sequence[_Prepared]
    output: str
    pending: Pending
    began: float

    def result(self) -> list[Segmentation]:
        result = self.pending.result()[self.output]
        if self.segmenter._observe is not None:
            self.segmenter._observe("run", time.perf_counter() - self.began)
        return self.segmenter._finish(self.chunk, self.output, result)

    def discard(self) -> None:
        self.pending.discard()


class Segmenter:
    """A bundle, ready to segment pictures of any size.

    bundle: an opened bundle, or the folder of one (which is verified); with an engine made elsewhere, what its graph
    takes is enough. engine: a kind of `engines.KINDS`, `auto` for the first that can run here, or an engine itself.
    options: threads and the like, for an engine opened here; its `observe` is also told what the stages around the
    engine take.
    fit: how a picture meets a graph of fixed size: `stretch` resizes it to exactly that size, `letterbox` keeps its
    ratio and pads on the right and at the bottom with the mean colour. A picture that has the graph's size is not
    resized. A graph of dynamic size takes each picture as mmsegmentation's test pipeline does: fitted into the
    manifest's test scale, or at its own size where there is none, within the limits of the profile.

    mode: how a picture is run. `whole`: as above. `slide`, `ms_flip`, `slide_ms_flip`: as mmsegmentation evaluates, see
    `twins_trt.inference.inference_mode`. `tile`, or `Tiles(size, overlap)`: at its own size, however large, in tiles
    whose logits are averaged where they overlap, in bounded memory. All but `whole` need a graph that gives logits.

    Masks come back at the picture's own size. Where a resize is in the way and the graph gives logits, they are resized
    (bilinear) before the argmax, as mmsegmentation does; a graph that gives only a mask has it resized to the nearest
    pixel.

    Threads: calls and streams from several threads may overlap; an engine that does not allow that is run by one thread
    at a time. `close` must come after the last call.

        >>> with Segmenter("x.bundle") as segmenter:             # doctest: +SKIP
        ...     segmenter("street.jpg").save("street_mask.png")

    Raises BundleError for a bundle that does not fit its manifest, and for an opened one that was replaced since (a
    folder is opened again), UsageError for an unknown engine, fit or mode, MissingDependencyError where nothing can run
    the bundle, EngineError where the engine refuses it.
    """

    def __init__(
        self,
        bundle: Bundle | GraphInterface | str | Path,
        engine: str | Engine = "auto",
        *,
        fit: FitMode = "stretch",
        mode: Mode = "whole",
        options: RuntimeOptions | None = None,
    ) -> None:
        if fit not in FITS:
            raise UsageError(f"there is no fit {fit!r}", f"use {' or '.join(FITS)}")
        parts = resolve_mode(mode)
        self.fit: FitMode = fit
        for _ in range(TRIES if isinstance(bundle, (str, Path)) else 1):
            self.bundle, self.interface = _opened_bundle(bundle)
            self._in_parts = None if parts is None else ModeRunner(parts, self.interface, self._run_logits)
            opened = _opened_engine(self.bundle, engine, options)
            if opened is not None:
                break
        else:
            assert self.bundle is not None  # without one there is an engine
            raise replaced_error(self.bundle.path)
        self.engine = opened
        self._name = self.engine.name if self.bundle is None else str(self.bundle.path)
        if self.bundle is not None:
            _warn(self.bundle)
        self._observe = None if options is None else options.observe
        self._turn: contextlib.AbstractContextManager[Any]
        self._turn = contextlib.nullcontext() if self.engine.concurrent else threading.Lock()

    @property
    def classes(self) -> tuple[str, ...]:
        """Name by class index."""
        return self.interface.classes

    @property
    def palette(self) -> tuple[Colour, ...]:
        """RGB colour by class index."""
        return self.interface.palette

    @overload
    def __call__(self, image: PillowImage | str | Path) -> Segmentation: ...
    @overload
    def __call__(self, image: list[Any] | tuple[Any, ...]) -> list[Segmentation]: ...
    @overload
    def __call__(self, image: UInt8Array) -> Any: ...
    def __call__(self, image: Picture | list[Any] | tuple[Any, ...]) -> Segmentation | list[Segmentation]:
        """Segment one picture, or several.

        image: uint8 [H, W, 3] RGB, a Pillow image, or an image file; a list or tuple of these, of any sizes, or an
        array uint8 [N, H, W, 3], gives a list in the same order. Pictures that go into the graph at the same size run
        together, as many as the graph takes. All are held in memory: use `stream` for more than a few.
        Raises ImageError for a picture that cannot be read or is no uint8 RGB, EngineError if the engine fails.
        """
        if isinstance(image, (list, tuple)) or (isinstance(image, np.ndarray) and image.ndim == 4):
            return self._segment([self._decode(item) for item in image])
        return self._segment([self._decode(image)])[0]

    def stream(
        self, images: Iterable[Picture], *, depth: int = 2, batch: int | None = None
    ) -> Generator[Frame, None, None]:
        """Segment pictures one after another, lazily and in order, yielding a `Frame` for each.

            >>> for frame in segmenter.stream(camera):            # doctest: +SKIP
            ...     show(frame.segmentation.overlay()) if frame.error is None else log(frame.error)

        A picture that fails with one of this package's errors gives a frame with `error` set and the stream goes on;
        `frame.result()` raises it instead. What the iterable itself raises ends the stream, after the frames before.
        The iterable is advanced, and pictures are read and resized, in a thread of the stream's own, ahead of the
        engine, which runs in the caller's thread. An engine on a GPU is given the next frame while it works on one, so
        that copies and work overlap; no frame waits for a next one that is not there yet.
        batch: frames the engine takes at once, by default what the graph is fixed to, else 1; more is faster and later.
        depth: at most `depth * batch` pictures are taken and not yet done with; with 1 nothing is read ahead. Closing
        the generator, or an interrupt, stops the thread.
        Raises UsageError for a batch or depth that cannot be.
        """
        low, high = self.interface.batch_limits
        size = low if batch is None else batch
        if size < 1 or (high is not None and size > high):
            raise UsageError(f"batch is {size}", f"{self._name} takes 1 to {high or 'any number'}")
        if depth < 1:
            raise UsageError(f"depth is {depth}", "give 1 or more")
        return stream_frames(images, self._prepare, self._start, batch=size, depth=depth)

    def on_device(self, images: Any, *, out: Any = None, stream: Any = None) -> Any:
        """Segment images that lie on the GPU and leave the masks there; nothing is resized or copied.

        images: what the graph takes, mostly uint8 [N, H, W, 3] RGB of its own size, with `__dlpack__` or
        `__cuda_array_interface__`: a tensor of PyTorch, CuPy, Numba. out: likewise, uint8 [N, H, W]; by default a new
        `DeviceArray`. stream: the caller's CUDA stream, a handle or an object; see `RunsOnDevice.run_on_device`.
        Returns the masks, `out` if it was given. Raises UsageError where the engine or the bundle cannot do that,
        EngineError as an engine does.
        """
        if not isinstance(self.engine, RunsOnDevice):
            raise UsageError(f"the engine {self.engine.name} cannot take arrays on a GPU", "use a TensorRT engine")
        if self.interface.output("mask") is None:
            raise UsageError(f"{self._name} gives no mask", f"build it with {spelled('outputs', 'mask')}")
        given = None if out is None else {"mask": out}
        return self.engine.run_on_device(images, outputs=("mask",), out=given, stream=stream)["mask"]

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _segment(self, images: list[UInt8Array]) -> list[Segmentation]:
        if self._in_parts is not None:
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

    def _segment_in_parts(self, image: UInt8Array) -> Segmentation:
        assert self._in_parts is not None
        return Segmentation(self._in_parts(image), self.classes, self.palette, image)

    def _run_logits(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        with self._turn, observed(self._observe, "run"):
            return self.engine(batch, outputs=("logits",))["logits"]

    def _prepare(self, item: Any) -> _Prepared:
        image = self._decode(item)
        if self._in_parts is not None:
            size = (image.shape[0], image.shape[1])
            return _Prepared(image, Fit(size, size, size), image)
        return self._place(image, fit_size(image.shape[:2], self.interface, self.fit))

    def _decode(self, item: Any) -> UInt8Array:
        with observed(self._observe, "decode"):
            return _pixels(item)

    def _place(self, image: UInt8Array, fit: Fit) -> _Prepared:
        with observed(self._observe, "preprocess"):
            return _Prepared(image, fit, place(image, fit, self.interface))

    def _start(self, chunk: Sequence[_Prepared], wait: bool) -> _Started | _Done | None:
        """Gives a stream's frames to the engine: those of one size at once, to one that can, and else one by one."""
        if self._in_parts is not None:
            return _Done([self._segment_in_parts(prepared.image) for prepared in chunk]) if wait else None
        alike = all(p.tensor.shape == chunk[0].tensor.shape for p in chunk)
        if alike and isinstance(self.engine, Pipelined):
            name, batch = self._output(chunk), self._batch(chunk)
            began = time.perf_counter()
            pending = self.engine.submit(batch, outputs=(name,), wait=wait)
            return None if pending is None else _Started(self, chunk, name, pending, began)
        if not wait:
            return None
        done: list[Segmentation] = []
        while len(done) < len(chunk):
            rest = chunk[len(done) :]
            length = next((i for i, p in enumerate(rest) if p.tensor.shape != rest[0].tensor.shape), len(rest))
            done += self._run_alike(rest[:length])
        return _Done(done)

    def _run_alike(self, chunk: Sequence[_Prepared]) -> list[Segmentation]:
        name, batch = self._output(chunk), self._batch(chunk)
        with self._turn, observed(self._observe, "run"):
            result = self.engine(batch, outputs=(name,))[name]
        return self._finish(chunk, name, result)

    def _batch(self, chunk: Sequence[_Prepared]) -> npt.NDArray[Any]:
        tensors = [prepared.tensor for prepared in chunk]
        tensors += tensors[-1:] * (self.interface.batch_limits[0] - len(tensors))  # a fixed batch has to be full
        return tensors[0][None] if len(tensors) == 1 else np.stack(tensors)

    def _finish(self, chunk: Sequence[_Prepared], name: str, result: npt.NDArray[Any]) -> list[Segmentation]:
        """Masks of the pictures' own sizes, from what the engine gave for the batch."""
        expected = max(len(chunk), self.interface.batch_limits[0])
        if len(result) != expected:
            raise EngineError(f"the engine gave {name} {list(result.shape)} for a batch of {expected}")
        back = unfit_mask if name == "mask" else logits_to_mask
        pairs = zip(chunk, result, strict=False)  # the padding of the batch is dropped
        with observed(self._observe, "postprocess"):
            return [Segmentation(back(one, p.fit), self.classes, self.palette, p.image) for p, one in pairs]

    def _output(self, chunk: Sequence[_Prepared]) -> str:
        """Logits where they are there and a resize follows, else the mask, which is smaller and needs no argmax."""
        has_mask, has_logits = (self.interface.output(name) is not None for name in ("mask", "logits"))
        resized = any(prepared.fit.inner != prepared.fit.original for prepared in chunk)
        return "logits" if not has_mask or (has_logits and resized) else "mask"


def _opened_bundle(bundle: Bundle | GraphInterface | str | Path) -> tuple[Bundle | None, GraphInterface]:
    if isinstance(bundle, GraphInterface):
        return None, bundle
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    return opened, opened.interface


def _opened_engine(bundle: Bundle | None, engine: str | Engine, options: RuntimeOptions | None) -> Engine | None:
    """The engine; None where another bundle has taken this one's place, so that it may be of either."""
    if not isinstance(engine, str):
        return engine
    if bundle is None:
        raise UsageError("an interface alone cannot be run", "give its engine too, or a bundle")
    try:
        opened = open_engine(bundle, engine, options=options)
    except TwinsError:
        if bundle.replaced:
            return None
        raise
    if not bundle.replaced:
        return opened
    opened.close()
    return None


def _warn(bundle: Bundle) -> None:
    manifest = bundle.manifest
    if manifest.source.seeded:
        log.warning("%s holds random weights: its masks mean nothing", bundle.path)
    if manifest.gate == "failed":
        log.warning("%s failed its accuracy gate", bundle.path)
    if manifest.precision == "int8" and manifest.gate == "ungated":
        log.warning("%s is INT8 and ungated: nobody has measured what it costs in mIoU", bundle.path)


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
