"""Captures follow CUDA's rules, on the simulated GPU and on a real one: what a thread may call meanwhile, and how a
capture is lost.

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


class Rig:
    """Two free streams, memory and an event of a GPU, and a second thread. gpu: the simulated one; None for a real one.

    Nothing is captured any more when the block ends.
    """

    def __init__(self, cuda: Any, gpu: FakeGpu | None) -> None:
        self.cuda, self.gpu = cuda, gpu
        self.one, self.two = (self.new_stream() for _ in range(2))
        self.event = self.get("cudaEventCreateWithFlags", 2)
        self.source, self.target = (self.get("cudaMalloc", 8) for _ in range(2))
        self.pinned = self.get("cudaHostAlloc", 8, 0)
        self._begun: list[Any] = []
        self._other = ThreadPoolExecutor(1)

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *error: object) -> None:
        self._leave()
        self.elsewhere(self._leave)
        self._other.shutdown()

    def _leave(self) -> None:
        """Puts the thread back in order, whatever a test left."""
        for stream in self._begun:
            self.cuda.cudaStreamEndCapture(stream)
        self.exchange(GLOBAL)
        self.cuda.cudaGetLastError()

    def new_stream(self, flags: int = 1) -> Any:
        return self.get("cudaStreamCreateWithFlags", flags)

    def exchange(self, mode: Mode) -> Mode:
        return Mode(int(self.get("cudaThreadExchangeStreamCaptureMode", self.cuda.cudaStreamCaptureMode(int(mode)))))

    def status(self, name: str, *given: Any) -> Status:
        return Status(int(getattr(self.cuda, name)(*given)[0]))

    def get(self, name: str, *given: Any) -> Any:
        status, *results = getattr(self.cuda, name)(*given)
        assert int(status) == Status.cudaSuccess, name
        return results[0] if results else None

    def is_refused(self, status: Status, simulated: Status) -> bool:
        """Whether a call failed. simulated: with which error, where CUDA does not say it."""
        return status == simulated if self.gpu is not None else status != Status.cudaSuccess

    def elsewhere(self, function: Callable[..., Any], *given: Any) -> Any:
        """The result of a function in the other thread."""
        return self._other.submit(function, *given).result()

    def copy(self, stream: Any) -> Status:
        return self.status("cudaMemcpyAsync", self.target, self.source, 8, self.cuda.cudaMemcpyKind(3), stream)

    def begin(self, stream: Any, mode: Mode = THREAD_LOCAL) -> None:
        self._begun.append(stream)
        self.get("cudaStreamBeginCapture", stream, self.cuda.cudaStreamCaptureMode(int(mode)))

    def is_capturing(self, stream: Any) -> int:
        """cudaStreamCaptureStatus: 0 for none, 1 for active, 2 for invalidated."""
        return int(self.get("cudaStreamIsCapturing", stream))


MakeRig = Callable[[], Rig]


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.gpu)])
def rig(request: pytest.FixtureRequest) -> MakeRig:
    if request.param == "simulated":
        return simulated
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    if int(runtime.cudaGetDeviceCount()[0]) != 0:
        pytest.skip("no CUDA GPU")
    return lambda: Rig(runtime, None)


def simulated(*, devices: int = 1) -> Rig:
    gpu = FakeGpu(devices=devices)
    return Rig(cuda_bindings(gpu), gpu)


UNSAFE: dict[str, Callable[[Rig], Status]] = {
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
def test_unsafe_calls_beside_captures_of_every_mode(rig: MakeRig, call: str, thread: Mode) -> None:
    for own, other in itertools.product((None, *Mode), repeat=2):
        with rig() as on:
            third = on.new_stream()
            if own is not None:
                on.begin(on.one, own)
            if other is not None:
                on.elsewhere(on.begin, third, other)
            assert on.exchange(thread) == GLOBAL  # "This is the default mode."
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


def test_a_threads_mode_is_its_own_and_is_exchanged(rig: MakeRig) -> None:
    with rig() as on:
        assert on.exchange(RELAXED) == GLOBAL
        assert on.exchange(THREAD_LOCAL) == RELAXED
        assert on.elsewhere(on.exchange, GLOBAL) == GLOBAL
        assert on.exchange(GLOBAL) == THREAD_LOCAL


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("wait", ["cudaStreamSynchronize", "cudaStreamQuery", "cudaDeviceSynchronize"])
def test_what_is_captured_cannot_be_waited_for(rig: MakeRig, mode: Mode, wait: str) -> None:
    """ "It is invalid to synchronize or query the execution status of a stream which is being captured", or of "a
    broader handle which encompasses an active stream capture, such as a device". No mode of a thread changes that."""
    for elsewhere in (False, True):
        with rig() as on:
            on.begin(on.one, mode)
            given = () if wait == "cudaDeviceSynchronize" else (on.one,)

            def attempt(on: Rig = on, given: tuple[Any, ...] = given) -> Status:
                on.exchange(RELAXED)
                return on.status(wait, *given)

            assert (on.elsewhere(attempt) if elsewhere else attempt()) == UNSUPPORTED
            assert on.status("cudaStreamEndCapture", on.one) == LOST


