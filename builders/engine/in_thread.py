"""A build in a thread of its own, which an interrupt stops and waits for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path

from twins_trt.builders.engine.build import BuiltEngine, build_engine
from twins_trt.builders.engine.options import EngineOptions
from twins_trt.builders.engine.progress import StopRequest, wait_for
from twins_trt.progress import Progress

_POLL_S = 0.1


def build_in_thread(
    graph: Path, engine: EngineOptions, progress: Progress, *, keep: Callable[[BuiltEngine], None] | None = None
) -> BuiltEngine:
    """Runs `build_engine` in a thread of its own, while this thread calls `progress` and waits.

    keep: called there with the finished engine, also if this thread was interrupted meanwhile and raises: a compiler
    that cannot be stopped has then worked to its end.

    An interrupt arrives in the main thread. If a compiler has just called back into Python there, the interrupt is
    lost: the bindings print the exception and continue. `Thread.join` does not help: after an interrupt it takes a
    running thread for an ended one (CPython 3.11). So this thread waits on an event. An exception in it, also one of
    `progress`, stops the build when it next reports its progress, and is raised when the build has ended.
    """
    news: deque[tuple[str, str, float | None]] = deque()
    stopped, ended = threading.Event(), threading.Event()
    outcome: list[BuiltEngine] = []
    failure: list[BaseException] = []

    def pass_on(step: str, detail: str, share: float | None) -> None:
        if stopped.is_set():
            raise StopRequest
        news.append((step, detail, share))

    def build() -> None:
        try:
            built = build_engine(graph, engine, progress=pass_on)
            if keep is not None:
                keep(built)
            outcome.append(built)
        except BaseException as error:
            failure.append(error)
        finally:
            ended.set()

    here = copy_context()  # so that errors spell options as the caller does
    thread = threading.Thread(target=here.run, args=(build,), name="twins-trt engine", daemon=True)
    try:
        thread.start()  # here, because an interrupt may arrive while it starts
        while not ended.wait(_POLL_S):
            while news:
                progress(*news.popleft())
    except BaseException:
        stopped.set()
        wait_for(thread, ended)
        raise
    if failure:
        raise failure[0]
    return outcome[0]
