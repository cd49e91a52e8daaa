"""How long a call takes on a device: many calls, each with a cold L2 cache, by the GPU's own clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

FLUSH_BYTES = 256 << 20  # larger than any L2
CAPTURE_WARM_UP = 3


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


@dataclass(frozen=True)
class Times:
    """Percentiles over calls, milliseconds.

    how: `graph` (a CUDA graph replayed: the GPU's work alone), `events` (launched from Python, by the GPU's clock) or
    `wall` (by the host's clock).
    """

    median: float
    p10: float
    p90: float
    p99: float
    calls: int
    how: str

    def to_json(self) -> dict[str, Any]:
        named = {"ms": self.median, "ms_p10": self.p10, "ms_p90": self.p90, "ms_p99": self.p99}
        return {**{key: round(value, 6) for key, value in named.items()}, "calls": self.calls, "timed": self.how}


def time_call(call: Callable[[], object], pace: Pace, *, graph: bool) -> Times:
    """Times of `call`, after a warm-up.

    graph: replay it as a CUDA graph. Raises CaptureError where it cannot be captured.
    """
    if pace.device.type != "cuda":
        return _wall(call, pace)
    for _ in range(CAPTURE_WARM_UP):
        call()
    torch.cuda.synchronize()
    run, how = (_captured(call), "graph") if graph else (call, "events")
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=pace.device)
    taken: list[float] = []
    deadline = time.perf_counter() + pace.seconds
    while pace.wants_more(len(taken), deadline):
        pairs = []
        for _ in range(pace.min_calls):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            start.record()
            run()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        taken += [start.elapsed_time(end) for start, end in pairs]
    return _percentiles(taken, how)


def time_wall(call: Callable[[], object], pace: Pace) -> Times:
    """Times of a `call` that waits for its own result, by the host's clock: what a caller sees."""
    if pace.device.type == "cuda":
        torch.cuda.synchronize()
    return _wall(call, pace)


def peak_memory(call: Callable[[], object], *, device: torch.device) -> int | None:
    """The most bytes of the device that tensors held during `call`, older ones included; None on a CPU.

    It is wrong for a call that replays a CUDA graph: torch does not count what that reserves.
    """
    if device.type != "cuda":
        call()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated(device))


def _captured(call: Callable[[], object]) -> Callable[[], object]:
    graph = torch.cuda.CUDAGraph()
    try:
        # on the stream that forward ran on: a gradient is computed there, and a capture must see all of it
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            call()
    except Exception as error:  # whatever the call does that a capture forbids: it says so in many ways
        raise CaptureError(str(error)) from error
    return graph.replay


def _wall(call: Callable[[], object], pace: Pace) -> Times:
    call()
    taken: list[float] = []
    deadline = time.perf_counter() + pace.seconds
    while pace.wants_more(len(taken), deadline):
        start = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - start))
    return _percentiles(taken, "wall")


def _percentiles(taken: list[float], how: str) -> Times:
    ordered = sorted(taken)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return Times(at(0.5), at(0.1), at(0.9), at(0.99), len(ordered), how)