def test_an_event_of_a_capture_cannot_be_waited_for(rig: MakeRig) -> None:
    """ "the thread is still prohibited from … cudaEventQuery on an event that was last recorded inside a capture" """
    for call in ("cudaEventQuery", "cudaEventSynchronize"):
        with rig() as on:
            on.begin(on.one, RELAXED)
            on.exchange(RELAXED)
            on.get("cudaEventRecord", on.event, on.one)
            assert on.status(call, on.event) == Status.cudaErrorCapturedEvent
            assert on.status("cudaStreamEndCapture", on.one) == LOST
            assert on.is_refused(on.status(call, on.event), Status.cudaErrorInvalidValue)
            on.get("cudaEventRecord", on.event, on.one)  # recorded anew, it is an event as any other
            assert on.status("cudaEventSynchronize", on.event) == Status.cudaSuccess


def test_a_lost_capture_takes_nothing_until_it_is_ended(rig: MakeRig) -> None:
    """ "further use of any streams which are being captured … will return an error, until stream capture is ended …
    This call will take the associated streams out of capture mode, but will also return an error value" """
    with rig() as on:
        on.begin(on.one)
        assert on.status("cudaMalloc", 8) == UNSUPPORTED
        assert on.is_capturing(on.one) == 2
        assert on.copy(on.one) == on.status("cudaEventRecord", on.event, on.one) == LOST
        assert on.cuda.cudaStreamEndCapture(on.one) == (LOST, None)
        assert on.is_capturing(on.one) == 0
        assert on.copy(on.one) == on.status("cudaStreamSynchronize", on.one) == Status.cudaSuccess
        assert on.gpu is None or on.gpu.held()["graphs"] == 0


def test_streams_join_a_capture_by_an_event_and_must_be_joined_back(rig: MakeRig) -> None:
    with rig() as on:
        on.begin(on.one)
        on.get("cudaEventRecord", on.event, on.one)
        on.get("cudaStreamWaitEvent", on.two, on.event, 0)
        assert on.is_capturing(on.two) == 1
        assert on.copy(on.two) == Status.cudaSuccess
        assert on.gpu is None or on.gpu.pending() == 0  # it was captured too
        assert on.status("cudaStreamEndCapture", on.two) == Status.cudaErrorStreamCaptureUnmatched
        ended = on.status("cudaStreamEndCapture", on.one)
        assert on.gpu is None or ended == LOST  # whether that loses the capture is not documented

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
            assert on.is_capturing(on.one) == on.is_capturing(on.two) == 0


