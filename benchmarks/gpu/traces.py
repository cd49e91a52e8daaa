"""What one replay of the torch engine consists of, kernel by kernel, and how long the GPU waits between them.

It shows what to fuse next. A replay takes longer with the profiler attached, whose own cost lies between the kernels.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.jobs import Job, Row
from benchmarks.gpu.models import ENGINE, engine_of, picture
from benchmarks.gpu.parent import die_with_parent
from benchmarks.gpu.workload import Workload, model_rests_on

SMALL = "-s_fpn"
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of a trace: what runs on a GPU."""

ON_CPU = ("cpu_op",)
BETWEEN_HOST_AND_DEVICE = ("HtoD", "DtoH")
"""Copies that are named so surround a replay; others are part of it."""


def jobs(workload: Workload) -> Iterator[Job]:
    """Each trace, and the function that takes it: of the small models with an FPN head."""
    small = [name for name in workload.models if name.endswith(SMALL)]
    for model in small or workload.models:
        for batch in workload.batches:
            measure = functools.partial(apart, trace_engine, model, batch, workload)
            rests_on = (*model_rests_on(model, batch, workload), *ENGINE)
            yield Job(f"{model} batch {batch}", measure, form="ours", model=model, batch=batch, rests_on=rests_on)


@dataclass(frozen=True)
class Span:
    """One kernel or copy of a trace. start, length: microseconds."""

    name: str
    start: float
    length: float


def spans_of(trace: Mapping[str, Any], categories: Sequence[str]) -> list[Span]:
    """What a trace in Chrome's format holds of these categories, in order, without copies between host and device."""
    found = [
        Span(event["name"], float(event["ts"]), float(event["dur"]))
        for event in trace["traceEvents"]
        if event.get("ph") == "X" and event.get("cat") in categories and not _is_transfer(event["name"])
    ]
    return sorted(found, key=lambda span: (span.start, -span.length))


def graph_launches(trace: Mapping[str, Any]) -> int:
    """How many CUDA graphs were launched: none where the engine could not capture its program."""
    launches = (event for event in trace["traceEvents"] if event.get("ph") == "X")
    return sum(event["name"].startswith("cudaGraphLaunch") for event in launches)


def outermost(spans: Sequence[Span]) -> list[Span]:
    """These without what lies inside another, as torch's operators lie inside each other on a CPU."""
    kept: list[Span] = []
    for span in spans:
        if not kept or span.start + span.length > kept[-1].start + kept[-1].length:
            kept.append(span)
    return kept


def summary(spans: Sequence[Span]) -> Row:
    """What a replay spends, in microseconds, by name, the longest first.

    kernels: name, count, us and share of all kernels. busy_us: while something runs. idle_us: between the first start
    and the last end, while nothing runs. Raises RuntimeError where there are no spans.
    """
    if not spans:
        raise RuntimeError("the profiler saw nothing run")
    by_name: dict[str, list[float]] = {}
    for span in spans:
        by_name.setdefault(span.name, []).append(span.length)
    total = sum(span.length for span in spans)
    kernels = [
        {"name": name, "count": len(taken), "us": round(sum(taken), 3), "share": sum(taken) / total}
        for name, taken in by_name.items()
    ]
    kernels.sort(key=lambda kernel: -float(kernel["us"]))  # type: ignore[arg-type]
    busy, end = 0.0, spans[0].start
    for span in spans:  # they may overlap: a graph runs what does not depend on each other at once
        busy += max(0.0, span.start + span.length - max(span.start, end))
        end = max(end, span.start + span.length)
    idle = end - spans[0].start - busy
    return {"kernels": kernels, "launches": len(spans), "busy_us": round(busy, 3), "idle_us": round(idle, 3)}


def profiled(call: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """The trace of one call, in Chrome's format."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        with profile(activities=activities) as profiler:
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
        profiler.export_chrome_trace(str(path))
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def apart(trace: Callable[[str, int, Workload], Row], name: str, batch: int, workload: Workload) -> Row:
    """The row by `trace` in a process of its own: the profiler stays attached, and would slow what is timed later."""
    spawn = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=die_with_parent) as pool:
        return pool.submit(trace, name, batch, workload).result()


def trace_engine(name: str, batch: int, workload: Workload) -> Row:
    """The row of one model."""
    # CUPTI that is torn down and attached again crashes beside CUDA graphs, as torch's own profiler says
    os.environ["TEARDOWN_CUPTI"], os.environ["DISABLE_CUPTI_LAZY_REINIT"] = "0", "1"
    # attached before the capture, so that it knows the graph's kernels
    profiled(lambda: torch.zeros(1, device=workload.device), workload.device)
    image = picture(batch, workload).numpy()
    with closing(engine_of(name, batch, workload)) as engine:
        for _ in range(3):  # the second call of a shape captures it
            engine(image, outputs=["mask"])
        trace = profiled(lambda: engine(image, outputs=["mask"]), workload.device)
    on_gpu = workload.device.type == "cuda"
    found = summary(spans_of(trace, ON_GPU) if on_gpu else outermost(spans_of(trace, ON_CPU)))
    return {"model": name, "batch": batch, "graph_launches": graph_launches(trace), **found}


def _is_transfer(name: str) -> bool:
    return any(word in name for word in BETWEEN_HOST_AND_DEVICE)
