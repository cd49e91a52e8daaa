"""Which calls are captured, which captures are dropped, and what a failed one leaves. No test needs a GPU."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_torch_cuda import DEVICE, FakeTorchCuda

from twins_trt.runtime.engines.captures import CaptureFailed, Captures, CudaGraphs, Staging

SHAPE = (2, 3)


class Call:
    """What a capture makes: its key, and whether it was given up."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def test_a_shape_is_captured_when_it_comes_back() -> None:
    made: list[Call] = []
    captures = Captures(lambda key: made.append(Call(key)) or made[-1], capacity=2)
    assert captures.get("a") is None
    first = captures.get("a")
    assert first is made[0] and first.key == "a"
    assert captures.get("a") is first
    assert len(made) == len(captures) == 1


def test_the_least_recently_used_is_given_up_first_and_made_again_when_it_returns() -> None:
    captures = Captures(Call, capacity=2)
    calls = {}
    for key in "abab":
        calls[key] = captures.get(key)
    assert captures.get("a") is calls["a"]  # b is now the older one
    assert captures.get("c") is None
    assert calls["b"].closed == 0  # a shape that came once pushes nothing out
    assert captures.get("c").key == "c"
    assert (calls["a"].closed, calls["b"].closed, len(captures)) == (0, 1, 2)
    again = captures.get("b")
    assert again is not calls["b"] and again.key == "b"
    assert calls["a"].closed == 1


def test_the_old_one_is_gone_before_the_new_one_is_made() -> None:
    alive: list[str] = []

    class Counted(Call):
        def __init__(self, key: str) -> None:
            super().__init__(key)
            alive.append(key)
            assert len(alive) == 1

        def close(self) -> None:
            alive.remove(self.key)

    captures = Captures(Counted, capacity=1)
    for key in "aabbaab":
        captures.get(key)
    assert alive == ["b"]


def test_a_key_that_cannot_be_captured_is_not_tried_again_and_leaves_the_rest_usable() -> None:
    tried: list[str] = []

    def capture(key: str) -> Call | None:
        tried.append(key)
        return None if key == "bad" else Call(key)

    captures = Captures(capture, capacity=2)
    for key in ("good", "good", "bad", "bad", "bad", "bad"):
        captures.get(key)
    assert captures.get("bad") is None and tried == ["good", "bad"]
    assert captures.get("good").key == "good"
    captures.clear()
    for key in ("bad", "bad", "good", "good"):
        captures.get(key)
    assert tried == ["good", "bad", "good"]


def test_what_fails_for_every_key_is_given_up() -> None:
    tried: list[int] = []
    captures: Captures[int, Call] = Captures(tried.append, capacity=3)
    for key in range(100):
        assert (captures.get(key), captures.get(key)) == (None, None)
    assert tried == [0, 1, 2]


def test_an_error_that_is_no_failed_capture_passes_and_may_be_tried_again() -> None:
    tried: list[str] = []

    def capture(key: str) -> Call:
        tried.append(key)
        if len(tried) == 1:
            raise RuntimeError("no memory")
        return Call(key)

    captures = Captures(capture, capacity=2)
    captures.get("a")
    with pytest.raises(RuntimeError, match="no memory"):
        captures.get("a")
    assert captures.get("a").key == "a"


def test_shrinking_gives_up_all_and_keeps_no_more_than_fitted() -> None:
    captures = Captures(Call, capacity=8)
    calls = [captures.get(key) for key in "aabb"][1::2]
    captures.shrink()
    assert [call.closed for call in calls] == [1, 1] and len(captures) == 0
    for key in "aabbcc":
        captures.get(key)
    assert len(captures) == 2
    captures.clear()
    captures.shrink()
    assert (captures.get("a"), captures.get("a").key) == (None, "a")


def test_shapes_that_never_come_back_are_forgotten() -> None:
    captures = Captures(Call, capacity=1)
    for size in range(100):
        assert captures.get(size) is None
    assert captures.get(0) is None  # seen, but too long ago
    assert captures.get(0).key == 0


def test_clear_gives_up_all() -> None:
    captures = Captures(Call, capacity=3)
    calls = [captures.get(key) for key in "aabb"][1::2]
    captures.clear()
    assert [call.closed for call in calls] == [1, 1]
    assert len(captures) == 0
    assert captures.get("a") is None


def test_an_image_is_copied_whatever_its_strides() -> None:
    staging = Staging((2, 4, 5, 3), torch.uint8, torch.device("cpu"))
    image = np.arange(2 * 8 * 5 * 3, dtype=np.uint8).reshape(2, 8, 5, 3)[:, ::2]
    image.flags.writeable = False
    staging.fill(image)
    assert np.array_equal(staging.device.numpy(), image)
    staging.fill(image[::-1])
    assert np.array_equal(staging.device.numpy(), image[::-1])


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeTorchCuda:
    return FakeTorchCuda(monkeypatch)


Program = Callable[[torch.Tensor], dict[str, torch.Tensor]]


def doubled(x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"twice": x * 2}


def fails_captured(cuda: FakeTorchCuda, error: Exception | None = None) -> Program:
    """A program that runs, but not in a capture: it waits for the stream, which loses the capture, or raises."""

    def program(x: torch.Tensor) -> dict[str, torch.Tensor]:
        if error is not None and cuda.capturing:
            raise error
        cuda.current.synchronize()
        return doubled(x)

    return program


