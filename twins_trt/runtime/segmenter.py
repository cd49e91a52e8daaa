"""The Segmenter: a bundle that is ready to segment pictures."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, Union, overload

import numpy as np

from twins_trt.bindings import NAMES
from twins_trt.data.images import UInt8Array
from twins_trt.data.preprocessing import Size
from twins_trt.errors import UsageError
from twins_trt.inference.fitting import FitMode, fit_mode
from twins_trt.inference.interface import GraphInterface
from twins_trt.inference.runner import Mode, ModeRunner, resolve_mode
from twins_trt.models.source import warn_of_random_weights
from twins_trt.runtime.batches import BatchRunner
from twins_trt.runtime.bundle import TRIES, Bundle, open_bundle, replaced_error
from twins_trt.runtime.engines import Engine, OnStage, RuntimeOptions, open_current_engine
from twins_trt.runtime.engines.protocol import GivesInputBuffers, RunsOnDevice
from twins_trt.runtime.judged import gate_outdated, judge_again
from twins_trt.runtime.segmentation import Segmentation
from twins_trt.runtime.stream import Frame, stream_frames
from twins_trt.spelling import spelled

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

    from twins_trt.data.palette import Colour

Picture: TypeAlias = Union[UInt8Array, "PillowImage", str, Path]

log = logging.getLogger("twins_trt")


class Segmenter:
    """A bundle that is ready to segment pictures of any size.

    bundle: an opened bundle, or the folder of one, which is verified. With an engine that is already open, the
    interface of its graph is enough.
    engine: one of `engines.KINDS`, `auto` for the first that can run here, or an open engine.
    options: of an engine that is opened here. `observe` is also called with the times of the stages around the engine.
    fit: how a picture is fitted into a graph of fixed size. `stretch` resizes it to exactly that size. `letterbox`
    keeps its ratio and pads it on the right and at the bottom with the mean colour. A picture of the graph's size is
    not resized. A graph of dynamic size takes each picture as mmsegmentation's test pipeline does: resized to the
    manifest's test scale, or at its own size without one, within the limits of the profile.

    mode: how a picture is run. `whole`: as above. `slide`, `ms_flip`, `slide_ms_flip`: as mmsegmentation evaluates, see
    `twins_trt.inference.inference_mode`. `tile`, or `Tiles(size, overlap)`: at its own size, however large, in tiles
    whose logits are averaged in their overlaps, in bounded memory. All but `whole` need a graph that gives logits.

    Masks have the picture's own size. If a resize is necessary and the graph gives logits, the logits are resized
    (bilinear) before the argmax, as mmsegmentation does. A graph that gives only a mask has it resized to the nearest
    pixel.

    Threads: calls and streams from several threads may overlap. An engine that does not allow several calls at once
    gets one at a time. `close` must come after the last call.

        >>> with Segmenter("x.bundle") as segmenter:             # doctest: +SKIP
        ...     segmenter("street.jpg").save("street_mask.png")

    Raises BundleError for a bundle that does not fit its manifest, and for an opened bundle that was replaced since (a
    folder is opened again); UsageError for an unknown engine, fit or mode; MissingDependencyError if nothing can run
    the bundle; EngineError if the engine refuses it.
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
        self.fit = fit_mode(fit)
        parts = resolve_mode(mode)
        for _ in range(TRIES if isinstance(bundle, (str, Path)) else 1):
            self.bundle, self.interface = _opened_bundle(bundle)
            runner = None if parts is None else ModeRunner(parts, self.interface)
            opened = _opened_engine(self.bundle, engine, options)
            if opened is not None:
                break
        else:
            assert self.bundle is not None  # without one there is an engine
            raise replaced_error(self.bundle.path)
        self.engine = opened
        self._name = self.engine.name if self.bundle is None else str(self.bundle.path)
        if self.bundle is not None:
            _warn(self.bundle, self.engine.name)
        observe = None if options is None else options.observe
        self._batches = BatchRunner(self.engine, self.interface, fit=fit, parts=runner, observe=observe)

    @property
    def observe(self) -> OnStage | None:
        """What is called with the time of every stage, None for nothing: see `runtime.engines.Stage`.

        Setting it sets the engine's too. It may be set between calls: time end to end without it, because an observed
        call waits for every stage.
        """
        return self._batches.observe

    @observe.setter
    def observe(self, observe: OnStage | None) -> None:
        self.engine.observe = self._batches.observe = observe

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
        """Segments one picture, or several.

        image: uint8 [H, W, 3] RGB, a Pillow image, or an image file. A list or tuple of these, of any sizes, or an
        array uint8 [N, H, W, 3], gives a list in the same order. Pictures that enter the graph at the same size run
        together, as many as the graph takes. All are held in memory: use `stream` for more than a few.
        Raises ImageError for a picture that cannot be read or is not uint8 RGB, EngineError if the engine fails.
        """
        if isinstance(image, (list, tuple)) or (isinstance(image, np.ndarray) and image.ndim == 4):
            return self._batches.segment([self._batches.decode(item) for item in image])
        return self._batches.segment([self._batches.decode(image)])[0]

    def stream(
        self, images: Iterable[Picture], *, depth: int = 2, batch: int | None = None
    ) -> Generator[Frame, None, None]:
        """Segments pictures one after another, lazily and in order, and yields a `Frame` for each.

            >>> for frame in segmenter.stream(camera):            # doctest: +SKIP
            ...     show(frame.segmentation.overlay()) if frame.error is None else log(frame.error)

        A picture that fails with one of this package's errors gives a frame with that `error`, and the stream
        continues; `frame.result()` raises the error. An exception of the iterable itself ends the stream, after the
        frames before it.
        A thread of the stream advances the iterable and reads and resizes pictures, ahead of the engine, which runs in
        the caller's thread. An engine on a GPU gets the next frame while it works on one, so that copies and work
        overlap. No frame waits for a next frame that has not come yet.
        batch: frames that the engine takes at once, by default the graph's fixed batch, else 1. A larger batch is
        faster, with more delay.
        depth: at most `depth * batch` pictures are taken from the iterable and not yet yielded; with 1 nothing is read
        ahead. Closing the generator, or an interrupt, stops the thread.
        Raises UsageError for a batch or depth that is not possible.
        """
        low, high = self.interface.batch_limits
        size = low if batch is None else batch
        if size < 1 or (high is not None and size > high):
            raise UsageError(f"batch is {size}", f"{self._name} takes 1 to {high or 'any number'}")
        if depth < 1:
            raise UsageError(f"depth is {depth}", "give 1 or more")
        return stream_frames(images, self._batches.prepare, self._batches.start, batch=size, depth=depth)

    def input_buffer(self, size: Size | None = None, *, batch: int | None = None) -> UInt8Array:
        """Memory into which a camera or a decoder writes pictures, uint8 [batch, H, W, 3] RGB, of undefined content.

            >>> def pictures():                                   # doctest: +SKIP
            ...     while True:
            ...         picture = segmenter.input_buffer()[0]
            ...         camera.read_into(picture)
            ...         yield picture
            >>> for frame in segmenter.stream(pictures()):        # doctest: +SKIP
            ...     show(frame.result().mask)

        An engine on a GPU reads a picture of the graph's own size directly from this memory, without a copy by the
        processor. Other engines, and graphs that take normalized planes, give plain memory, so that the same loop works
        with every engine.
        size: (height, width); by default the graph's, of a dynamic graph the one that it is tuned for. batch: by
        default the smallest that the graph takes.
        Every call gives memory that is not in use. It may be written until it is segmented, and again when its
        segmentation is there; a segmentation shows the picture in this memory, so take a new buffer for every picture
        that you keep. The memory comes back when nothing refers to it, neither a view nor a segmentation.
        Raises UsageError for a size or batch that the graph does not take, EngineError without room for it.
        """
        image = self.interface.image
        pixels = self.interface.layout == "NHWC"
        height, width = size if size is not None else self.interface.opt_size or (0, 0)
        count = self.interface.batch_limits[0] if batch is None else batch
        wanted = (count, height, width, 3) if pixels else (count, 3, height, width)
        if not image.fits(wanted):
            raise UsageError(
                f"{count} pictures of {height}×{width} do not fit {self._name}, which accepts {image}",
                "give a size and a batch that it accepts",
            )
        if pixels and isinstance(self.engine, GivesInputBuffers):
            return self.engine.input_buffer(wanted).view(np.uint8)
        return np.empty((count, height, width, 3), np.uint8)

    def on_device(self, images: Any, *, out: Any = None, stream: Any = None) -> Any:
        """Segments images on the GPU and leaves the masks there; nothing is resized or goes through the host.

        images: the graph's input, in most graphs uint8 [N, H, W, 3] RGB of the graph's size, with `__dlpack__` or
        `__cuda_array_interface__`: a tensor of PyTorch, CuPy or Numba. out: likewise, uint8 [N, H, W]; by default a
        `DeviceArray`, whose memory a later mask takes when it is gone. stream: the caller's CUDA stream, a handle or an
        object; see `RunsOnDevice.run_on_device`.
        Returns the masks: `out` if it was given. Raises UsageError if the engine or the bundle cannot do that,
        EngineError as an engine does.
        """
        if not isinstance(self.engine, RunsOnDevice):
            raise UsageError(f"the engine {self.engine.name} cannot take arrays on a GPU", "use a TensorRT engine")
        if self.interface.output("mask") is None:
            raise UsageError(f"{self._name} gives no mask", f"build it with {spelled('outputs', 'mask')}")
        given = None if out is None else {"mask": out}
        return self.engine.run_on_device(images, outputs=("mask",), out=given, stream=stream)["mask"]

    def close(self) -> None:
        """Frees the engine."""
        self.engine.close()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _opened_bundle(bundle: Bundle | GraphInterface | str | Path) -> tuple[Bundle | None, GraphInterface]:
    if isinstance(bundle, GraphInterface):
        return None, bundle
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    return opened, opened.interface


def _opened_engine(bundle: Bundle | None, engine: str | Engine, options: RuntimeOptions | None) -> Engine | None:
    """The engine; None if another bundle has replaced this one meanwhile, so that the engine may be of either."""
    if not isinstance(engine, str):
        return engine
    if bundle is None:
        raise UsageError("an interface alone cannot be run", "give its engine too, or a bundle")
    return open_current_engine(bundle, engine, options=options)


def _warn(bundle: Bundle, kind: str) -> None:
    """Logs what speaks against the bundle's masks. kind: of the engine that runs it."""
    manifest = bundle.manifest
    if manifest.source.seeded:
        warn_of_random_weights(bundle.path)
    if manifest.gate == "failed":
        log.warning("%s failed its accuracy gate", bundle.path)
    if manifest.precision == "int8" and manifest.gate == "passed" and kind in NAMES:
        outdated = gate_outdated(bundle, kind=kind)
        if outdated is not None:
            again = judge_again(bundle)
            log.warning("%s is INT8 and its verdict counts no more: %s; judge it: %s", bundle.path, outdated, again)
    if manifest.precision == "int8" and manifest.gate == "ungated":
        log.warning("%s is INT8 and ungated: nobody has measured what it costs in mIoU", bundle.path)
