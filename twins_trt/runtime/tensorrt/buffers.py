"""The memory of an engine's tensors in one execution slot, and when borrowed memory is used in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twins_trt.runtime.memory import HostBlock, Memory
from twins_trt.runtime.memory.arrays import size_of
from twins_trt.runtime.tensorrt.loaded import ALIGNMENT, Shape

if TYPE_CHECKING:
    from twins_trt.runtime.engines.protocol import Array

_MOST_PATIENCE = 64


class Buffer:
    """The memory of one tensor between caller and engine. It grows when it must and never shrinks.

    On a GPU with its own memory it is device memory, with pinned host memory beside it if the caller wants a copy. On
    a GPU that shares the host's memory it is one block that both use in place.
    """

    def __init__(self, memory: Memory, *, mapped: bool) -> None:
        self._memory, self.mapped = memory, mapped
        self.address = self.size = 0
        self.block: HostBlock | None = None

    def reserve(self, size: int, *, host: bool) -> None:
        """Makes room for `size` bytes. Raises OutOfMemory, and then keeps what it had."""
        memory = self._memory
        if self.mapped:
            if self.block is None or self.block.array.size < size:
                block = memory.allocate_host(size, mapped=True)
                self.free()
                assert block.device is not None  # it was asked to be mapped
                self.block, self.address, self.size = block, block.device, size
            return
        if self.size < size:
            address = memory.allocate(size)
            if self.address:
                memory.free(self.address)
            self.address, self.size = address, size
        if host and (self.block is None or self.block.array.size < size):
            block = memory.allocate_host(size, mapped=False)
            if self.block is not None:
                memory.free_host(self.block)
            self.block = block

    def array(self, shape: Shape, dtype: str) -> Array:
        """The host memory as an array."""
        assert self.block is not None  # reserve(host=True) came before
        return self.block.array[: size_of(shape, dtype)].view(dtype).reshape(shape)

    def free(self) -> None:
        if self.block is not None:
            self._memory.free_host(self.block)
        if self.address and not self.mapped:
            self._memory.free(self.address)
        self.block, self.address, self.size = None, 0, 0


class Borrowing:
    """Decides call by call whether a tensor's borrowed memory is used in place, or copied through the slot's buffer.

    A CUDA graph has the addresses in it. TensorRT leaves undefined what a graph does after its context was bound to
    others, so a slot cannot keep a graph for each of two buffers that take turns. An engine without a graph spends
    hundreds of microseconds on launches, and a copy on the GPU takes a few. So memory that stays the same is used in
    place, and memory that changes is copied: then the graph has the address of the slot's buffer, always.
    Every wrong guess costs a capture, so each doubles how long an address has to stay before it is used in place again.

    graphs: calls are replayed as graphs. Without, all borrowed memory is used in place that TensorRT takes.
    """

    def __init__(self, *, graphs: bool) -> None:
        self.graphs = graphs
        self._last: int | None = None
        self._in_place = False
        self._streak = self._patience = 0

    def in_place(self, address: int | None) -> bool:
        """Whether this call binds `address` itself. None: the call borrows nothing for the tensor."""
        if address == self._last:
            self._streak += 1
        else:
            if self._in_place:
                self._patience = min(max(1, 2 * self._patience), _MOST_PATIENCE)
            self._last, self._streak = address, 0
        aligned = address is not None and address % ALIGNMENT == 0
        self._in_place = aligned and (not self.graphs or self._streak >= self._patience)
        return self._in_place