def of(value: float) -> np.ndarray:
    return np.full(SHAPE, value, np.float32)


def test_a_capture_computes_from_its_input_at_every_call(cuda: FakeTorchCuda) -> None:
    ran: list[bool] = []

    def program(x: torch.Tensor) -> dict[str, torch.Tensor]:
        ran.append(cuda.capturing)
        return doubled(x)

    call = CudaGraphs(DEVICE).capture(program, SHAPE, torch.float32)
    for value in (1.0, 5.0):
        assert np.array_equal(call(of(value))["twice"], of(2 * value))
    assert ran == [False, True]  # once to warm up; a replay does not run it
    assert cuda.in_order and list(cuda.users.values()) == [1]
    call.close()
    assert list(cuda.users.values()) == [0]


def test_captures_share_a_pool_while_one_is_open(cuda: FakeTorchCuda) -> None:
    graphs = CudaGraphs(DEVICE)
    first, second = (graphs.capture(doubled, SHAPE, torch.float32) for _ in range(2))
    assert list(cuda.users.values()) == [2]
    first.close()
    graphs.capture(doubled, SHAPE, torch.float32).close()
    assert list(cuda.users.values()) == [1]
    second.close()
    third = graphs.capture(doubled, SHAPE, torch.float32)  # torch refuses a pool that no graph uses any more
    assert np.array_equal(third(of(3.0))["twice"], of(6.0))
    assert list(cuda.users.values()) == [0, 1]


def test_only_an_observed_call_waits_for_its_stages(cuda: FakeTorchCuda) -> None:
    call = CudaGraphs(DEVICE).capture(doubled, SHAPE, torch.float32)
    stages: list[str] = []
    (stream,) = cuda.streams
    waits = [stream.waits]
    for observe in (None, lambda stage, seconds: stages.append(stage)):
        call(of(1.0), observe)
        waits.append(stream.waits)
    assert np.diff(waits).tolist() == [1, 3]
    assert stages == ["copy_in", "engine", "copy_out"]


@pytest.mark.parametrize("older", [False, True])
def test_a_lost_capture_leaves_torch_in_order_and_the_next_one_succeeds(
    monkeypatch: pytest.MonkeyPatch, older: bool
) -> None:
    cuda = FakeTorchCuda(monkeypatch, older=older)
    graphs = CudaGraphs(DEVICE)
    earlier = graphs.capture(doubled, SHAPE, torch.float32)
    with pytest.raises(CaptureFailed, match=r"^CUDA error: operation not permitted when stream is capturing$"):
        graphs.capture(fails_captured(cuda), SHAPE, torch.float32)
    assert cuda.in_order
    assert cuda.generator.random() == 7  # of the caller's own program, as before
    graphs.start_afresh()
    assert list(cuda.users.values()) == [1]
    call = graphs.capture(doubled, SHAPE, torch.float32)
    assert np.array_equal(call(of(3.0))["twice"], of(6.0))
    assert len(cuda.streams) == 2 and list(cuda.users.values()) == [1, 1]
    earlier.close()
    assert list(cuda.users.values()) == [0, 1]  # the allocator may free the first pool


def test_a_torch_without_the_functions_that_clean_up_fails_no_call(
    cuda: FakeTorchCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not torch's public interface. Without them a call that runs must not fail for lack of a capture."""
    for name in ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"):
        monkeypatch.delattr(torch._C, name, raising=False)
    monkeypatch.setattr(torch.cuda, "default_generators", (SimpleNamespace(),))
    graphs = CudaGraphs(DEVICE)
    with pytest.raises(CaptureFailed):
        graphs.capture(fails_captured(cuda), SHAPE, torch.float32)
    graphs.start_afresh()
    assert np.array_equal(graphs.capture(doubled, SHAPE, torch.float32)(of(3.0))["twice"], of(6.0))


def test_a_capture_that_ends_without_its_program_is_released_once(cuda: FakeTorchCuda) -> None:
    error = torch.cuda.OutOfMemoryError("no room\nfor it")
    with pytest.raises(CaptureFailed, match=r"^no room$") as caught:
        CudaGraphs(DEVICE).capture(fails_captured(cuda, error), SHAPE, torch.float32)
    assert caught.value.out_of_memory
    assert cuda.in_order and list(cuda.users.values()) == [0]


def test_a_program_that_fails_without_a_capture_raises_its_own_error(cuda: FakeTorchCuda) -> None:
    def broken(x: torch.Tensor) -> dict[str, torch.Tensor]:
        raise RuntimeError("no kernel")

    with pytest.raises(RuntimeError, match="no kernel"):
        CudaGraphs(DEVICE).capture(broken, SHAPE, torch.float32)
    assert cuda.graphs == [] and cuda.in_order


def test_a_failed_capture_holds_no_memory(cuda: FakeTorchCuda) -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def program(x: torch.Tensor) -> dict[str, torch.Tensor]:
        activation = x * 2
        held.append(weakref.ref(activation))
        cuda.current.synchronize()
        return {"twice": activation}

    graphs = CudaGraphs(DEVICE)
    gc.collect()
    gc.disable()  # a cycle would keep the memory until it is collected
    try:
        with contextlib.suppress(CaptureFailed):
            graphs.capture(program, SHAPE, torch.float32)
        for graph in cuda.graphs:
            graph.tape.operations.clear()  # of the stand-in alone
        assert [each() for each in held] == [None, None]
    finally:
        gc.enable()
