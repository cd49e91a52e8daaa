"""What the GPU engine needs of a CUDA binding, and nothing more: addresses are numbers, streams are handles."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from twins_trt.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    UInt8Array = npt.NDArray[np.uint8]


class OutOfMemory(EngineError):
    """The GPU, or the host's pinned memory, has no room for what was asked."""


@dataclass(frozen=True)
class HostBlock:
    """Pinned host memory, which a GPU copies without the processor.

    array: its bytes. device: the address under which the GPU reads and writes it itself; None where it is not mapped.
    handle: what frees it.
    """

    array: UInt8Array
    device: int | None
    handle: Any


class Memory(Protocol):
    """Device memory, streams, events and graphs of one GPU, through one Python package.

    name: the package. graphs: whether it can capture CUDA graphs. Copies take pinned host memory and return before
    they are done; `synchronize` waits. Work given to one stream runs in order. Every method but `entered` has to be
    called inside `entered()`, from any thread, and raises EngineError with CUDA's own words, OutOfMemory where an
    allocation fails.
    """

    name: str
    graphs: bool

    def entered(self) -> AbstractContextManager[None]:
        """Makes the GPU the current one of the calling thread."""
        ...

    def allocate(self, size: int) -> int:
        """The address of `size` new bytes of device memory."""
        ...

    def free(self, address: int) -> None: ...

    def allocate_host(self, size: int, *, mapped: bool) -> HostBlock:
        """`size` new bytes of pinned host memory; mapped: which the GPU can use in place."""
        ...

    def free_host(self, block: HostBlock) -> None: ...

    def new_stream(self) -> int:
        """A stream that does not wait for the default one."""
        ...

    def free_stream(self, stream: int) -> None: ...

    def copy_in(self, address: int, block: HostBlock, size: int, stream: int) -> None:
        """The block's first `size` bytes to the device."""
        ...

    def copy_out(self, block: HostBlock, address: int, size: int, stream: int) -> None:
        """`size` bytes from the device into the block, which holds them once the stream was synchronized."""
        ...

    def synchronize(self, stream: int) -> None:
        """Waits for everything given to the stream; raises EngineError if any of it failed."""
        ...

    def wait(self, stream: int, other: int) -> None:
        """What is given to `stream` from now on runs after what `other` was given so far."""
        ...

    def new_event(self) -> Any: ...

    def record(self, event: Any, stream: int) -> None: ...

    def seconds(self, start: Any, end: Any) -> float:
        """Time on the GPU between two events that are over."""
        ...

    def free_event(self, event: Any) -> None: ...

    def capture(self, stream: int, work: Callable[[], None]) -> Any:
        """What `work` gives to the stream, as a graph, without running it. Raises what `work` raises."""
        ...

    def launch(self, graph: Any, stream: int) -> None: ...

    def free_graph(self, graph: Any) -> None: ...
