"""Memory, streams, events and graphs of the simulated GPU end, fail and belong to devices as CUDA documents it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from fake_capture import Status
from fake_cuda import cuda_bindings
from fake_gpu import POISON, FakeGpu, Work

INVALID, NO_HANDLE = Status.cudaErrorInvalidValue, Status.cudaErrorInvalidResourceHandle


@pytest.fixture
def gpu() -> FakeGpu:
    return FakeGpu(devices=2)


@pytest.fixture
def cuda(gpu: FakeGpu) -> Any:
    return cuda_bindings(gpu)


def value(result: tuple[Any, ...]) -> Any:
    status, *values = result
    assert status == Status.cudaSuccess
    return values[0] if values else None


def bytes_of(address: int, size: int) -> Any:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def test_memory_is_freed_once_and_by_its_own_function(cuda: Any) -> None:
    """ "If cudaFree(devPtr) has already been called before, an error is returned. If devPtr is 0, no operation is
    performed. … cannot be used with a *devPtr allocated using the host API" """
    device, host = value(cuda.cudaMalloc(8)), value(cuda.cudaHostAlloc(8, 2))
    mapped = value(cuda.cudaHostGetDevicePointer(host, 0))
    assert [cuda.cudaFree(each)[0] for each in (host, mapped, device + 1)] == [INVALID] * 3
    assert [cuda.cudaFreeHost(each)[0] for each in (device, mapped, host + 1)] == [INVALID] * 3
    assert (cuda.cudaFree(device), cuda.cudaFree(device)[0]) == ((Status.cudaSuccess,), INVALID)
    assert (cuda.cudaFreeHost(host), cuda.cudaFreeHost(host)[0]) == ((Status.cudaSuccess,), INVALID)
    assert cuda.cudaFree(0) == cuda.cudaFreeHost(0) == (Status.cudaSuccess,)


def test_host_memory_is_mapped_if_asked_for_and_once(gpu: FakeGpu, cuda: Any) -> None:
    plain, mapped = value(cuda.cudaHostAlloc(8, 0)), value(cuda.cudaHostAlloc(8, 2))
    assert cuda.cudaHostGetDevicePointer(plain, 0)[0] == INVALID
    address = value(cuda.cudaHostGetDevicePointer(mapped, 0))
    assert address == value(cuda.cudaHostGetDevicePointer(mapped, 0))
    bytes_of(mapped, 8)[...] = 7
    assert gpu.bytes_at(address, 8).tolist() == [7] * 8
    value(cuda.cudaFreeHost(mapped))
    assert bytes_of(mapped, 8).tolist() == [POISON] * 8  # who still reads it, reads nothing
    assert cuda.cudaMemcpyAsync(value(cuda.cudaMalloc(8)), address, 8, cuda.cudaMemcpyKind(3), 0)[0] == INVALID


def test_no_room_is_no_memory_and_every_device_has_its_own() -> None:
    cuda: Any = cuda_bindings(FakeGpu(capacity=100, devices=2))
    assert cuda.cudaMalloc(101) == (Status.cudaErrorMemoryAllocation, None)
    value(cuda.cudaMalloc(100))
    assert cuda.cudaMalloc(1)[0] == Status.cudaErrorMemoryAllocation
    value(cuda.cudaSetDevice(1))
    value(cuda.cudaMalloc(100))


@pytest.mark.parametrize("kind", range(5))
def test_a_copy_has_the_direction_of_its_pointers(cuda: Any, kind: int) -> None:
    device, other = value(cuda.cudaMalloc(8)), value(cuda.cudaMalloc(8))
    host, pinned = value(cuda.cudaHostAlloc(8, 0)), value(cuda.cudaHostAlloc(8, 0))
    pairs = {(host, pinned): 0, (device, host): 1, (host, device): 2, (device, other): 3}
    for (target, source), wanted in pairs.items():
        status = cuda.cudaMemcpyAsync(target, source, 8, cuda.cudaMemcpyKind(kind), 0)[0]
        assert status == (Status.cudaSuccess if kind in (wanted, cuda.cudaMemcpyKind.cudaMemcpyDefault) else INVALID)


