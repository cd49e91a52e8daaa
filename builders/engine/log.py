"""What a compiler says while it builds: kept where it matters, passed on where it helps, never raised from."""

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
        """Takes one message. Verbose ones run into tens of thousands, so only the layer list is kept of them."""
        if message.startswith("Layers:\n"):
            self.layers = message
        elif severity in ("ERROR", "INTERNAL_ERROR"):
            # Not every error ends a build, and one that does becomes a typed error with this text in it.
            self.errors.append(message)
            log.debug("compiler: %s", message)
        elif severity == "WARNING":
            # An INT8 build says the same of every convolution.
            log.log(logging.DEBUG if message in self.warnings else logging.WARNING, "compiler: %s", message)
            self.warnings.append(message)
        elif severity == "INFO":
            log.debug("compiler: %s", message)


@contextmanager
def capture(module: ModuleType) -> Iterator[tuple[Any, BuildLog]]:
    """The process's logger, with its messages going into a fresh BuildLog; one build at a time holds it."""
    build_log = BuildLog()
    with listening(module, build_log) as logger:
        yield logger, build_log
