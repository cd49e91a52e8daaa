"""Progress adds up over nested phases, and results and errors of the build's thread reach the caller."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twins_trt.builders.engine.log import BuildLog
from twins_trt.builders.engine.progress import BuildState, watch


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
