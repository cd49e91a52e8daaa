"""What a compiler says while it builds: kept where it matters, passed on where it helps, never raised from."""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any

log = logging.getLogger("twins_trt")

_LEVELS = {
    "INTERNAL_ERROR": logging.ERROR,
    "ERROR": logging.ERROR,
    "WARNING": logging.WARNING,
    "INFO": logging.DEBUG,
}


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
            self.errors.append(message)
        elif severity == "WARNING":
            self.warnings.append(message)
        if severity in _LEVELS:
            # The caller turns errors into a typed error, so they are no louder here than the rest.
            log.log(min(_LEVELS[severity], logging.WARNING), "compiler: %s", message)


def logger_for(module: ModuleType, build_log: BuildLog) -> Any:
    """An `ILogger` of that module that writes into `build_log`."""

    class Logger(module.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            # An exception thrown through the compiler's C++ frames ends the process.
            try:
                build_log.record(getattr(severity, "name", str(severity)), message)
            except BaseException as error:
                build_log.errors.append(f"log handler failed: {error!r}")

    return Logger()
