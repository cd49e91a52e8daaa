"""What a compiler says while it builds: kept where it matters, passed on where it helps, never raised from."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

log = logging.getLogger("twins_trt")


class BuildLog:
    """Collects a compiler's messages: `errors` and `warnings` in order, and `layers`, its printed layer list."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.layers = ""

    def record(self, severity: str, message: str) -> None:
        """Takes one message. Verbose ones run into tens of thousands, so only the layer list is kept of them."""
        if message.startswith("Layers:\n"):
            self.layers = message
        elif severity in ("ERROR", "INTERNAL_ERROR"):
            # Not every error ends a build, and one that does becomes a typed error with this text in it.
            self.errors.append(message)
            log.debug("compiler: %s", message)
        elif severity == "WARNING":
            self.warnings.append(message)
            log.warning("compiler: %s", message)
        elif severity == "INFO":
            log.debug("compiler: %s", message)


class _Sink:
    """Where the process-wide logger of one module writes to at the moment."""

    def __init__(self) -> None:
        self.target: BuildLog | None = None
        self.lock = threading.Lock()


_LOGGERS: dict[str, tuple[Any, _Sink]] = {}


def _logger(module: ModuleType) -> tuple[Any, _Sink]:
    if module.__name__ in _LOGGERS and isinstance(_LOGGERS[module.__name__][0], module.ILogger):
        return _LOGGERS[module.__name__]
    sink = _Sink()

    class Logger(module.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            # An exception thrown through the compiler's C++ frames ends the process, so none leaves here.
            try:
                if sink.target is not None:
                    sink.target.record(getattr(severity, "name", str(severity)), msg)
            except BaseException:
                log.debug("a compiler message could not be recorded", exc_info=True)

    _LOGGERS[module.__name__] = (Logger(), sink)
    return _LOGGERS[module.__name__]


def process_logger(module: ModuleType) -> Any:
    """The one `ILogger` of this process for a TensorRT module.

    TensorRT registers the logger of the first builder, runtime or refitter of a process, and warns that it ignores
    others while that one lives. Sharing one keeps the warning away and every message in one place.
    """
    return _logger(module)[0]


@contextmanager
def capture(module: ModuleType) -> Iterator[tuple[Any, BuildLog]]:
    """The process's logger, with its messages going into a fresh BuildLog; one build at a time holds it."""
    logger, sink = _logger(module)
    with sink.lock:
        sink.target = BuildLog()
        try:
            yield logger, sink.target
        finally:
            sink.target = None
