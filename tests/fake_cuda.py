"""The Python packages that reach a `FakeGpu`, and a machine that has one of them.

gpu = FakeGpu()
install_machine(monkeypatch, gpu, runtime_module("10.13.3.9", gpu), ADA)
"""

from __future__ import annotations

import ctypes
import enum
import importlib.machinery
import sys
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_driver import install_driver
from fake_gpu import Event, Failure, FakeGpu, Graph, Status

from twins_trt.device import Device

_GPU_MODULES = ("tensorrt", "tensorrt_rtx", "cuda", "cuda.bindings", "cuda.bindings.runtime", "pycuda", "pycuda.driver")


def install_machine(
    monkeypatch: pytest.MonkeyPatch,
    gpu: FakeGpu,
    tensorrt: ModuleType,
    device: Device | None,
    *,
    package: str | None = "cuda-bindings",
) -> None:
    """From now on this machine has one TensorRT, one CUDA package or none, and the driver of `device`; nothing else.

    package: "cuda-bindings" or "pycuda".
    """
    for name in _GPU_MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    modules = [tensorrt]
    if package is not None:
        made = cuda_bindings(gpu) if package == "cuda-bindings" else pycuda(gpu)
        parents = made.__name__.split(".")[:-1]
        modules += [_package(".".join(parents[: end + 1])) for end in range(len(parents))] + [made]
    for module in modules:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    install_driver(monkeypatch, device)


def _package(name: str) -> ModuleType:
    module = ModuleType(name)
    module.__path__ = []
    return module


def _module(name: str, contents: dict[str, Any]) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__dict__.update(contents)
    return module


def cuda_bindings(gpu: FakeGpu) -> ModuleType:
    """`cuda.bindings.runtime`."""

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
            with gpu.lock:
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


def pycuda(gpu: FakeGpu) -> ModuleType:
    """`pycuda.driver`. Names and parameters are as in pycuda's `src/wrapper/wrap_cudadrv.cpp`.

    A call outside a pushed context fails.
    """
    pushed = threading.local()

    class Error(Exception): ...

    class OutOfMemory(Error): ...

    def inside() -> None:
        if not getattr(pushed, "depth", 0):
            raise Error("no context is current")

    def checked(function: Callable[..., Any], *given: Any, name: str = "") -> Any:
        inside()
        with gpu.lock:
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
            checked(gpu.wait_for_all)

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
