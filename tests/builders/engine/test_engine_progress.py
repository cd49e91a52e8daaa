"""Progress adds up over nested phases, and results and errors of the build's thread reach the caller."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twins_trt.builders.engine import progress
from twins_trt.builders.engine.log import BuildLog
from twins_trt.builders.engine.progress import BuildState, StopRequest, watch


def test_nested_phases_share_out_their_parent() -> None:
    state = BuildState()
    assert state.look() is None
    state.start("build", None, 4)
    assert state.look() == ("build", 0.0)
    state.step("build", 0)
    assert state.look() == ("build", 0.25)
    state.start("tactics", "build", 10)
    state.step("tactics", 4)
    assert state.look() == ("tactics", (1 + 0.5) / 4)
    state.finish("tactics")
    assert state.look() == ("build", (1 + 0.5) / 4)  # it never goes back
    state.step("build", 3)
    assert state.look() == ("build", 1.0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["start", "step", "finish"]),
            st.sampled_from("abcd"),
            st.sampled_from([None, *"abcd"]),
            st.integers(-1, 30),
        ),
        max_size=40,
    )
)
def test_any_order_of_events_gives_a_share_that_only_grows(events: list[tuple[str, str, str | None, int]]) -> None:
    state = BuildState()
    last = 0.0
    for what, name, parent, number in events:
        if what == "start":
            state.start(name, parent, number)
        elif what == "step":
            state.step(name, max(0, number))
        else:
            state.finish(name)
        seen = state.look()
        if seen is not None:
            assert seen[1] is not None and last <= seen[1] <= 1
            last = seen[1]


def test_results_and_errors_cross_the_thread() -> None:
    assert watch(lambda: 42, BuildState(), None, can_cancel=True) == 42

    def fails() -> None:
        raise ValueError("in the other thread")

    with pytest.raises(ValueError, match="in the other thread"):
        watch(fails, BuildState(), None, can_cancel=True)


def test_cancelling_waits_for_the_work_to_end() -> None:
    state, ended = BuildState(), threading.Event()

    def work() -> None:
        state.start("build", None, 2)
        while not state.cancelled:
            pass
        ended.set()

    def impatient(step: str, phase: str, share: float | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch(work, state, impatient, can_cancel=True)
    assert ended.is_set()


def test_an_interrupt_that_arrives_while_the_thread_starts_cancels_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    state, start = BuildState(), threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    def work() -> None:
        while not state.cancelled:
            time.sleep(0.001)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        watch(work, state, None, can_cancel=True)
    assert state.ended.is_set()
    monkeypatch.setattr(threading.Thread, "start", lambda thread: interrupt())  # before it starts
    with pytest.raises(KeyboardInterrupt):
        watch(work, BuildState(), None, can_cancel=True)


def interrupt() -> None:
    raise KeyboardInterrupt


def test_work_that_cannot_stop_ends_for_a_caller_that_waits_for_it() -> None:
    state = BuildState()

    def work() -> int:
        time.sleep(0.3)
        return 42

    def ask(step: str, phase: str, share: float | None) -> None:
        raise StopRequest

    state.start("build", None, 2)
    assert watch(work, state, ask, can_cancel=False) == 42
    with pytest.raises(StopRequest):
        watch(work, state_with_a_phase(), ask, can_cancel=True)


def state_with_a_phase() -> BuildState:
    state = BuildState()
    state.start("build", None, 2)
    return state


def test_a_silent_compiler_is_told_of_every_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "HEARTBEAT", 0.2)
    told: list[tuple[str, float | None]] = []
    watch(lambda: time.sleep(0.7), BuildState(), lambda _, phase, share: told.append((phase, share)), can_cancel=False)
    assert told[0] == ("Compiling", None) and 1 <= len(told) <= 3


def test_the_log_keeps_what_matters() -> None:
    log = BuildLog()
    for severity, message in (
        ("VERBOSE", "Parsing node"),
        ("VERBOSE", "Layers:\nName: a"),
        ("INFO", "hello"),
        ("WARNING", "slow"),
        ("ERROR", "bad"),
        ("INTERNAL_ERROR", "worse"),
    ):
        log.record(severity, message)
    assert (log.layers, log.warnings, log.errors) == ("Layers:\nName: a", ["slow"], ["bad", "worse"])
