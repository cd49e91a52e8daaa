"""The Python packages that reach a `FakeGpu`, and a machine that has one of them.

gpu = FakeGpu()
install_machine(monkeypatch, gpu, runtime_module("10.13.3.9", gpu), ADA)
"""

from __future__ import annotations

import inspect
import operator
import sys
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fake_capture import Enum, Failure, Mode, Status
from fake_driver import install_driver
from fake_gpu import Event, Executable, FakeGpu, Graph
from fake_pycuda import pycuda

from twins_trt.device import Device

if TYPE_CHECKING:
    import pytest  # a benchmark rehearses where there may be none

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
    install_driver(monkeypatch, device, gpu=gpu)


def _package(name: str) -> ModuleType:
    module = ModuleType(name)
    module.__path__ = []
    return module


class _Handle:
    """As the real package's handles: a number inside, equal to its like and to no number."""

    def __init__(self, number: int = 0) -> None:
        self._number = number

    def __int__(self) -> int:
        return self._number

    def __index__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Handle) and type(other) is type(self) and other._number == self._number

    def __hash__(self) -> int:
        return hash(self._number)


class cudaStream_t(_Handle):
    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, int(self)


class cudaEvent_t(_Handle): ...


class cudaGraph_t(_Handle): ...


class cudaGraphExec_t(_Handle): ...


class cudaMemcpyKind(Enum):
    cudaMemcpyHostToHost = 0
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3
    cudaMemcpyDefault = 4


class cudaStreamCaptureStatus(Enum):
    cudaStreamCaptureStatusNone = 0
    cudaStreamCaptureStatusActive = 1
    cudaStreamCaptureStatusInvalidated = 2


_CONSTANTS = {
    "cudaError_t": Status,
    "cudaMemcpyKind": cudaMemcpyKind,
    "cudaStreamCaptureMode": Mode,
    "cudaStreamCaptureStatus": cudaStreamCaptureStatus,
    "cudaStream_t": cudaStream_t,
    "cudaEvent_t": cudaEvent_t,
    "cudaGraph_t": cudaGraph_t,
    "cudaGraphExec_t": cudaGraphExec_t,
    "cudaHostAllocDefault": 0,
    "cudaHostAllocPortable": 1,
    "cudaHostAllocMapped": 2,
    "cudaHostAllocWriteCombined": 4,
    "cudaStreamDefault": 0,
    "cudaStreamNonBlocking": 1,
    "cudaStreamLegacy": 1,
    "cudaStreamPerThread": 2,
    "cudaEventDefault": 0,
    "cudaEventBlockingSync": 1,
    "cudaEventDisableTiming": 2,
    "cudaEventWaitDefault": 0,
}


class _Runtime:
    """Functions with the parameters of the real ones; arguments are numbers already. Each returns the values after the
    error code: None for none."""

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu

    def cudaGetDeviceCount(self) -> int:
        return self.gpu.devices

    def cudaGetDevice(self) -> int:
        return self.gpu.current

    def cudaSetDevice(self, device: int) -> None:
        self.gpu.select(device)

    def cudaDeviceSynchronize(self) -> None:
        self.gpu.synchronize_device()

    def cudaMalloc(self, size: int) -> int:
        return self.gpu.allocate(_unsigned(size))

    def cudaFree(self, devPtr: int) -> None:
        self.gpu.free(devPtr)

    def cudaHostAlloc(self, size: int, flags: int) -> int:
        return self.gpu.allocate_host(_unsigned(size), mapped=bool(flags & 2))

    def cudaHostGetDevicePointer(self, pHost: int, flags: int) -> int:
        return self.gpu.map(pHost)

    def cudaFreeHost(self, ptr: int) -> None:
        self.gpu.free_host(ptr)

    def cudaStreamCreateWithFlags(self, flags: int) -> cudaStream_t:
        return cudaStream_t(self.gpu.new_stream(blocking=not flags & 1))

    def cudaStreamDestroy(self, stream: int) -> None:
        self.gpu.free_stream(stream)

    def cudaStreamSynchronize(self, stream: int) -> None:
        self.gpu.synchronize(stream)

    def cudaStreamQuery(self, stream: int) -> None:
        self.gpu.query(stream)

    def cudaStreamIsCapturing(self, stream: int) -> cudaStreamCaptureStatus:
        found = self.gpu.find_stream(stream)
        if found.legacy and any(s.blocking and s.device == found.device for s in self.gpu.captures):
            raise Failure(Status.cudaErrorStreamCaptureImplicit)  # without harm to the capture
        capture = self.gpu.captures.get(found)
        return cudaStreamCaptureStatus(0 if capture is None else 1 if capture.valid else 2)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: int, stream: int) -> None:
        gpu = self.gpu
        (target, to_host), (source, from_host) = _at(gpu, dst, count), _at(gpu, src, count)
        kinds = cudaMemcpyKind.__members__
        wanted = kinds[f"cudaMemcpy{'Host' if from_host else 'Device'}To{'Host' if to_host else 'Device'}"]
        # Undefined in the documentation: another direction than the pointers have, and areas that overlap.
        if kind not in (wanted, cudaMemcpyKind.cudaMemcpyDefault) or max(dst, src) < min(dst, src) + count:
            raise Failure(Status.cudaErrorInvalidValue)
        gpu.copy(stream, target, source)

    def cudaEventCreateWithFlags(self, flags: int) -> cudaEvent_t:
        handle = self.gpu.register(Event(self.gpu.current, timed=not flags & 2))
        self.gpu.events.add(handle)
        return cudaEvent_t(handle)

    def cudaEventRecord(self, event: int, stream: int) -> None:
        self.gpu.record(self.gpu.find(event, Event), stream)

    def cudaEventQuery(self, event: int) -> None:
        self.gpu.query_event(self.gpu.find(event, Event))

    def cudaEventSynchronize(self, event: int) -> None:
        self.gpu.synchronize_event(self.gpu.find(event, Event))

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> None:
        self.gpu.wait(stream, self.gpu.find(event, Event))

    def cudaEventElapsedTime(self, start: int, end: int) -> float:
        return self.gpu.milliseconds(self.gpu.find(start, Event), self.gpu.find(end, Event))

    def cudaEventDestroy(self, event: int) -> None:
        self.gpu.find(event, Event)
        self.gpu.events.remove(event)
        self.gpu.forget(event)

    def cudaThreadExchangeStreamCaptureMode(self, mode: int) -> Mode:
        return self.gpu.rules.exchange(Mode(mode))

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> None:
        self.gpu.begin_capture(stream, Mode(mode))

    def cudaStreamEndCapture(self, stream: int) -> cudaGraph_t:
        handle = self.gpu.register(self.gpu.end_capture(stream))
        self.gpu.graphs.add(handle)
        return cudaGraph_t(handle)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> cudaGraphExec_t:
        found = self.gpu.find(graph, Graph)
        self.gpu.captured += 1
        handle = self.gpu.register(Executable(list(found.works)))
        self.gpu.graphs.add(handle)
        return cudaGraphExec_t(handle)

    def cudaGraphLaunch(self, graphExec: int, stream: int) -> None:
        self.gpu.launch(self.gpu.find(graphExec, Executable), stream)

    def cudaGraphDestroy(self, graph: int) -> None:
        self._drop(graph, Graph)

    def cudaGraphExecDestroy(self, graphExec: int) -> None:
        self._drop(graphExec, Executable)

    def _drop(self, graph: int, kind: type) -> None:
        self.gpu.find(graph, kind)
        self.gpu.graphs.remove(graph)
        self.gpu.forget(graph)