def test_no_dependency_crosses_the_border_of_a_capture(rig: MakeRig) -> None:
    """ "It is invalid to wait on a non-captured event from a stream which is being captured" """
    with rig() as on:
        on.get("cudaEventRecord", on.event, on.two)
        on.begin(on.one)
        assert on.status("cudaStreamWaitEvent", on.one, on.event, 0) == Status.cudaErrorStreamCaptureIsolation
        assert on.status("cudaStreamEndCapture", on.one) == LOST


def test_two_captures_do_not_become_one(rig: MakeRig) -> None:
    """ "It is invalid to merge two separate captured graphs by waiting on a captured event from a stream which is being
    captured and is associated with a different captured graph" """
    with rig() as on:
        on.begin(on.one)
        on.begin(on.two)
        on.get("cudaEventRecord", on.event, on.two)
        assert on.status("cudaStreamWaitEvent", on.one, on.event, 0) == Status.cudaErrorStreamCaptureMerge
        assert on.status("cudaStreamEndCapture", on.one) == on.status("cudaStreamEndCapture", on.two) == LOST


@pytest.mark.parametrize("legacy", [0, 1])
def test_the_legacy_stream_is_unusable_while_a_blocking_one_is_captured(rig: MakeRig, legacy: int) -> None:
    """ "When any stream in the same context is being captured, and it was not created with cudaStreamNonBlocking, any
    attempted use of the legacy stream is invalid." """
    for flags, status in ((1, Status.cudaSuccess), (0, Status.cudaErrorStreamCaptureImplicit)):
        for use in (Rig.copy, lambda on, stream: on.status("cudaEventRecord", on.event, stream)):
            with rig() as on:
                stream = on.new_stream(flags)
                on.begin(stream, RELAXED)
                assert on.status("cudaStreamIsCapturing", legacy) == status  # "The capture is not invalidated."
                assert use(on, legacy) == status
                assert on.status("cudaStreamEndCapture", stream) == (Status.cudaSuccess if flags else LOST)


def test_a_capture_begins_and_ends_as_documented(rig: MakeRig) -> None:
    with rig() as on:
        strict = on.cuda.cudaStreamCaptureMode(0)
        for legacy in (0, 1):  # "Capture may not be initiated if stream is cudaStreamLegacy."
            assert on.is_refused(on.status("cudaStreamBeginCapture", legacy, strict), UNSUPPORTED)
        assert on.is_refused(on.status("cudaStreamEndCapture", on.one), Status.cudaErrorIllegalState)
        on.begin(on.one)  # "it may only be initiated if the stream is not already in capture mode"
        again = on.status("cudaStreamBeginCapture", on.one, strict)
        assert on.is_refused(again, Status.cudaErrorIllegalState)
        on.cuda.cudaStreamEndCapture(on.one)
        # "If mode is not Relaxed, cudaStreamEndCapture must be called on this stream from the same thread."
        for mode in Mode:
            on.begin(on.one, mode)
            wrong = on.elsewhere(on.status, "cudaStreamEndCapture", on.one)
            if mode == RELAXED:
                assert wrong == Status.cudaSuccess
            else:
                assert wrong == Status.cudaErrorStreamCaptureWrongThread
                ended = on.status("cudaStreamEndCapture", on.one)
                assert on.gpu is None or ended == LOST  # whether that loses the capture is not documented


def test_a_capture_of_another_device_is_not_in_the_way() -> None:
    with simulated(devices=2) as on:
        on.begin(on.one)
        on.exchange(RELAXED)
        on.get("cudaSetDevice", 1)
        assert on.status("cudaDeviceSynchronize") == Status.cudaSuccess
        on.get("cudaSetDevice", 0)
        assert on.status("cudaDeviceSynchronize") == UNSUPPORTED


def test_a_stream_that_is_captured_is_not_destroyed_unnoticed() -> None:
    """What CUDA does then is not documented: the simulated GPU fails."""
    with simulated() as on:
        on.begin(on.one)
        assert on.status("cudaStreamDestroy", on.one) == UNSUPPORTED
        assert on.status("cudaStreamEndCapture", on.one) == LOST
