"""Memory into which a camera writes: the GPU reads it where it lies, and a buffer that is in use is not given again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fake_gpu import Status
from fake_tensorrt import calls
from machine import ADA, ORIN, Machine
from tiny_graphs import MakeBundle, UInt8Array, nearest_class

from twins_trt.errors import EngineError, UsageError
from twins_trt.runtime import RuntimeOptions, Segmenter
from twins_trt.runtime.engines.protocol import GivesInputBuffers

Draw = Callable[[int, int], UInt8Array]
RANGE = (8, 32, 64)


@pytest.fixture
def sources(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(address on the host, bytes) of every copy to the GPU from now on."""
    seen: list[tuple[int, int]] = []
    module: Any = sys.modules["cuda.bindings.runtime"]
    copy = module.cudaMemcpyAsync

    def watched(dst: int, src: int, count: int, kind: Any, stream: int) -> Any:
        if kind == module.cudaMemcpyKind.cudaMemcpyHostToDevice:
            seen.append((src, count))
        return copy(dst, src, count, kind, stream)

    monkeypatch.setattr(module, "cudaMemcpyAsync", watched)
    return seen


@pytest.mark.parametrize("package", ["cuda-bindings", "pycuda"])
@pytest.mark.parametrize("device", [ADA, ORIN], ids=["desktop", "jetson"])
def test_the_gpu_reads_the_buffer_itself(machine: Machine, picture: Draw, package: str, device: Any) -> None:
    """What is written after the call began is read too: nobody has copied the image before."""
    machine.install(package=package, device=device)
    engine = machine.engine()
    assert isinstance(engine, GivesInputBuffers)
    early, late = picture(24, 32)[None], picture(24, 32)[None]
    buffer = engine.input_buffer()
    assert (buffer.shape, buffer.dtype) == ((1, 24, 32, 3), np.uint8)
    buffer[...] = early
    call = engine.submit(buffer)
    buffer[...] = late
    assert np.array_equal(call.result()["mask"], nearest_class(late))
    plain = early.copy()
    call = engine.submit(plain)
    plain[...] = late
    assert np.array_equal(call.result()["mask"], nearest_class(early))


def test_a_view_is_the_buffer_too(machine: Machine, picture: Draw, sources: list[tuple[int, int]]) -> None:
    made = Segmenter(machine.bundle())
    machine.made.append(made)
    buffer, image = made.input_buffer(), picture(24, 32)
    buffer[0] = image
    sources.clear()
    for given in (buffer[0], buffer[0][:, :], buffer[0].reshape(24, 32, 3)):
        assert np.array_equal(made(given).mask, nearest_class(image))
    assert np.array_equal(made(buffer)[0].mask, nearest_class(image))
    (frame,) = made.stream([buffer[0]])
    assert np.array_equal(frame.result().mask, nearest_class(image))
    assert sources == [(buffer.ctypes.data, image.nbytes)] * 5
    assert np.array_equal(made(buffer[0][::-1]).mask, nearest_class(image[::-1]))  # not contiguous: copied as ever
    assert sources[-1][0] != buffer.ctypes.data


