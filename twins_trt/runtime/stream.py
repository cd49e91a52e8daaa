"""Frames one after another: the next are read and resized in a thread while the engine works on the current ones."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from twins_trt.errors import TwinsError
from twins_trt.runtime.segmentation import Segmentation

P = TypeVar("P")


@dataclass(frozen=True)
class Frame:
    """What became of one item of a stream.

    index: its place in the iterable, from 0. source: the item itself. Of segmentation and error exactly one is None.
    """

    index: int
    source: Any
    segmentation: Segmentation | None = None
    error: TwinsError | None = None

    def result(self) -> Segmentation:
        """The segmentation; raises the frame's error if there is one."""
        if self.segmentation is None:
            raise self.error or TwinsError(f"frame {self.index} was not segmented")
        return self.segmentation


@dataclass(frozen=True)
class _Taken(Generic[P]):
    frame: Frame
    prepared: P | None


@dataclass(frozen=True)
class _End:
    error: BaseException | None


def stream_frames(
    items: Iterable[Any],
    prepare: Callable[[Any], P],
    run: Callable[[Sequence[P]], Sequence[Segmentation]],
    *,
    batch: int,
    depth: int,
) -> Generator[Frame, None, None]:
    """Yield a Frame for every item, in order; `prepare` runs in a thread, `run`, on up to `batch` frames, here.

    At most `batch * depth` items are taken and not yet done with. A TwinsError of `prepare` or `run` becomes its
    frame's error; any other exception, also of the iterable, is raised after the frames before it.
    """
    free = threading.Semaphore(batch * depth)
    ready: queue.SimpleQueue[_Taken[P] | _End] = queue.SimpleQueue()
    stop = threading.Event()
    # A daemon: an iterable that waits for a camera forever must not keep the process alive.
    thread = threading.Thread(
        target=_take, args=(items, prepare, free, ready, stop), name="twins-trt-stream", daemon=True
    )
    thread.start()
    try:
        end: _End | None = None
        while end is None:
            chunk: list[_Taken[P]] = []
            while len(chunk) < batch and end is None:
                got = ready.get()
                if isinstance(got, _End):
                    end = got
                else:
                    chunk.append(got)
            for frame in _run(chunk, run):
                yield frame
                free.release()
        if end.error is not None:
            raise end.error
    finally:
        stop.set()
        free.release()
        thread.join(timeout=1.0)  # only an item that takes longer to come is left behind


def _take(
    items: Iterable[Any],
    prepare: Callable[[Any], P],
    free: threading.Semaphore,
    ready: queue.SimpleQueue[_Taken[P] | _End],
    stop: threading.Event,
) -> None:
    try:
        iterator = iter(items)
        for index in itertools.count():
            free.acquire()
            if stop.is_set():
                return
            try:
                item = next(iterator)
            except StopIteration:
                break
            frame, prepared = Frame(index, item), None
            try:
                prepared = prepare(item)
            except TwinsError as error:
                frame = replace(frame, error=error)
            ready.put(_Taken(frame, prepared))
    except BaseException as error:
        ready.put(_End(error))
    else:
        ready.put(_End(None))


def _run(chunk: Sequence[_Taken[P]], run: Callable[[Sequence[P]], Sequence[Segmentation]]) -> list[Frame]:
    prepared = [taken.prepared for taken in chunk if taken.prepared is not None]
    try:
        done = iter(run(prepared) if prepared else ())
    except TwinsError as error:
        return [taken.frame if taken.frame.error else replace(taken.frame, error=error) for taken in chunk]
    return [taken.frame if taken.frame.error else replace(taken.frame, segmentation=next(done)) for taken in chunk]
