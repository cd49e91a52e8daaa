"""Stream capture by CUDA's rules: what is captured, which calls are forbidden meanwhile, and how a capture is lost.

Sources, in the CUDA documentation:
- guide: CUDA C++ Programming Guide, CUDA Graphs, "Creating a Graph Using Stream Capture", with its sections
  "Cross-stream Dependencies and Events", "Prohibited and Unhandled Operations" and "Invalidation".
- mode: CUDA Runtime API, Stream Management, cudaThreadExchangeStreamCaptureMode.
- begin: the same, cudaStreamBeginCapture and cudaStreamEndCapture.

CUDA has no list of "potentially unsafe" calls beyond its example, cudaMalloc. Here they are all that a capture does not
see: to allocate and free memory, and to let the host wait or ask for a stream or an event. `FakeGpu` calls `unsafe` in
them.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fake_gpu import Event, Graph, Stream


class _EnumType(enum.EnumMeta):
    """Enums of cuda-bindings 13 have no subscripts; those of earlier releases had."""

    def __getitem__(cls, name: str) -> Any:
        raise TypeError(f"type {cls.__name__!r} is not subscriptable")


class Enum(enum.IntEnum, metaclass=_EnumType):
    """Base of the simulated enums."""


class Status(Enum):
    """The members of cudaError_t that occur."""

    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInvalidDevice = 101
    cudaErrorInvalidResourceHandle = 400
    cudaErrorIllegalState = 401
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901
    cudaErrorStreamCaptureMerge = 902
    cudaErrorStreamCaptureUnmatched = 903
    cudaErrorStreamCaptureUnjoined = 904
    cudaErrorStreamCaptureIsolation = 905
    cudaErrorStreamCaptureImplicit = 906
    cudaErrorCapturedEvent = 907
    cudaErrorStreamCaptureWrongThread = 908


class Failure(Exception):
    """A call that returns this status."""

    def __init__(self, status: Status) -> None:
        self.status = status
        super().__init__(status.name)


class Mode(Enum):
    """cudaStreamCaptureMode."""

    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


GLOBAL, THREAD_LOCAL, RELAXED = Mode


@dataclass(eq=False)
class Capture:
    """One capture sequence.

    origin: the stream it began in. thread: that began it. given: how many works each of its streams got so far.
    known: for each of its streams, how many works of each of them come before its next one.
    """

    origin: Stream
    thread: int
    mode: Mode
    graph: Graph
    valid: bool = True
    given: dict[Stream, int] = field(default_factory=dict)
    known: dict[Stream, dict[Stream, int]] = field(default_factory=dict)

    def add(self, stream: Stream) -> None:
        self.given.setdefault(stream, 0)
        self.known.setdefault(stream, {})

    def position(self, stream: Stream) -> dict[Stream, int]:
        """What an event that is recorded in the stream now stands for."""
        return {**self.known[stream], stream: self.given[stream]}

    def follow(self, stream: Stream, position: dict[Stream, int]) -> None:
        """Later work of the stream comes after this position."""
        self.add(stream)
        known = self.known[stream]
        for other, count in position.items():
            known[other] = max(known.get(other, 0), count)

    def unjoined(self) -> bool:
        """Whether a stream has work that the origin does not wait for."""
        covered = self.position(self.origin)
        return any(stream not in covered or covered[stream] < count for stream, count in self.given.items())


class Captures:
    """The captures under way on a machine, and every thread's interaction mode."""

    def __init__(self) -> None:
        self.of: dict[Stream, Capture] = {}
        self._thread = threading.local()

    def exchange(self, mode: Mode) -> Mode:
        """cudaThreadExchangeStreamCaptureMode: sets this thread's mode and returns the one before."""
        before = self.mode
        self._thread.mode = Mode(mode)
        return before

    @property
    def mode(self) -> Mode:
        return getattr(self._thread, "mode", GLOBAL)

    def under_way(self) -> list[Capture]:
        return list(dict.fromkeys(self.of.values()))

    def unsafe(self) -> None:
        """A potentially unsafe call: fails in a thread that is prohibited from it ("mode"), and the capture that
        prohibits it is lost ("Invalidation")."""
        me, mode = threading.get_ident(), self.mode
        if mode == RELAXED:
            return
        prohibiting = [
            capture
            for capture in self.under_way()
            if (capture.thread == me and capture.mode != RELAXED)
            or (capture.thread != me and mode == GLOBAL and capture.mode == GLOBAL)
        ]
        self.refuse(prohibiting, Status.cudaErrorStreamCaptureUnsupported)

    def refuse(self, captures: Iterable[Capture], status: Status) -> None:
        """An invalid operation on captures: if there are any, they are lost and the call fails."""
        found = list(captures)
        for capture in found:
            capture.valid = False
        if found:
            raise Failure(status)

    def host_waits(self, stream: Stream) -> None:
        """The host waits or asks for a stream: never while that is captured ("guide"), whatever the mode."""
        if stream in self.of:
            self.refuse([self.of[stream]], Status.cudaErrorStreamCaptureUnsupported)
        self.unsafe()

    def device_waits(self, device: int) -> None:
        """The host waits for a device: a broader handle that encompasses its captures ("guide"), whatever the mode."""
        self.refuse(
            (capture for stream, capture in self.of.items() if stream.device == device),
            Status.cudaErrorStreamCaptureUnsupported,
        )

    def legacy_used(self, device: int) -> None:
        """The legacy stream would wait for every blocking stream, so it is unusable while one is captured ("guide")."""
        self.refuse(
            (capture for stream, capture in self.of.items() if stream.device == device and stream.blocking),
            Status.cudaErrorStreamCaptureImplicit,
        )

    def event_asked(self, event: Event) -> None:
        """The host waits or asks for an event: never for one that was last recorded inside a capture ("mode").

        Once a lost capture is ended, its event is no value any more (seen on an H200 with driver 580.159).
        """
        if event.capture is not None:
            if event.capture in self.of.values():
                event.capture.valid = False
            elif not event.capture.valid:
                raise Failure(Status.cudaErrorInvalidValue)
            raise Failure(Status.cudaErrorCapturedEvent)

    def active(self, stream: Stream) -> Capture | None:
        """The capture that takes what is given to the stream; None if it would run."""
        capture = self.of.get(stream)
        if capture is not None and not capture.valid:
            raise Failure(Status.cudaErrorStreamCaptureInvalidated)
        return capture

    def begin(self, stream: Stream, mode: Mode, graph: Graph) -> None:
        """cudaStreamBeginCapture. A default stream cannot be captured, nor one that is captured already ("begin")."""
        if stream.legacy:
            raise Failure(Status.cudaErrorStreamCaptureUnsupported)
        if stream in self.of:
            raise Failure(Status.cudaErrorIllegalState)
        capture = Capture(stream, threading.get_ident(), Mode(mode), graph)
        capture.add(stream)
        self.of[stream] = capture

    def end(self, stream: Stream) -> Graph:
        """cudaStreamEndCapture. Its streams leave the capture also when it was lost ("Invalidation")."""
        capture = self.of.get(stream)
        if capture is None:
            raise Failure(Status.cudaErrorIllegalState)
        if capture.origin is not stream:
            self.refuse([capture], Status.cudaErrorStreamCaptureUnmatched)
        if capture.mode != RELAXED and capture.thread != threading.get_ident():
            self.refuse([capture], Status.cudaErrorStreamCaptureWrongThread)
        for each in [each for each, found in self.of.items() if found is capture]:
            del self.of[each]
        if not capture.valid:
            raise Failure(Status.cudaErrorStreamCaptureInvalidated)
        if capture.unjoined():
            raise Failure(Status.cudaErrorStreamCaptureUnjoined)
        return capture.graph

    def wait(self, stream: Stream, event: Event) -> bool:
        """cudaStreamWaitEvent as far as captures go. Returns whether that was all.

        A stream outside that waits for a captured event joins its capture. What is captured waits for nothing outside,
        and two captures never become one ("Cross-stream Dependencies and Events", "guide").
        """
        mine, other = self.active(stream), event.capture
        if other is None:
            if mine is not None and event.token is not None:
                self.refuse([mine], Status.cudaErrorStreamCaptureIsolation)
            return mine is not None
        if other not in self.of.values():  # its capture is over
            self.refuse([mine] if mine is not None else [], Status.cudaErrorStreamCaptureIsolation)
            raise Failure(Status.cudaErrorCapturedEvent)
        if not other.valid:
            raise Failure(Status.cudaErrorStreamCaptureInvalidated)
        if mine is not None and mine is not other:
            self.refuse([mine, other], Status.cudaErrorStreamCaptureMerge)
        other.follow(stream, event.position)
        self.of[stream] = other
        return True