def test_a_copy_stays_in_its_memory(cuda: Any) -> None:
    device, host = value(cuda.cudaMalloc(8)), value(cuda.cudaHostAlloc(8, 0))
    pageable = np.zeros(8, np.uint8)
    for target, source, size in (
        (device, host, 9),
        (device + 4, host, 8),
        (device, host + 1, 8),
        (device, pageable.ctypes.data, 8),  # CUDA takes it, but waits for the stream: that is never meant here
        (device, device + 3, 4),
        (device + 3, device, 4),
    ):
        assert cuda.cudaMemcpyAsync(target, source, size, cuda.cudaMemcpyKind.cudaMemcpyDefault, 0)[0] == INVALID
    assert (
        value(cuda.cudaMemcpyAsync(device, device + 4, 4, cuda.cudaMemcpyKind(3), 0)) is None
    )  # beside each other is not overlapping


def test_freeing_waits_for_the_work_of_the_device(gpu: FakeGpu, cuda: Any) -> None:
    stream = value(cuda.cudaStreamCreateWithFlags(1))
    used, other = value(cuda.cudaMalloc(8)), value(cuda.cudaMalloc(8))
    host = value(cuda.cudaHostAlloc(8, 0))
    for free in (lambda: cuda.cudaFree(other), lambda: cuda.cudaFreeHost(value(cuda.cudaHostAlloc(8, 0)))):
        bytes_of(host, 8)[...] = 5
        value(cuda.cudaMemcpyAsync(used, host, 8, cuda.cudaMemcpyKind(1), stream))
        assert gpu.pending() > 0
        value(free())
        assert gpu.pending() == 0 and gpu.bytes_at(used, 8).tolist() == [5] * 8


@pytest.mark.parametrize("use", ["cudaStreamSynchronize", "cudaStreamDestroy", "cudaStreamQuery"])
def test_a_destroyed_stream_is_no_stream(cuda: Any, use: str) -> None:
    stream = value(cuda.cudaStreamCreateWithFlags(1))
    value(cuda.cudaStreamDestroy(stream))
    assert getattr(cuda, use)(stream)[0] == NO_HANDLE
    for default in (0, 1, 2):
        assert cuda.cudaStreamDestroy(default)[0] == NO_HANDLE


def graph_of(cuda: Any, stream: Any, work: Callable[[], object]) -> tuple[Any, Any]:
    """A captured graph, and what runs it."""
    value(cuda.cudaStreamBeginCapture(stream, cuda.cudaStreamCaptureMode(1)))
    work()
    graph = value(cuda.cudaStreamEndCapture(stream))
    return graph, value(cuda.cudaGraphInstantiate(graph, 0))


def test_graphs_and_what_runs_them_are_different_things(cuda: Any) -> None:
    stream = value(cuda.cudaStreamCreateWithFlags(1))
    graph, executable = graph_of(cuda, stream, lambda: None)
    for wrong in (
        cuda.cudaGraphLaunch(graph, stream),
        cuda.cudaGraphDestroy(executable),
        cuda.cudaGraphExecDestroy(graph),
        cuda.cudaGraphInstantiate(executable, 0),
    ):
        assert wrong[0] == NO_HANDLE
    value(cuda.cudaGraphDestroy(graph))
    value(cuda.cudaGraphLaunch(executable, stream))  # it does not need the graph that it came from
    value(cuda.cudaGraphExecDestroy(executable))
    for gone in (cuda.cudaGraphLaunch(executable, stream), cuda.cudaGraphExecDestroy(executable)):
        assert gone[0] == NO_HANDLE


