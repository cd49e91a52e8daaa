"""Engines of TensorRT and TensorRT-RTX, on a simulated GPU: every version's names, masks by ONNX Runtime."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fake_engines import Faults, broken
from fake_gpu import Status
from fake_tensorrt import calls, versions
from machine import ADA, ORIN, Machine
from threads import in_threads
from tiny_graphs import UInt8Array, nearest_class

from twins_trt.builders.engine.layers import parse_inspector
from twins_trt.errors import EngineError, UsageError
from twins_trt.runtime import Segmenter
from twins_trt.runtime.engines.protocol import Engine, HoldsDeviceMemory, InspectsLayers, Pipelined, ProfilesLayers
from twins_trt.verbs.command_line import on_command_line
from twins_trt.verbs.predict import FLAGS

Draw = Callable[[int, int], UInt8Array]
RANGE = (8, 32, 64)


def batch(picture: Draw, *sizes: tuple[int, int]) -> Any:
    return np.stack([picture(*size) for size in sizes])


@pytest.mark.parametrize("version", versions())
@pytest.mark.parametrize("package", ["cuda-bindings", "pycuda"])
@pytest.mark.parametrize("device", [ADA, ORIN], ids=["desktop", "jetson"])
def test_masks_are_right_with_every_version_package_and_kind_of_memory(
    machine: Machine, picture: Draw, version: str, package: str, device: Any
) -> None:
    machine.install(version, package=package, device=device)
    engine = machine.engine(machine.bundle(RANGE, RANGE, batch=(1, 2, 4), outputs=("mask", "logits")))
    assert all(isinstance(engine, kind) for kind in (Engine, Pipelined, HoldsDeviceMemory, ProfilesLayers))
    for size, count in (((24, 32), 1), ((24, 32), 1), ((24, 32), 1), ((64, 8), 3), ((24, 32), 4)):
        images = batch(picture, *[size] * count)
        mask = engine(images, outputs=("mask",))["mask"]
        assert np.array_equal(mask, nearest_class(images))
    assert list(engine(images)) == ["mask", "logits"]
    copies = {"cudaMemcpyAsync", "memcpy_htod_async", "memcpy_dtoh_async"} & set(machine.gpu.calls)
    assert bool(copies) == (not device.integrated)


def test_a_call_is_captured_the_second_time_and_replayed_from_then_on(machine: Machine, picture: Draw) -> None:
    engine = machine.engine(contexts=1)
    assert (machine.gpu.captured, machine.gpu.launched) == (1, 1)  # by the warm-up's two calls
    enqueued = len(calls(machine.module, "execute_async_v3"))
    for _ in range(5):
        image = batch(picture, (24, 32))
        assert np.array_equal(engine(image)["mask"], nearest_class(image))
    assert (machine.gpu.captured, machine.gpu.launched) == (1, 6)
    assert len(calls(machine.module, "execute_async_v3")) == enqueued
    assert machine.gpu.held()["graphs"] == 1


def test_another_shape_drops_the_graph_and_is_captured_anew(machine: Machine, picture: Draw) -> None:
    engine = machine.engine(machine.bundle(RANGE, RANGE), contexts=1)
    for size in ((24, 32), (64, 64), (24, 32)):
        before = machine.gpu.captured
        for _ in range(3):
            image = batch(picture, size)
            assert np.array_equal(engine(image)["mask"], nearest_class(image))
        assert machine.gpu.captured == before + 1
        assert machine.gpu.held()["graphs"] == 1


def test_an_address_that_changes_is_captured_anew(machine: Machine, picture: Draw) -> None:
    """Larger images take the buffers elsewhere; when the shape comes back, the graph has to know."""
    engine = machine.engine(machine.bundle(RANGE, RANGE), contexts=1)
    small, large = batch(picture, (32, 32)), batch(picture, (64, 64))
    addresses = calls(machine.module, "set_tensor_address")
    for image in (small, small, large, small, small, small):
        assert np.array_equal(engine(image)["mask"], nearest_class(image))
    moved = calls(machine.module, "set_tensor_address")[len(addresses) :]
    assert [name for name, _ in moved] == ["image", "mask"]
    assert machine.gpu.captured == 2


def test_two_shapes_keep_a_graph_each_where_there_are_two_contexts(machine: Machine, picture: Draw) -> None:
    engine = machine.engine(machine.bundle(RANGE, RANGE), contexts=2)
    captured = machine.gpu.captured
    for _ in range(4):
        for size in ((24, 32), (64, 64)):
            image = batch(picture, size)
            assert np.array_equal(engine(image)["mask"], nearest_class(image))
    assert machine.gpu.held()["graphs"] == 2
    assert machine.gpu.captured == captured + 2


def test_without_graphs_every_call_is_enqueued(
    machine: Machine, picture: Draw, caplog: pytest.LogCaptureFixture
) -> None:
    image = batch(picture, (24, 32))
    machine.engine(cuda_graph=False, contexts=1)(image)
    assert machine.gpu.captured == 0 and len(calls(machine.module, "execute_async_v3")) == 3
    machine.made.pop().close()
    machine.install(package="pycuda")
    with caplog.at_level(logging.INFO, "twins_trt"):
        machine.engine(contexts=1)(image)
    assert "pycuda has no CUDA graphs" in caplog.text and len(calls(machine.module, "execute_async_v3")) == 3


def test_an_engine_that_cannot_be_captured_runs_without(
    machine: Machine, picture: Draw, caplog: pytest.LogCaptureFixture
) -> None:
    machine.install(faults=Faults(captures=False))
    with caplog.at_level(logging.WARNING, "twins_trt"):
        engine = machine.engine()
        for _ in range(3):
            image = batch(picture, (24, 32))
            assert np.array_equal(engine(image)["mask"], nearest_class(image))
    assert caplog.text.count("no CUDA graph, so calls are launched one by one") == 1
    assert machine.gpu.captures == {} and machine.gpu.held()["graphs"] == 0


def test_buffers_are_bound_once(machine: Machine, picture: Draw) -> None:
    engine = machine.engine(contexts=1)
    engine(batch(picture, (24, 32)))
    held, bound = machine.gpu.held(), len(calls(machine.module, "set_tensor_address"))
    for _ in range(20):
        engine(batch(picture, (24, 32)))
    assert machine.gpu.held() == held
    assert bound == len(calls(machine.module, "set_tensor_address")) == 2
    assert held == {"device": 2, "host": 2, "streams": 1, "events": 0, "graphs": 1}


def test_results_are_the_callers_to_keep_and_may_go_into_arrays_of_his(machine: Machine, picture: Draw) -> None:
    engine = machine.engine()
    first, second = batch(picture, (24, 32)), batch(picture, (24, 32))
    kept = engine(first)["mask"]
    mine = np.zeros((1, 24, 32), np.uint8)
    assert engine(second, out={"mask": mine})["mask"] is mine
    assert np.array_equal(kept, nearest_class(first)) and np.array_equal(mine, nearest_class(second))
    with pytest.raises(EngineError, match=r"the buffer for mask is uint8 \[2, 24, 32\]"):
        engine(second, out={"mask": np.zeros((2, 24, 32), np.uint8)})
    assert np.array_equal(engine(first)["mask"], kept)


def test_a_buffer_of_another_size_than_the_result_is_refused(machine: Machine, picture: Draw) -> None:
    engine = machine.engine(machine.bundle(RANGE, RANGE))
    with pytest.raises(EngineError, match=r"the buffer for mask is \[1, 32, 32\], the output \[1, 24, 32\]"):
        engine(batch(picture, (24, 32)), out={"mask": np.zeros((1, 32, 32), np.uint8)})


def test_calls_overlap_and_a_submitted_image_may_be_reused(machine: Machine, picture: Draw) -> None:
    engine = machine.engine()
    images = [batch(picture, (24, 32)) for _ in range(2)]
    reused = images[0].copy()
    one = engine.submit(reused)
    reused[...] = 0
    two = engine.submit(images[1])
    assert engine.submit(images[1], wait=False) is None
    assert machine.gpu.overlaps > 0
    assert np.array_equal(two.result()["mask"], nearest_class(images[1]))
    assert np.array_equal(one.result()["mask"], nearest_class(images[0]))
    engine.submit(images[0]).discard()
    assert machine.gpu.pending() == 0


def test_many_threads_share_an_engine(machine: Machine, picture: Draw) -> None:
    engine = machine.engine(machine.bundle(RANGE, RANGE), contexts=2)
    images = [[batch(picture, (16 + 8 * ((i + j) % 3), 32)) for j in range(12)] for i in range(4)]

    def wrong(mine: list[Any]) -> Iterator[Any]:
        return (image.shape for image in mine if not np.array_equal(engine(image)["mask"], nearest_class(image)))

    assert in_threads(wrong, images) == []
    assert machine.gpu.held()["streams"] == 2


def test_a_failing_enqueue_is_an_error_and_the_next_call_runs(machine: Machine, picture: Draw) -> None:
    engine = machine.engine(cuda_graph=False)
    image = batch(picture, (24, 32))
    machine.faults.enqueues = 1
    with pytest.raises(EngineError, match=r"failed to start on the GPU: .*illegal memory access"):
        engine(image)
    assert np.array_equal(engine(image)["mask"], nearest_class(image))


@pytest.mark.parametrize("package", ["cuda-bindings", "pycuda"])
def test_a_gpu_that_breaks_is_an_error_and_closing_still_works(machine: Machine, picture: Draw, package: str) -> None:
    machine.install(package=package)
    engine = machine.engine()
    broken(machine.gpu)
    for _ in range(2):
        with pytest.raises(EngineError, match="cudaErrorIllegalAddress"):
            engine(batch(picture, (24, 32)))
    engine.close()
    machine.made.clear()
    machine.install()  # such a GPU takes nothing back before the process ends


def test_memory_that_was_freed_too_early_is_noticed(machine: Machine, picture: Draw) -> None:
    """The simulation's own test: work on memory that is gone is an illegal address."""
    engine = machine.engine(contexts=1)
    call = engine.submit(batch(picture, (24, 32)))
    machine.gpu.device.popitem()
    with pytest.raises(EngineError, match="cudaErrorIllegalAddress"):
        call.result()
    engine.close()
    machine.made.clear()
    machine.install()


