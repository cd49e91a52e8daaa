"""The messages of a compiler while it builds: errors and the layer list are kept, warnings are logged."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from twins_trt.bindings import listening

log = logging.getLogger("twins_trt")


class BuildLog:
    """Collects a compiler's messages: `errors` and `warnings` in order, and `layers`, its printed layer list."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.layers = ""

    def record(self, severity: str, message: str) -> None:
        """Takes one message. Of tens of thousands of verbose messages only the layer list is kept."""
        if message.startswith("Layers:\n"):
            self.layers = message
        elif severity in ("ERROR", "INTERNAL_ERROR"):
            # Not every error ends a build. One that does becomes a typed error with this text.
            self.errors.append(message)
            log.debug("compiler: %s", message)
        elif severity == "WARNING":
            # An INT8 build repeats a warning for every convolution.
            log.log(logging.DEBUG if message in self.warnings else logging.WARNING, "compiler: %s", message)
            self.warnings.append(message)
        elif severity == "INFO":
            log.debug("compiler: %s", message)


@contextmanager
def capture(module: ModuleType) -> Iterator[tuple[Any, BuildLog]]:
    """The process's logger and a new BuildLog that gets its messages. One build at a time holds the logger."""
    build_log = BuildLog()
    with listening(module, build_log) as logger:
        yield logger, build_log
