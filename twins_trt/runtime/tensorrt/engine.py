"""An engine on a GPU: one loaded engine, and the execution slots that its callers take."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from twins_trt.compiler_cache import CacheKey, CompilerCache
from twins_trt.device import Device
from twins_trt.errors import EngineError, UsageError
from twins_trt.runtime.engines.checks import check_buffer, check_input, take_interface, wanted_outputs
from twins_trt.runtime.engines.protocol import DeviceMemory, LayerTime, RuntimeOptions
from twins_trt.runtime.memory import Memory, open_memory
from twins_trt.runtime.memory.arrays import DeviceArray, DeviceView, on_device, size_of, stream_handle, view
from twins_trt.runtime.tensorrt.loaded import LoadedEngine, Shape
from twins_trt.runtime.tensorrt.selection import choose, here, load_runtime
from twins_trt.runtime.tensorrt.slot import ExecutionSlot

if TYPE_CHECKING:
    from twins_trt.inference.tensors import TensorSpec
    from twins_trt.runtime.engines.protocol import Array, EngineSource

log = logging.getLogger("twins_trt")


def open_engine(source: EngineSource, flavour: str, options: RuntimeOptions) -> TensorRTEngine:
    """Opens the source's engine of `flavour` for this GPU and warms it up.

    Raises EngineError without a GPU, or if the runtime refuses the engine or has no room for it; BundleError if the
    source has no engine for this GPU and version, or its interface and the engine disagree; MissingDependencyError.
    """
    device = here()
    module = load_runtime(flavour)
    file = choose(source, flavour, module, device)
    memory = open_memory(options.memory)
    content, path = source.read(file), source.path / file.file
    with memory.entered():
        loaded = LoadedEngine(module, content, owner=str(path), rebuild=source.rebuild)
        loaded.specialize(
            cuda_graph=options.cuda_graph,
            stored=_runtime_cache(options, flavour, str(module.__version__), device, content),
        )
    del content  # as large as the weights on the device
    engine = TensorRTEngine(loaded, memory, device, name=flavour, options=options, owner=str(path))
    try:
        take_interface(engine, source, file=path.name)
        engine.warm_up()
    except BaseException:
        engine.close()
        raise
    return engine


class TensorRTEngine:
    """An engine of TensorRT or TensorRT-RTX on the first GPU.

    loaded: belongs to this object from now on. memory: moves the data. name: the kind. owner: the name in errors.

    Threads: any number may call at once. A call takes one of `options.contexts` slots and waits while all are taken.
    Each slot has a context, a stream and buffers of its own, and is made when it is first needed. Slots share nothing
    that a call changes. `close` must come after the last call.

    A GPU with its own memory gets the data through pinned buffers; an integrated GPU uses the host's buffer in place.
    The second call with the same shape and addresses is captured as a CUDA graph if the memory package can do that, and
    replayed until either changes; RTX captures without being asked.
    """

    concurrent = True

    def __init__(
        self, loaded: LoadedEngine, memory: Memory, device: Device, *, name: str, options: RuntimeOptions, owner: str
    ) -> None:
        self.name = name
        self.inputs: tuple[TensorSpec, ...] = loaded.inputs
        self.outputs: tuple[TensorSpec, ...] = loaded.outputs
        self._loaded: LoadedEngine | None = loaded
        self._memory, self._owner, self._options = memory, owner, options
        self._mapped = device.integrated
        self._graphs = options.cuda_graph and memory.graphs and not loaded.captures
        self._slots: list[ExecutionSlot] = []
        self._idle: list[ExecutionSlot] = []
        self._max_slots = options.contexts
        self._changed = threading.Condition()

    def __call__(
        self, image: Any, *, outputs: Sequence[str] | None = None, out: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """See `Engine.__call__`. The image may also be an array on the GPU, which is then used in place."""
        call = self._begin(image, outputs, out, wait=True)
        assert call is not None  # it waited
        return call.result()

    def submit(self, image: Any, *, outputs: Sequence[str] | None = None, wait: bool = True) -> GpuCall | None:
        """See `Pipelined.submit`."""
        return self._begin(image, outputs, None, wait=wait)

    def run_on_device(
        self,
        image: Any,
        *,
        outputs: Sequence[str] | None = None,
        out: Mapping[str, Any] | None = None,
        stream: Any = None,
    ) -> dict[str, Any]:
        """See `RunsOnDevice.run_on_device`."""
        self._opened()
        names = wanted_outputs(self.outputs, outputs, owner=self._owner)
        wanted_outputs(self.outputs, tuple(out or ()), owner=self._owner)
        handle = None if stream is None else stream_handle(stream)
        memory = self._memory
        slot = self._take(tuple(image.shape))
        with self._using(slot):
            source = view(image, stream=slot.stream, what="the image")
            check_input(self.inputs[0], source, owner=self._owner)
            given = {n: view(a, stream=slot.stream, what=f"the buffer for {n}") for n, a in (out or {}).items()}
            views = (source, *given.values())
            streams = dict.fromkeys(s for s in (handle, *(v.stream for v in views)) if s is not None)
            for other in streams:
                memory.wait(slot.stream, other)
            # A caller without a stream cannot order its next work after this run, so it gets finished results.
            overlaps = handle is not None or all(v.stream is not None for v in views)
            order = (handle if handle is not None else source.stream) if overlaps else None
            results, targets = self._targets(slot, source.shape, names=names, out=out or {}, given=given, stream=order)
            slot.start(source, host=(), device=targets)
            for other in streams:
                memory.wait(other, slot.stream)
            if not overlaps:
                memory.synchronize(slot.stream)
        return results

    def warm_up(self) -> None:
        """Runs the opt shape twice: this loads the kernels (RTX compiles them) and captures the CUDA graph."""
        loaded = self._opened()
        image = np.zeros(loaded.opt, loaded.inputs[0].dtype)
        for _ in range(2):
            self(image, outputs=())
        loaded.store()

    def device_memory(self) -> DeviceMemory:
        """The GPU memory that the engine holds at the moment."""
        loaded = self._opened()
        with self._changed:
            return DeviceMemory(
                loaded.weights, loaded.scratch * len(self._slots), sum(slot.buffers for slot in self._slots)
            )

    def profile_layers(self, image: Array, *, runs: int = 10) -> tuple[LayerTime, ...]:
        """See `ProfilesLayers`."""
        if runs < 1:
            raise UsageError(f"runs is {runs}", "give 1 or more")
        self._opened()
        times: dict[str, float] = {}
        slot = self._take(image.shape)
        with self._using(slot):
            slot.profile(image, times, runs=runs)
        if not times:
            raise EngineError(f"{self._owner} reported no layer")
        return tuple(LayerTime(name, total / runs) for name, total in times.items())

    def inspect_layers(self) -> str:
        """See `InspectsLayers`."""
        return self._opened().inspect()

    def close(self) -> None:
        """Waits for the calls under way and frees everything; calling it again does nothing."""
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        with self._changed:
            slots, self._slots, self._idle = self._slots, [], []
        try:
            with self._memory.entered():
                for slot in slots:
                    slot.close()
                loaded.store()
        except EngineError as error:  # a broken GPU frees nothing; the error was raised when it broke
            log.warning("%s could not be closed in order: %s", self._owner, error.cause)
        loaded.close()

    def _begin(
        self, image: Any, outputs: Sequence[str] | None, out: Mapping[str, Array] | None, *, wait: bool
    ) -> GpuCall | None:
        self._opened()
        names = wanted_outputs(self.outputs, outputs, owner=self._owner)
        specs = {spec.name: spec for spec in self.outputs}
        for name in wanted_outputs(self.outputs, tuple(out or ()), owner=self._owner):
            check_buffer(specs[name], (out or {})[name])
        device = on_device(image)
        if not device:
            check_input(self.inputs[0], image, owner=self._owner)
        slot = self._try_to_take(tuple(image.shape), wait=wait)
        if slot is None:
            return None
        try:
            with self._memory.entered():
                source = image
                if device:
                    source = view(image, stream=slot.stream, what="the image")
                    check_input(self.inputs[0], source, owner=self._owner)
                    if source.stream is not None:
                        self._memory.wait(slot.stream, source.stream)
                for name, shape in slot.output_shapes(tuple(source.shape)).items():
                    if out and name in out and out[name].shape != shape:
                        raise EngineError(f"the buffer for {name} is {list(out[name].shape)}, the output {list(shape)}")
                slot.start(source, host=names, device={})
        except BaseException:
            with suppress(EngineError), self._using(slot):
                slot.settle()
            raise
        return GpuCall(self, slot, names, out, source)

    def _targets(
        self,
        slot: ExecutionSlot,
        shape: Shape,
        *,
        names: Sequence[str],
        out: Mapping[str, Any],
        given: Mapping[str, DeviceView],
        stream: int | None,
    ) -> tuple[dict[str, Any], dict[str, DeviceView]]:
        """The arrays that the caller gets, by name, and the memory that each output is written to."""
        shapes = slot.output_shapes(shape)
        results: dict[str, Any] = {}
        targets: dict[str, DeviceView] = {}
        for spec in self.outputs:
            if spec.name in given:
                buffer = given[spec.name]
                if (buffer.dtype, buffer.shape) != (spec.dtype, shapes[spec.name]):
                    raise EngineError(
                        f"the buffer for {spec.name} is {buffer.dtype} {list(buffer.shape)}, the output is "
                        f"{spec.dtype} {list(shapes[spec.name])}"
                    )
                results[spec.name], targets[spec.name] = out[spec.name], buffer
            elif spec.name in names:
                address = self._memory.allocate(size_of(shapes[spec.name], spec.dtype))
                array = DeviceArray(address, shapes[spec.name], spec.dtype, stream=stream, free=self._free)
                results[spec.name] = array
                targets[spec.name] = DeviceView(address, array.shape, array.dtype, stream, array)
        return {name: results[name] for name in names}, targets

    def _free(self, address: int) -> None:
        with self._memory.entered():
            self._memory.free(address)

    @contextmanager
    def _using(self, slot: ExecutionSlot) -> Iterator[None]:
        """Gives the slot back at the end, and after an error or an interrupt first waits until nothing runs in it."""
        try:
            with self._memory.entered():
                yield
        except BaseException:
            with suppress(EngineError), self._memory.entered():
                slot.settle()
            raise
        finally:
            self._give(slot)

    def _take(self, shape: Shape) -> ExecutionSlot:
        slot = self._try_to_take(shape, wait=True)
        assert slot is not None  # it waited
        return slot

    def _try_to_take(self, shape: Shape, *, wait: bool) -> ExecutionSlot | None:
        """An idle slot that last ran this shape, or a new slot, or another idle one; None if all are taken.

        wait: for a slot, instead of returning None.
        """
        with self._changed:
            while True:
                alike = next((slot for slot in self._idle if slot.shape == shape), None)
                # Of the idle slots with another shape, the one idle for longest: its CUDA graph is least likely to be
                # needed soon.
                slot = alike or self._new_slot() or next(reversed(self._idle), None)
                if slot is not None:
                    if slot in self._idle:
                        self._idle.remove(slot)
                    return slot
                if not wait:
                    return None
                self._changed.wait()

    def _give(self, slot: ExecutionSlot) -> None:
        with self._changed:
            self._idle.insert(0, slot)
            self._changed.notify()

    def _new_slot(self) -> ExecutionSlot | None:
        """One more slot, or None if no more are allowed or fit. Raises EngineError if the first does not fit."""
        if len(self._slots) >= self._max_slots:
            return None
        loaded = self._opened()
        try:
            with self._memory.entered():
                slot = ExecutionSlot(
                    loaded, self._memory, mapped=self._mapped, graphs=self._graphs, observe=self._options.observe
                )
        except EngineError as error:
            if not self._slots:
                raise
            self._max_slots = len(self._slots)
            log.warning(
                "%s runs %d calls at once, because memory has no room for more: %s",
                self._owner,
                self._max_slots,
                error.cause,
            )
            return None
        self._slots.append(slot)
        return slot

    def _opened(self) -> LoadedEngine:
        if self._loaded is None:
            raise EngineError(f"{self._owner} is closed")
        return self._loaded


class GpuCall:
    """A call under way in a slot. See `Pending`."""

    def __init__(
        self, engine: TensorRTEngine, slot: ExecutionSlot, names: list[str], out: Mapping[str, Array] | None, image: Any
    ) -> None:
        self._engine, self._slot, self._names, self._out = engine, slot, names, out
        self._image = image  # keeps an array on the GPU alive until it has been read

    def result(self) -> dict[str, Array]:
        """See `Pending.result`."""
        with self._engine._using(self._slot):
            return self._slot.finish(self._names, self._out)

    def discard(self) -> None:
        """See `Pending.discard`."""
        with self._engine._using(self._slot):
            self._slot.settle()


def _runtime_cache(
    options: RuntimeOptions, flavour: str, version: str, device: Device, content: bytes
) -> CompilerCache | None:
    """The file for kernels that RTX compiles; None for the other flavour, or if it is unwanted or impossible."""
    if flavour != "tensorrt_rtx" or options.runtime_cache == "none":
        return None
    key = CacheKey(flavour, version, device.target, device.name, hashlib.sha256(content).hexdigest()[:12])
    if options.runtime_cache != "auto":
        return CompilerCache.at(options.runtime_cache, key, "runtime cache")
    folder = Path.home() / ".cache" / "twins-trt" / "runtime"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning("compiled kernels are not kept: %s", error)
        return None
    return CompilerCache.at(folder, key, "runtime cache")
