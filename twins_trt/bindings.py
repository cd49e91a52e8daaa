"""The Python bindings of TensorRT and TensorRT-RTX: their import, and their one logger.

The code that builds engines and the code that runs them share this. Names are looked up on the module, never by number
or version: the integers behind them change between major versions, and a name that a version lacks is absent.
"""

from __future__ import annotations

import importlib
import logging
import platform
import re
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Protocol

from twins_trt.errors import MissingDependencyError, first_line, missing
from twins_trt.spelling import spelled

log = logging.getLogger("twins_trt")

NAMES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
"""The name of each flavour in words; the keys are the modules' names."""


def load_bindings(flavour: str, *, purpose: str, needs: Sequence[str] = ()) -> ModuleType:
    """The module of a flavour. purpose: for errors. needs: names that it must have besides a logger's.

    Raises MissingDependencyError if it is absent, broken or another flavour's.
    """
    rtx = flavour == "tensorrt_rtx"
    jetpack = not rtx and platform.machine() == "aarch64"  # whose GPU pip's tensorrt is not built for
    try:
        module = importlib.import_module(flavour)
    except ModuleNotFoundError as error:
        if jetpack:
            raise MissingDependencyError(
                f"{purpose} needs JetPack's tensorrt, which this environment does not see",
                "sudo apt install python3-libnvinfer && /usr/bin/python3 -m venv --system-site-packages .venv",
            ) from error
        raise missing(
            "tensorrt-rtx-cu13" if rtx else "tensorrt", extra="rtx" if rtx else "tensorrt", purpose=purpose
        ) from error
    except Exception as error:  # a shared library that does not load raises OSError, ImportError or RuntimeError
        pip = f"pip install --force-reinstall {'tensorrt-rtx-cu13' if rtx else 'tensorrt'}"
        apt = "sudo apt install --reinstall python3-libnvinfer, or in a container: docker run --runtime nvidia"
        raise MissingDependencyError(
            f"{purpose}: {flavour} is installed but cannot be loaded ({first_line(error)})",
            f"reinstall it: {apt if jetpack else pip}",
        ) from error
    for name in (*needs, "ILogger"):
        if not hasattr(module, name):
            raise MissingDependencyError(
                f"{purpose}: the module {flavour} has no {name}, so it is not that library",
                f"remove what shadows it: {getattr(module, '__file__', None) or 'a package without files'}",
            )
    if rtx != hasattr(module, "ComputeCapability"):
        other = "tensorrt" if rtx else "tensorrt_rtx"
        raise MissingDependencyError(
            f"the module {flavour} is the library {other}",
            f"choose {spelled('flavour', other)}, or reinstall {flavour}",
        )
    return module


def release(version: str) -> tuple[int, int]:
    """(major, minor) of a version string; zeros if it has none."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def members(module: ModuleType, enum: str) -> tuple[str, ...]:
    """Names of an enum of the module; empty if the module has no such enum."""
    return tuple(getattr(getattr(module, enum, None), "__members__", ()))


class Listener(Protocol):
    """Takes the messages of TensorRT."""

    def record(self, severity: str, message: str) -> None: ...


class _Sink:
    """The current receiver of the process-wide logger of one module."""

    def __init__(self) -> None:
        self.listener: Listener | None = None
        self.lock = threading.Lock()
        self.errors: deque[str] = deque(maxlen=16)

    def record(self, severity: str, message: str) -> None:
        if self.listener is not None:
            self.listener.record(severity, message)
        elif severity in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(message)
            log.debug("runtime: %s", message)
        elif severity == "WARNING":
            log.warning("runtime: %s", message)


_LOGGERS: dict[str, tuple[Any, _Sink]] = {}


def _logger(module: ModuleType) -> tuple[Any, _Sink]:
    if module.__name__ in _LOGGERS and isinstance(_LOGGERS[module.__name__][0], module.ILogger):
        return _LOGGERS[module.__name__]
    sink = _Sink()

    class Logger(module.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            # An exception that passes through the compiler's C++ frames ends the process, so none may leave here.
            try:
                sink.record(getattr(severity, "name", str(severity)), msg)
            except BaseException:
                log.debug("a compiler message could not be recorded", exc_info=True)

    _LOGGERS[module.__name__] = (Logger(), sink)
    return _LOGGERS[module.__name__]


def process_logger(module: ModuleType) -> Any:
    """The one `ILogger` of this process for a TensorRT module.

    TensorRT registers the logger of the first builder, runtime or refitter of a process. While that one lives it
    ignores others and warns of it. With one shared logger there is no warning, and every message arrives here.
    """
    return _logger(module)[0]


def logged(module: ModuleType) -> str:
    """The last logged errors that belong to no build, in one line. TensorRT returns null and logs the reason.

    The errors are then forgotten. If several threads fail at once, one of them may get the reason of another.
    """
    errors = _logger(module)[1].errors
    last = list(dict.fromkeys(errors))[-2:]
    errors.clear()
    return "; ".join(" ".join(message.split()) for message in last) or "it does not say why"


@contextmanager
def listening(module: ModuleType, listener: Listener) -> Iterator[Any]:
    """The process's logger, whose messages go to `listener` inside the block. Only one block runs at a time."""
    logger, sink = _logger(module)
    with sink.lock:
        sink.listener = listener
        try:
            yield logger
        finally:
            sink.listener = None
