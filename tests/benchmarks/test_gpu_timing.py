"""How calls are timed on a GPU, without one: a row of calls in one graph, and what surrounds a capture."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu import ceilings, kernels, timing
from benchmarks.gpu.runner import shown
from benchmarks.gpu.timing import CaptureError, CudaClock, HostClock, Pace, calls_in_row, time_by, time_call
from benchmarks.gpu.workload import cores, smoke

CPU = torch.device("cpu")
PACE = Pace(CPU, seconds=0.0, min_calls=10)


class LaunchingClock:
    """A GPU whose every launch takes `launch` ms, and every call `work` ms, and `cold` ms more with a cold cache."""

    launched, captured = "events", "graph"

    def __init__(self, *, launch: float, work: float, cold: float) -> None:
        self.launch, self.work, self.cold = launch, work, cold
        self.alive: list[weakref.ref[Any]] = []

    def warm_up(self, call: Callable[[], object]) -> None:
        call()

    def capture(self, call: Callable[[], object], times: int) -> Callable[[], object]:
        assert not any(graph() for graph in self.alive), "two graphs hold memory at once"

        def replay() -> int:
            return times

        self.alive.append(weakref.ref(replay))
        return replay

    def take(self, run: Callable[[], object], times: int, *, cold: bool) -> list[float]:
        calls = run()
        assert isinstance(calls, int)
        return [self.launch + calls * (self.work + self.cold * cold)] * times


def test_a_row_leaves_out_the_launch_and_keeps_the_cache_warm() -> None:
    clock = LaunchingClock(launch=3e-3, work=2e-3, cold=1e-3)
    times = time_by(clock, lambda: None, PACE, graph=True, in_row=True)
    assert times.median == pytest.approx(6e-3)
    assert times.row_calls == timing.ROW_CALLS
    assert times.in_row == pytest.approx(2e-3 + 3e-3 / times.row_calls)
    row = times.to_json()
    assert f"{times.in_row:.4f} ms in a row" in shown(row)
    assert row["ms_in_row"] == pytest.approx(times.in_row, abs=1e-6) and row["row_calls"] == times.row_calls
    assert {"ms", "ms_p10", "ms_p90", "ms_p99"} <= set(row)


def test_a_row_is_not_timed_where_the_call_is_long_or_nobody_asks() -> None:
    for work, in_row in ((timing.ROW_MS, True), (2e-3, False)):
        clock = LaunchingClock(launch=3e-3, work=work, cold=0.0)
        times = time_by(clock, lambda: None, PACE, graph=True, in_row=in_row)
        assert times.in_row is None and "ms_in_row" not in times.to_json()


@pytest.mark.parametrize("ms", [0.0, 1e-4, 4e-3, 0.09, 0.1, 0.11, 3.0, 4.9, 5.1, 400.0])
def test_a_row_is_as_long_as_it_may_be(ms: float) -> None:
    calls = calls_in_row(ms)
    assert 0 <= calls <= timing.ROW_CALLS and calls * ms <= timing.ROW_MS
    assert calls == timing.ROW_CALLS or (calls + 1) * ms > timing.ROW_MS


def test_a_cpu_walks_the_same_lines() -> None:
    done: list[int] = []
    times = time_call(lambda: done.append(1), PACE, graph=True, in_row=True)
    assert times.how == "wall" and times.in_row is not None
    # a warm-up, calls by themselves, and as many rows
    assert len(done) == 1 + PACE.min_calls + PACE.of_rows().min_calls * times.row_calls
    run = HostClock().capture(lambda: done.append(1), 7)
    before = len(done)
    run()
    assert len(done) - before == 7


def test_every_kernel_and_an_empty_one_are_timed_in_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ROW_CALLS", 3)
    monkeypatch.setattr(timing, "ROW_MS", float("inf"))  # however slow this machine is just now
    workload = smoke()
    (empty,) = [job.measure() for job in ceilings.jobs(workload) if job.name == "empty kernel"]
    assert empty["row_calls"] == 3
    wanted = ["resize_argmax batch 2 ours", "resize_normalize batch 2 torch"]
    wanted += [core.name + " forward ours" for core in cores(workload)]
    measured = [job.measure() for job in kernels.jobs(workload) if job.name in wanted]
    assert [row["row_calls"] for row in measured] == [3] * len(wanted)


class FakeCuda:
    """What a capture and its timing need of torch.cuda; `said` is what was done, in order."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.modes: list[str] = []
        self.collecting: list[bool] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        said, outer = self.said, self

        class Graph:
            def replay(self) -> None:
                said.append("replay")

        class Capturing:
            def __init__(self, graph: Graph, *, stream: object, capture_error_mode: str) -> None:
                assert stream == "side stream"
                outer.modes.append(capture_error_mode)

            def __enter__(self) -> None:
                outer.collecting.append(gc.isenabled())

            def __exit__(self, *error: object) -> None:
                outer.collecting.append(gc.isenabled())

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                said.append("record")

            def elapsed_time(self, other: Event) -> float:
                return 0.5

        monkeypatch.setattr(timing, "FLUSH_BYTES", 16)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", Capturing)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: "side stream")
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: said.append("synchronize"))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    fake.install(monkeypatch)
    return fake


def test_nothing_is_collected_while_a_call_is_captured(cuda: FakeCuda) -> None:
    """A graph or an event of an older row that is freed then would spoil the capture."""

    class Old:
        pass

    old = Old()
    old.itself = old  # type: ignore[attr-defined]
    gone = weakref.ref(old)
    del old
    CudaClock(CPU).capture(lambda: None, 1)
    assert gone() is None  # collected before
    assert cuda.collecting == [False, False] and gc.isenabled()
    assert cuda.modes == ["thread_local"]


def test_calls_of_a_row_take_each_others_memory(cuda: FakeCuda) -> None:
    class Result:
        pass

    results: list[weakref.ref[Result]] = []

    def call() -> Result:
        assert all(result() is None for result in results)
        result = Result()
        results.append(weakref.ref(result))
        return result

    run = CudaClock(CPU).capture(call, 5)
    assert len(results) == 5
    run()
    assert cuda.said == ["replay"]


def test_a_call_that_cannot_be_captured_is_told_and_collecting_goes_on(cuda: FakeCuda) -> None:
    def call() -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(CaptureError, match="not permitted"):
        CudaClock(CPU).capture(call, 1)
    assert gc.isenabled()


@pytest.mark.parametrize("cold", [True, False])
def test_the_cache_is_emptied_outside_what_is_timed(cuda: FakeCuda, cold: bool) -> None:
    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            cuda.said.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    clock = CudaClock(CPU)
    with Log():
        taken = clock.take(lambda: cuda.said.append("run"), 2, cold=cold)
    once = [*(["zero_"] if cold else []), "record", "run", "record"]
    assert cuda.said == [*once, *once, "synchronize"]
    assert taken == [0.5, 0.5]
