"""Memory that is lent, comes back when nobody refers to it any more, and is lent again.

`OutputRing` lends device memory for results, `InputRing` pinned host memory for images. Both spare the allocation and
the freeing of every frame. Freeing waits for the whole GPU, and a new address is one that no CUDA graph knows.

Memory comes back in `__del__`: in any thread, at any time, also in the middle of `take` in the same thread, and during
somebody's stream capture. So giving back takes no lock and frees nothing, unless the ring is closed.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from twins_trt.errors import EngineError
from twins_trt.runtime.memory.arrays import DeviceArray, size_of
from twins_trt.runtime.memory.protocol import HostBlock, Memory, OutOfMemory

if TYPE_CHECKING:
    from twins_trt.runtime.engines.protocol import Array

log = logging.getLogger("twins_trt")

_KEPT = 8  # blocks that wait to be lent again; more than that are freed
_KEPT_UNKNOWN = 64 << 20  # bytes of blocks whose readers are unknown, before one is freed to learn that they are done
_PER_THREAD = 2  # cudaStreamPerThread: in every thread this handle means another stream


@dataclass(eq=False)
class _Block:
    """memory: an address, or pinned memory. quiet: nothing reads it any more, or what does is before `event`.

    recorded: the next writer has to wait for `event`.
    """

    memory: Any
    size: int
    event: Any = None
    quiet: bool = True
    recorded: bool = False


class _Ring:
    """new: allocates a block. free: frees one. Both are called inside `memory.entered()`."""

    def __init__(self, memory: Memory, new: Callable[[int], _Block], free: Callable[[_Block], None]) -> None:
        self._memory, self._new, self._free = memory, new, free
        self._returned: deque[_Block] = deque()  # append and popleft are atomic
        self._idle: list[_Block] = []
        self._closed = False
        self._lock = threading.Lock()

    @property
    def idle(self) -> int:
        """Bytes that wait to be lent again."""
        with self._lock:
            self._collect()
            return sum(block.size for block in self._idle)

    def take(self, size: int) -> _Block:
        """A block of at least `size` bytes. Call it inside `memory.entered()`. Raises OutOfMemory."""
        with self._lock:
            self._collect()
            block = self._find(size)
            if block is None and self._learn():
                block = self._find(size)
            if block is not None:
                self._idle.remove(block)
                return block
            while len(self._idle) >= _KEPT:
                self._free(self._idle.pop(0))
            try:
                return self._new(size)
            except OutOfMemory:
                if not self._idle:
                    raise
                self._free_idle()
                return self._new(size)

    def give(self, block: _Block) -> None:
        """Takes a block back."""
        self._returned.append(block)
        if self._closed and not sys.is_finalizing():  # a process that ends gives everything back
            self._free_returned()

    def close(self) -> None:
        """Frees what is idle. What is still lent stays valid, and is freed when it comes back."""
        self._closed = True
        with self._lock:
            self._collect()
            self._free_idle()
        self._free_returned()

    def _collect(self) -> None:
        while (block := self._next_returned()) is not None:
            self._idle.append(block)

    def _next_returned(self) -> _Block | None:
        try:
            return self._returned.popleft()
        except IndexError:  # another thread may have taken the last one
            return None

    def _find(self, size: int) -> _Block | None:
        """Of the blocks that fit, the one that came back last: a caller that keeps no results gets one address."""
        fits = (block for block in reversed(self._idle) if block.quiet and size <= block.size <= 2 * size)
        return next(fits, None)

    def _learn(self) -> bool:
        """If many blocks have unknown readers, frees one, after which the others have none. Returns whether it did.

        CUDA's free waits for all work under way. cudaDeviceSynchronize would do the same without freeing, but it breaks
        every stream capture in the process, whatever its mode (NVIDIA/TensorRT#2888), and nobody can tell whether there
        is one.
        """
        unknown = [block for block in self._idle if not block.quiet]
        if len(unknown) < _KEPT and sum(block.size for block in unknown) < _KEPT_UNKNOWN:
            return False
        self._idle.remove(unknown[0])
        self._free(unknown[0])
        for block in unknown[1:]:
            block.quiet = True
        return True

    def _free_idle(self) -> None:
        while self._idle:
            self._free(self._idle.pop())

    def _free_returned(self) -> None:
        while (block := self._next_returned()) is not None:
            try:
                with self._memory.entered():
                    self._free(block)
            except EngineError as error:  # a broken GPU takes nothing back
                log.debug("while freeing memory: %s", error.cause)


class OutputRing:
    """Device memory for results that the caller gets as `DeviceArray`s.

    memory: belongs to somebody else, and lives as long as the arrays. The next writer of memory that came back waits
    for the stream that the array named. Memory of an array that named none is not used again before CUDA has freed
    other memory: only that waits for readers that nobody knows.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._ring = _Ring(memory, self._new, self._free)

    @property
    def idle(self) -> int:
        """Bytes that no array uses."""
        return self._ring.idle

    def take(
        self, shape: tuple[int, ...], dtype: str, *, writer: int, reader: int | None, keep: Any = None
    ) -> DeviceArray:
        """An array whose memory `writer` may write at once. Call it inside `memory.entered()`. Raises EngineError.

        reader: the stream on which the caller uses the array; None if it is unknown. keep: lives as long as the array,
        and so does the reader's stream if `keep` owns it.
        """
        block = self._ring.take(size_of(shape, dtype))
        array = DeviceArray(block.memory, shape, dtype, stream=reader, free=partial(self._give, block, reader, keep))
        if block.recorded:
            self._memory.wait_event(writer, block.event)
        return array

    def close(self) -> None:
        """Frees what no array uses, inside `memory.entered()`; an array that lives longer frees its own memory."""
        self._ring.close()

    def _new(self, size: int) -> _Block:
        event = self._memory.new_event(timing=False)
        try:
            return _Block(self._memory.allocate(size), size, event)
        except BaseException:
            self._memory.free_event(event)
            raise

    def _free(self, block: _Block) -> None:
        self._memory.free(block.memory)
        self._memory.free_event(block.event)

    def _give(self, block: _Block, reader: int | None, keep: Any) -> None:
        block.recorded = False
        if reader is not None and reader != _PER_THREAD:
            try:
                with self._memory.entered():
                    block.recorded = self._memory.try_record(block.event, reader)
            except EngineError as error:  # its stream is gone, or the GPU is broken
                log.debug("the readers of a result are unknown: %s", error.cause)
        block.quiet = block.recorded
        self._ring.give(block)


class _Loan:
    """What an input buffer and all its views refer to: when the last of them goes, the memory comes back."""

    def __init__(self, ring: _Ring, block: _Block) -> None:
        self._ring, self.block = ring, block
        pinned: HostBlock = block.memory
        self.address = pinned.array.ctypes.data
        self.__array_interface__ = {
            "data": (self.address, False), "shape": (block.size,), "typestr": "|u1", "version": 3,
        }  # fmt: skip

    def __del__(self) -> None:
        self._ring.give(self.block)


@dataclass(frozen=True)
class PinnedView:
    """An image in an input buffer. offset: in bytes from the beginning of the pinned block."""

    block: HostBlock
    offset: int
    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def address(self) -> int:
        """Where the GPU sees it. Raises EngineError if the block is not mapped."""
        if self.block.device is None:
            raise EngineError("pinned memory that is not mapped has no address on the GPU")
        return self.block.device + self.offset


class InputRing:
    """Pinned host memory for images, which a camera may write and a GPU reads without a copy by the processor.

    mapped: the GPU shares the host's memory and reads it in place.
    """

    def __init__(self, memory: Memory, *, mapped: bool) -> None:
        self._ring = _Ring(
            memory,
            lambda size: _Block(memory.allocate_host(size, mapped=mapped), size),
            lambda block: memory.free_host(block.memory),
        )

    def take(self, shape: tuple[int, ...], dtype: str) -> Array:
        """An array that is not in use; its memory comes back with the last view of it. Call it inside
        `memory.entered()`. Raises OutOfMemory."""
        size = size_of(shape, dtype)
        loan = _Loan(self._ring, self._ring.take(size))
        return np.asarray(loan)[:size].view(dtype).reshape(shape)

    def find(self, image: Array) -> PinnedView | None:
        """Where an image lies in this ring's memory; None if it lies elsewhere or is not C-contiguous."""
        base: Any = image
        while isinstance(base, np.ndarray):
            base = base.base
        if not isinstance(base, _Loan) or base._ring is not self._ring or not image.flags.c_contiguous:
            return None
        return PinnedView(base.block.memory, image.ctypes.data - base.address, image)

    def close(self) -> None:
        """Frees what no array uses, inside `memory.entered()`; an array that lives longer frees its own memory."""
        self._ring.close()
