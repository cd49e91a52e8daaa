"""Streams of frames: a thread reads and resizes frames while the engine works on those before them."""

from __future__ import annotations

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from twins_trt.errors import TwinsError
from twins_trt.runtime.segmentation import Segmentation

P = TypeVar("P")


@dataclass(frozen=True)
class Frame:
    """The result of one item of a stream.

    index: its place in the iterable, from 0. source: the item itself. Exactly one of segmentation and error is None.
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


class Started(Protocol):
    """Frames that are given to the engine. Exactly one of its methods is called, once."""

    def result(self) -> Sequence[Segmentation]: ...

    def discard(self) -> None: ...


# start(prepared, wait): gives frames to the engine. Without `wait`, returns None if the engine has no room for them.
Start = Callable[[Sequence[P], bool], Started | None]


@dataclass(frozen=True)
class _Chunk(Generic[P]):
    """Frames that the engine takes at once. At most one of started and error is set; neither, if all frames failed
    before."""

    taken: list[_Taken[P]]
    started: Started | None = None
    error: TwinsError | None = None


def stream_frames(
    items: Iterable[Any], prepare: Callable[[Any], P], start: Start[P], *, batch: int, depth: int
) -> Generator[Frame, None, None]:
    """Yields a Frame for every item, in order. `prepare` runs in a thread, `start` here, on up to `batch` frames.

    At most `batch * depth` items are taken and not yet yielded. While frames are under way, the next frames are started
    as soon as they are ready, and no frame waits for a next one that is not ready. A TwinsError of `prepare`, `start`
    or a result becomes the error of its frame. Any other exception, also of the iterable, is raised after the frames
    before it. Nothing is under way when this ends, even after an error.
    """
    free = threading.Semaphore(batch * depth)
    ready: queue.SimpleQueue[_Taken[P] | _End] = queue.SimpleQueue()
    stop = threading.Event()
    # A daemon thread: an iterable that waits for a camera forever must not keep the process alive.
    thread = threading.Thread(
        target=_take, args=(items, prepare, free, ready, stop), name="twins-trt-stream", daemon=True
    )
    under_way: deque[_Chunk[P]] = deque()
    thread.start()
    try:
        end: _End | None = None
        waiting: list[_Taken[P]] = []
        while True:
            while len(waiting) < batch and end is None and (not under_way or not ready.empty()):
                got = ready.get()
                if isinstance(got, _End):
                    end = got
                else:
                    waiting.append(got)
            if waiting and (len(waiting) == batch or end is not None):
                chunk = _start(waiting, start, wait=not under_way)
                if chunk is not None:
                    under_way.append(chunk)
                    waiting = []
                    continue
            if not under_way:
                break
            for frame in _finish(under_way.popleft()):
                yield frame
                free.release()
        if end is not None and end.error is not None:
            raise end.error
    finally:
        stop.set()
        for chunk in under_way:
            if chunk.started is not None:
                with suppress(TwinsError):  # a further error; the first one ends the stream
                    chunk.started.discard()
        free.release()
        thread.join(timeout=1.0)  # the thread runs on only if an item takes longer to come


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


def _start(taken: list[_Taken[P]], start: Start[P], *, wait: bool) -> _Chunk[P] | None:
    prepared = [each.prepared for each in taken if each.prepared is not None]
    if not prepared:
        return _Chunk(taken)
    try:
        started = start(prepared, wait)
    except TwinsError as error:
        return _Chunk(taken, error=error)
    return None if started is None else _Chunk(taken, started)


def _finish(chunk: _Chunk[P]) -> list[Frame]:
    error = chunk.error
    done: Iterator[Segmentation] = iter(())
    if chunk.started is not None:
        try:
            done = iter(chunk.started.result())
        except TwinsError as raised:
            error = raised
    return [
        each.frame
        if each.frame.error
        else replace(each.frame, error=error)
        if error
        else replace(each.frame, segmentation=next(done))
        for each in chunk.taken
    ]
