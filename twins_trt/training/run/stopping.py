"""Ctrl-C and SIGTERM take effect after the running step has ended and its state is saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Within its block the first signal only sets `wanted`; a second one acts at once, as outside of the block.

    In other threads than the main one, where Python handles no signals, it changes nothing.
    """

    def __init__(self) -> None:
        self.wanted: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def follow(self) -> None:
        """Raises the signal that came, if any. Call it after the block."""
        if self.wanted is not None:
            signal.raise_signal(self.wanted)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.wanted = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal gave
        self._before = {}
