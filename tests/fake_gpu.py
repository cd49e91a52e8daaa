"""A GPU that does everything as late as CUDA allows, behind fakes of `cuda.bindings.runtime` and `pycuda.driver`.

Work in a stream runs when something waits for it, in the order of streams and events and in no other. Until then the
host memory that it will write holds poison, and the memory that it will read may still change. So code that forgets to
wait reads nonsense, code that reuses a buffer too early computes nonsense, and memory that is freed while work on it is
under way is an illegal address, every time and not once in a thousand.

    gpu = FakeGpu()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", gpu.cuda_bindings())

`gpu.held()` counts what was not freed.
"""

from __future__ import annotations

import ctypes
import enum
import importlib.machinery
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
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
    ran. `overlaps`: how often work was given while other work waited in another stream.
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
        self._lock = threading.RLock()

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
        with self._lock:
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
        with self._lock:
            queue = self.streams.get(stream, deque())
            while queue and not (until is not None and until.passed):
                work = queue.popleft()
                if self.broken is None:
                    try:
                        work.run()
                    except Failure as error:
                        self.broken = error.status

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
        self._wait_for_all()
        self.mapped = {device: base for device, base in self.mapped.items() if base != host}
        memory = self.host.pop(host)
        memory[...] = POISON
        self._freed.append(memory)  # kept: who still reads it must find poison, not end the process

    def free(self, address: int) -> None:
        """As cudaFree: after everything that is under way."""
        if address not in self.device:
            raise Failure(Status.cudaErrorInvalidValue)
        self._wait_for_all()
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

    def cuda_bindings(self) -> ModuleType:
        """A fake of `cuda.bindings.runtime`."""
        return _cuda_bindings(self)

    def pycuda(self) -> ModuleType:
        """A fake of `pycuda.driver`."""
        return _pycuda(self)

    def _address(self, size: int) -> int:
        with self._lock:
            address = self._next
            self._next += -(-size // 256) * 256 + 4096  # a gap: running over an end is seen
            return address

    def _wait_for_all(self) -> None:
        for stream in list(self.streams):
            self.drain(stream)


def _module(name: str, contents: dict[str, Any]) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__dict__.update(contents)
    return module


def _cuda_bindings(gpu: FakeGpu) -> ModuleType:
    class Runtime:
        """Functions with the parameters of the real ones (test_memory.py compares them)."""

        def cudaGetDeviceCount(self) -> Any:
            return 1

        def cudaSetDevice(self, device: int) -> None: ...

        def cudaMalloc(self, size: int) -> int:
            if threading.get_ident() in {thread for thread, _ in gpu.captures.values()}:
                raise Failure(Status.cudaErrorStreamCaptureUnsupported)
            return gpu.allocate(size)

        def cudaFree(self, devPtr: int) -> None:
            gpu.free(devPtr)

        def cudaHostAlloc(self, size: int, flags: int) -> int:
            return gpu.allocate_host(size)

        def cudaHostGetDevicePointer(self, pHost: int, flags: int) -> int:
            return gpu.map(pHost)

        def cudaFreeHost(self, ptr: int) -> None:
            gpu.free_host(ptr)

        def cudaStreamCreateWithFlags(self, flags: int) -> int:
            assert flags == 1, "a stream that waits for the default one"
            return gpu.new_stream()

        def cudaStreamDestroy(self, stream: int) -> None:
            gpu.free_stream(stream)

        def cudaStreamSynchronize(self, stream: int) -> None:
            if stream in gpu.captures:
                raise Failure(Status.cudaErrorStreamCaptureUnsupported)
            gpu.drain(stream)

        def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: int) -> None:
            if kind == module.cudaMemcpyKind.cudaMemcpyHostToDevice:
                memory = gpu.host[src]  # KeyError: not pinned
                gpu.copy(stream, lambda: gpu.bytes_at(dst, count), lambda: memory[:count], to_host=False)
            else:
                assert kind == module.cudaMemcpyKind.cudaMemcpyDeviceToHost
                memory = gpu.host[dst]
                gpu.copy(stream, lambda: memory[:count], lambda: gpu.bytes_at(src, count), to_host=True)

        def cudaEventCreateWithFlags(self, flags: int) -> int:
            handle = gpu.register(Event())
            gpu.events.add(handle)
            return handle

        def cudaEventRecord(self, event: int, stream: int) -> None:
            gpu.record(gpu.find(event, Event), stream)

        def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> None:
            gpu.wait(stream, gpu.find(event, Event))

        def cudaEventElapsedTime(self, start: int, end: int) -> float:
            tokens = [gpu.find(handle, Event).token for handle in (start, end)]
            if not all(token and token.passed for token in tokens):
                raise Failure(Status.cudaErrorInvalidValue)
            return float(tokens[1].order - tokens[0].order)

        def cudaEventDestroy(self, event: int) -> None:
            gpu.find(event, Event)
            gpu.events.remove(event)
            gpu.forget(event)

        def cudaStreamBeginCapture(self, stream: int, mode: Any) -> None:
            assert mode == module.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            gpu.captures[stream] = (threading.get_ident(), Graph())

        def cudaStreamEndCapture(self, stream: int) -> int:
            _, graph = gpu.captures.pop(stream)
            handle = gpu.register(graph)
            gpu.graphs.add(handle)
            return handle

        def cudaGraphInstantiate(self, graph: int, flags: int) -> int:
            found = gpu.find(graph, Graph)
            gpu.captured += 1
            handle = gpu.register(Graph(list(found.works)))
            gpu.graphs.add(handle)
            return handle

        def cudaGraphLaunch(self, graphExec: int, stream: int) -> None:
            gpu.launch(gpu.find(graphExec, Graph), stream)

        def cudaGraphDestroy(self, graph: int) -> None:
            gpu.find(graph, Graph)
            gpu.graphs.remove(graph)
            gpu.forget(graph)

        def cudaGraphExecDestroy(self, graphExec: int) -> None:
            self.cudaGraphDestroy(graphExec)

        def cudaGetLastError(self) -> None: ...

    runtime = Runtime()

    def wrap(name: str) -> Callable[..., tuple[Any, ...]]:
        function = getattr(runtime, name)

        def call(*given: Any) -> tuple[Any, ...]:
            with gpu._lock:
                gpu.calls.append(name)
                try:
                    if gpu.fail.get(name):
                        raise Failure(gpu.fail[name].pop(0))
                    # A broken GPU refuses everything, even to take memory back.
                    if gpu.broken is not None:
                        raise Failure(gpu.broken)
                    result = function(*given)
                    if gpu.broken is not None:
                        raise Failure(gpu.broken)
                except Failure as error:
                    return error.status, None
                if result is None:
                    return (Status.cudaSuccess,)
                return (Status.cudaSuccess, *(result if isinstance(result, tuple) else (result,)))

        call.function = function  # type: ignore[attr-defined]
        return call

    names = [name for name in vars(Runtime) if name.startswith("cuda")]
    kinds = {"cudaMemcpyHostToDevice": 1, "cudaMemcpyDeviceToHost": 2}
    module = _module(
        "cuda.bindings.runtime",
        {
            **{name: wrap(name) for name in names},
            "cudaGetErrorString": lambda status: (Status.cudaSuccess, Status(status).name.encode()),
            "cudaError_t": Status,
            "cudaMemcpyKind": enum.IntEnum("cudaMemcpyKind", kinds),
            "cudaStreamCaptureMode": enum.IntEnum("Mode", {"cudaStreamCaptureModeThreadLocal": 1}),
            "cudaHostAllocDefault": 0,
            "cudaHostAllocMapped": 2,
            "cudaStreamNonBlocking": 1,
            "cudaEventDefault": 0,
            "cudaEventDisableTiming": 2,
        },
    )
    return module