@pytest.mark.parametrize("package", ["cuda-bindings", "pycuda"])
def test_no_room_for_buffers_is_an_error_that_leaves_nothing_behind(machine: Machine, package: str) -> None:
    machine.install(package=package, capacity=1000)
    with pytest.raises(EngineError, match="found no room: cudaErrorMemoryAllocation"):
        machine.engine()


def test_no_room_for_pinned_memory_is_an_error_that_leaves_nothing_behind(machine: Machine) -> None:
    machine.gpu.fail["cudaHostAlloc"] = [Status.cudaErrorMemoryAllocation]
    with pytest.raises(EngineError, match="cudaHostAlloc found no room"):
        machine.engine()


def test_no_room_while_growing_leaves_the_engine_usable(machine: Machine, picture: Draw) -> None:
    engine = machine.engine(machine.bundle((8, 16, 64), (8, 16, 64)), contexts=1)
    machine.gpu.capacity = 10_000
    small = batch(picture, (16, 16))
    with pytest.raises(EngineError, match="found no room"):
        engine(batch(picture, (64, 64)))
    assert np.array_equal(engine(small)["mask"], nearest_class(small))


def test_no_room_for_the_first_context_is_an_error(machine: Machine) -> None:
    machine.install(faults=Faults(contexts=0))
    with pytest.raises(EngineError, match=r"makes no context for .*: OutOfMemory") as caught:
        machine.engine()
    assert str(caught.value.fix).endswith("build with a smaller size or batch")
    with on_command_line(FLAGS), pytest.raises(EngineError) as caught:
        machine.engine()
    assert str(caught.value.fix).endswith("build with a smaller --size or --batch")


