"""Calls captured as CUDA graphs: one for each shape that recurs. The least recently used is dropped first."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from twins_trt.errors import first_line
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
    """At most `capacity` captured calls. `capture(key)` makes one, or returns None where that is impossible.

    A key is captured when it comes for the second time: capturing takes many times as long as a call, and pictures of
    many sizes would never use a capture again. A key that cannot be captured is not tried again. After as many of them
    as there is capacity for, nothing more is captured: what fails so often is not the key's fault.
    """

    def __init__(self, capture: Callable[[K], V | None], *, capacity: int) -> None:
        self._capture = capture
        self._capacity = capacity
        self._failures_left = capacity
        self._calls: OrderedDict[K, V] = OrderedDict()
        self._seen: OrderedDict[K, None] = OrderedDict()
        self._failed: set[K] = set()

    def get(self, key: K) -> V | None:
        """The captured call; None if the key is new or cannot be captured: the caller has to run without a capture."""
        if key in self._calls:
            self._calls.move_to_end(key)
            return self._calls[key]
        if key in self._failed or not self._failures_left:
            return None
        if key not in self._seen:
            self._seen[key] = None
            if len(self._seen) > 4 * self._capacity:
                self._seen.popitem(last=False)
            return None
        while len(self._calls) >= self._capacity:  # before the new capture, so that the two never hold memory at once
            self._calls.popitem(last=False)[1].close()
        call = self._capture(key)
        if call is None:
            self._failed.add(key)
            self._failures_left -= 1
            return None
        self._calls[key] = call
        return call

    def clear(self) -> None:
        """Closes all captured calls. Which keys cannot be captured is kept."""
        while self._calls:
            self._calls.popitem()[1].close()
        self._seen.clear()

    def shrink(self) -> None:
        """Closes all captured calls, and holds no more than these from now on: another one did not fit."""
        self._capacity = max(1, len(self._calls))
        self.clear()

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


class CaptureFailed(Exception):
    """A program runs on a stream, but cannot be captured there. The words are those of the error that came first.

    out_of_memory: whether that error was lack of the GPU's memory. The error itself is not kept, since the frames of
    its traceback hold the program's tensors.
    """

    def __init__(self, words: str, *, out_of_memory: bool) -> None:
        super().__init__(words)
        self.out_of_memory = out_of_memory


class CudaGraphs:
    """A stream of `device`, and the memory pool of all graphs that are captured on it.

    They can share the pool because replays follow each other on one stream and results are copied out before the next
    replay. device: with its index, since another thread may have another current device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start_afresh()

    def start_afresh(self) -> None:
        """Takes a new stream and a new pool. It has to follow a capture that failed, and no capture from before may be
        called any more: torch may refuse to record into their pool again."""
        import torch

        self.stream: Any = torch.cuda.Stream(self.device)
        self._pool: Any = None  # of those in `_open`, which are captured next
        self._open: list[CudaCapture] = []

    def capture(self, program: Program, shape: tuple[int, ...], dtype: torch.dtype) -> CudaCapture:
        """`program` for inputs of `shape`. Raises what it raises when it merely runs, and CaptureFailed where it runs
        but cannot be captured: `start_afresh` has to follow."""
        import torch

        with torch.cuda.stream(self.stream):
            staging = Staging(shape, dtype, self.device)
            # Compiles kernels, uploads tables and lets cuDNN choose, which a capture must not do. Libraries keep some
            # of it by thread, so the thread that captures does it.
            outputs = program(staging.device)
            host = {name: _host_buffer(x) for name, x in outputs.items()}
            self.stream.synchronize()
        del outputs  # its memory serves the capture
        self._open = [capture for capture in self._open if not capture.closed]
        if not self._open:  # torch refuses a pool whose graphs are all gone while a tensor is left in it
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            outputs = _record(graph, program, staging.device, stream=self.stream, pool=self._pool)
        except CaptureFailed:
            _clean_up(graph, self._pool, self.device)
            raise
        self._open.append(CudaCapture(graph, staging, outputs, host, stream=self.stream))
        return self._open[-1]