def test_a_batch_is_read_in_one_piece(machine: Machine, picture: Draw, sources: list[tuple[int, int]]) -> None:
    made = Segmenter(machine.bundle(batch=(1, 2, 4)))
    machine.made.append(made)
    buffer = made.input_buffer(batch=4)
    images = [picture(24, 32) for _ in range(4)]
    for place, image in zip(buffer, images, strict=True):
        place[...] = image
    sources.clear()
    for result, image in zip(made(buffer), images, strict=True):
        assert np.array_equal(result.mask, nearest_class(image))
    for result, image in zip(made([buffer[2], buffer[3]]), images[2:], strict=True):
        assert np.array_equal(result.mask, nearest_class(image))
    assert sources == [(buffer.ctypes.data, buffer.nbytes), (buffer[2].ctypes.data, buffer.nbytes // 2)]
    for result, image in zip(made([buffer[3], buffer[1]]), [images[3], images[1]], strict=True):
        assert np.array_equal(result.mask, nearest_class(image))


def test_a_jetson_reads_a_buffer_in_place_and_a_ring_of_them_is_replayed(machine: Machine, picture: Draw) -> None:
    machine.install(device=ORIN)
    engine = machine.engine()
    buffer = engine.input_buffer()
    machine.gpu.calls.clear()
    for at in range(6):
        if at == 3:
            launched, enqueued = machine.gpu.launched, len(calls(machine.module, "execute_async_v3"))
        buffer[...] = image = picture(24, 32)[None]
        assert np.array_equal(engine(buffer)["mask"], nearest_class(image))
    assert machine.gpu.launched == launched + 3 and len(calls(machine.module, "execute_async_v3")) == enqueued
    assert "cudaMemcpyAsync" not in machine.gpu.calls
    ring = [buffer, engine.input_buffer(), engine.input_buffer()]
    for at in range(12):
        if at == 6:
            launched, enqueued = machine.gpu.launched, len(calls(machine.module, "execute_async_v3"))
        ring[at % 3][...] = image = picture(24, 32)[None]
        assert np.array_equal(engine(ring[at % 3])["mask"], nearest_class(image))
    assert machine.gpu.launched == launched + 6 and len(calls(machine.module, "execute_async_v3")) == enqueued


@pytest.mark.parametrize("device", [ADA, ORIN], ids=["desktop", "jetson"])
def test_memory_comes_back_when_nothing_refers_to_it(machine: Machine, picture: Draw, device: Any) -> None:
    machine.install(device=device)
    made = Segmenter(machine.bundle())
    machine.made.append(made)
    first, second = made.input_buffer(), made.input_buffer()
    assert first.ctypes.data != second.ctypes.data
    address, view = first.ctypes.data, first[0]
    del first
    assert made.input_buffer().ctypes.data != address  # the view is in use
    view[...] = picture(24, 32)
    result = made(view)
    del view
    assert made.input_buffer().ctypes.data != address  # the segmentation shows it
    del result
    held = machine.gpu.held()["host"]
    for _ in range(20):
        assert made.input_buffer().ctypes.data != second.ctypes.data
    assert machine.gpu.held()["host"] == held


def test_a_call_under_way_keeps_its_buffer(machine: Machine, picture: Draw) -> None:
    engine, image = machine.engine(), picture(24, 32)[None]
    buffer = engine.input_buffer()
    buffer[...] = image
    address = buffer.ctypes.data
    call = engine.submit(buffer)
    del buffer
    other = engine.input_buffer()
    assert other.ctypes.data != address
    other[...] = 0
    assert np.array_equal(call.result()["mask"], nearest_class(image))
    del call
    assert address in [engine.input_buffer().ctypes.data, other.ctypes.data]


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("engine", ["tensorrt", "onnxruntime"])
def test_one_camera_loop_works_everywhere(machine: Machine, picture: Draw, engine: str, depth: int) -> None:
    made = Segmenter(machine.bundle(), engine, options=RuntimeOptions())
    machine.made.append(made)
    images = [picture(24, 32) for _ in range(20)]

    def camera() -> Iterator[UInt8Array]:
        for image in images:
            buffer = made.input_buffer()
            buffer[0] = image
            yield buffer[0]

    for image, frame in zip(images, made.stream(camera(), depth=depth), strict=True):
        assert np.array_equal(frame.result().mask, nearest_class(image))
    # Two slots have two blocks each at most. Of the frames, `depth` are under way, one is made and one is looked at.
    assert machine.gpu.held()["host"] <= (0 if engine == "onnxruntime" else 4 + depth + 2)


def test_buffers_of_graphs_without_a_size_of_their_own(machine: Machine, make_bundle: MakeBundle) -> None:
    made = Segmenter(machine.bundle(RANGE, RANGE, batch=(1, 2, 4)))
    machine.made.append(made)
    assert made.input_buffer().shape == (1, 32, 32, 3)
    assert made.input_buffer((24, 40), batch=3).shape == (3, 24, 40, 3)
    with pytest.raises(UsageError, match="1 pictures of 200×40 do not fit"):
        made.input_buffer((200, 40))
    with pytest.raises(UsageError, match=r"an input buffer of .* does not fit"):
        made.engine.input_buffer((1, 200, 40, 3))  # type: ignore[attr-defined]
    planes = Segmenter(make_bundle(dtype="float32"), "onnxruntime")
    buffer = planes.input_buffer()
    assert (buffer.shape, buffer.dtype) == ((1, 24, 32, 3), np.uint8)


def test_a_buffer_outlives_its_engine(machine: Machine, picture: Draw) -> None:
    engine = machine.engine()
    buffer = engine.input_buffer()
    engine.close()
    buffer[...] = image = picture(24, 32)[None]
    assert np.array_equal(buffer, image)
    for use in (engine, lambda _: engine.input_buffer()):
        with pytest.raises(EngineError, match="is closed"):
            use(buffer)
    other = machine.engine()
    assert np.array_equal(other(buffer)["mask"], nearest_class(image))  # a stranger's memory there
    assert machine.gpu.held()["host"] > 1
    other.close()
    assert machine.gpu.held()["host"] == 1
    del buffer
    assert machine.gpu.held() == dict.fromkeys(machine.gpu.held(), 0)


def test_no_room_for_a_buffer_is_an_error(machine: Machine) -> None:
    engine = machine.engine()
    machine.gpu.fail["cudaHostAlloc"] = [Status.cudaErrorMemoryAllocation]
    with pytest.raises(EngineError, match="cudaHostAlloc found no room"):
        engine.input_buffer()
    assert engine.input_buffer().nbytes == 24 * 32 * 3