@pytest.mark.parametrize("what", ["context", "buffers"])
def test_no_room_for_a_second_slot_makes_one_do(
    machine: Machine, picture: Draw, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    if what == "context":
        machine.install(faults=Faults(contexts=1))
    else:
        machine.install(capacity=5000)  # one image and one mask take 3072
    with caplog.at_level(logging.WARNING, "twins_trt"):
        engine = machine.engine()
    assert caplog.text.count("runs 1 calls at once, because memory has no room for more") == 1
    image = batch(picture, (24, 32))
    first = engine.submit(image)
    assert engine.submit(image, wait=False) is None
    assert np.array_equal(first.result()["mask"], nearest_class(image))
    assert np.array_equal(engine(image)["mask"], nearest_class(image))
    assert machine.gpu.held()["streams"] == 1


@pytest.mark.parametrize("contexts", [1, 2, 3])
def test_every_slot_is_warm_when_the_engine_is_open(machine: Machine, picture: Draw, contexts: int) -> None:
    """The first frames of a stream come at once, and must not wait for what the warm-up is there to do."""
    engine = machine.engine(contexts=contexts)
    assert machine.gpu.captured == contexts == machine.faults.contexts_made
    machine.gpu.calls.clear()
    enqueued = len(calls(machine.module, "execute_async_v3"))
    images = [batch(picture, (24, 32)) for _ in range(contexts)]
    under_way = [engine.submit(image, wait=False) for image in images]
    assert engine.submit(images[0], wait=False) is None
    for image, call in zip(images, under_way, strict=True):
        assert np.array_equal(call.result()["mask"], nearest_class(image))
    assert len(calls(machine.module, "execute_async_v3")) == enqueued
    assert machine.gpu.calls.count("cudaGraphLaunch") == contexts
    assert not {"cudaMalloc", "cudaFree", "cudaStreamCreateWithFlags", "cudaGraphInstantiate"} & set(machine.gpu.calls)


@pytest.mark.parametrize("raises", [set(), {"set_input_shape", "set_tensor_address"}], ids=["returned", "raised"])
def test_every_refusal_of_tensorrt_is_an_error(machine: Machine, picture: Draw, raises: set[str]) -> None:
    machine.faults.raises = frozenset(raises)
    engine = machine.engine(machine.bundle(RANGE, RANGE))
    machine.faults.shapes = False
    with pytest.raises(EngineError, match=r"refuses image \[1, 24, 32, 3\]: set input shape"):
        engine(batch(picture, (24, 32)))
    machine.faults.shapes, machine.faults.binds = True, False
    with pytest.raises(EngineError, match="refuses the address 0x7f"):
        engine(batch(picture, (64, 64)))


BINDINGS = [
    ("Runtime", "deserialize_cuda_engine", "refuses"),
    ("ICudaEngine", "get_tensor_profile_shape", "refuses"),
    ("ICudaEngine", "create_execution_context", "makes no context"),
    ("IExecutionContext", "set_input_shape", r"refuses image \[1, 16, 16, 3\]"),
    ("IExecutionContext", "infer_shapes", r"refuses image \[1, 16, 16, 3\]"),
    ("IExecutionContext", "get_tensor_shape", r"refuses image \[1, 16, 16, 3\]"),
    ("IExecutionContext", "set_tensor_address", "refuses the address 0x7f"),
    ("IExecutionContext", "execute_async_v3", "failed to start on the GPU"),
    ("ICudaEngine", "create_engine_inspector", "tells nothing of the layers"),
    ("EngineInspector", "get_engine_information", "tells nothing of the layers"),
]


@pytest.mark.parametrize("raised", [RuntimeError, TypeError, ValueError])
@pytest.mark.parametrize(("owner", "method", "said"), BINDINGS, ids=[method for _, method, _ in BINDINGS])
def test_what_the_bindings_raise_is_an_error(
    machine: Machine,
    picture: Draw,
    monkeypatch: pytest.MonkeyPatch,
    owner: str,
    method: str,
    said: str,
    raised: type[Exception],
) -> None:
    """TensorRT's C++ returns false. Its Python sometimes raises instead, and pybind11 where a value does not fit."""
    bundle = machine.bundle(RANGE, RANGE)
    engine = machine.engine(bundle, cuda_graph=False)
    image = batch(picture, (16, 16))

    def refuse(self: Any, *given: Any) -> None:
        raise raised("nbDims out of range")

    with monkeypatch.context() as patch:
        patch.setattr(getattr(machine.module, owner), method, refuse)
        with pytest.raises(EngineError, match=rf"{said}.*\(nbDims out of range\)"):
            if owner in ("Runtime", "ICudaEngine") and "inspector" not in method:
                machine.engine(bundle)
            elif owner == "IExecutionContext":
                engine(batch(picture, (64, 64)) if method == "set_tensor_address" else image)
            else:
                engine.inspect_layers()
    assert np.array_equal(engine(image)["mask"], nearest_class(image))


def test_what_does_not_fit_is_refused_before_anything_runs(machine: Machine, picture: Draw) -> None:
    engine = machine.engine()
    calls = len(machine.gpu.calls)
    with pytest.raises(EngineError, match=r"accepts image uint8 \[1, 24, 32, 3\], not uint8 \[1, 24, 40, 3\]"):
        engine(batch(picture, (24, 40)))
    with pytest.raises(UsageError, match="has no output 'logits'"):
        engine(batch(picture, (24, 32)), outputs=("logits",))
    assert len(machine.gpu.calls) == calls


def test_a_closed_engine_says_so(machine: Machine, picture: Draw) -> None:
    engine = machine.engine()
    engine.close()
    engine.close()
    image = batch(picture, (24, 32))
    for use in (engine, engine.submit, engine.profile_layers, engine.run_on_device):
        with pytest.raises(EngineError, match="is closed"):
            use(image)


def test_a_call_that_outlives_its_engine_is_an_error_and_may_be_dropped(machine: Machine, picture: Draw) -> None:
    engine = machine.engine()
    image = batch(picture, (24, 32))
    asked, dropped = engine.submit(image), engine.submit(image)
    engine.close()
    with pytest.raises(EngineError, match="is closed"):
        asked.result()
    dropped.discard()
    asked.discard()
    assert machine.gpu.held() == dict.fromkeys(machine.gpu.held(), 0)


@pytest.mark.parametrize("first", ["result", "discard"])
def test_a_call_is_over_once(machine: Machine, picture: Draw, first: str) -> None:
    """A slot that was given back twice would serve two calls at once."""
    engine = machine.engine(contexts=2)
    images = [batch(picture, (24, 32)) for _ in range(3)]
    call = engine.submit(images[0])
    getattr(call, first)()
    with pytest.raises(UsageError, match="this call is over already"):
        call.result()
    call.discard()
    under_way = [engine.submit(image, wait=False) for image in images]
    assert under_way[2] is None
    for image, each in zip(images[:2], under_way[:2], strict=True):
        assert np.array_equal(each.result()["mask"], nearest_class(image))


def test_an_observer_comes_and_goes_between_calls(machine: Machine, picture: Draw) -> None:
    """Without one nothing is recorded. A call keeps the one that it began with."""
    seen: list[str] = []
    engine, image = machine.engine(), batch(picture, (24, 32))
    machine.gpu.calls.clear()
    engine(image)
    assert not {"cudaEventRecord", "cudaEventCreateWithFlags", "cudaEventElapsedTime"} & set(machine.gpu.calls)
    engine.observe = lambda stage, seconds: seen.append(stage)
    call = engine.submit(image)
    engine.observe = None
    engine(image)
    assert seen == []
    call.result()
    assert seen == ["copy_in", "engine", "copy_out"]
    machine.gpu.calls.clear()
    for _ in range(2):
        engine(image)
    assert len(seen) == 3 and "cudaEventRecord" not in machine.gpu.calls


def test_stages_are_timed_by_the_gpus_clock(machine: Machine, picture: Draw) -> None:
    seen: list[tuple[str, float]] = []
    engine = machine.engine(observe=lambda stage, seconds: seen.append((stage, seconds)))
    seen.clear()
    engine(batch(picture, (24, 32)))
    assert [stage for stage, _ in seen] == ["copy_in", "engine", "copy_out"]
    assert dict(seen)["engine"] == 0.001  # one tick of the simulated clock, which counts milliseconds
    assert machine.gpu.held()["events"] == 4


def test_layers_are_timed_outside_the_graph(machine: Machine, picture: Draw) -> None:
    engine = machine.engine()
    image = batch(picture, (24, 32))
    layers = engine.profile_layers(image, runs=3)
    assert [(layer.name, layer.milliseconds) for layer in layers] == [
        ("copy", 0.5),
        ("_gemm_mha_v2", 1.0),
        ("argmax", 1.5),
    ]
    before = machine.gpu.captured
    for _ in range(3):
        assert np.array_equal(engine(image)["mask"], nearest_class(image))
    assert machine.gpu.captured == before + 1
    with pytest.raises(UsageError, match="runs is 0"):
        engine.profile_layers(image, runs=0)


def test_layers_are_described_by_the_compilers_inspector(machine: Machine) -> None:
    engine = machine.engine()
    assert isinstance(engine, InspectsLayers)
    machine.module.script.layers = [{"Name": "_gemm_mha_v2", "LayerType": "gemm"}]
    (layer,) = parse_inspector(engine.inspect_layers())
    assert (layer.name, layer.type) == ("_gemm_mha_v2", "gemm")
    engine.close()
    with pytest.raises(EngineError, match="is closed"):
        engine.inspect_layers()


@pytest.mark.parametrize("missing", ["create_engine_inspector", "get_engine_information"])
def test_a_compiler_that_describes_no_layers_is_an_error(
    machine: Machine, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = machine.engine()
    assert isinstance(engine, InspectsLayers)
    owner = machine.module.ICudaEngine if missing == "create_engine_inspector" else machine.module.EngineInspector
    monkeypatch.setattr(owner, missing, lambda self, *given: None)
    with pytest.raises(EngineError, match="tells nothing of the layers"):
        engine.inspect_layers()


def test_device_memory_is_counted(machine: Machine) -> None:
    bundle = machine.bundle()
    pixels = 24 * 32
    for contexts in (1, 2):
        held = machine.engine(bundle, contexts=contexts).device_memory()
        assert held.scratch == contexts * 4096 and held.buffers == contexts * (pixels * 3 + pixels)
        assert held.weights == bundle.file("engines/tensorrt.engine").stat().st_size
    machine.install("11.4.0")
    assert machine.engine().device_memory().weights == 1000  # as the engine itself says


def test_a_segmenter_runs_on_it_by_itself(machine: Machine, picture: Draw) -> None:
    with Segmenter(machine.bundle(RANGE, RANGE, batch=(1, 2, 4))) as segmenter:
        assert segmenter.engine.name == "tensorrt"
        images = [picture(24, 32), picture(64, 8), picture(24, 32), picture(200, 100)]
        for image, result in zip(images[:3], segmenter(images), strict=False):
            assert np.array_equal(result.mask, nearest_class(image))
