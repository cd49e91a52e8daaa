"""Parts of a pass that do not depend on each other, on streams of their own while a CUDA graph is captured."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from weakref import WeakValueDictionary

import torch
from torch import Tensor

POOL = 32
"""How many streams of a priority torch gives, one after another and again from the first."""

Part = Callable[[], Tensor]


class Beside:
    """Runs the parts of one model's passes. The graph that is captured runs them at once: none of them fills a GPU with
    one image. Without a graph they run one after another, because launching takes longer than they do.

    Each model has streams that no other has. What torch keeps for a stream, such as the workspace of matrix products,
    would else be shared by graphs that run at the same time.
    """

    def __init__(self) -> None:
        self._sides: dict[int, list[torch.cuda.Stream]] = {}  # by the stream that they are beside

    def run(self, parts: Sequence[Part]) -> list[Tensor]:
        """The results of the parts, in their order. Where too few streams are free, the last parts follow the first."""
        if not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
            return [part() for part in parts]
        current = torch.cuda.current_stream()
        sides = self._beside(current, len(parts) - 1)
        forked: list[torch.cuda.Stream] = []
        results = []
        try:
            for part, side in zip(parts[1:], sides, strict=False):
                side.wait_stream(current)
                forked.append(side)
                with torch.cuda.stream(side):
                    results.append(part())
            own = [part() for part in (parts[0], *parts[1 + len(sides) :])]
        except BaseException:
            with contextlib.suppress(
                RuntimeError
            ):  # the first error is to be seen, and not that a stream has not joined
                _join(current, forked)
            raise
        _join(current, forked)
        return [own[0], *results, *own[1:]]

    def _beside(self, current: torch.cuda.Stream, count: int) -> list[torch.cuda.Stream]:
        """At most so many streams that are this model's, beside `current`."""
        sides = self._sides.setdefault(current.cuda_stream, [])
        for _ in range(POOL):
            if len(sides) >= count:
                break
            stream = torch.cuda.Stream(priority=-1)  # hardly anybody else uses this priority
            if _claim(stream, self):
                sides.append(stream)
        return sides[:count]


_OWNERS: WeakValueDictionary[int, Beside] = WeakValueDictionary()
_LOCK = threading.Lock()


def _claim(stream: torch.cuda.Stream, owner: Beside) -> bool:
    """Makes the stream the owner's as long as it lives; False where it is somebody's already."""
    with _LOCK:
        if stream.cuda_stream in _OWNERS:
            return False
        _OWNERS[stream.cuda_stream] = owner
        return True


def _join(current: torch.cuda.Stream, sides: Sequence[torch.cuda.Stream]) -> None:
    for side in sides:
        current.wait_stream(side)
