"""How long a call takes on a device: many calls, each with a cold L2 cache, by the GPU's own clock.

A graph of one call costs 2-3 µs of launch, which is most of what a small kernel seems to take. So a call can also be
timed many times in a row inside one graph. An empty kernel, timed in both ways, shows what is launch.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

FLUSH_BYTES = 256 << 20  # larger than any L2
CAPTURE_WARM_UP = 3
ROW_CALLS = 100
ROW_MS = 10.0
"""A graph of a row takes no longer: where one call takes more than half of it, launching is nothing beside it."""


class CaptureError(RuntimeError):
    """A call cannot be captured. Its process is useless then: torch's allocator and random numbers stay captured."""


@dataclass(frozen=True)
class Pace:
    """How long a call is repeated, in seconds, and how often at least, on which device."""

    device: torch.device
    seconds: float
    min_calls: int

    def wants_more(self, calls: int, deadline: float) -> bool:
        """Whether to go on after so many calls. deadline: by time.perf_counter."""
        return calls < self.min_calls or (time.perf_counter() < deadline and calls < 100 * self.min_calls)

    def of_rows(self) -> Pace:
        """For rows of calls, each of which is a mean by itself."""
        return Pace(self.device, self.seconds / 5, max(1, self.min_calls // 5))


@dataclass(frozen=True)
class Times:
    """Percentiles over calls, milliseconds.

    how: `graph` (a CUDA graph replayed: the GPU's work alone), `events` (launched from Python, by the GPU's clock) or
    `wall` (by the host's clock).
    in_row: median of one call among `row_calls` in a row in one graph, milliseconds, with a warm cache; None where no
    row was timed.
    """

    median: float
    p10: float
    p90: float
    p99: float
    calls: int
    how: str
    in_row: float | None = None
    row_calls: int = 0

    def to_json(self) -> dict[str, Any]:
        named = {"ms": self.median, "ms_p10": self.p10, "ms_p90": self.p90, "ms_p99": self.p99}
        row = {} if self.in_row is None else {"ms_in_row": round(self.in_row, 6), "row_calls": self.row_calls}
        return {**{key: round(value, 6) for key, value in named.items()}, "calls": self.calls, "timed": self.how, **row}


class Clock(Protocol):
    """Launches and times calls on one kind of device."""

    launched: str
    """How what is launched from Python is timed, a word of `Times.how`."""
    captured: str
    """The same of a graph."""

    def warm_up(self, call: Callable[[], object]) -> None:
        """Compiles what `call` needs, and waits."""

    def capture(self, call: Callable[[], object], times: int) -> Callable[[], object]:
        """What does `call` so many times in a row. Raises CaptureError where it cannot be captured."""

    def take(self, run: Callable[[], object], times: int, *, cold: bool) -> list[float]:
        """Milliseconds of each of so many runs. cold: empty the cache before each."""


def time_call(call: Callable[[], object], pace: Pace, *, graph: bool, in_row: bool = False) -> Times:
    """Times of `call`, after a warm-up.

    graph: replay it as a CUDA graph. in_row: with `graph`, also many times in a row in one graph; only for a call that
    gives its memory back. Raises CaptureError where it cannot be captured.
    """
    clock: Clock = CudaClock(pace.device) if pace.device.type == "cuda" else HostClock()
    return time_by(clock, call, pace, graph=graph, in_row=in_row)


def time_by(clock: Clock, call: Callable[[], object], pace: Pace, *, graph: bool, in_row: bool = False) -> Times:
    """`time_call` by this clock."""
    clock.warm_up(call)
    if not graph:
        return _percentiles(_taken(clock, call, pace, cold=True), clock.launched)
    times = _percentiles(_taken(clock, clock.capture(call, 1), pace, cold=True), clock.captured)
    calls = calls_in_row(times.median)
    if not in_row or calls < 2:
        return times
    # the graph of one call is freed by now, so that the two never hold memory at once
    rows = _percentiles(_taken(clock, clock.capture(call, calls), pace.of_rows(), cold=False), clock.captured)
    return replace(times, in_row=rows.median / calls, row_calls=calls)


def calls_in_row(ms: float) -> int:
    """How many calls of `ms` milliseconds a row has."""
    return ROW_CALLS if ms * ROW_CALLS <= ROW_MS else int(ROW_MS / ms)


def time_wall(call: Callable[[], object], pace: Pace) -> Times:
    """Times of a `call` that waits for its own result, by the host's clock: what a caller sees."""
    if pace.device.type == "cuda":
        torch.cuda.synchronize()
    return time_by(HostClock(), call, pace, graph=False)


def peak_memory(call: Callable[[], object], *, device: torch.device) -> int | None:
    """The most bytes of the device that tensors held during `call`, older ones included; None on a CPU.

    It is wrong for a call that replays a CUDA graph: torch does not count what that reserves.
    """
    if device.type != "cuda":
        call()
        return None
    gc.collect()  # what earlier rows left in cycles
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated(device))


class CudaClock:
    """The GPU's own clock, on the current stream, which must not be the default one where a call is captured."""

    launched, captured = "events", "graph"

    def __init__(self, device: torch.device) -> None:
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)

    def warm_up(self, call: Callable[[], object]) -> None:
        for _ in range(CAPTURE_WARM_UP):
            call()
        torch.cuda.synchronize()

    def capture(self, call: Callable[[], object], times: int) -> Callable[[], object]:
        graph = torch.cuda.CUDAGraph()
        try:
            # On the stream that forward ran on: a gradient is computed there, and a capture must see all of it.
            # thread_local: a thread of the compiler's may use the device meanwhile.
            with (
                _uncollected(),
                torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"),
            ):
                for _ in range(times):
                    call()  # what it returns is freed here, so that the next call takes the same memory of the pool
        except Exception as error:  # whatever the call does that a capture forbids: it says so in many ways
            raise CaptureError(str(error)) from error
        return graph.replay

    def take(self, run: Callable[[], object], times: int, *, cold: bool) -> list[float]:
        pairs = []
        for _ in range(times):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            if cold:
                self._flush.zero_()
            start.record()
            run()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in pairs]


class HostClock:
    """The host's clock. On a CPU a loop stands in for a graph, and nothing empties its caches."""

    launched = captured = "wall"

    def warm_up(self, call: Callable[[], object]) -> None:
        call()

    def capture(self, call: Callable[[], object], times: int) -> Callable[[], object]:
        def run() -> None:
            for _ in range(times):
                call()

        return run

    def take(self, run: Callable[[], object], times: int, *, cold: bool) -> list[float]:
        taken = []
        for _ in range(times):
            start = time.perf_counter()
            run()
            taken.append(1e3 * (time.perf_counter() - start))
        return taken


def _taken(clock: Clock, run: Callable[[], object], pace: Pace, *, cold: bool) -> list[float]:
    taken: list[float] = []
    deadline = time.perf_counter() + pace.seconds
    while pace.wants_more(len(taken), deadline):
        taken += clock.take(run, pace.min_calls, cold=cold)
    return taken


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Collects what older rows left, and nothing within: to free a graph or an event spoils a capture.

    `torch.cuda.graph` no longer collects by itself in torch 2.11.
    """
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _percentiles(taken: list[float], how: str) -> Times:
    ordered = sorted(taken)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return Times(at(0.5), at(0.1), at(0.9), at(0.99), len(ordered), how)
