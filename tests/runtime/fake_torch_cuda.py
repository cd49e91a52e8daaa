"""torch.cuda as far as a capture needs it, with tensors on the CPU: what is captured is recorded and really replayed.

It keeps the account that torch keeps, in torch's order, and leaves it as torch does where a capture fails. Sources, in
torch: `capture_begin`, `capture_end` and `reset` of aten/src/ATen/cuda/CUDAGraph.cpp, `beginAllocateToPool`,
`endAllocateToPool` and `releasePool` of c10/cuda/CUDACachingAllocator.cpp, `increase` of
aten/src/ATen/cuda/CUDAGeneratorImpl.cpp. `torch.cuda.graph` itself is torch's own.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("cpu", 0)  # with an index, as a GPU has


class FakeStream:
    def __init__(self, cuda: FakeTorchCuda) -> None:
        self.cuda, self.device = cuda, DEVICE
        self.capture: FakeGraph | None = None
        self.waits = 0

    def synchronize(self) -> None:
        self.waits += 1
        if self.capture is not None:
            self.capture.lost = True
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with ...")


class FakeGenerator:
    """A random generator, whose state says whether it takes part in a capture."""

    def __init__(self, cuda: FakeTorchCuda) -> None:
        self.cuda = cuda
        self.state = {"seed": 7, "capturing": False}

    def clone_state(self) -> dict[str, Any]:
        if self.cuda.current.capture is not None:
            raise RuntimeError("Cannot call CUDAGeneratorImpl::clone_impl during CUDA graph capture.")
        return {**self.state, "capturing": False}

    def graphsafe_set_state(self, state: dict[str, Any]) -> None:
        self.state = state

    def random(self) -> int:
        if self.state["capturing"] and self.cuda.current.capture is None:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
        return int(self.state["seed"])


class Tape(TorchDispatchMode):
    """Records every operation, and does them all again."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, result in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor):
                    old.copy_(new)


class FakeGraph:
    def __init__(self, cuda: FakeTorchCuda) -> None:
        self.cuda = cuda
        self.lost = self.ended = False
        self.replays = 0

    def capture_begin(self, pool: int, *, capture_error_mode: str, **_: Any) -> None:
        cuda = self.cuda
        assert cuda.current is not cuda.default and capture_error_mode == "thread_local"
        if cuda.users.get(pool) == 0:
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
        if pool in cuda.recording:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        cuda.users[pool] = cuda.users.get(pool, 0) + 1
        cuda.recording.append(pool)
        cuda.generator.state["capturing"] = True
        self.pool, self.stream, self.tape = pool, cuda.current, Tape()
        self.state = cuda.generator.state
        self.stream.capture = self
        self.tape.__enter__()

    def capture_end(self) -> None:
        self.tape.__exit__(None, None, None)
        self.stream.capture = None
        if self.lost:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        self.cuda.recording.remove(self.pool)
        self.state["capturing"] = False
        self.ended = True

    def replay(self) -> None:
        assert self.ended and self.cuda.current is self.stream
        self.replays += 1
        self.tape.replay()

    def reset(self) -> None:
        if self.ended:
            self.cuda.users[self.pool] -= 1
            self.ended = False


class OnStream:
    """Like torch's, it restores nothing unless it is left: `torch.cuda.graph` does not where a capture cannot end."""

    def __init__(self, cuda: FakeTorchCuda, stream: FakeStream) -> None:
        self.cuda, self.stream = cuda, stream

    def __enter__(self) -> None:
        self.before, self.cuda.current = self.cuda.current, self.stream

    def __exit__(self, *_: object) -> None:
        self.cuda.current = self.before


class FakeTorchCuda:
    """streams, graphs: all that were made. recording: the pools into which the allocator believes to record.
    users: graphs by pool. emptied: how often cached memory was given back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, older: bool = False) -> None:
        self.default = self.current = FakeStream(self)
        self.streams: list[FakeStream] = []
        self.graphs: list[FakeGraph] = []
        self.recording: list[int] = []
        self.users: dict[int, int] = {}
        self.generator = FakeGenerator(self)
        self.emptied = self.pools = 0
        for name, value in (
            ("Stream", self._stream),
            ("stream", self._on_stream),
            ("CUDAGraph", self._graph),
            ("graph_pool_handle", self._pool),
            ("synchronize", lambda device=None: None),
            ("empty_cache", self._empty_cache),
            ("default_generators", (self.generator,)),
        ):
            monkeypatch.setattr(torch.cuda, name, value)
        names = ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool")  # the second in older versions
        monkeypatch.setattr(torch._C, names[older], self._end_allocate, raising=False)
        if older:
            monkeypatch.delattr(torch._C, names[0], raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", self._release, raising=False)
        monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)

    @property
    def capturing(self) -> bool:
        return self.current.capture is not None

    @property
    def in_order(self) -> bool:
        """Whether nothing believes in a capture: memory is given back, random numbers come, the stream is free."""
        return not self.recording and not self.generator.state["capturing"] and self.current is self.default

    def _stream(self, device: torch.device) -> FakeStream:
        assert device.index is not None
        self.streams.append(FakeStream(self))
        return self.streams[-1]

    def _on_stream(self, stream: FakeStream) -> OnStream:
        return OnStream(self, stream)

    def _graph(self) -> FakeGraph:
        self.graphs.append(FakeGraph(self))
        return self.graphs[-1]

    def _pool(self) -> int:
        self.pools += 1
        return self.pools

    def _empty_cache(self) -> None:
        assert not self.capturing
        self.emptied += 1

    def _end_allocate(self, device: int, pool: int) -> None:
        assert device == DEVICE.index
        if pool not in self.recording:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.recording.remove(pool)

    def _release(self, device: int, pool: int) -> None:
        assert self.users[pool] > 0
        self.users[pool] -= 1
