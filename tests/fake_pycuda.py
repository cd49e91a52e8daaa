"""pycuda on a `FakeGpu`."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from fake_gpu import Event, Failure, FakeGpu, Status


def pycuda(gpu: FakeGpu) -> ModuleType:
    """`pycuda.driver`. Names and parameters are as in pycuda's `src/wrapper/wrap_cudadrv.cpp`.

    A call outside a pushed context fails. What an object holds is freed with it.
    """
    pushed = threading.local()
    host_alloc_flags = SimpleNamespace(PORTABLE=1, DEVICEMAP=2, WRITECOMBINED=4)

    class Error(Exception): ...

    class OutOfMemory(Error, MemoryError): ...

    class LogicError(Error): ...

    def inside() -> None:
        if not getattr(pushed, "before", []):
            raise LogicError("no context is current")

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
                kind = OutOfMemory if error.status == Status.cudaErrorMemoryAllocation else LogicError
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

    class Allocation:
        """Memory until `free`, or until nothing refers to the object any more."""

        def __init__(self, address: int, free: Callable[[int], None]) -> None:
            self._address, self._free, self._live = address, free, True

        def __int__(self) -> int:
            return self._address

        def free(self) -> None:
            self._live = False
            checked(self._free, self._address)

        def __del__(self) -> None:
            # pycuda enters the context itself, and only warns of an error.
            if self._live and gpu.broken is None:
                with gpu.lock, contextlib.suppress(Failure):
                    self._free(self._address)

    class HostAllocation(Allocation):
        def __init__(self, address: int, shape: int, dtype: Any) -> None:
            super().__init__(address, gpu.free_host)
            # The array that numpy makes of this, and its views, keep the object as their base.
            typestr = np.dtype(dtype).str
            self.__array_interface__ = {"data": (address, False), "shape": (shape,), "typestr": typestr, "version": 3}

        def get_device_pointer(self) -> int:
            return checked(gpu.map, self._address)

    def pagelocked_empty(shape: int, dtype: Any, order: str = "C", mem_flags: int = 0) -> Any:
        size, mapped = shape * np.dtype(dtype).itemsize, bool(mem_flags & host_alloc_flags.DEVICEMAP)
        address = checked(lambda: gpu.allocate_host(size, mapped=mapped), name="pagelocked_empty")
        return np.asarray(HostAllocation(address, shape, dtype))

    class CudaEvent:
        def __init__(self, flags: int = 0) -> None:
            inside()
            self.event = Event(gpu.current, timed=not flags & 2)

        def record(self, stream: Stream | None = None) -> CudaEvent:
            checked(gpu.record, self.event, handle(stream))
            return self

        def time_till(self, end: CudaEvent) -> float:
            return float(checked(gpu.milliseconds, self.event, end.event))

    def handle(stream: Stream | None) -> int:
        return 0 if stream is None else int(stream.handle)

    def copy(name: str, stream: Stream | None, target: Callable[[], Any], source: Callable[[], Any]) -> None:
        def checked_copy() -> None:
            target(), source()
            gpu.copy(handle(stream), target, source)

        checked(checked_copy, name=name)

    def pinned(array: Any) -> Callable[[], Any]:
        """Finds an array's bytes. CUDA takes pageable memory too, but waits then: that is never meant here."""
        address, size = array.ctypes.data, array.nbytes
        return lambda: gpu.host_bytes(address, size)

    def memcpy_htod_async(dest: int, src: Any, stream: Stream | None = None) -> None:
        copy("memcpy_htod_async", stream, lambda: gpu.bytes_at(dest, src.nbytes), pinned(src))

    def memcpy_dtoh_async(dest: Any, src: int, stream: Stream | None = None) -> None:
        size = dest.nbytes
        copy("memcpy_dtoh_async", stream, pinned(dest), lambda: gpu.bytes_at(src, size))

    def memcpy_dtod_async(dest: int, src: int, size: int, stream: Stream | None = None) -> None:
        copy("memcpy_dtod_async", stream, lambda: gpu.bytes_at(dest, size), lambda: gpu.bytes_at(src, size))

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
            "LogicError": LogicError,
            "host_alloc_flags": host_alloc_flags,
            "mem_alloc": lambda size: Allocation(checked(gpu.allocate, size), gpu.free),
            "pagelocked_empty": pagelocked_empty,
            "memcpy_htod_async": memcpy_htod_async,
            "memcpy_dtoh_async": memcpy_dtoh_async,
            "memcpy_dtod_async": memcpy_dtod_async,
        }
    )
    return module
