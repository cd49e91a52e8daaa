"""pycuda on a `FakeGpu`."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from fake_gpu import Event, Failure, FakeGpu, Status


def pycuda(gpu: FakeGpu) -> ModuleType:
    """`pycuda.driver`. Names and parameters are as in pycuda's `src/wrapper/wrap_cudadrv.cpp`.

    A call outside a pushed context fails.
    """
    pushed = threading.local()
    host_alloc_flags = SimpleNamespace(PORTABLE=1, DEVICEMAP=2, WRITECOMBINED=4)

    class Error(Exception): ...

    class OutOfMemory(Error): ...

    def inside() -> None:
        if not getattr(pushed, "before", []):
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
        """The primary context of a device. The stack of contexts is the thread's."""

        def __init__(self, device: int) -> None:
            self._device = device

        def push(self) -> None:
            pushed.before = [*getattr(pushed, "before", []), gpu.current]
            gpu.select(self._device)

        @staticmethod
        def pop() -> None:
            inside()
            gpu.select(pushed.before.pop())

        @staticmethod
        def synchronize() -> None:
            checked(gpu.synchronize_device)

    class Device:
        def __init__(self, number: int) -> None:
            self.number = number

        def retain_primary_context(self) -> Context:
            return Context(self.number)

    class Stream:
        def __init__(self, flags: int = 0) -> None:
            self.handle = checked(lambda: gpu.new_stream(blocking=not flags & 1), name="Stream")

        def synchronize(self) -> None:
            checked(gpu.synchronize, self.handle)

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
        size, mapped = shape * np.dtype(dtype).itemsize, bool(mem_flags & host_alloc_flags.DEVICEMAP)
        address = checked(lambda: gpu.allocate_host(size, mapped=mapped), name="pagelocked_empty")
        array = np.ctypeslib.as_array((ctypes.c_uint8 * shape).from_address(address)).view(HostArray)
        array.base = HostAllocation(address)
        return array

    class CudaEvent:
        def __init__(self, flags: int = 0) -> None:
            inside()
            self.event = Event(gpu.current, timed=not flags & 2)

        def record(self, stream: Stream) -> CudaEvent:
            checked(gpu.record, self.event, stream.handle)
            return self

        def time_till(self, end: CudaEvent) -> float:
            return float(checked(gpu.milliseconds, self.event, end.event))

    def memcpy_htod_async(dest: int, src: Any, stream: Stream) -> None:
        gpu.host_bytes(src.ctypes.data, src.nbytes)  # Failure: not pinned
        copy = (stream.handle, lambda: gpu.bytes_at(dest, src.nbytes), lambda: src)
        checked(lambda: gpu.copy(*copy), name="memcpy_htod_async")

    def memcpy_dtoh_async(dest: Any, src: int, stream: Stream) -> None:
        assert dest.ctypes.data in gpu.host, "not pinned"
        copy = (stream.handle, lambda: dest, lambda: gpu.bytes_at(src, dest.nbytes))
        checked(lambda: gpu.copy(*copy), name="memcpy_dtoh_async")

    def memcpy_dtod_async(dest: int, src: int, size: int, stream: Stream) -> None:
        copy = (stream.handle, lambda: gpu.bytes_at(dest, size), lambda: gpu.bytes_at(src, size))
        checked(lambda: gpu.copy(*copy), name="memcpy_dtod_async")

    module = ModuleType("pycuda.driver")
    module.__spec__ = ModuleSpec(module.__name__, None)
    module.__dict__.update(
        {
            "init": lambda flags=0: None,
            "Device": Device,
            "Context": Context,
            "Stream": Stream,
            "Event": CudaEvent,
            "Error": Error,
            "MemoryError": OutOfMemory,
            "host_alloc_flags": host_alloc_flags,
            "mem_alloc": lambda size: DeviceAllocation(checked(gpu.allocate, size)),
            "pagelocked_empty": pagelocked_empty,
            "memcpy_htod_async": memcpy_htod_async,
            "memcpy_dtoh_async": memcpy_dtoh_async,
            "memcpy_dtod_async": memcpy_dtod_async,
        }
    )
    return module
