"""How long work reports its progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

# progress(step, detail, share): the step that runs, a detail of it in words, and the share of the step that is done,
# 0 to 1, or None where it is unknown.
Progress = Callable[[str, str, float | None], None]


def silent(step: str, detail: str, share: float | None) -> None:
    """The progress of a caller that wants none."""


class Clock:
    """Times steps that follow one another, and reports the running one.

    steps: their names, in order. seconds: wall time of each step that has begun.
    """

    def __init__(self, steps: Sequence[str], progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._steps = steps
        self._progress = progress or silent
        self._started = 0.0

    def begin(self, detail: str) -> None:
        """Ends the step before and begins the next."""
        self.end()
        self.seconds[self._steps[len(self.seconds)]] = 0.0
        self._started = time.perf_counter()
        self.progress("", detail, None)

    def progress(self, step: str, detail: str, share: float | None) -> None:
        """A `Progress` for the work of a step; its step is replaced by the clock's, such as `[2/6] graph`."""
        number = len(self.seconds)
        self._progress(f"[{number}/{len(self._steps)}] {self._steps[number - 1]}", detail, share)

    def end(self) -> None:
        """Ends the last step."""
        if self.seconds:
            self.seconds[self._steps[len(self.seconds) - 1]] = time.perf_counter() - self._started
