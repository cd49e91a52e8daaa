"""An engine on a GPU: one loaded engine, and the execution slots that its callers take."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from twins_trt.device import Device
from twins_trt.errors import EngineError, UsageError
from twins_trt.inference.tensors import TensorSpec
from twins_trt.runtime.engines.checks import check_buffer, check_input, wanted_outputs
from twins_trt.runtime.engines.protocol import DeviceMemory, LayerTime, OnStage, RuntimeOptions
from twins_trt.runtime.memory import Memory
from twins_trt.runtime.memory.arrays import DeviceView, on_device, stream_handle, view
from twins_trt.runtime.memory.ring import InputRing, OutputRing
from twins_trt.runtime.tensorrt.call import GpuCall
from twins_trt.runtime.tensorrt.loaded import LoadedEngine, Shape
from twins_trt.runtime.tensorrt.slot import ExecutionSlot
from twins_trt.runtime.tensorrt.slots import Slots

if TYPE_CHECKING:
    from twins_trt.runtime.engines.protocol import Array

log = logging.getLogger("twins_trt")


class TensorRTEngine:
    """An engine of TensorRT or TensorRT-RTX on the first GPU.

    loaded: belongs to this object from now on. memory: moves the data. name: the kind. owner: the name in errors.

    Threads: any number may call at once. A call takes one of `options.contexts` slots and waits while all are taken.
    Each slot has a context, a stream and buffers of its own. Slots share nothing that a call changes. `close` must come
    after the last call.

    A GPU with its own memory gets the data through pinned buffers; an integrated GPU uses the host's buffer in place.
    The second call with the same shape and addresses is captured as a CUDA graph if the memory package can do that, and
    replayed until either changes; RTX captures without being asked. Arrays on the GPU are used in place as long as they
    stay the same, see `Borrowing`.

    observe: see `Engine`.
    """

    concurrent = True

    def __init__(
        self, loaded: LoadedEngine, memory: Memory, device: Device, *, name: str, options: RuntimeOptions, owner: str
    ) -> None:
        self.name = name
        self.inputs: tuple[TensorSpec, ...] = loaded.inputs
        self.outputs: tuple[TensorSpec, ...] = loaded.outputs
        self.observe: OnStage | None = options.observe
        self._loaded: LoadedEngine | None = loaded
        self._memory, self._owner = memory, owner
        mapped, graphs = device.integrated, options.cuda_graph

        def new_slot() -> ExecutionSlot:
            return ExecutionSlot(loaded, memory, mapped=mapped, graphs=graphs)

        self._slots = Slots(memory, new_slot, max_slots=options.contexts, owner=owner)
        self._results = OutputRing(memory)
        self._images = InputRing(memory, mapped=mapped)

    def __call__(
        self, image: Any, *, outputs: Sequence[str] | None = None, out: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """See `Engine.__call__`. The image may also be an array on the GPU, or one of `input_buffer`."""
        call = self._begin(image, outputs, out, wait=True)
        assert call is not None  # it waited
        return call.result()

    def submit(self, image: Any, *, outputs: Sequence[str] | None = None, wait: bool = True) -> GpuCall | None:
        """See `Pipelined.submit`."""
        return self._begin(image, outputs, None, wait=wait)

    def input_buffer(self, shape: Sequence[int] | None = None) -> Array:
        """See `GivesInputBuffers`."""
        loaded, spec = self._opened(), self.inputs[0]
        wanted = loaded.opt if shape is None else tuple(shape)
        if not spec.fits(wanted):
            raise UsageError(f"an input buffer of {list(wanted)} does not fit {self._owner}", f"it accepts {spec}")
        with self._memory.entered():
            return self._images.take(wanted, spec.dtype)

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
        slot = self._slots.take(tuple(image.shape))
        with self._slots.using(slot):
            source = view(image, stream=slot.stream, what="the image")
            check_input(self.inputs[0], source, owner=self._owner)
            given = {n: view(a, stream=slot.stream, what=f"the buffer for {n}") for n, a in (out or {}).items()}
            views = (source, *given.values())
            streams = dict.fromkeys(s for s in (handle, *(v.stream for v in views)) if s is not None)
            shapes = slot.output_shapes(source.shape)
            self._check_targets(given, shapes)
            # A caller without a stream cannot order its next work after this run, so it gets finished results.
            overlaps = handle is not None or all(v.stream is not None for v in views)
            reader = (handle if handle is not None else source.stream) if overlaps else None
            # Before the slot's stream waits for another: if that is captured, the slot's belongs to the capture from
            # then on, and must not wait for what is outside, such as an earlier reader of a result's memory.
            made = {
                spec.name: self._results.take(
                    shapes[spec.name], spec.dtype, writer=slot.stream, reader=reader, keep=stream
                )
                for spec in self.outputs
                if spec.name in names and spec.name not in given
            }
            for other in streams:
                memory.wait(slot.stream, other)
            fresh = {n: DeviceView(a.address, a.shape, a.dtype, reader, a) for n, a in made.items()}
            slot.start(source, host=(), device={**given, **fresh})
            for other in streams:
                memory.wait(other, slot.stream)
            if overlaps:
                slot.leave()
            else:
                slot.finish((), None)
        results = {**made, **(out or {})}
        return {name: results[name] for name in names}

    def warm_up(self) -> None:
        """Runs the opt shape twice in every slot that `contexts` allows.

        This loads the kernels (RTX compiles them), takes the memory and captures the CUDA graphs. If memory does not
        suffice for all slots, there are fewer.
        """
        loaded = self._opened()
        image = np.zeros(loaded.opt, loaded.inputs[0].dtype)

        def run(slot: ExecutionSlot) -> None:
            for _ in range(2):
                slot.start(image, host=(), device={})
                slot.finish((), None)

        self._slots.warm_up(loaded.opt, run)
        loaded.store()

    def device_memory(self) -> DeviceMemory:
        """The GPU memory that the engine holds at the moment. Arrays that callers have are theirs."""
        loaded = self._opened()
        slots, buffers = self._slots.held()
        return DeviceMemory(loaded.weights, loaded.scratch * slots, buffers + self._results.idle)

    def profile_layers(self, image: Array, *, runs: int = 10) -> tuple[LayerTime, ...]:
        """See `ProfilesLayers`."""
        if runs < 1:
            raise UsageError(f"runs is {runs}", "give 1 or more")
        self._opened()
        times: dict[str, float] = {}
        slot = self._slots.take(image.shape)
        with self._slots.using(slot):
            slot.profile(image, times, runs=runs)
        if not times:
            raise EngineError(f"{self._owner} reported no layer")
        return tuple(LayerTime(name, total / runs) for name, total in times.items())

    def inspect_layers(self) -> str:
        """See `InspectsLayers`."""
        return self._opened().inspect()

    def close(self) -> None:
        """Waits for the calls under way and frees everything; calling it again does nothing.

        Results on the GPU and input buffers that are still in use stay valid, and are freed when they go.
        """
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        try:
            with self._memory.entered():
                self._slots.close()
                self._results.close()
                self._images.close()
                loaded.store()
                loaded.close()  # here, because TensorRT frees its memory on the thread's own device
        except EngineError as error:  # a broken GPU frees nothing; the error was raised when it broke
            log.warning("%s could not be closed in order: %s", self._owner, error.cause)
            loaded.close()

    def _begin(
        self, image: Any, outputs: Sequence[str] | None, out: Mapping[str, Array] | None, *, wait: bool
    ) -> GpuCall | None:
        self._opened()
        observe = self.observe
        names = wanted_outputs(self.outputs, outputs, owner=self._owner)
        specs = {spec.name: spec for spec in self.outputs}
        for name in wanted_outputs(self.outputs, tuple(out or ()), owner=self._owner):
            check_buffer(specs[name], (out or {})[name])
        device = on_device(image)
        if not device:
            check_input(self.inputs[0], image, owner=self._owner)
        slot = self._slots.try_to_take(tuple(image.shape), wait=wait)
        if slot is None:
            return None
        try:
            with self._memory.entered():
                source = image if device else self._images.find(image) or image
                if device:
                    source = view(image, stream=slot.stream, what="the image")
                    check_input(self.inputs[0], source, owner=self._owner)
                    if source.stream is not None:
                        self._memory.wait(slot.stream, source.stream)
                for name, shape in slot.output_shapes(tuple(source.shape)).items():
                    if out and name in out and out[name].shape != shape:
                        raise EngineError(f"the buffer for {name} is {list(out[name].shape)}, the output {list(shape)}")
                slot.start(source, host=names, device={}, observe=observe)
        except BaseException:
            with suppress(EngineError), self._slots.using(slot):
                slot.settle()
            raise
        return GpuCall(self._slots, slot, outputs=names, out=out, image=source)

    def _check_targets(self, given: Mapping[str, DeviceView], shapes: Mapping[str, Shape]) -> None:
        """Raises EngineError unless every buffer on the GPU has its output's dtype and shape."""
        for spec in self.outputs:
            buffer = given.get(spec.name)
            if buffer is not None and (buffer.dtype, buffer.shape) != (spec.dtype, shapes[spec.name]):
                raise EngineError(
                    f"the buffer for {spec.name} is {buffer.dtype} {list(buffer.shape)}, the output is "
                    f"{spec.dtype} {list(shapes[spec.name])}"
                )

    def _opened(self) -> LoadedEngine:
        if self._loaded is None:
            raise EngineError(f"{self._owner} is closed")
        return self._loaded
