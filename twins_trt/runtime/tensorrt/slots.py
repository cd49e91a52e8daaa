"""The execution slots of an engine: a call takes one, and waits while all are taken."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from twins_trt.errors import EngineError
from twins_trt.runtime.memory import Memory
from twins_trt.runtime.tensorrt.loaded import Shape
from twins_trt.runtime.tensorrt.slot import ExecutionSlot

log = logging.getLogger("twins_trt")


class Slots:
    """new: makes a slot, inside `memory.entered()`; raises EngineError if there is no room. max_slots: how many there
    may be. owner: the engine's name in errors. Any number of threads may use one object."""

    def __init__(self, memory: Memory, new: Callable[[], ExecutionSlot], *, max_slots: int, owner: str) -> None:
        self._memory, self._new, self._max_slots, self._owner = memory, new, max_slots, owner
        self._all: list[ExecutionSlot] = []
        self._idle: list[ExecutionSlot] = []
        self._changed = threading.Condition()
        self.closed = False

    def held(self) -> tuple[int, int]:
        """How many slots there are, and the bytes of their buffers."""
        with self._changed:
            return len(self._all), sum(slot.buffers for slot in self._all)

    def take(self, shape: Shape) -> ExecutionSlot:
        """A slot for an image of this shape. Waits while all are taken. Raises EngineError."""
        slot = self.try_to_take(shape, wait=True)
        assert slot is not None  # it waited
        return slot

    def try_to_take(self, shape: Shape, *, wait: bool) -> ExecutionSlot | None:
        """An idle slot that last ran this shape, or a new slot, or another idle one; None if all are taken.

        wait: for a slot, instead of returning None. Raises EngineError if the engine is closed, or if the first slot
        does not fit into memory.
        """
        with self._changed:
            while True:
                self._open()
                alike = next((slot for slot in self._idle if slot.shape == shape), None)
                # Of the idle slots with another shape, the one idle for longest: its CUDA graph is least likely to be
                # needed soon.
                slot = alike or self._add() or next(reversed(self._idle), None)
                if slot is not None:
                    if slot in self._idle:
                        self._idle.remove(slot)
                    return slot
                if not wait:
                    return None
                self._changed.wait()

    def give(self, slot: ExecutionSlot) -> None:
        """Takes a slot back, for the next call."""
        with self._changed:
            if slot in self._all:  # unless it was closed meanwhile
                self._idle.insert(0, slot)
                self._changed.notify()

    @contextmanager
    def using(self, slot: ExecutionSlot) -> Iterator[None]:
        """Gives the slot back at the end, and after an error or an interrupt first waits until nothing runs in it.

        Raises EngineError if the engine is closed.
        """
        try:
            self._open()
            with self._memory.entered():
                yield
        except BaseException:
            if not self.closed:
                with suppress(EngineError), self._memory.entered():
                    slot.settle()
            raise
        finally:
            self.give(slot)

    def warm_up(self, shape: Shape, run: Callable[[ExecutionSlot], None]) -> None:
        """Calls `run` with every slot that is allowed, inside `memory.entered()`; those that do not exist yet are made.

        Slots that calls have taken are left out. If memory does not suffice for all, there are fewer from now on.
        Raises EngineError if the first does not fit, or does not run.
        """
        warm: list[ExecutionSlot] = []
        try:
            while len(warm) < self._max_slots:
                slot = self.try_to_take(shape, wait=not warm)
                if slot is None:
                    break
                warm.append(slot)
                try:
                    with self._memory.entered():
                        run(slot)
                except EngineError as error:
                    if not self._drop(slot, error):
                        raise
                    warm.remove(slot)
        except BaseException:
            with suppress(EngineError), self._memory.entered():
                for slot in warm:
                    slot.settle()
            raise
        finally:
            for slot in reversed(warm):  # the first is the next to be taken
                self.give(slot)

    def close(self) -> None:
        """Frees all slots, inside `memory.entered()`. Raises EngineError."""
        with self._changed:
            self.closed = True
            slots, self._all, self._idle = self._all, [], []
            self._changed.notify_all()
        for slot in slots:
            slot.close()

    def _open(self) -> None:
        if self.closed:
            raise EngineError(f"{self._owner} is closed")

    def _add(self) -> ExecutionSlot | None:
        """One more slot, or None if no more are allowed or fit. Raises EngineError if the first does not fit."""
        if len(self._all) >= self._max_slots:
            return None
        try:
            with self._memory.entered():
                slot = self._new()
        except EngineError as error:
            if not self._all:
                raise
            self._limit(error)
            return None
        self._all.append(slot)
        return slot

    def _drop(self, slot: ExecutionSlot, error: EngineError) -> bool:
        """Closes a slot that does not run, and makes the others do. Returns False if it is the only one."""
        with self._changed:
            if len(self._all) < 2:
                return False
            self._all.remove(slot)
            self._limit(error)
        with self._memory.entered():
            slot.close()
        return True

    def _limit(self, error: EngineError) -> None:
        self._max_slots = len(self._all)
        log.warning(
            "%s runs %d calls at once, because memory has no room for more: %s",
            self._owner,
            self._max_slots,
            error.cause,
        )
