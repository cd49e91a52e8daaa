"""Memory through NVIDIA's cuda-bindings: the functions of the CUDA runtime, which return their error first."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from twins_trt.errors import EngineError
from twins_trt.runtime.memory.protocol import HostBlock, OutOfMemory

log = logging.getLogger("twins_trt")


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
        # Both are states of the thread, which belongs to the caller.
        device = self._call("cudaGetDevice")
        relaxed = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
        mode = self._call("cudaThreadExchangeStreamCaptureMode", relaxed)
        try:
            self._call("cudaSetDevice", 0)
            yield
        finally:
            self._restore("cudaThreadExchangeStreamCaptureMode", mode)
            if device != 0:
                self._restore("cudaSetDevice", device)

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

    def copy_in(self, address: int, block: HostBlock, size: int, stream: int, *, offset: int = 0) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, block.handle + offset, size, kind, stream)

    def copy_out(self, block: HostBlock, address: int, size: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", block.handle, address, size, kind, stream)

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        # On an integrated GPU one of the two may be mapped host memory, so CUDA looks for itself.
        self._call("cudaMemcpyAsync", target, source, size, self._cuda.cudaMemcpyKind.cudaMemcpyDefault, stream)

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def wait(self, stream: int, other: int) -> None:
        event = self.new_event(timing=False)
        try:
            self.record(event, other)
            self.wait_event(stream, event)
        finally:
            self.free_event(event)  # CUDA keeps it as long as work waits for it

    def new_event(self, *, timing: bool) -> Any:
        flags = self._cuda.cudaEventDefault if timing else self._cuda.cudaEventDisableTiming
        return self._call("cudaEventCreateWithFlags", flags)

    def record(self, event: Any, stream: int) -> None:
        self._call("cudaEventRecord", event, stream)

    def try_record(self, event: Any, stream: int) -> bool:
        if self.captured(stream):  # the event would become a part of the capture, and of no use outside
            return False
        self.record(event, stream)
        return True

    def wait_event(self, stream: int, event: Any) -> None:
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def synchronize_event(self, event: Any) -> None:
        self._call("cudaEventSynchronize", event)

    def seconds(self, start: Any, end: Any) -> float:
        return float(self._call("cudaEventElapsedTime", start, end)) / 1e3

    def free_event(self, event: Any) -> None:
        self._call("cudaEventDestroy", event)

    def captured(self, stream: int) -> bool:
        none = self._cuda.cudaStreamCaptureStatus.cudaStreamCaptureStatusNone
        try:
            return bool(self._call("cudaStreamIsCapturing", stream) != none)
        except EngineError:  # the legacy default stream, while one that waits for it is captured
            return True

    def capture(self, stream: int, work: Callable[[], None]) -> Any:
        # Relaxed: what other threads allocate and free neither fails nor breaks the capture, and no more does what this
        # thread frees because Python collects an array meanwhile. None of it becomes a part of the graph.
        self._call("cudaStreamBeginCapture", stream, self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed)
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

    def _restore(self, function: str, value: Any) -> None:
        """Sets a state of the thread back. It raises nothing, because it runs after errors too."""
        status, *_ = getattr(self._cuda, function)(value)
        if status != self._cuda.cudaError_t.cudaSuccess:
            self._cuda.cudaGetLastError()
            log.debug("%s(%s) failed", function, value)

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