def test_a_graph_reads_its_memory_anew_and_not_after_it_is_freed(gpu: FakeGpu, cuda: Any) -> None:
    stream = value(cuda.cudaStreamCreateWithFlags(1))
    source, target = value(cuda.cudaHostAlloc(8, 0)), value(cuda.cudaMalloc(8))
    copy = lambda: cuda.cudaMemcpyAsync(target, source, 8, cuda.cudaMemcpyKind(1), stream)  # noqa: E731
    _, executable = graph_of(cuda, stream, copy)
    for number in (3, 4):
        bytes_of(source, 8)[...] = number
        value(cuda.cudaGraphLaunch(executable, stream))
        value(cuda.cudaStreamSynchronize(stream))
        assert gpu.bytes_at(target, 8).tolist() == [number] * 8
    value(cuda.cudaFree(target))
    value(cuda.cudaMalloc(8))
    value(cuda.cudaGraphLaunch(executable, stream))
    assert cuda.cudaStreamSynchronize(stream) == (Status.cudaErrorIllegalAddress,)


def test_a_broken_gpu_refuses_everything_and_its_error_stays(gpu: FakeGpu, cuda: Any) -> None:
    gpu.give(0, Work(lambda: gpu.bytes_at(1, 1)))
    assert cuda.cudaStreamSynchronize(0)[0] == cuda.cudaMalloc(8)[0] == cuda.cudaFree(0)[0]
    assert cuda.cudaGetLastError() == cuda.cudaGetLastError() == (Status.cudaErrorIllegalAddress,)


def test_the_last_error_is_a_threads_and_is_told_once(cuda: Any) -> None:
    assert cuda.cudaFree(1)[0] == INVALID
    with ThreadPoolExecutor(1) as other:
        assert other.submit(cuda.cudaGetLastError).result() == (Status.cudaSuccess,)
    assert cuda.cudaPeekAtLastError() == (INVALID,)
    assert (cuda.cudaGetLastError(), cuda.cudaGetLastError()) == ((INVALID,), (Status.cudaSuccess,))


def test_times_between_events(cuda: Any) -> None:
    """ "If cudaEventRecord() has not been called on either event, then cudaErrorInvalidResourceHandle is returned. …
    one or both of them has not yet been completed …, cudaErrorNotReady … If either event was created with the
    cudaEventDisableTiming flag, then this function will return cudaErrorInvalidResourceHandle." """
    stream = value(cuda.cudaStreamCreateWithFlags(1))
    start, end = (value(cuda.cudaEventCreateWithFlags(0)) for _ in range(2))
    untimed = value(cuda.cudaEventCreateWithFlags(2))
    assert cuda.cudaEventElapsedTime(start, end) == (NO_HANDLE, None)
    for event in (start, end, untimed):
        value(cuda.cudaEventRecord(event, stream))
    assert cuda.cudaEventElapsedTime(start, end) == (Status.cudaErrorNotReady, None)
    value(cuda.cudaEventSynchronize(start))
    assert cuda.cudaEventElapsedTime(start, end)[0] == Status.cudaErrorNotReady
    value(cuda.cudaStreamSynchronize(stream))
    assert value(cuda.cudaEventElapsedTime(start, end)) > 0
    assert cuda.cudaEventElapsedTime(start, untimed)[0] == NO_HANDLE
    value(cuda.cudaEventDestroy(end))
    assert cuda.cudaEventElapsedTime(start, end)[0] == cuda.cudaEventDestroy(end)[0] == NO_HANDLE


def test_asking_tells_not_ready_until_it_is(cuda: Any) -> None:
    stream, event = value(cuda.cudaStreamCreateWithFlags(1)), value(cuda.cudaEventCreateWithFlags(2))
    assert cuda.cudaEventQuery(event) == (Status.cudaSuccess,)  # "Before the first call to cudaEventRecord()"
    value(cuda.cudaEventRecord(event, stream))
    assert cuda.cudaEventQuery(event) == (Status.cudaErrorNotReady,)
    assert cuda.cudaEventQuery(event) == cuda.cudaStreamQuery(stream) == (Status.cudaSuccess,)


