"""What the runtime costs by itself: calls of an engine whose network is one copy on the GPU (`stub.py`)."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.gpu.jobs import Job, Row
from benchmarks.gpu.stub import OnDevice, Shape, Stream, open_cuda, stub_engine
from benchmarks.gpu.timing import Times, time_wall
from benchmarks.gpu.workload import Workload
from twins_trt.runtime.tensorrt.engine import TensorRTEngine

FRAMES = 50  # given to the GPU before the host waits, where it waits for many at once
WARM_UP = 3  # new arrays are used, captured and replayed
STAGES = ("copy_in", "engine", "copy_out")


@dataclass(frozen=True)
class Way:
    """A way of calling. frames: in one call, before the host waits. end: frees what the call uses."""

    call: Callable[[], object]
    frames: int = 1
    end: Callable[[], None] = lambda: None


def jobs(workload: Workload) -> Iterator[Job]:
    """One row a way of calling, and batch. `enqueued` counts the runs in the figure that no CUDA graph replayed."""
    ways: dict[str, Callable[..., Way]] = {
        "host to host": _host_to_host,
        "host to host from an input buffer": _from_input_buffer,
        "on the GPU into the caller's array": functools.partial(_on_device, given=True),
        "on the GPU into an array that is lent": functools.partial(_on_device, given=False),
    }
    for batch in workload.batches:
        shape = (batch, *workload.size, 3)
        for name, way in ways.items():
            measure = functools.partial(_row, way, shape, workload)
            yield Job(f"{name}, batch {batch}", measure, batch=batch, rests_on=("runtime",))
        for stage in STAGES:
            measure = functools.partial(_row, _host_to_host, shape, workload, stage=stage)
            yield Job(f"stage {stage}, batch {batch}", measure, batch=batch, rests_on=("runtime",))


def _row(way: Callable[..., Way], shape: Shape, workload: Workload, *, stage: str | None = None) -> Row:
    """Milliseconds a frame, by the host's clock; of one stage, by the GPU's."""
    simulated = workload.device.type != "cuda"
    cuda = open_cuda(simulated=simulated)
    engine, stub = stub_engine(cuda, shape)
    made = way(engine, shape, cuda, frames=2 if simulated else FRAMES)
    try:
        for _ in range(WARM_UP):
            made.call()
        before = stub.enqueued
        taken: list[float] = []
        if stage is not None:
            engine.observe = lambda name, seconds: taken.append(1e3 * seconds) if name == stage else None
        times = time_wall(made.call, workload.pace())
        found = _spread(times, made.frames) if stage is None else _percentiles(taken, times)
        return {"enqueued": stub.enqueued - before, **found.to_json()}
    finally:
        made.end()
        engine.close()


def _host_to_host(engine: TensorRTEngine, shape: Shape, cuda: Any, *, frames: int) -> Way:
    image, out = np.zeros(shape, np.uint8), {"mask": np.empty(shape[:3], np.uint8)}
    return Way(lambda: engine(image, out=out))


def _from_input_buffer(engine: TensorRTEngine, shape: Shape, cuda: Any, *, frames: int) -> Way:
    image, out = engine.input_buffer(shape), {"mask": np.empty(shape[:3], np.uint8)}
    image[...] = 0
    return Way(lambda: engine(image, out=out))


def _on_device(engine: TensorRTEngine, shape: Shape, cuda: Any, *, frames: int, given: bool) -> Way:
    stream, image, mask = Stream(cuda), OnDevice(cuda, shape), OnDevice(cuda, shape[:3])
    out = {"mask": mask} if given else None

    def call() -> None:
        for _ in range(frames):
            engine.run_on_device(image, out=out, stream=stream.handle)
        stream.synchronize()

    return Way(call, frames, stream.close)


def _spread(times: Times, frames: int) -> Times:
    """Times of a frame, from those of a call with many."""
    return replace(times, **{name: getattr(times, name) / frames for name in ("median", "p10", "p90", "p99")})


def _percentiles(taken: list[float], times: Times) -> Times:
    """Times of a stage that was told, milliseconds."""
    cuts = statistics.quantiles(taken, n=100, method="inclusive") if len(taken) > 1 else taken * 99
    return replace(times, median=cuts[49], p10=cuts[9], p90=cuts[89], p99=cuts[98], calls=len(taken), how="events")
