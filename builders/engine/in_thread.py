"""A build in a thread of its own, which an interrupt stops and nothing outlives."""

from __future__ import annotations

import threading
from collections import deque
from contextvars import copy_context
from pathlib import Path

from twins_trt.builders.engine.build import BuiltEngine, build_engine
from twins_trt.builders.engine.options import EngineOptions
from twins_trt.progress import Progress

_POLL_S = 0.1


def build_in_thread(graph: Path, engine: EngineOptions, progress: Progress) -> BuiltEngine:
    """`build_engine` in a thread of its own, while this one reports and waits.

    An interrupt arrives in the main thread. There it would be lost if a compiler had just called back into Python (its
    bindings print the exception and go on), and `Thread.join`, interrupted, takes a running thread for an ended one
    (CPython 3.11). So this thread waits on an event; what is raised in it, also by `progress`, stops the build at its
    next sign of life, and is raised when the build has ended.
    """
    news: deque[tuple[str, str, float | None]] = deque()
    stopped, ended = threading.Event(), threading.Event()
    outcome: list[BuiltEngine] = []
    failure: list[BaseException] = []

    def report(step: str, detail: str, share: float | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        news.append((step, detail, share))

    def build() -> None:
        try:
            outcome.append(build_engine(graph, engine, progress=report))
        except BaseException as error:
            failure.append(error)
        finally:
            ended.set()

    here = copy_context()  # for errors to be spelled as the caller spells
    threading.Thread(target=here.run, args=(build,), name="twins-trt engine", daemon=True).start()
    try:
        while not ended.wait(_POLL_S):
            while news:
                progress(*news.popleft())
    except BaseException:
        stopped.set()
        ended.wait()
        raise
    if failure:
        raise failure[0]
    return outcome[0]
