"""Where a build is, and how long its steps took."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """Where a build is. number, count: this step and how many there are, from 1. share: of this step, 0 to 1."""

    number: int
    count: int
    name: str
    detail: str = ""
    share: float | None = None

    def said(self) -> tuple[str, str, float | None]:
        """The step, its detail and its share, as a command line shows them."""
        return f"[{self.number}/{self.count}] {self.name}", self.detail, self.share


Progress = Callable[[Step], None]


class Clock:
    """Times the steps and tells the caller where the build is."""

    def __init__(self, steps: Sequence[str], progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._steps = steps
        self._progress = progress
        self._started = 0.0

    def begin(self, detail: str) -> None:
        self.end()
        self.seconds[self._steps[len(self.seconds)]] = 0.0
        self._started = time.perf_counter()
        self.inside(detail, None)

    def inside(self, detail: str, share: float | None) -> None:
        if self._progress is not None:
            number = len(self.seconds)
            self._progress(Step(number, len(self._steps), self._steps[number - 1], detail, share))

    def end(self) -> None:
        if self.seconds:
            self.seconds[self._steps[len(self.seconds) - 1]] = time.perf_counter() - self._started
