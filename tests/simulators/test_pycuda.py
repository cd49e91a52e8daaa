"""The simulated pycuda has the functions and parameters of the real one, and gives memory back when it does."""

from __future__ import annotations

import gc
import inspect
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeGpu
from fake_pycuda import pycuda

# From pycuda's src/wrapper/wrap_cudadrv.cpp (the BOOST_PYTHON_MODULE of `_driver`) and doc/driver.rst: the names that
# Python may use, "=" for what may be left out. A function without named arguments is "*".
SIGNATURES = {
    "init": "flags=",
    "pagelocked_empty": "shape dtype order= mem_flags=",
    "memcpy_htod_async": "dest src stream=",
    "memcpy_dtoh_async": "dest src stream=",
    "memcpy_dtod_async": "dest src size stream=",
    "mem_alloc": "*",
    "Stream": "flags=",
    "Stream.synchronize": "*",
    "Event": "flags=",
    "Event.record": "stream=",
    "Event.time_till": "*",
    "Device": "*",
    "Device.retain_primary_context": "*",
    "Context.push": "*",
    "Context.pop": "*",
    "Context.synchronize": "*",
}
ERRORS = {"Error": (Exception,), "MemoryError": ("Error", MemoryError), "LogicError": ("Error",)}


@pytest.fixture
def gpu() -> FakeGpu:
    return FakeGpu(capacity=1000, devices=2)


@pytest.fixture
def cuda(gpu: FakeGpu) -> Any:
    return pycuda(gpu)


@pytest.fixture
def inside(cuda: Any) -> Any:
    """pycuda with a context."""
    cuda.Device(0).retain_primary_context().push()
    yield cuda
    cuda.Context.pop()


def find(cuda: Any, name: str) -> Any:
    for part in name.split("."):
        cuda = getattr(cuda, part)
    return cuda


@pytest.mark.parametrize("name", SIGNATURES)
def test_every_function_has_the_recorded_parameters(cuda: Any, name: str) -> None:
    parameters = inspect.signature(find(cuda, name)).parameters.values()
    named = [f"{each.name}{'=' * (each.default is not each.empty)}" for each in parameters if each.name != "self"]
    wanted = SIGNATURES[name]
    if wanted == "*":
        assert not any(each.endswith("=") for each in named) and len(named) <= 1
    else:
        assert " ".join(named) == wanted


def test_every_simulated_name_is_recorded(cuda: Any) -> None:
    names = {name for name in vars(cuda) if not name.startswith("__")}
    assert names == {name for name in SIGNATURES if "." not in name} | set(ERRORS) | {"Context", "host_alloc_flags"}


def test_errors_are_of_the_real_kinds(cuda: Any) -> None:
    for name, bases in ERRORS.items():
        for base in bases:
            assert issubclass(getattr(cuda, name), getattr(cuda, base) if isinstance(base, str) else base)


def test_flags_are_the_drivers(cuda: Any) -> None:
    """CU_MEMHOSTALLOC_* of cuda.h."""
    flags = cuda.host_alloc_flags
    assert (flags.PORTABLE, flags.DEVICEMAP, flags.WRITECOMBINED) == (1, 2, 4)


def test_a_context_is_a_threads(cuda: Any, gpu: FakeGpu) -> None:
    with pytest.raises(cuda.Error):
        cuda.mem_alloc(8)
    with pytest.raises(cuda.Error):
        cuda.Context.pop()
    outer, other = (cuda.Device(number).retain_primary_context() for number in (0, 1))
    outer.push()
    other.push()
    assert gpu.current == 1
    with ThreadPoolExecutor(1) as threads, pytest.raises(cuda.Error):
        threads.submit(cuda.mem_alloc, 8).result()
    cuda.Context.pop()
    assert gpu.current == 0
    cuda.Context.pop()
    with pytest.raises(cuda.Error):
        cuda.mem_alloc(8)


def test_memory_goes_with_its_object(inside: Any, gpu: FakeGpu) -> None:
    """ "Once this object is deleted, its associated device memory is freed" (DeviceAllocation); the same for pagelocked
    arrays, whose `base` is a HostAllocation."""
    allocation, array = inside.mem_alloc(8), inside.pagelocked_empty(8, np.uint8)
    part = array[:4]
    assert gpu.held() | {"streams": 0} == {"device": 1, "host": 1, "streams": 0, "events": 0, "graphs": 0}
    del allocation, array
    gc.collect()
    assert (gpu.held()["device"], gpu.held()["host"]) == (0, 1)  # a view keeps it
    del part
    gc.collect()
    assert gpu.held()["host"] == 0


def test_freeing_twice_is_an_error(inside: Any) -> None:
    allocation, array = inside.mem_alloc(8), inside.pagelocked_empty(8, np.uint8)
    for each in (allocation, array.base):
        each.free()
        with pytest.raises(inside.LogicError):
            each.free()


def test_no_room_is_a_memory_error(inside: Any) -> None:
    with pytest.raises(inside.MemoryError):
        inside.mem_alloc(1001)


def test_copies_take_pinned_memory_and_a_stream(inside: Any, gpu: FakeGpu) -> None:
    stream, allocation = inside.Stream(1), inside.mem_alloc(8)
    source, target = (inside.pagelocked_empty(8, np.uint8) for _ in range(2))
    source[:] = 3
    inside.memcpy_htod_async(int(allocation), source, stream)
    inside.memcpy_dtoh_async(target, int(allocation), stream)
    assert target.tolist() == [0xCC] * 8
    stream.synchronize()
    assert target.tolist() == [3] * 8
    inside.memcpy_htod_async(int(allocation), source)  # the default stream
    assert gpu.pending() > 0
    inside.Context.synchronize()
    with pytest.raises(inside.LogicError):
        inside.memcpy_htod_async(int(allocation), np.zeros(8, np.uint8), stream)
    with pytest.raises(inside.LogicError):
        inside.memcpy_dtoh_async(np.zeros(8, np.uint8), int(allocation), stream)


def test_mapped_memory_is_asked_for(inside: Any, gpu: FakeGpu) -> None:
    array = inside.pagelocked_empty(8, np.uint8, mem_flags=inside.host_alloc_flags.DEVICEMAP)
    array[:] = 9
    assert gpu.bytes_at(array.base.get_device_pointer(), 8).tolist() == [9] * 8
    with pytest.raises(inside.LogicError):
        inside.pagelocked_empty(8, np.uint8).base.get_device_pointer()


def test_times_between_events(inside: Any) -> None:
    stream, start, end = inside.Stream(1), inside.Event(), inside.Event()
    assert start.record(stream) is start
    end.record(stream)
    with pytest.raises(inside.LogicError):
        start.time_till(end)
    stream.synchronize()
    assert start.time_till(end) > 0
