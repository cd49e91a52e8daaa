"""A GPU that does everything as late as CUDA allows. `fake_cuda.py` has the Python packages that reach it.

Work in a stream runs when something waits for it, in the order of streams and events and in no other. Until then the
host memory that it will write holds poison, and the memory that it will read may still change. So code that forgets to
wait reads nonsense, code that reuses a buffer too early computes nonsense, and memory that is freed while work on it is
under way is an illegal address, every time and not once in a thousand.

    gpu = FakeGpu()
    memory = CudaBindings(cuda_bindings(gpu))

`gpu.held()` counts what was not freed.
"""

from __future__ import annotations

import enum
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

POISON = 0xCC
LEGACY, PER_THREAD = 1, 2


class Status(enum.IntEnum):
    """The members of cudaError_t that occur."""

    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInvalidResourceHandle = 400
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class Failure(Exception):
    """A call that returns this status."""

    def __init__(self, status: Status) -> None:
        self.status = status
        super().__init__(status.name)


@dataclass
class Work:
    """run: what happens on the GPU. writes: host memory that is undefined until then."""

    run: Callable[[], None]
    writes: Callable[[], list[Any]] = list


@dataclass
class Token:
    """A point in a stream."""

    stream: int
    passed: bool = False
    order: int = 0


@dataclass
class Event:
    token: Token | None = None


@dataclass
class Graph:
    works: list[Work] = field(default_factory=list)
    launches: int = 0


class FakeGpu:
    """integrated: it shares the host's memory. capacity: bytes of device memory.

    `fail`: statuses for the next calls of a function, by its name in the runtime API. `order`: names of works as they
    ran. `overlaps`: how often work was given while other work waited in another stream. `lock`: held by every call.
    """

    def __init__(self, *, integrated: bool = False, capacity: int = 1 << 30) -> None:
        self.integrated, self.capacity = integrated, capacity
        self.device: dict[int, Any] = {}  # address -> bytes
        self.host: dict[int, Any] = {}  # address on the host -> bytes
        self.mapped: dict[int, int] = {}  # address on the device -> address on the host
        self.streams: dict[int, deque[Work]] = {0: deque(), LEGACY: deque(), PER_THREAD: deque()}
        self.events: set[int] = set()
        self.graphs: set[int] = set()
        self.captures: dict[int, tuple[int, Graph]] = {}  # stream -> (thread, graph)
        self.broken: Status | None = None
        self.fail: dict[str, list[Status]] = {}
        self.calls: list[str] = []
        self.captured = self.launched = self.overlaps = 0
        self._freed: list[Any] = []
        self._next = 0x7F00_0000_0000
        self._ticks = 0
        self._objects: dict[int, Any] = {}
        self.lock = threading.RLock()

    def held(self) -> dict[str, int]:
        """How many blocks of device and pinned host memory, streams, events and graphs are allocated."""
        return {
            "device": len(self.device),
            "host": len(self.host),
            "streams": len(self.streams) - 3,
            "events": len(self.events),
            "graphs": len(self.graphs),
        }

    def pending(self) -> int:
        """The number of works that are under way."""
        return sum(len(queue) for queue in self.streams.values())

    def bytes_at(self, address: int, size: int) -> Any:
        """Memory as the GPU sees it. Raises Failure for an address that is not allocated."""
        for base, memory in self.device.items():
            if base <= address and address + size <= base + memory.size:
                return memory[address - base : address - base + size]
        for base, host in self.mapped.items():
            memory = self.host[host]
            if base <= address and address + size <= base + memory.size:
                return memory[address - base : address - base + size]
        raise Failure(Status.cudaErrorIllegalAddress)

    def give(self, stream: int, work: Work) -> None:
        """Enqueues work on a stream, or in the graph that captures the stream."""
        with self.lock:
            if stream in self.captures:
                self.captures[stream][1].works.append(work)
                return
            if stream not in self.streams:
                raise Failure(Status.cudaErrorInvalidResourceHandle)
            self.overlaps += any(queue for other, queue in self.streams.items() if other != stream)
            for memory in work.writes():
                memory[...] = POISON
            self.streams[stream].append(work)

    def drain(self, stream: int, until: Token | None = None) -> None:
        """Run what was given to a stream, up to a point in it."""
        with self.lock:
            queue = self.streams.get(stream, deque())
            while queue and not (until is not None and until.passed):
                work = queue.popleft()
                if self.broken is None:
                    try:
                        work.run()
                    except Failure as error:
                        self.broken = error.status

    def wait_for_all(self) -> None:
        """Run everything that is under way."""
        for stream in list(self.streams):
            self.drain(stream)

    def allocate(self, size: int) -> int:
        if size < 1:
            raise Failure(Status.cudaErrorInvalidValue)
        if sum(memory.size for memory in self.device.values()) + size > self.capacity:
            raise Failure(Status.cudaErrorMemoryAllocation)
        address = self._address(size)
        self.device[address] = np.full(size, POISON, np.uint8)
        return address

    def allocate_host(self, size: int) -> int:
        memory = np.full(size + 64, POISON, np.uint8)
        memory = memory[-memory.ctypes.data % 64 :][:size]
        self.host[memory.ctypes.data] = memory
        return int(memory.ctypes.data)

    def map(self, host: int) -> int:
        address = self._address(self.host[host].size)
        self.mapped[address] = host
        return address

    def free_host(self, host: int) -> None:
        if host not in self.host:
            raise Failure(Status.cudaErrorInvalidValue)
        self.wait_for_all()
        self.mapped = {device: base for device, base in self.mapped.items() if base != host}
        memory = self.host.pop(host)
        memory[...] = POISON
        self._freed.append(memory)  # kept: who still reads it must find poison, not end the process

    def free(self, address: int) -> None:
        """As cudaFree: after everything that is under way."""
        if address not in self.device:
            raise Failure(Status.cudaErrorInvalidValue)
        self.wait_for_all()
        del self.device[address]

    def copy(self, stream: int, target: Callable[[], Any], source: Callable[[], Any], *, to_host: bool) -> None:
        def run() -> None:
            target()[...] = source()

        self.give(stream, Work(run, (lambda: [target()]) if to_host else list))

    def record(self, event: Event, stream: int) -> None:
        token = Token(stream)

        def run() -> None:
            self._ticks += 1
            token.passed, token.order = True, self._ticks

        self.give(stream, Work(run))
        event.token = token

    def wait(self, stream: int, event: Event) -> None:
        token = event.token
        if token is not None:
            self.give(stream, Work(lambda: self.drain(token.stream, token)))

    def launch(self, graph: Graph, stream: int) -> None:
        self.launched += 1
        graph.launches += 1
        for work in graph.works:
            self.give(stream, work)

    def register(self, made: Any) -> int:
        """A handle for an object, as C has them."""
        handle = self._address(64)
        self._objects[handle] = made
        return handle

    def find(self, handle: Any, kind: type) -> Any:
        made = self._objects.get(int(handle))
        if not isinstance(made, kind):
            raise Failure(Status.cudaErrorInvalidResourceHandle)
        return made

    def forget(self, handle: int) -> None:
        del self._objects[int(handle)]

    def new_stream(self) -> int:
        handle = self._address(64)
        self.streams[handle] = deque()
        return handle

    def free_stream(self, stream: int) -> None:
        if self.streams.pop(stream, None) is None:
            raise Failure(Status.cudaErrorInvalidResourceHandle)

    def _address(self, size: int) -> int:
        with self.lock:
            address = self._next
            self._next += -(-size // 256) * 256 + 4096  # a gap: running over an end is seen
            return address
