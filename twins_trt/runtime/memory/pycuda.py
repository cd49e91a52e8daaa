"""Memory through pycuda, which JetPack's older samples use. It cannot use CUDA graphs or another library's stream.

Written from pycuda's reference (documen.tician.de/pycuda/driver.html); not run on a device.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from twins_trt.device import load_driver
from twins_trt.errors import EngineError
from twins_trt.runtime.memory.protocol import HostBlock, OutOfMemory

log = logging.getLogger("twins_trt")

_DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED


def open_memory() -> PyCuda:
    """The memory of the first GPU. Raises EngineError if the driver is absent, too old or sees no GPU."""
    import pycuda.driver as cuda

    log.info("pycuda has no CUDA graphs: calls are launched one by one; pip install cuda-bindings replays them")
    return PyCuda(cuda)


class PyCuda:
    """See `Memory`. cuda: the module `pycuda.driver`."""

    name = "pycuda"
    graphs = False

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self._allocations: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}
        self._driver = load_driver()
        with self._errors("starting CUDA"):
            cuda.init()
            # The primary context is the one that TensorRT and PyTorch use.
            self._context = cuda.Device(0).retain_primary_context()

    @contextmanager
    def entered(self) -> Iterator[None]:
        self._context.push()
        try:
            mode = _exchange_capture_mode(self._driver, _RELAXED)
            try:
                yield
            finally:
                _exchange_capture_mode(self._driver, mode)
        finally:
            self._cuda.Context.pop()

    def allocate(self, size: int) -> int:
        with self._errors("mem_alloc"):
            allocation = self._cuda.mem_alloc(size)
        self._allocations[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int) -> None:
        with self._errors("DeviceAllocation.free"):
            self._allocations.pop(address).free()

    def allocate_host(self, size: int, *, mapped: bool) -> HostBlock:
        flags = self._cuda.host_alloc_flags.DEVICEMAP if mapped else 0
        with self._errors("pagelocked_empty"):
            array = self._cuda.pagelocked_empty(size, np.uint8, mem_flags=flags)
            device = int(array.base.get_device_pointer()) if mapped else None
        return HostBlock(array, device, array.base)

    def free_host(self, block: HostBlock) -> None:
        with self._errors("HostAllocation.free"):
            block.handle.free()

    def new_stream(self) -> int:
        with self._errors("Stream"):
            stream = self._cuda.Stream(1)  # its flags are CUDA's: CU_STREAM_NON_BLOCKING
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def free_stream(self, stream: int) -> None:
        del self._streams[stream]  # destroyed with its object

    def copy_in(self, address: int, block: HostBlock, size: int, stream: int, *, offset: int = 0) -> None:
        with self._errors("memcpy_htod_async"):
            self._cuda.memcpy_htod_async(address, block.array[offset : offset + size], self._streams[stream])

    def copy_out(self, block: HostBlock, address: int, size: int, stream: int) -> None:
        with self._errors("memcpy_dtoh_async"):
            self._cuda.memcpy_dtoh_async(block.array[:size], address, self._streams[stream])

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        with self._errors("memcpy_dtod_async"):
            self._cuda.memcpy_dtod_async(target, source, size, self._streams[stream])

    def synchronize(self, stream: int) -> None:
        with self._errors("Stream.synchronize"):
            self._streams[stream].synchronize()

    def wait(self, stream: int, other: int) -> None:
        # One of the two belongs to another library, and pycuda cannot use it, so this waits for the whole device.
        with self._errors("Context.synchronize"):
            self._cuda.Context.synchronize()

    def new_event(self, *, timing: bool) -> Any:
        with self._errors("Event"):
            return self._cuda.Event(0 if timing else _DISABLE_TIMING)

    def record(self, event: Any, stream: int) -> None:
        with self._errors("Event.record"):
            event.record(self._streams[stream])

    def try_record(self, event: Any, stream: int) -> bool:
        return False  # it is another library's stream

    def wait_event(self, stream: int, event: Any) -> None:
        with self._errors("Stream.wait_for_event"):
            self._streams[stream].wait_for_event(event)

    def synchronize_event(self, event: Any) -> None:
        with self._errors("Event.synchronize"):
            event.synchronize()

    def seconds(self, start: Any, end: Any) -> float:
        with self._errors("Event.time_till"):
            return float(start.time_till(end)) / 1e3

    def free_event(self, event: Any) -> None:
        """Destroyed with its object."""

    def captured(self, stream: int) -> bool:
        return False  # a stream joins a capture by waiting for one, and pycuda's never wait for another's

    def capture(self, stream: int, work: Callable[[], None]) -> Any:
        raise EngineError("pycuda has no CUDA graphs", "pip install cuda-bindings")

    def launch(self, graph: Any, stream: int) -> None:
        raise EngineError("pycuda has no CUDA graphs", "pip install cuda-bindings")

    def free_graph(self, graph: Any) -> None:
        """Does nothing: pycuda has no graphs."""

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._cuda.MemoryError as error:
            raise OutOfMemory(f"{what} found no room: {error}") from error
        except self._cuda.Error as error:
            raise EngineError(f"{what} failed: {error}") from error


def _exchange_capture_mode(driver: ctypes.CDLL | None, mode: int) -> int:
    """Sets how this thread heeds stream captures, and returns how it did. pycuda has no such function."""
    before = ctypes.c_int(mode)
    function = getattr(driver, "cuThreadExchangeStreamCaptureMode", None)  # None: a driver before CUDA 10.1
    if function is not None:
        function(ctypes.byref(before))
    return before.value
