"""The runtime's own costs are measured with calls that are replayed, on the simulated GPU where there is none."""

from __future__ import annotations

import pytest

from benchmarks.gpu import runtime
from benchmarks.gpu.stub import OnDevice, Stream, StubEngine, open_cuda, stub_engine
from benchmarks.gpu.workload import smoke
from twins_trt.errors import EngineError

JOBS = {job.name: job for job in runtime.jobs(smoke())}


@pytest.mark.parametrize("name", JOBS)
def test_every_row_is_measured_on_the_simulated_gpu_without_a_launch(name: str) -> None:
    row = JOBS[name].measure()
    assert row["enqueued"] == 0, "the figure would be of launches, not of replays"
    assert 0 <= row["ms_p10"] <= row["ms"] <= row["ms_p90"] <= row["ms_p99"]
    assert row["timed"] == ("events" if name.startswith("stage") else "wall")


def test_the_rows_are_of_every_way_and_batch() -> None:
    assert len(JOBS) == 7 * len(smoke().batches)
    assert {job.batch for job in JOBS.values()} == set(smoke().batches)


def test_a_stage_is_timed_by_events_that_the_engine_told() -> None:
    """On the simulated clock, which ticks once an event, every stage takes a whole number of milliseconds."""
    (name,) = [name for name in JOBS if name.startswith("stage engine")]
    assert JOBS[name].measure()["ms"] >= 1


def test_the_stub_refuses_what_tensorrt_refuses() -> None:
    context = StubEngine(open_cuda(simulated=True), (1, 32, 64, 3)).new_context()
    with pytest.raises(EngineError, match="no multiple of 256"):
        context.bind("image", 257)


def test_nothing_of_a_stub_is_left() -> None:
    cuda = open_cuda(simulated=True)
    engine, stub = stub_engine(cuda, (1, 32, 64, 3))
    stream, image = Stream(cuda), OnDevice(cuda, (1, 32, 64, 3), offset=1)
    engine.run_on_device(image, stream=stream.handle)
    assert stub.enqueued > 0
    engine.close()
    stream.close()
    del image
    gpu = cuda.cudaMalloc.gpu
    assert gpu.held() == dict.fromkeys(gpu.held(), 0)
