"""Calls captured as CUDA graphs: one for each shape that recurs. The least recently used is dropped first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from twins_trt.runtime.engines.protocol import OnStage, observed

if TYPE_CHECKING:
    import torch

    from twins_trt.runtime.engines.protocol import Array

    Program = Callable[[torch.Tensor], Mapping[str, torch.Tensor]]


class Closable(Protocol):
    def close(self) -> None: ...


K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Closable)


class Captures(Generic[K, V]):
    """At most `capacity` captured calls. `capture(key)` makes one.

    A key is captured when it comes for the second time: capturing takes many times as long as a call, and pictures of
    many sizes would never use a capture again.
    """

    def __init__(self, capture: Callable[[K], V], *, capacity: int) -> None:
        self._capture = capture
        self._capacity = capacity
        self._calls: OrderedDict[K, V] = OrderedDict()
        self._seen: OrderedDict[K, None] = OrderedDict()

    def get(self, key: K) -> V | None:
        """The captured call; None if the key is new, and then the caller has to run without a capture."""
        if key in self._calls:
            self._calls.move_to_end(key)
            return self._calls[key]
        if key not in self._seen:
            self._seen[key] = None
            if len(self._seen) > 4 * self._capacity:
                self._seen.popitem(last=False)
            return None
        while len(self._calls) >= self._capacity:  # before the new capture, so that the two never hold memory at once
            self._calls.popitem(last=False)[1].close()
        call = self._calls[key] = self._capture(key)
        return call

    def clear(self) -> None:
        """Closes all captured calls."""
        while self._calls:
            self._calls.popitem()[1].close()
        self._seen.clear()

    def __len__(self) -> int:
        return len(self._calls)


class Staging:
    """A call's input on the device, and the host memory that it is copied from, page-locked for a GPU."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        import torch

        self._host = torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")
        self._array = self._host.numpy()
        self.device = torch.zeros(shape, dtype=dtype, device=device)

    def fill(self, image: Array) -> None:
        """Copies `image` to the device, in the order of the current stream."""
        np.copyto(self._array, image)
        self.device.copy_(self._host, non_blocking=True)


class CudaCapture:
    """`program` on one input shape, captured once and replayed.

    stream: where it is captured and replayed. pool: memory that all captures share. They can share it because replays
    follow each other on one stream and results are copied out before the next replay.
    """

    def __init__(self, program: Program, shape: tuple[int, ...], dtype: torch.dtype, *, stream: Any, pool: Any) -> None:
        import torch

        self._stream = stream
        with torch.cuda.stream(stream):
            self._input = Staging(shape, dtype, stream.device)
            program(self._input.device)  # compiles kernels and uploads tables, which a capture must not do
            stream.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            # thread_local: other threads may use the device meanwhile
            with torch.cuda.graph(self._graph, stream=stream, pool=pool, capture_error_mode="thread_local"):
                self._outputs = program(self._input.device)
            self._host = {
                name: torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for name, x in self._outputs.items()
            }

    def __call__(self, image: Array, observe: OnStage | None = None) -> dict[str, Array]:
        """Runs on `image`. The next call overwrites the arrays that this returns."""
        import torch

        with torch.cuda.stream(self._stream):
            with observed(observe, "copy_in"):
                self._input.fill(image)
                self._settle(observe)
            with observed(observe, "engine"):
                self._graph.replay()
                self._settle(observe)
            with observed(observe, "copy_out"):
                for name, x in self._outputs.items():
                    self._host[name].copy_(x, non_blocking=True)
                self._stream.synchronize()
        return {name: x.numpy() for name, x in self._host.items()}

    def close(self) -> None:
        """Frees the graph; its memory stays in the pool for the next one."""
        self._stream.synchronize()
        self._graph.reset()

    def _settle(self, observe: OnStage | None) -> None:
        if observe is not None:  # only a stage that is waited for can be timed
            self._stream.synchronize()
