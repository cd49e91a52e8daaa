"""What a trace of a replay says: which kernels ran, how long, and how long nothing ran."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
from typing import Any

import pytest

from benchmarks.gpu import traces
from benchmarks.gpu.traces import ON_GPU, Span, graph_launches, outermost, spans_of, summary, trace_engine
from benchmarks.gpu.workload import full, smoke

PR_GET_PDEATHSIG = 2  # Linux, prctl(2)


def event(name: str, start: float, length: float, *, cat: str = "kernel", phase: str = "X") -> dict[str, Any]:
    """An event as torch's profiler writes it, in microseconds."""
    return {"ph": phase, "cat": cat, "name": name, "pid": 0, "tid": 7, "ts": start, "dur": length, "args": {}}


GPU_TRACE: dict[str, Any] = {
    "schemaVersion": 1,
    "traceEvents": [
        event("cudaGraphLaunch", 0, 9, cat="cuda_runtime"),
        event("aten::copy_", 0, 40, cat="cpu_op"),
        event("Memcpy HtoD (Pinned -> Device)", 10, 50, cat="gpu_memcpy"),
        event("gemm", 120, 20),  # not in order, as from two streams
        event("lsa_forward_kernel", 100, 10),
        event("ProfilerStep#0", 100, 70, cat="gpu_user_annotation"),
        event("Memcpy DtoD (Device -> Device)", 112, 4, cat="gpu_memcpy"),
        event("gemm", 130, 30),  # beside the first
        event("Memset (Device)", 165, 1, cat="gpu_memset"),
        event("Memcpy DtoH (Device -> Pinned)", 166, 30, cat="gpu_memcpy"),
        {"ph": "f", "cat": "ac2g", "name": "ac2g", "id": 1, "ts": 101},
        {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "python"}},
    ],
}


def test_a_replay_is_its_kernels_and_the_copies_among_them() -> None:
    row = summary(spans_of(GPU_TRACE, ON_GPU))
    assert [(kernel["name"], kernel["count"], kernel["us"]) for kernel in row["kernels"]] == [
        ("gemm", 2, 50.0),
        ("lsa_forward_kernel", 1, 10.0),
        ("Memcpy DtoD (Device -> Device)", 1, 4.0),
        ("Memset (Device)", 1, 1.0),
    ]
    assert row["launches"] == 5
    assert [kernel["share"] for kernel in row["kernels"]] == pytest.approx([50 / 65, 10 / 65, 4 / 65, 1 / 65])
    assert row["busy_us"] == 10 + 4 + 40 + 1  # what runs at the same time counts once
    assert row["idle_us"] == 2 + 4 + 5


@pytest.mark.parametrize("seed", range(20))
def test_busy_and_idle_are_the_whole(seed: int) -> None:
    draw = random.Random(seed)
    spans = [Span(draw.choice("abc"), draw.randrange(200), draw.randrange(1, 30)) for _ in range(draw.randrange(1, 12))]
    spans.sort(key=lambda span: (span.start, -span.length))
    row = summary(spans)
    ends = [span.start + span.length for span in spans]
    covered = {t for span in spans for t in range(int(span.start), int(span.start + span.length))}
    assert row["busy_us"] == len(covered)
    assert row["busy_us"] + row["idle_us"] == max(ends) - min(span.start for span in spans)
    assert sum(kernel["share"] for kernel in row["kernels"]) == pytest.approx(1)
    assert row["kernels"] == sorted(row["kernels"], key=lambda kernel: -kernel["us"])


def test_a_trace_says_whether_a_graph_was_replayed() -> None:
    assert graph_launches(GPU_TRACE) == 1
    events = [event for event in GPU_TRACE["traceEvents"] if event["name"] != "cudaGraphLaunch"]
    assert graph_launches({"traceEvents": events}) == 0


def test_a_profiler_that_sees_nothing_is_an_error() -> None:
    """As where the driver does not let it: a row without kernels would say that nothing has to be fused."""
    with pytest.raises(RuntimeError, match="nothing run"):
        summary(spans_of(GPU_TRACE, ("python_function",)))


def test_an_operator_inside_another_counts_once() -> None:
    inner = [Span("linear", 0, 10), Span("addmm", 2, 8), Span("copy", 3, 1), Span("gelu", 10, 5)]
    assert [span.name for span in outermost(inner)] == ["linear", "gelu"]


def test_small_models_are_traced() -> None:
    jobs = list(traces.jobs(full()))
    models = ("twins_svt-s_fpn", "twins_pcpvt-s_fpn")
    assert [(job.model, job.batch) for job in jobs] == [(model, batch) for model in models for batch in (1, 16)]
    assert all({"lsa", "gsa", "preprocess", "postprocess"} <= set(job.rests_on) for job in jobs)


def test_the_engine_is_traced_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TEARDOWN_CUPTI", "DISABLE_CUPTI_LAZY_REINIT"):
        monkeypatch.setenv(name, "")  # put back afterwards
    workload = smoke()
    row = trace_engine(workload.models[0], 2, workload)
    counts = {kernel["name"]: kernel["count"] for kernel in row["kernels"]}
    depths = sum(workload.spec(workload.models[0]).depths)
    assert counts["aten::linear"] >= 4 * depths  # of each block: attention's two or more, and the FFN's two
    assert row["launches"] == sum(counts.values())
    assert row["busy_us"] > 0 and row["idle_us"] >= 0
    # an operator inside another is not counted again
    assert sum(kernel["us"] for kernel in row["kernels"]) == pytest.approx(row["busy_us"], rel=1e-3)


@pytest.mark.slow
def test_a_trace_is_taken_in_a_process_of_its_own() -> None:
    (job,) = traces.jobs(smoke())
    row = job.measure()
    assert {"model", "batch", "kernels", "launches", "busy_us", "idle_us"} <= set(row)


def trace_that_dies(name: str, batch: int, workload: object) -> dict[str, Any]:
    os._exit(9)  # as a profiler that crashes


@pytest.mark.slow
def test_a_trace_whose_process_dies_is_an_error() -> None:
    with pytest.raises(RuntimeError):
        traces.apart(trace_that_dies, "x", 1, smoke())


def signal_of_its_parents_end(*_: object) -> dict[str, Any]:
    """What the kernel will send to this process when its parent ends, as Linux's prctl says it."""
    number = ctypes.c_int()
    ctypes.CDLL(None).prctl(PR_GET_PDEATHSIG, ctypes.byref(number))
    return {"signal": number.value}


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone ends a process with its parent")
def test_a_trace_ends_with_the_process_that_wants_it() -> None:
    assert traces.apart(signal_of_its_parents_end, "x", 1, smoke()) == {"signal": signal.SIGKILL}