class CudaCapture:
    """A captured `graph`, which computes `outputs` from the input of `staging`, and is replayed on `stream`.

    host: where outputs are copied to, by name. closed: whether it is over.
    """

    def __init__(
        self,
        graph: Any,
        staging: Staging,
        outputs: Mapping[str, torch.Tensor],
        host: Mapping[str, torch.Tensor],
        *,
        stream: Any,
    ) -> None:
        self._graph, self._input, self._outputs, self._host, self._stream = graph, staging, outputs, host, stream
        self.closed = False

    def __call__(self, image: Array, observe: OnStage | None = None) -> dict[str, Array]:
        """Runs on `image`. The next call overwrites the arrays that this returns."""
        import torch

        with torch.cuda.stream(self._stream):
            with observed(observe, "copy_in"):
                self._input.fill(image)
                settle(self._stream, observe)
            with observed(observe, "engine"):
                self._graph.replay()
                settle(self._stream, observe)
            with observed(observe, "copy_out"):
                for name, x in self._outputs.items():
                    self._host[name].copy_(x, non_blocking=True)
                self._stream.synchronize()
        return {name: x.numpy() for name, x in self._host.items()}

    def close(self) -> None:
        """Frees the graph; its memory stays in the pool for the next one, if the pool has other graphs."""
        self._stream.synchronize()
        self._graph.reset()
        self._outputs, self.closed = {}, True


def settle(stream: Any, observe: OnStage | None) -> None:
    """Waits for `stream` if somebody observes: only a stage that is waited for can be timed."""
    if observe is not None and stream is not None:
        stream.synchronize()


def _host_buffer(x: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.empty(x.shape, dtype=x.dtype, pin_memory=x.device.type == "cuda")


def _record(graph: Any, program: Program, image: torch.Tensor, *, stream: Any, pool: Any) -> Mapping[str, torch.Tensor]:
    """Captures `program` on `image` as `graph`, and returns its outputs. Raises CaptureFailed."""
    import torch

    first: list[tuple[str, bool]] = []  # not the error, which would hold this frame, which holds it
    try:
        # The outer context restores the caller's stream: torch.cuda.graph does not where the capture cannot be ended.
        # thread_local: other threads may use the device meanwhile.
        with (
            torch.cuda.stream(stream),
            torch.cuda.graph(graph, stream=stream, pool=pool, capture_error_mode="thread_local"),
        ):
            try:
                return program(image)
            except Exception as error:
                first.append(_words(error))  # a capture that is lost cannot be ended, and that error hides this one
                raise
    except Exception as error:  # of torch, CUDA, or the program
        words, out_of_memory = first[0] if first else _words(error)
        raise CaptureFailed(words, out_of_memory=out_of_memory) from error


def _words(error: Exception) -> tuple[str, bool]:
    """What an error says, and whether it says that the GPU's memory does not suffice."""
    import torch

    return first_line(error), isinstance(error, torch.cuda.OutOfMemoryError)


_FAILED_GRAPHS: list[Any] = []


def _clean_up(graph: Any, pool: Any, device: torch.device) -> None:
    """Does what torch leaves undone where a capture cannot be ended. It must not run on the stream of the capture.

    Source: torch's aten/src/ATen/cuda/CUDAGraph.cpp: `capture_end` raises before it does these things, and `reset` does
    them only for a capture that was ended.
    """
    import torch

    graph.reset()
    # torch's allocators may go on asking this graph whether an allocation belongs to its capture. So it must live.
    _FAILED_GRAPHS.append(graph)
    # Otherwise the allocator believes in a capture for good: where memory runs out it does not give back what it
    # caches, and never the pool. It raises where the capture could be ended and only its content failed.
    older = "_cuda_endAllocateCurrentStreamToPool"
    with contextlib.suppress(RuntimeError, AttributeError):  # the latter: another torch may have neither
        end = getattr(torch._C, "_cuda_endAllocateToPool", None) or getattr(torch._C, older)
        end(device.index, pool)
        torch._C._cuda_releasePool(device.index, pool)
    # A generator that has one state for all captures (before pytorch#176752 of March 2026) believes in it too, and
    # refuses every random number. A copy of its state does not.
    with contextlib.suppress(RuntimeError, AttributeError):
        generator = torch.cuda.default_generators[device.index]
        generator.graphsafe_set_state(generator.clone_state())
