"""The functions of a CUDA package that a GPU engine needs. Addresses are numbers, streams are handles."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from twins_trt.errors import EngineError

if TYPE_CHECKING:
    from twins_trt.data.images import UInt8Array


class OutOfMemory(EngineError):
    """The GPU, or the host's pinned memory, has no room for an allocation."""


@dataclass(frozen=True)
class HostBlock:
    """Pinned host memory, which a GPU copies without the processor.

    array: its bytes. device: the address at which the GPU reads and writes it in place; None if it is not mapped.
    handle: for freeing it.
    """

    array: UInt8Array
    device: int | None
    handle: Any


class Memory(Protocol):
    """Device memory, streams, events and graphs of one GPU, through one Python package.

    name: the package. graphs: whether it can capture CUDA graphs. Copies use pinned host memory and return before they
    are done; `synchronize` waits. Work of one stream runs in order. Call every method but `entered` inside
    `entered()`, from any thread. They raise EngineError with CUDA's own words, and OutOfMemory if an allocation fails.
    """

    name: str
    graphs: bool

    def entered(self) -> AbstractContextManager[None]:
        """Makes the GPU the current one of this thread, inside a `with` block. Afterwards the thread's own is back.

        Inside, this thread may allocate and free although somebody captures a stream: without that, CUDA refuses, and
        the capture is lost too.
        """
        ...

    def allocate(self, size: int) -> int:
        """The address of `size` new bytes of device memory."""
        ...

    def free(self, address: int) -> None: ...

    def allocate_host(self, size: int, *, mapped: bool) -> HostBlock:
        """`size` new bytes of pinned host memory. mapped: the GPU can use it in place."""
        ...

    def free_host(self, block: HostBlock) -> None: ...

    def new_stream(self) -> int:
        """A new stream, which does not wait for the default stream."""
        ...

    def free_stream(self, stream: int) -> None: ...

    def copy_in(self, address: int, block: HostBlock, size: int, stream: int, *, offset: int = 0) -> None:
        """Copies `size` bytes of the block, from `offset` on, to the device."""
        ...

    def copy_out(self, block: HostBlock, address: int, size: int, stream: int) -> None:
        """Copies `size` bytes from the device into the block, which has them after `synchronize`."""
        ...

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Copies `size` bytes from one address on the device to another."""
        ...

    def synchronize(self, stream: int) -> None:
        """Waits for all work of the stream. Raises EngineError if any of it failed."""
        ...

    def wait(self, stream: int, other: int) -> None:
        """Makes later work of `stream` run after the work that `other` has so far."""
        ...

    def new_event(self, *, timing: bool) -> Any:
        """A new event. timing: for `seconds`; without, it costs less."""
        ...

    def record(self, event: Any, stream: int) -> None: ...

    def try_record(self, event: Any, stream: int) -> bool:
        """Records an event in somebody's stream. Returns False, and does nothing, if that is impossible: the stream is
        being captured, or the package cannot use it."""
        ...

    def wait_event(self, stream: int, event: Any) -> None:
        """Makes later work of `stream` run after what the event was recorded behind."""
        ...

    def synchronize_event(self, event: Any) -> None:
        """Waits for what the event was recorded behind."""
        ...

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds on the GPU between two events that have happened."""
        ...

    def free_event(self, event: Any) -> None: ...

    def captured(self, stream: int) -> bool:
        """Whether somebody is capturing the stream."""
        ...

    def capture(self, stream: int, work: Callable[[], None]) -> Any:
        """Captures what `work` enqueues as a graph, without running it. Raises the errors of `work`."""
        ...

    def launch(self, graph: Any, stream: int) -> None: ...

    def free_graph(self, graph: Any) -> None: ...
