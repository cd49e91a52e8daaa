"""Memory through NVIDIA's cuda-bindings: the functions of the CUDA runtime, which return their error first."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from twins_trt.errors import EngineError
from twins_trt.runtime.memory.protocol import HostBlock, OutOfMemory


def open_memory() -> CudaBindings:
    """The memory of the first GPU. Raises EngineError if the driver is absent, too old or sees no GPU."""
    from cuda.bindings import runtime

    return CudaBindings(runtime)


class CudaBindings:
    """See `Memory`. cuda: the module `cuda.bindings.runtime`."""

    name = "cuda-bindings"
    graphs = True

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        if self._call("cudaGetDeviceCount") < 1:
            raise EngineError("the CUDA driver sees no GPU", "see nvidia-smi and CUDA_VISIBLE_DEVICES")

    @contextmanager
    def entered(self) -> Iterator[None]:
        self._call("cudaSetDevice", 0)  # per thread, and nearly free if it is set already
        yield

    def allocate(self, size: int) -> int:
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def allocate_host(self, size: int, *, mapped: bool) -> HostBlock:
        flags = self._cuda.cudaHostAllocMapped if mapped else self._cuda.cudaHostAllocDefault
        host = int(self._call("cudaHostAlloc", size, flags))
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(host))
        device = int(self._call("cudaHostGetDevicePointer", host, 0)) if mapped else None
        return HostBlock(array, device, host)

    def free_host(self, block: HostBlock) -> None:
        self._call("cudaFreeHost", block.handle)

    def new_stream(self) -> int:
        return int(self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))

    def free_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def copy_in(self, address: int, block: HostBlock, size: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, block.handle, size, kind, stream)

    def copy_out(self, block: HostBlock, address: int, size: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", block.handle, address, size, kind, stream)

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def wait(self, stream: int, other: int) -> None:
        event = self._call("cudaEventCreateWithFlags", self._cuda.cudaEventDisableTiming)
        try:
            self._call("cudaEventRecord", event, other)
            self._call("cudaStreamWaitEvent", stream, event, 0)
        finally:
            self._call("cudaEventDestroy", event)  # CUDA keeps it as long as work waits for it

    def new_event(self) -> Any:
        return self._call("cudaEventCreateWithFlags", self._cuda.cudaEventDefault)

    def record(self, event: Any, stream: int) -> None:
        self._call("cudaEventRecord", event, stream)

    def seconds(self, start: Any, end: Any) -> float:
        return float(self._call("cudaEventElapsedTime", start, end)) / 1e3

    def free_event(self, event: Any) -> None:
        self._call("cudaEventDestroy", event)

    def capture(self, stream: int, work: Callable[[], None]) -> Any:
        # Thread-local: allocations of other threads neither fail nor become part of the graph.
        self._call("cudaStreamBeginCapture", stream, self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            work()
        except BaseException:
            # The stream has to leave capture mode in any case; the graph that this returns is not used.
            status, broken = self._cuda.cudaStreamEndCapture(stream)
            if status == self._cuda.cudaError_t.cudaSuccess:
                self._call("cudaGraphDestroy", broken)
            self._cuda.cudaGetLastError()
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def free_graph(self, graph: Any) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def _call(self, function: str, *given: Any) -> Any:
        """The results after the error code; a single result alone. Raises EngineError unless the call succeeded."""
        status, *results = getattr(self._cuda, function)(*given)
        if status == self._cuda.cudaError_t.cudaSuccess:
            return results[0] if len(results) == 1 else tuple(results)
        self._cuda.cudaGetLastError()  # clears it; otherwise the next caller, such as TensorRT, would find it
        text = self._cuda.cudaGetErrorString(status)[1]
        words = text.decode() if isinstance(text, bytes) else str(text)
        if status == self._cuda.cudaError_t.cudaErrorMemoryAllocation:
            raise OutOfMemory(f"{function} found no room: {words}")
        raise EngineError(f"{function} failed: {words} ({getattr(status, 'name', status)})")
