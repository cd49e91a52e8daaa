"""An execution slot: the context, stream, buffers and CUDA graph that one call at a time uses on the GPU."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from twins_trt.errors import EngineError
from twins_trt.runtime.engines.checks import check_input
from twins_trt.runtime.engines.protocol import OnStage
from twins_trt.runtime.memory import Memory, OutOfMemory
from twins_trt.runtime.memory.arrays import DeviceView, size_of
from twins_trt.runtime.memory.ring import PinnedView
from twins_trt.runtime.tensorrt.buffers import Borrowing, Buffer
from twins_trt.runtime.tensorrt.loaded import ALIGNMENT, LoadedEngine, Shape

if TYPE_CHECKING:
    from twins_trt.runtime.engines.protocol import Array

log = logging.getLogger("twins_trt")

Key = tuple[Shape, tuple[int, ...]]  # shape of the input, addresses of all tensors
_EVENTS = 4  # before and after the three stages
_TRIES = 3
"""Captures that may fail before a slot does without: another thread that waits for the whole device breaks one, by
chance, in every capture mode."""


class ExecutionSlot:
    """Runs an engine, one call at a time: `start`, then `finish`, `leave` or `settle`, all inside `memory.entered()`.

    mapped: the GPU shares the host's memory. graphs: replay calls as CUDA graphs, unless the runtime does that itself.
    Raises EngineError if there is no room for the slot.
    """

    def __init__(self, loaded: LoadedEngine, memory: Memory, *, mapped: bool, graphs: bool) -> None:
        self._loaded, self._memory = loaded, memory
        self._observe: OnStage | None = None
        self._graphs = graphs and memory.graphs and not loaded.captures
        replayed = graphs and (memory.graphs or loaded.captures)
        self._shape: Shape | None = None
        self._shapes: dict[str, Shape] = {}
        self._bound: dict[str, int] = {}
        self._graph: Any = None
        self._graph_key: Key | None = None
        self._last: Key | None = None
        self._failed = 0  # captures, since one succeeded
        self._end: Any = None  # event behind the last call that was left to run on
        self._left = False  # it may be under way
        self._events: list[Any] = []
        self._staging = 0.0  # seconds of copying the image on the processor, before the GPU's clock starts
        names = [spec.name for spec in (*loaded.inputs, *loaded.outputs)]
        self._buffers = {name: Buffer(memory, mapped=mapped) for name in names}
        self._borrowing = {name: Borrowing(graphs=replayed) for name in names}
        self._context = loaded.new_context()
        self.stream = 0
        try:
            self.stream = memory.new_stream()
        except BaseException:
            self.close()
            raise

    @property
    def buffers(self) -> int:
        """Bytes in buffers: of device memory, or of host memory that the GPU uses in place."""
        return sum(buffer.size for buffer in self._buffers.values())

    @property
    def shape(self) -> Shape | None:
        """The input's shape in the last call; another call of this shape costs least."""
        return self._shape

    def output_shapes(self, shape: Shape) -> dict[str, Shape]:
        """Sets the input's shape and returns the outputs' shapes. Raises EngineError if the engine refuses it."""
        if shape != self._shape:
            self._drop_graph()  # it would replay a state that the context is about to lose
            self._shape = None
            self._shapes = self._context.set_shape(self._loaded.inputs[0].name, shape)
            self._shape = shape
        return self._shapes

    def start(
        self,
        image: Array | PinnedView | DeviceView,
        *,
        host: Sequence[str],
        device: Mapping[str, DeviceView],
        observe: OnStage | None = None,
    ) -> None:
        """Gives one call to the stream. host: outputs to copy to the host. device: where to write outputs on the GPU.

        A host image may be reused when this returns; the caller keeps other memory alive until the call is over.
        observe: `finish` calls it with the times of the copies and of the engine, by the GPU's own clock.
        Raises EngineError; call `settle` then too.
        """
        memory = self._memory
        shapes = self.output_shapes(tuple(image.shape))
        self._observe = observe
        while observe is not None and len(self._events) < _EVENTS:
            self._events.append(memory.new_event(timing=True))
        addresses = {self._loaded.inputs[0].name: self._load(image)}
        copied: list[tuple[str, DeviceView]] = []
        for output in self._loaded.outputs:
            target = device.get(output.name)
            size = size_of(shapes[output.name], output.dtype)
            if target is None:
                self._borrowing[output.name].in_place(None)
                self._buffers[output.name].reserve(size, host=output.name in host)
                addresses[output.name] = self._buffers[output.name].address
                continue
            addresses[output.name] = self._address(output.name, target.address, size)
            if addresses[output.name] != target.address:
                copied.append((output.name, target))
        self._mark(1)
        self._run(addresses)
        self._mark(2)
        for name, target in copied:
            memory.copy(target.address, addresses[name], size_of(target.shape, target.dtype), self.stream)
        for output in self._loaded.outputs:
            buffer = self._buffers[output.name]
            if output.name in host and not buffer.mapped:
                assert buffer.block is not None
                size = size_of(shapes[output.name], output.dtype)
                memory.copy_out(buffer.block, buffer.address, size, self.stream)
        self._mark(3)

    def leave(self) -> None:
        """Lets the call run on without `finish`, for one whose results stay on the GPU."""
        if self._graph is None:
            return
        if self._end is None:
            self._end = self._memory.new_event(timing=False)
        # In the caller's capture nothing is recorded, and nothing runs: an earlier call may still be under way.
        self._left = self._memory.try_record(self._end, self.stream) or self._left

    def finish(self, host: Sequence[str], out: Mapping[str, Array] | None) -> dict[str, Array]:
        """Waits, and copies the outputs on the host into the caller's arrays. Raises EngineError if the call failed."""
        self._memory.synchronize(self.stream)
        self._left = False
        start = time.perf_counter()
        results: dict[str, Array] = {}
        for spec in self._loaded.outputs:
            if spec.name not in host:
                continue
            staged = self._buffers[spec.name].array(self._shapes[spec.name], spec.dtype)
            if out is not None and spec.name in out:
                np.copyto(out[spec.name], staged)
                results[spec.name] = out[spec.name]
            else:
                results[spec.name] = staged.copy()
        self._tell_stages(time.perf_counter() - start)
        return {name: results[name] for name in host}

    def settle(self) -> None:
        """Waits until nothing runs any more, failed or not, and drops the CUDA graph."""
        _quietly(self._drop_graph)
        if self.stream:
            _quietly(self._memory.synchronize, self.stream)

    def profile(self, image: Array, times: dict[str, float], *, runs: int) -> None:
        """Adds the time of every layer over `runs` runs to `times`, milliseconds."""
        check_input(self._loaded.inputs[0], image, owner=self._loaded.name)
        graphs, self._graphs = self._graphs, False  # a graph runs in one piece, without layers
        self._drop_graph()
        profiler = self._loaded.new_profiler(times)  # a local variable, because the context does not keep it alive
        try:
            self._context.profile(profiler)
            for run in range(runs + 1):
                self.start(image, host=(), device={})
                self._memory.synchronize(self.stream)
                if run == 0:
                    times.clear()
        finally:
            self._context.profile(None)
            self._graphs = graphs

    def close(self) -> None:
        """Waits for the call under way and frees everything, even if a broken GPU raises errors meanwhile."""
        self.settle()
        self._context.close()
        for event in (*self._events, *([] if self._end is None else [self._end])):
            _quietly(self._memory.free_event, event)
        for buffer in self._buffers.values():
            _quietly(buffer.free)
        if self.stream:
            _quietly(self._memory.free_stream, self.stream)
        self._events, self._end, self.stream = [], None, 0

    def _load(self, image: Array | PinnedView | DeviceView) -> int:
        """Brings the image to the GPU, in the order of the stream, and returns its address there."""
        memory, spec = self._memory, self._loaded.inputs[0]
        buffer = self._buffers[spec.name]
        size = size_of(tuple(image.shape), spec.dtype)
        self._staging = 0.0
        if isinstance(image, DeviceView) or (isinstance(image, PinnedView) and buffer.mapped):
            self._mark(0)
            address = self._address(spec.name, image.address, size)
            if address != image.address:
                memory.copy(address, image.address, size, self.stream)
            return address
        self._borrowing[spec.name].in_place(None)
        if isinstance(image, PinnedView):
            buffer.reserve(size, host=False)
            self._mark(0)
            memory.copy_in(buffer.address, image.block, size, self.stream, offset=image.offset)
            return buffer.address
        buffer.reserve(size, host=True)
        if buffer.mapped:  # a run on the GPU's own arrays may be under way, and may read this buffer
            memory.synchronize(self.stream)
        start = time.perf_counter()
        np.copyto(buffer.array(image.shape, spec.dtype), image)
        self._staging = time.perf_counter() - start
        self._mark(0)
        if buffer.block is not None and not buffer.mapped:
            memory.copy_in(buffer.address, buffer.block, size, self.stream)
        return buffer.address

    def _address(self, name: str, borrowed: int, size: int) -> int:
        """Where the engine reads or writes a tensor for which the caller lends memory: there, or the slot's buffer."""
        buffer = self._buffers[name]
        if self._borrowing[name].in_place(borrowed):
            return borrowed
        try:
            buffer.reserve(size, host=False)
        except OutOfMemory:
            if borrowed % ALIGNMENT:
                raise
            return borrowed  # slower, because no graph has this address
        return buffer.address

    def _run(self, addresses: Mapping[str, int]) -> None:
        """Enqueues a run. The second with the same shape and addresses is captured, and later ones replay the graph."""
        assert self._shape is not None
        key = (self._shape, tuple(addresses.values()))
        if key != self._graph_key:
            self._drop_graph()
        for name, address in addresses.items():
            if self._bound.get(name) != address:
                self._context.bind(name, address)
                self._bound[name] = address
        # The first enqueue after a change of shape does work that must not be captured.
        capture = self._graph is None and self._graphs and key == self._last
        if capture and not self._memory.captured(self.stream):  # by a caller whose own capture this call is a part of
            self._capture(key)
        self._last = key
        if self._graph is not None:
            self._memory.launch(self._graph, self.stream)
        else:
            self._context.enqueue(self.stream)

    def _capture(self, key: Key) -> None:
        try:
            self._graph = self._memory.capture(self.stream, lambda: self._context.enqueue(self.stream))
            self._graph_key, self._failed = key, 0
        except EngineError as error:
            self._failed += 1
            if self._failed < _TRIES:
                log.debug("a capture failed and is tried again at the next call: %s", error.cause)
                return
            self._graphs = False
            for borrowing in self._borrowing.values():
                borrowing.graphs = False
            tell = log.debug if self._loaded.refused_capture else log.warning  # once, not once a slot
            self._loaded.refused_capture = True
            tell("no CUDA graph, so calls are launched one by one: %s", error.cause)

    def _drop_graph(self) -> None:
        graph, self._graph, self._graph_key = self._graph, None, None
        if graph is None:
            return
        try:
            # A run on the GPU returns at once, and what a graph does whose context changes is undefined.
            if self._left:
                self._memory.synchronize_event(self._end)
        finally:
            self._left = False
            self._memory.free_graph(graph)

    def _mark(self, index: int) -> None:
        if self._observe is not None:
            self._memory.record(self._events[index], self.stream)

    def _tell_stages(self, unloading: float) -> None:
        if self._observe is None:
            return
        copy_in, engine, copy_out = (self._memory.seconds(*pair) for pair in pairwise(self._events))
        self._observe("copy_in", self._staging + copy_in)
        self._observe("engine", engine)
        self._observe("copy_out", copy_out + unloading)


def _quietly(function: Callable[..., None], *given: Any) -> None:
    """Calls a function and only logs its EngineError: after an error, CUDA reports it again in every call."""
    try:
        function(*given)
    except EngineError as error:
        log.debug("while cleaning up: %s", error.cause)