def test_an_event_is_destroyed_without_waiting_and_still_orders(gpu: FakeGpu, cuda: Any) -> None:
    one, two = (value(cuda.cudaStreamCreateWithFlags(1)) for _ in range(2))
    event, order = value(cuda.cudaEventCreateWithFlags(2)), []
    gpu.give(one, Work(lambda: order.append(1)))
    value(cuda.cudaEventRecord(event, one))
    value(cuda.cudaStreamWaitEvent(two, event, 0))
    value(cuda.cudaEventDestroy(event))
    gpu.give(two, Work(lambda: order.append(2)))
    assert order == []
    value(cuda.cudaStreamSynchronize(two))
    assert order == [1, 2]


def test_a_thread_has_a_device_and_what_it_makes_belongs_to_it(gpu: FakeGpu, cuda: Any) -> None:
    assert value(cuda.cudaGetDeviceCount()) == 2 and value(cuda.cudaGetDevice()) == 0
    assert cuda.cudaSetDevice(2) == cuda.cudaSetDevice(-1) == (Status.cudaErrorInvalidDevice,)
    value(cuda.cudaSetDevice(1))
    with ThreadPoolExecutor(1) as other:
        assert value(other.submit(cuda.cudaGetDevice).result()) == 0
    memory, stream = value(cuda.cudaMalloc(8)), value(cuda.cudaStreamCreateWithFlags(1))
    event = value(cuda.cudaEventCreateWithFlags(0))
    value(cuda.cudaSetDevice(0))
    mine, early = value(cuda.cudaStreamCreateWithFlags(1)), value(cuda.cudaEventCreateWithFlags(0))
    # "cudaEventRecord() will fail if the input event and input stream are associated to different devices."
    assert cuda.cudaEventRecord(event, mine)[0] == cuda.cudaEventRecord(early, stream)[0] == NO_HANDLE
    value(cuda.cudaEventRecord(early, mine))
    value(cuda.cudaEventRecord(event, stream))
    value(cuda.cudaStreamWaitEvent(mine, event, 0))  # "will succeed even if … associated to different devices"
    value(cuda.cudaDeviceSynchronize())
    value(cuda.cudaStreamSynchronize(stream))
    # "cudaEventElapsedTime() will fail if the two input events are associated to different devices."
    assert cuda.cudaEventElapsedTime(early, event)[0] == NO_HANDLE
    gpu.bytes_at(memory, 8, device=1)
    with pytest.raises(Exception, match="cudaErrorIllegalAddress"):
        gpu.bytes_at(memory, 8, device=0)


def test_synchronizing_a_device_leaves_the_other_alone(gpu: FakeGpu, cuda: Any) -> None:
    ran: list[int] = []
    for device in (0, 1):
        value(cuda.cudaSetDevice(device))
        gpu.give(0, Work(lambda device=device: ran.append(device)))  # type: ignore[misc]
    value(cuda.cudaDeviceSynchronize())
    assert ran == [1]
    value(cuda.cudaSetDevice(0))
    value(cuda.cudaStreamSynchronize(1))  # another name of the legacy stream
    assert ran == [1, 0]


def test_every_thread_has_a_default_stream_of_its_own(gpu: FakeGpu, cuda: Any) -> None:
    ran: list[str] = []
    with ThreadPoolExecutor(1) as other:
        other.submit(gpu.give, 2, Work(lambda: ran.append("theirs"))).result()
        gpu.give(2, Work(lambda: ran.append("mine")))
        value(cuda.cudaStreamSynchronize(2))
        assert ran == ["mine"]
        value(cuda.cudaStreamSynchronize(0))  # the legacy stream waits for every blocking one
        assert ran == ["mine", "theirs"]
