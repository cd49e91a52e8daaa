"""Captures on the simulated GPU follow CUDA's rules: what a thread may call meanwhile, and how a capture is lost.

The rules are those of cudaThreadExchangeStreamCaptureMode, cudaStreamBeginCapture and the programming guide's section
on stream capture. CUDA's words are beside what they say.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fake_capture import Mode, Status
from fake_cuda import cuda_bindings
from fake_gpu import FakeGpu

GLOBAL, THREAD_LOCAL, RELAXED = Mode
UNSUPPORTED, LOST = Status.cudaErrorStreamCaptureUnsupported, Status.cudaErrorStreamCaptureInvalidated


class Bench:
    """A simulated GPU, two free streams, memory and an event, and a second thread."""

    def __init__(self, *, devices: int = 1) -> None:
        self.gpu = FakeGpu(devices=devices)
        self.cuda: Any = cuda_bindings(self.gpu)
        self.one, self.two = (self.get("cudaStreamCreateWithFlags", 1) for _ in range(2))
        self.event = self.get("cudaEventCreateWithFlags", 2)
        self.source, self.target = (self.get("cudaMalloc", 8) for _ in range(2))
        self.pinned = self.get("cudaHostAlloc", 8, 0)
        self._other = ThreadPoolExecutor(1)

    def status(self, name: str, *given: Any) -> Status:
        return Status(getattr(self.cuda, name)(*given)[0])

    def get(self, name: str, *given: Any) -> Any:
        status, *results = getattr(self.cuda, name)(*given)
        assert status == Status.cudaSuccess, name
        return results[0] if results else None

    def elsewhere(self, function: Callable[..., Any], *given: Any) -> Any:
        """The result of a function in the other thread."""
        return self._other.submit(function, *given).result()

    def copy(self, stream: Any) -> Status:
        return self.status("cudaMemcpyAsync", self.target, self.source, 8, self.cuda.cudaMemcpyKind(3), stream)

    def begin(self, stream: Any, mode: Mode = THREAD_LOCAL) -> None:
        self.get("cudaStreamBeginCapture", stream, mode)


UNSAFE: dict[str, Callable[[Bench], Status]] = {
    "cudaMalloc": lambda on: on.status("cudaMalloc", 8),
    "cudaFree": lambda on: on.status("cudaFree", on.source),
    "cudaHostAlloc": lambda on: on.status("cudaHostAlloc", 8, 0),
    "cudaFreeHost": lambda on: on.status("cudaFreeHost", on.pinned),
    "cudaEventQuery": lambda on: on.status("cudaEventQuery", on.event),
    "cudaEventSynchronize": lambda on: on.status("cudaEventSynchronize", on.event),
    "cudaStreamQuery": lambda on: on.status("cudaStreamQuery", on.two),
    "cudaStreamSynchronize": lambda on: on.status("cudaStreamSynchronize", on.two),
}


def prohibited(own: Mode | None, other: Mode | None, thread: Mode) -> bool:
    """Whether a thread may make no potentially unsafe call. own, other: captures under way, in it and elsewhere."""
    captures_strictly = own is not None and own != RELAXED
    return {
        # "If the local thread has an ongoing capture sequence that was not initiated with Relaxed, or if any other
        # thread has a concurrent capture sequence initiated with Global, this thread is prohibited"
        GLOBAL: captures_strictly or other == GLOBAL,
        # "Concurrent capture sequences in other threads are ignored."
        THREAD_LOCAL: captures_strictly,
        # "The local thread is not prohibited from potentially unsafe API calls."
        RELAXED: False,
    }[thread]


@pytest.mark.parametrize("call", UNSAFE)
@pytest.mark.parametrize("thread", Mode, ids=lambda mode: f"thread={mode.name[21:]}")
def test_unsafe_calls_beside_captures_of_every_mode(call: str, thread: Mode) -> None:
    for own, other in itertools.product((None, *Mode), repeat=2):
        on = Bench()
        third = on.get("cudaStreamCreateWithFlags", 1)
        if own is not None:
            on.begin(on.one, own)
        if other is not None:
            on.elsewhere(on.begin, third, other)
        assert on.get("cudaThreadExchangeStreamCaptureMode", thread) == GLOBAL  # "This is the default mode."
        refused = prohibited(own, other, thread)
        assert UNSAFE[call](on) == (UNSUPPORTED if refused else Status.cudaSuccess), (own, other)
        # "When an invalid operation is attempted …, any associated captured graphs are invalidated."
        if own is not None:
            lost = refused and own != RELAXED
            assert on.status("cudaStreamEndCapture", on.one) == (LOST if lost else Status.cudaSuccess), (own, other)
        if other is not None:
            lost = refused and other == GLOBAL and thread == GLOBAL
            ended = on.elsewhere(on.status, "cudaStreamEndCapture", third)
            assert ended == (LOST if lost else Status.cudaSuccess), (own, other)


def test_a_threads_mode_is_its_own_and_is_exchanged() -> None:
    on = Bench()
    assert on.get("cudaThreadExchangeStreamCaptureMode", RELAXED) == GLOBAL
    assert on.get("cudaThreadExchangeStreamCaptureMode", THREAD_LOCAL) == RELAXED
    assert on.elsewhere(on.get, "cudaThreadExchangeStreamCaptureMode", GLOBAL) == GLOBAL
    assert on.get("cudaThreadExchangeStreamCaptureMode", GLOBAL) == THREAD_LOCAL


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("wait", ["cudaStreamSynchronize", "cudaStreamQuery", "cudaDeviceSynchronize"])
def test_what_is_captured_cannot_be_waited_for(mode: Mode, wait: str) -> None:
    """ "It is invalid to synchronize or query the execution status of a stream which is being captured", or of "a
    broader handle which encompasses an active stream capture, such as a device". No mode of a thread changes that."""
    for elsewhere in (False, True):
        on = Bench()
        on.begin(on.one, mode)
        given = () if wait == "cudaDeviceSynchronize" else (on.one,)

        def attempt(on: Bench = on, given: tuple[Any, ...] = given) -> Status:
            on.get("cudaThreadExchangeStreamCaptureMode", RELAXED)
            return on.status(wait, *given)

        assert (on.elsewhere(attempt) if elsewhere else attempt()) == UNSUPPORTED
        assert on.status("cudaStreamEndCapture", on.one) == LOST


