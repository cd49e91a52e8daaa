"""A GPU that does everything as late as CUDA allows. `fake_cuda.py` has the Python packages that reach it.

Work in a stream runs when something waits for it, in the order of streams and events and in no other. Until then the
host memory that it will write holds poison, and the memory that it will read may still change. So code that forgets to
wait reads nonsense, code that reuses a buffer too early computes nonsense, and memory that is freed while work on it is
under way is an illegal address, every time and not once in a thousand. `fake_capture.py` has the rules of captures.

    gpu = FakeGpu()
    memory = CudaBindings(cuda_bindings(gpu))

`gpu.held()` counts what was not freed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
from fake_capture import Capture, Captures, Failure, Mode, Status

__all__ = ["LEGACY", "PER_THREAD", "POISON", "Event", "Executable", "Failure", "FakeGpu", "Graph", "Status", "Work"]

POISON = 0xCC
LEGACY, PER_THREAD = 1, 2  # cudaStreamLegacy, which 0 is too, and cudaStreamPerThread


@dataclass
class Token:
    """A point in a stream. time: at which an event passed it, in milliseconds."""

    stream: Stream
    passed: bool = False
    time: float = 0.0


@dataclass
class Work:
    """run: what happens on the GPU, after all of `after`. writes: memory that is undefined for the host until then."""

    run: Callable[[], None]
    writes: Callable[[], list[Any]] = list
    after: tuple[Token, ...] = ()


@dataclass(eq=False)
class Stream:
    """blocking: it and the legacy default stream wait for each other. works: under way."""

    handle: int
    device: int
    blocking: bool
    legacy: bool = False
    works: deque[Work] = field(default_factory=deque)


@dataclass
class Event:
    """token: what it was last recorded at; or the capture, and the position in it. Neither: it was never recorded."""

    device: int = 0
    timed: bool = True
    token: Token | None = None
    capture: Capture | None = None
    position: dict[Stream, int] = field(default_factory=dict)


@dataclass
class Graph:
    works: list[Work] = field(default_factory=list)


@dataclass
class Executable(Graph):
    """last: the end of its last launch."""

    launches: int = 0
    last: Token | None = None


@dataclass
class _Hidden:
    """Memory that a work will write: the host sees poison, the GPU what was there."""

    work: Work
    memory: Any
    saved: Any = None


class FakeGpu:
    """integrated: it shares the host's memory. capacity: bytes of memory of each device. devices: how many GPUs there
    are; a thread begins with device 0. clock: milliseconds, which events note; by default it ticks with every event.

    `fail`: statuses for the next calls of a function, by its name in the runtime API. `calls`: the names of all calls.
    `overlaps`: how often work was given while other work waited in another stream. `lock`: held by every call.
    """

    def __init__(
        self,
        *,
        integrated: bool = False,
        capacity: int = 1 << 30,
        devices: int = 1,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.integrated, self.capacity, self.devices = integrated, capacity, devices
        self.device: dict[int, Any] = {}  # address -> bytes
        self.device_of: dict[int, int] = {}  # address -> the device that has it
        self.host: dict[int, Any] = {}  # address on the host -> bytes
        self.mappable: set[int] = set()  # addresses on the host
        self.mapped: dict[int, int] = {}  # address on the device -> address on the host
        self.streams: dict[int, Stream] = {}  # those that were made and not destroyed
        self.events: set[int] = set()
        self.graphs: set[int] = set()
        self.rules = Captures()
        self.broken: Status | None = None
        self.fail: dict[str, list[Status]] = {}
        self.calls: list[str] = []
        self.captured = self.launched = self.overlaps = 0
        self._defaults: dict[tuple[int, int | None], Stream] = {}  # (device, thread; None for the legacy stream)
        self._destroyed: list[Stream] = []  # with work under way
        self._hidden: list[_Hidden] = []
        self._freed: list[Any] = []
        self._next = 0x7F00_0000_0000
        self._clock: Callable[[], float] = clock or count(1).__next__
        self._objects: dict[int, Any] = {}
        self._thread = threading.local()
        self.lock = threading.RLock()

    @property
    def captures(self) -> dict[Stream, Capture]:
        """The streams that are captured now."""
        return self.rules.of

    @property
    def current(self) -> int:
        """The device of the calling thread."""
        return getattr(self._thread, "device", 0)

    def select(self, device: int) -> None:
        """Makes a device the calling thread's."""
        if not 0 <= device < self.devices:
            raise Failure(Status.cudaErrorInvalidDevice)
        self._thread.device = device

    def held(self) -> dict[str, int]:
        """How many blocks of device and pinned host memory, streams, events and graphs are allocated."""
        return {
            "device": len(self.device),
            "host": len(self.host),
            "streams": len(self.streams),
            "events": len(self.events),
            "graphs": len(self.graphs),
        }

    def pending(self) -> int:
        """The number of works that are under way."""
        return sum(len(stream.works) for stream in self._all_streams())

    def bytes_at(self, address: int, size: int, *, device: int | None = None) -> Any:
        """Memory as the GPU sees it. device: the GPU that looks, which cannot reach another's memory; None for any.

        Raises Failure for an address that is not allocated.
        """
        for base, memory in self.device.items():
            if base <= address and address + size <= base + memory.size and device in (None, self.device_of[base]):
                return memory[address - base : address - base + size]
        for base, host in self.mapped.items():
            memory = self.host[host]
            if base <= address and address + size <= base + memory.size:
                return memory[address - base : address - base + size]
        raise Failure(Status.cudaErrorIllegalAddress)

    def host_bytes(self, address: int, size: int) -> Any:
        """Pinned host memory by the host's address."""
        for base, memory in self.host.items():
            if base <= address and address + size <= base + memory.size:
                return memory[address - base : address - base + size]
        raise Failure(Status.cudaErrorInvalidValue)

    def find_stream(self, handle: Any) -> Stream:
        """The stream of a handle; the default streams are of the calling thread's device."""
        number = int(handle)
        if number in (0, LEGACY, PER_THREAD):
            thread = threading.get_ident() if number == PER_THREAD else None
            key = (self.current, thread)
            return self._defaults.setdefault(key, Stream(number, self.current, True, legacy=thread is None))
        if number not in self.streams:
            raise Failure(Status.cudaErrorInvalidResourceHandle)
        return self.streams[number]

    def capturing(self, handle: Any) -> bool:
        """Whether what is given to the stream is captured."""
        return self.find_stream(handle) in self.captures

    def give(self, handle: Any, work: Work) -> None:
        """Enqueues work on a stream, or in the graph that captures the stream."""
        with self.lock:
            self._give(self.find_stream(handle), work)

    def _give(self, stream: Stream, work: Work) -> None:
        capture = self.rules.active(stream)
        if capture is not None:
            capture.graph.works.append(work)
            capture.given[stream] += 1
            return
        after = list(work.after)
        if stream.legacy:
            self.rules.legacy_used(stream.device)
            after += [self._end_of(each) for each in self._blocking(stream.device) if each.works]
        elif stream.blocking:
            legacy = self._defaults.get((stream.device, None))
            after += [self._end_of(legacy)] if legacy is not None and legacy.works else []
        self.overlaps += any(each.works for each in self._all_streams() if each is not stream)
        given = Work(work.run, work.writes, tuple(after))
        with suppress(Failure):  # memory that is gone: an error when it runs, not now
            written = given.writes()
            self._reveal()
            self._hidden += [_Hidden(given, memory) for memory in written]
            self._hide()
        stream.works.append(given)

    def drain(self, handle: Any, until: Token | None = None) -> None:
        """Runs what was given to a stream, up to a point in it."""
        with self.lock:
            self._drain(self.find_stream(handle), until)

    def _drain(self, stream: Stream, until: Token | None = None) -> None:
        while stream.works and not (until is not None and until.passed):
            self._step(stream)

    def _step(self, stream: Stream) -> None:
        """Runs the next work of a stream, after what it waits for."""
        work = stream.works.popleft()
        for token in work.after:
            self._drain(token.stream, token)
        self._reveal()
        try:
            if self.broken is None:
                work.run()
        except Failure as error:
            self.broken = error.status
        finally:
            for hidden in self._hidden:
                if hidden.work is work and self.broken is not None:
                    hidden.memory[...] = POISON  # it was not written
            self._hidden = [hidden for hidden in self._hidden if hidden.work is not work]
            self._hide()

    def synchronize(self, handle: Any) -> None:
        """cudaStreamSynchronize."""
        stream = self.find_stream(handle)
        if stream.legacy:
            self.rules.legacy_used(stream.device)
        self.rules.host_waits(stream)
        if stream.legacy:
            for each in self._blocking(stream.device):
                self._drain(each)
        self._drain(stream)

    def synchronize_device(self) -> None:
        """cudaDeviceSynchronize."""
        self.rules.device_waits(self.current)
        self.rules.unsafe()
        self.wait_for_all(self.current)

    def query(self, handle: Any) -> None:
        """cudaStreamQuery. What is asked for comes nearer with every question."""
        stream = self.find_stream(handle)
        if stream.legacy:
            self.rules.legacy_used(stream.device)
        self.rules.host_waits(stream)
        if stream.works:
            self._step(stream)
            raise Failure(Status.cudaErrorNotReady)

    def wait_for_all(self, device: int | None = None) -> None:
        """Runs everything that is under way, on one device or on all."""
        for stream in self._all_streams():
            if device in (None, stream.device):
                self._drain(stream)
        self._destroyed = [stream for stream in self._destroyed if stream.works]

    def allocate(self, size: int) -> int:
        """cudaMalloc."""
        self.rules.unsafe()
        if size == 0:
            return 0
        used = sum(memory.size for base, memory in self.device.items() if self.device_of[base] == self.current)
        if used + size > self.capacity:
            raise Failure(Status.cudaErrorMemoryAllocation)
        address = self._address(size)
        self.device[address] = np.full(size, POISON, np.uint8)
        self.device_of[address] = self.current
        return address

    def free(self, address: int) -> None:
        """cudaFree: after everything that is under way on the device."""
        self.rules.unsafe()
        if address == 0:
            return
        if address not in self.device:
            raise Failure(Status.cudaErrorInvalidValue)
        self.wait_for_all(self.device_of[address])
        del self.device_of[address]
        del self.device[address]

    def allocate_host(self, size: int, *, mapped: bool = True) -> int:
        """cudaHostAlloc. mapped: the GPU can use it in place."""
        self.rules.unsafe()
        if size == 0:
            return 0
        memory = np.full(size + 64, POISON, np.uint8)
        memory = memory[-memory.ctypes.data % 64 :][:size]
        address = int(memory.ctypes.data)
        self.host[address] = memory
        if mapped:
            self.mappable.add(address)
        return address

    def map(self, host: int) -> int:
        """cudaHostGetDevicePointer: the same address every time."""
        if host not in self.mappable:
            raise Failure(Status.cudaErrorInvalidValue)
        known = [address for address, base in self.mapped.items() if base == host]
        address = known[0] if known else self._address(self.host[host].size)
        self.mapped[address] = host
        return address

    def free_host(self, host: int) -> None:
        """cudaFreeHost: after everything that is under way."""
        self.rules.unsafe()
        if host == 0:
            return
        if host not in self.host:
            raise Failure(Status.cudaErrorInvalidValue)
        self.wait_for_all()
        self.mapped = {device: base for device, base in self.mapped.items() if base != host}
        self.mappable.discard(host)
        memory = self.host.pop(host)
        memory[...] = POISON
        self._freed.append(memory)  # kept: who still reads it must find poison, not end the process

    def copy(self, handle: Any, target: Callable[[], Any], source: Callable[[], Any]) -> None:
        """An asynchronous copy. target, source: find the memory, now and when it runs."""

        def run() -> None:
            target()[...] = source()

        self.give(handle, Work(run, lambda: [target()]))

    def record(self, event: Event, handle: Any) -> None:
        """cudaEventRecord. In a capture it is a point of the graph, and nothing that happens."""
        stream = self.find_stream(handle)
        if event.device != stream.device:
            raise Failure(Status.cudaErrorInvalidResourceHandle)
        capture = self.rules.active(stream)
        if capture is not None:
            event.token, event.capture, event.position = None, capture, capture.position(stream)
            return
        token = Token(stream)

        def run() -> None:
            token.passed, token.time = True, self._clock()

        self._give(stream, Work(run))
        event.token, event.capture = token, None

    def wait(self, handle: Any, event: Event) -> None:
        """cudaStreamWaitEvent."""
        stream = self.find_stream(handle)
        if not self.rules.wait(stream, event) and event.token is not None:
            self._give(stream, Work(lambda: None, after=(event.token,)))

    def query_event(self, event: Event) -> None:
        """cudaEventQuery. What is asked for comes nearer with every question."""
        self.rules.event_asked(event)
        self.rules.unsafe()
        if event.token is not None and not event.token.passed:
            self._step(event.token.stream)
            raise Failure(Status.cudaErrorNotReady)

    def synchronize_event(self, event: Event) -> None:
        """cudaEventSynchronize."""
        self.rules.event_asked(event)
        self.rules.unsafe()
        if event.token is not None:
            self._drain(event.token.stream, event.token)

    def milliseconds(self, start: Event, end: Event) -> float:
        """cudaEventElapsedTime."""
        for event in (start, end):
            self.rules.event_asked(event)
        if start.token is None or end.token is None or not (start.timed and end.timed) or start.device != end.device:
            raise Failure(Status.cudaErrorInvalidResourceHandle)
        if not (start.token.passed and end.token.passed):
            raise Failure(Status.cudaErrorNotReady)
        return float(end.token.time - start.token.time)

    def launch(self, graph: Executable, handle: Any) -> None:
        """cudaGraphLaunch: after earlier work of the stream, and after earlier launches of the graph."""
        stream = self.find_stream(handle)
        captured = self.rules.active(stream) is not None
        if not captured and graph.last is not None and graph.last.stream is not stream:
            self._give(stream, Work(lambda: None, after=(graph.last,)))
        for work in graph.works:
            self._give(stream, work)
        if not captured:
            self.launched += 1
            graph.launches += 1
            graph.last = self._end_of(stream)

    def begin_capture(self, handle: Any, mode: Mode) -> None:
        """cudaStreamBeginCapture."""
        self.rules.begin(self.find_stream(handle), mode, Graph())

    def end_capture(self, handle: Any) -> Graph:
        """cudaStreamEndCapture."""
        return self.rules.end(self.find_stream(handle))

    def register(self, made: Any) -> int:
        """A handle for an object, as C has them."""
        handle = self._address(64)
        self._objects[handle] = made
        return handle

    def find(self, handle: Any, kind: type) -> Any:
        made = self._objects.get(int(handle))
        if type(made) is not kind:
            raise Failure(Status.cudaErrorInvalidResourceHandle)
        return made

    def forget(self, handle: int) -> None:
        del self._objects[int(handle)]

    def new_stream(self, *, blocking: bool = False) -> int:
        """cudaStreamCreateWithFlags."""
        handle = self._address(64)
        self.streams[handle] = Stream(handle, self.current, blocking)
        return handle

    def free_stream(self, handle: int) -> None:
        """cudaStreamDestroy: returns at once, and what the stream has still runs."""
        stream = self.find_stream(handle)
        if stream.handle not in self.streams:  # a default stream
            raise Failure(Status.cudaErrorInvalidResourceHandle)
        if stream in self.captures:
            self.rules.refuse([self.captures[stream]], Status.cudaErrorStreamCaptureUnsupported)
        self._destroyed.append(self.streams.pop(stream.handle))

    def _end_of(self, stream: Stream) -> Token:
        """A new point at the end of a stream, which takes no time."""
        token = Token(stream)

        def run() -> None:
            token.passed = True

        stream.works.append(Work(run))
        return token

    def _all_streams(self) -> list[Stream]:
        return [*self.streams.values(), *self._defaults.values(), *self._destroyed]

    def _blocking(self, device: int) -> list[Stream]:
        """The streams that the legacy default stream of a device waits for."""
        return [s for s in self._all_streams() if s.device == device and s.blocking and not s.legacy]

    def _reveal(self) -> None:
        """The host's memory as the GPU sees it."""
        for hidden in reversed(self._hidden):
            hidden.memory[...] = hidden.saved

    def _hide(self) -> None:
        for hidden in self._hidden:
            hidden.saved = hidden.memory.copy()
            hidden.memory[...] = POISON

    def _address(self, size: int) -> int:
        with self.lock:
            address = self._next
            self._next += -(-size // 256) * 256 + 4096  # a gap: running over an end is seen
            return address
