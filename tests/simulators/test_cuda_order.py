"""The simulated GPU, and a real one where there is one, does things in the order that CUDA documents."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import cuda_order
import pytest
from cuda_order import COPIES, EVENTS, HOST, STREAMS, UNKNOWN, Program
from fake_cuda import cuda_bindings
from fake_gpu import POISON, FakeGpu
from hypothesis import given, settings
from hypothesis import strategies as st

assert UNKNOWN == POISON

WEIGHTS = {
    "copy": 30,
    "launch": 8,
    "write": 6,
    "record": 6,
    "wait": 6,
    "sync": 6,
    "sync_event": 3,
    "capture": 3,
    "destroy": 3,
    "sync_device": 1,
}


def steps(seed: int) -> Iterator[tuple[Any, ...]]:
    """A program of fifty steps. Hypothesis draws the seed alone: what it draws itself is short and repeats itself, and
    meets too few orders."""
    random = Random(seed)
    for step in random.choices(list(WEIGHTS), list(WEIGHTS.values()), k=50):
        stream, event = random.choice(STREAMS), random.choice(EVENTS)
        yield {
            "copy": (step, stream, *random.choice(COPIES)),
            "write": (step, random.choice(HOST), random.randint(1, 200)),
            "record": (step, event, stream),
            "wait": (step, stream, event),
            "sync_event": (step, event),
            "sync_device": (step,),
            "capture": (step, stream, random.choices(COPIES, k=2)),
        }.get(step, (step, stream))


def run(cuda: Any, seed: int, *, waits: bool) -> None:
    """Every buffer of the host, after every step and at the end."""
    made = Program(cuda, waits=waits)
    for step, *given_ in steps(seed):
        getattr(made, step)(*given_)
        for name in HOST:
            found, said = made.read(name)
            assert found == said, (step, given_, name)
    made.close()


@given(st.integers(0, 1 << 32))
@settings(max_examples=300, deadline=None)
def test_every_value_is_as_late_as_the_documentation_allows(seed: int) -> None:
    gpu = FakeGpu()
    run(cuda_bindings(gpu), seed, waits=False)
    assert gpu.broken is None and gpu.pending() == 0
    assert gpu.held() == dict.fromkeys(gpu.held(), 0)


@pytest.mark.gpu
def test_a_real_gpu_agrees_with_programs_that_wait() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    if int(runtime.cudaGetDeviceCount()[0]) != 0:
        pytest.skip("no CUDA GPU")

    @given(st.integers(0, 1 << 32))
    @settings(max_examples=100, deadline=None)
    def agrees(seed: int) -> None:
        run(runtime, seed, waits=True)

    agrees()


@given(st.integers(0, 1 << 32))
@settings(max_examples=100, deadline=None)
def test_a_program_that_waits_reads_no_poison(seed: int) -> None:
    """The rehearsal of the test above."""
    gpu = FakeGpu()
    run(cuda_bindings(gpu), seed, waits=True)


def test_the_model_is_not_the_simulator() -> None:
    """They must not go wrong together: the model imports nothing of it."""
    assert not [name for name, value in vars(cuda_order).items() if "fake" in str(getattr(value, "__module__", name))]