def test_an_event_of_a_capture_cannot_be_waited_for() -> None:
    """ "the thread is still prohibited from … cudaEventQuery on an event that was last recorded inside a capture" """
    for call in ("cudaEventQuery", "cudaEventSynchronize"):
        on = Bench()
        on.begin(on.one, RELAXED)
        on.get("cudaThreadExchangeStreamCaptureMode", RELAXED)
        on.get("cudaEventRecord", on.event, on.one)
        assert on.status(call, on.event) == Status.cudaErrorCapturedEvent
        assert on.status("cudaStreamEndCapture", on.one) == LOST
        assert on.status(call, on.event) == Status.cudaErrorCapturedEvent
        on.get("cudaEventRecord", on.event, on.one)  # recorded anew, it is an event as any other
        assert on.status("cudaEventSynchronize", on.event) == Status.cudaSuccess


def test_a_lost_capture_takes_nothing_until_it_is_ended() -> None:
    """ "further use of any streams which are being captured … will return an error, until stream capture is ended …
    This call will take the associated streams out of capture mode, but will also return an error value" """
    on = Bench()
    on.begin(on.one)
    assert on.status("cudaMalloc", 8) == UNSUPPORTED
    assert on.get("cudaStreamIsCapturing", on.one) == on.cuda.cudaStreamCaptureStatus.cudaStreamCaptureStatusInvalidated
    assert on.copy(on.one) == on.status("cudaEventRecord", on.event, on.one) == LOST
    assert on.cuda.cudaStreamEndCapture(on.one) == (LOST, None)
    assert on.get("cudaStreamIsCapturing", on.one) == on.cuda.cudaStreamCaptureStatus.cudaStreamCaptureStatusNone
    assert on.copy(on.one) == on.status("cudaStreamSynchronize", on.one) == Status.cudaSuccess
    assert on.gpu.held()["graphs"] == 0


def test_streams_join_a_capture_by_an_event_and_must_be_joined_back() -> None:
    on = Bench()
    on.begin(on.one)
    on.get("cudaEventRecord", on.event, on.one)
    on.get("cudaStreamWaitEvent", on.two, on.event, 0)
    assert on.get("cudaStreamIsCapturing", on.two) == on.cuda.cudaStreamCaptureStatus.cudaStreamCaptureStatusActive
    assert on.copy(on.two) == Status.cudaSuccess
    assert on.gpu.pending() == 0  # it was captured too
    assert on.status("cudaStreamEndCapture", on.two) == Status.cudaErrorStreamCaptureUnmatched
    assert on.status("cudaStreamEndCapture", on.one) == LOST

    for joined in (False, True):
        on.begin(on.one)
        on.get("cudaEventRecord", on.event, on.one)
        on.get("cudaStreamWaitEvent", on.two, on.event, 0)
        on.copy(on.two)
        if joined:
            on.get("cudaEventRecord", on.event, on.two)
            on.get("cudaStreamWaitEvent", on.one, on.event, 0)
        ended = on.status("cudaStreamEndCapture", on.one)
        assert ended == (Status.cudaSuccess if joined else Status.cudaErrorStreamCaptureUnjoined)
        assert not on.gpu.captures


