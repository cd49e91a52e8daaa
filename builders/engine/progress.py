"""Watching a build from outside: cheap progress, and a Ctrl-C that arrives.

The compiler runs in a thread of its own. Its monitor only notes a number (a bar drawn per tactic is known to slow
builds down, pytorch/TensorRT#3215); the caller's thread looks at it ten times a second, so the caller's callback runs
where the caller expects it, and an interrupt is noticed at once instead of after the C++ call returns.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from types import ModuleType
from typing import Any, TypeVar

from twins_trt.progress import Progress

log = logging.getLogger("twins_trt")

Result = TypeVar("Result")

INTERVAL = 0.1  # seconds between two looks at the build
HEARTBEAT = 1.0  # seconds after which the caller is told again, so that it can cancel a build that says nothing


class StopRequest(KeyboardInterrupt):
    """Raised by a `progress` whose caller waits until the build has ended: one that cannot stop goes on to its end."""


class BuildState:
    """Phases of a running build, written by the compiler's threads and read by the caller's.

    cancelled: set by the caller; the build ends when it next reports a step. ended: set when the compiler has returned.
    """

    def __init__(self) -> None:
        self.cancelled = False
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._phases: dict[str, list[Any]] = {}  # name -> [steps done, steps, name of the parent phase or None]
        self._reached = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = [0, max(1, steps), parent]

    def step(self, name: str, step: int) -> None:
        phase = self._phases.get(name)
        if phase is not None:
            phase[0] = step + 1

    def finish(self, name: str) -> None:
        with self._lock:
            self._phases.pop(name, None)

    def look(self) -> tuple[str, float | None] | None:
        """The innermost phase, and the share of the whole build that is done; None before the first phase."""
        with self._lock:
            phases = {name: tuple(phase) for name, phase in self._phases.items()}
        if not phases:
            return None
        innermost = name = list(phases)[-1]
        share = 0.0
        # Every phase is one step of its parent, so the share is computed from the innermost phase outwards. The loop is
        # bounded, because names could form a circle.
        for _ in range(len(phases)):
            done, steps, parent = phases[name]
            share = min(1.0, (done + min(share, 1.0)) / steps)
            if parent not in phases:
                break
            name = parent
        self._reached = max(self._reached, share)
        return innermost, self._reached


def attach_monitor(module: ModuleType, config: Any, state: BuildState) -> None:
    """Makes the build of `config` write its phases to `state`, and stop when `state.cancelled` is set."""

    class Monitor(module.IProgressMonitor):  # type: ignore[name-defined]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            state.start(phase_name, parent_phase, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            state.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            state.step(phase_name, step)
            return not state.cancelled

    config.progress_monitor = Monitor()


def watch(work: Callable[[], Result], state: BuildState, progress: Progress | None, *, can_cancel: bool) -> Result:
    """Runs `work` in a thread, passes its `state` on to `progress`, and returns or raises as `work` does.

    An interrupt, or an exception of `progress`, cancels the work if the compiler can be cancelled, waits until it ends,
    and is then raised. A second interrupt does not wait.
    """
    outcome: list[Result] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            failure.append(error)
        finally:
            state.ended.set()

    here = copy_context()  # so that errors spell options as the caller does
    thread = threading.Thread(target=here.run, args=(run,), name="twins-trt build", daemon=True)
    last: tuple[str, float | None] = ("Compiling", None)
    told = time.monotonic()
    try:
        thread.start()  # here, because an interrupt may arrive while it starts
        # Not by joining the thread: an interrupted join takes a running thread for an ended one (CPython 3.11).
        while not state.ended.wait(INTERVAL):
            seen = state.look() or last
            if progress is not None and (seen != last or time.monotonic() - told >= HEARTBEAT):
                last, told = seen, time.monotonic()
                progress("engine", *seen)
    except BaseException as error:
        state.cancelled = True
        log.warning(
            "stopping the build"
            if can_cancel
            else "this TensorRT cannot stop a build: waiting for it to end, interrupt again to leave at once"
        )
        wait_for(thread, state.ended)
        if can_cancel or not isinstance(error, StopRequest):
            raise
    if failure:
        raise failure[0]
    return outcome[0]


def wait_for(thread: threading.Thread, ended: threading.Event) -> None:
    """Waits until a thread has set `ended`. It may not have started, if its start was interrupted."""
    while thread in threading.enumerate() and not ended.wait(INTERVAL):
        pass