def _number(parameter: str, value: Any) -> int:
    """An argument as a number: None is the handle or address 0. The releases before 13 want the member of an enum."""
    if parameter in ("kind", "mode"):
        return int(value.value)
    return 0 if value is None else operator.index(value)


def _unsigned(size: int) -> int:
    if size < 0:
        raise OverflowError("can't convert negative value to size_t")
    return size


def _at(gpu: FakeGpu, address: int, size: int) -> tuple[Callable[[], Any], bool]:
    """What finds the memory behind a pointer, and whether that is the host's, which must be pinned."""
    try:
        gpu.bytes_at(address, size)
    except Failure:
        gpu.host_bytes(address, size)
        return lambda: gpu.host_bytes(address, size), True
    return lambda: gpu.bytes_at(address, size), False


def cuda_bindings(gpu: FakeGpu) -> ModuleType:
    """`cuda.bindings.runtime`."""
    runtime, thread = _Runtime(gpu), threading.local()

    def wrap(name: str) -> Callable[..., tuple[Any, ...]]:
        function = getattr(runtime, name)
        signature = inspect.signature(function)
        nothing = (None,) if signature.return_annotation not in (None, "None") else ()

        def call(*given: Any, **named: Any) -> tuple[Any, ...]:
            numbers = [
                _number(parameter, each) for parameter, each in signature.bind(*given, **named).arguments.items()
            ]
            with gpu.lock:
                gpu.calls.append(name)
                try:
                    if gpu.fail.get(name):
                        raise Failure(gpu.fail[name].pop(0))
                    # A broken GPU refuses everything, even to take memory back.
                    if gpu.broken is not None:
                        raise Failure(gpu.broken)
                    result = function(*numbers)
                    if gpu.broken is not None:
                        raise Failure(gpu.broken)
                except Failure as error:
                    thread.last = error.status
                    return (error.status, *nothing)
                return (Status.cudaSuccess, *(() if result is None else (result,)))

        call.function, call.gpu = function, gpu  # type: ignore[attr-defined]
        return call

    def last_error() -> tuple[Status]:
        """This thread's last error, which is forgotten; that of a broken GPU stays."""
        gpu.calls.append("cudaGetLastError")
        last, thread.last = getattr(thread, "last", Status.cudaSuccess), gpu.broken or Status.cudaSuccess
        return (last,)

    module = ModuleType("cuda.bindings.runtime")
    module.__spec__ = ModuleSpec(module.__name__, None)
    module.__dict__.update(_CONSTANTS)
    module.__dict__.update({name: wrap(name) for name in vars(_Runtime) if name.startswith("cuda")})
    module.__dict__.update(
        cudaGetLastError=last_error,
        cudaPeekAtLastError=lambda: (getattr(thread, "last", Status.cudaSuccess),),
        cudaGetErrorString=lambda error: (Status.cudaSuccess, Status(error).name.encode()),
        cudaGetErrorName=lambda error: (Status.cudaSuccess, Status(error).name.encode()),
    )
    return module