def test_no_dependency_crosses_the_border_of_a_capture() -> None:
    """ "It is invalid to wait on a non-captured event from a stream which is being captured" """
    on = Bench()
    on.get("cudaEventRecord", on.event, on.two)
    on.begin(on.one)
    assert on.status("cudaStreamWaitEvent", on.one, on.event, 0) == Status.cudaErrorStreamCaptureIsolation
    assert on.status("cudaStreamEndCapture", on.one) == LOST


def test_two_captures_do_not_become_one() -> None:
    """ "It is invalid to merge two separate captured graphs by waiting on a captured event from a stream which is being
    captured and is associated with a different captured graph" """
    on = Bench()
    on.begin(on.one)
    on.begin(on.two)
    on.get("cudaEventRecord", on.event, on.two)
    assert on.status("cudaStreamWaitEvent", on.one, on.event, 0) == Status.cudaErrorStreamCaptureMerge
    assert on.status("cudaStreamEndCapture", on.one) == on.status("cudaStreamEndCapture", on.two) == LOST


@pytest.mark.parametrize("legacy", [0, 1])
def test_the_legacy_stream_is_unusable_while_a_blocking_one_is_captured(legacy: int) -> None:
    """ "When any stream in the same context is being captured, and it was not created with cudaStreamNonBlocking, any
    attempted use of the legacy stream is invalid." """
    for flags, status in ((1, Status.cudaSuccess), (0, Status.cudaErrorStreamCaptureImplicit)):
        for use in (Bench.copy, lambda on, stream: on.status("cudaEventRecord", on.event, stream)):
            on = Bench()
            stream = on.get("cudaStreamCreateWithFlags", flags)
            on.begin(stream, RELAXED)
            assert on.status("cudaStreamIsCapturing", legacy) == status  # "The capture is not invalidated."
            assert use(on, legacy) == status
            assert on.status("cudaStreamEndCapture", stream) == (Status.cudaSuccess if flags else LOST)


def test_a_capture_begins_and_ends_as_documented() -> None:
    on = Bench()
    for legacy in (0, 1):  # "Capture may not be initiated if stream is cudaStreamLegacy."
        assert on.status("cudaStreamBeginCapture", legacy, GLOBAL) == UNSUPPORTED
    assert on.status("cudaStreamEndCapture", on.one) == Status.cudaErrorIllegalState
    on.begin(on.one)  # "it may only be initiated if the stream is not already in capture mode"
    assert on.status("cudaStreamBeginCapture", on.one, GLOBAL) == Status.cudaErrorIllegalState
    on.get("cudaStreamEndCapture", on.one)
    # "If mode is not Relaxed, cudaStreamEndCapture must be called on this stream from the same thread."
    for mode in Mode:
        on.begin(on.one, mode)
        wrong = on.elsewhere(on.status, "cudaStreamEndCapture", on.one)
        if mode == RELAXED:
            assert wrong == Status.cudaSuccess
        else:
            assert wrong == Status.cudaErrorStreamCaptureWrongThread
            assert on.status("cudaStreamEndCapture", on.one) == LOST


def test_a_capture_of_another_device_is_not_in_the_way() -> None:
    on = Bench(devices=2)
    on.begin(on.one)
    on.get("cudaThreadExchangeStreamCaptureMode", RELAXED)
    on.get("cudaSetDevice", 1)
    assert on.status("cudaDeviceSynchronize") == Status.cudaSuccess
    on.get("cudaSetDevice", 0)
    assert on.status("cudaDeviceSynchronize") == UNSUPPORTED


def test_a_stream_that_is_captured_is_not_destroyed_unnoticed() -> None:
    on = Bench()
    on.begin(on.one)
    assert on.status("cudaStreamDestroy", on.one) == UNSUPPORTED
    assert on.status("cudaStreamEndCapture", on.one) == LOST