def _pycuda(gpu: FakeGpu) -> ModuleType:
    """Names and parameters as in pycuda's `src/wrapper/wrap_cudadrv.cpp`. A call outside a pushed context fails."""
    pushed = threading.local()

    class Error(Exception): ...

    class OutOfMemory(Error): ...

    def inside() -> None:
        if not getattr(pushed, "depth", 0):
            raise Error("no context is current")

    def checked(function: Callable[..., Any], *given: Any, name: str = "") -> Any:
        inside()
        with gpu._lock:
            gpu.calls.append(name or function.__name__)
            try:
                result = function(*given)
                if gpu.broken is not None:
                    raise Failure(gpu.broken)
                return result
            except Failure as error:
                kind = OutOfMemory if error.status == Status.cudaErrorMemoryAllocation else Error
                raise kind(error.status.name) from error

    class Context:
        def push(self) -> None:
            pushed.depth = getattr(pushed, "depth", 0) + 1

        @staticmethod
        def pop() -> None:
            inside()
            pushed.depth -= 1

        @staticmethod
        def synchronize() -> None:
            checked(gpu._wait_for_all)

    class Device:
        def __init__(self, number: int) -> None:
            self.number = number

        def retain_primary_context(self) -> Context:
            return Context()

    class Stream:
        def __init__(self, flags: int = 0) -> None:
            self.handle = checked(gpu.new_stream)

        def synchronize(self) -> None:
            checked(gpu.drain, self.handle)

        def __del__(self) -> None:
            gpu.free_stream(self.handle)

    class DeviceAllocation:
        def __init__(self, address: int) -> None:
            self._address = address

        def __int__(self) -> int:
            return self._address

        def free(self) -> None:
            checked(gpu.free, self._address)

    class HostAllocation:
        def __init__(self, address: int) -> None:
            self._address = address

        def get_device_pointer(self) -> int:
            return checked(gpu.map, self._address)

        def free(self) -> None:
            checked(gpu.free_host, self._address)

    class HostArray(np.ndarray[Any, Any]):
        """pycuda's arrays have their allocation as base."""

        base: Any = None

    def pagelocked_empty(shape: int, dtype: Any, order: str = "C", mem_flags: int = 0) -> Any:
        address = checked(gpu.allocate_host, shape * np.dtype(dtype).itemsize)
        array = np.ctypeslib.as_array((ctypes.c_uint8 * shape).from_address(address)).view(HostArray)
        array.base = HostAllocation(address)
        return array

    class CudaEvent:
        def __init__(self, flags: int = 0) -> None:
            inside()
            self.event = Event()

        def record(self, stream: Stream) -> CudaEvent:
            checked(gpu.record, self.event, stream.handle)
            return self

        def time_till(self, end: CudaEvent) -> float:
            assert self.event.token and end.event.token and end.event.token.passed
            return float(end.event.token.order - self.event.token.order)

    def memcpy_htod_async(dest: int, src: Any, stream: Stream) -> None:
        assert src.ctypes.data in gpu.host, "not pinned"
        copy = (stream.handle, lambda: gpu.bytes_at(dest, src.nbytes), lambda: src)
        checked(lambda: gpu.copy(*copy, to_host=False), name="memcpy_htod_async")

    def memcpy_dtoh_async(dest: Any, src: int, stream: Stream) -> None:
        assert dest.ctypes.data in gpu.host, "not pinned"
        copy = (stream.handle, lambda: dest, lambda: gpu.bytes_at(src, dest.nbytes))
        checked(lambda: gpu.copy(*copy, to_host=True), name="memcpy_dtoh_async")

    return _module(
        "pycuda.driver",
        {
            "init": lambda flags=0: None,
            "Device": Device,
            "Context": Context,
            "Stream": Stream,
            "Event": CudaEvent,
            "Error": Error,
            "MemoryError": OutOfMemory,
            "host_alloc_flags": SimpleNamespace(PORTABLE=1, DEVICEMAP=2, WRITECOMBINED=4),
            "mem_alloc": lambda size: DeviceAllocation(checked(gpu.allocate, size)),
            "pagelocked_empty": pagelocked_empty,
            "memcpy_htod_async": memcpy_htod_async,
            "memcpy_dtoh_async": memcpy_dtoh_async,
        },
    )
