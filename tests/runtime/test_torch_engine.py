"""The torch engine on a CPU, in float32 and without CUDA graphs, against the model step by step."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from fake_driver import install_driver
from fake_torch_cuda import DEVICE, FakeTorchCuda
from torch import nn

from twins_trt.data.preprocessing import normalized_planes
from twins_trt.device import Device
from twins_trt.errors import BundleError, EngineError
from twins_trt.models import build_model
from twins_trt.models.seeded import seed_weights
from twins_trt.models.segmentor import Segmentor
from twins_trt.runtime import (
    Bundle,
    GraphInterface,
    Manifest,
    RuntimeOptions,
    Segmenter,
    Source,
    TensorSpec,
    write_bundle,
)
from twins_trt.runtime.engines.captures import CudaGraphs
from twins_trt.runtime.engines.torch import TorchEngine, load_model, open_engine, why_not
from twins_trt.runtime.manifest import GRAPH, WEIGHTS
from twins_trt.verbs.command_line import on_command_line
from twins_trt.verbs.predict import FLAGS

MODEL = "twins_svt-demo_fpn"  # small, so that it is quick
CLASSES = 5
SIZE = (64, 96)


@functools.cache
def seeded(name: str) -> Segmentor:
    model = build_model(name, CLASSES)
    seed_weights(model)
    return model


def model_of(name: str = MODEL) -> Segmentor:
    """Another one every time: engines change theirs."""
    return copy.deepcopy(seeded(name))


def interface_of(*, dynamic: bool = False, floats: bool = False) -> GraphInterface:
    height, width = ((32, 64, 96), (32, 96, 128)) if dynamic else SIZE
    return GraphInterface(
        inputs=(TensorSpec.image(height, width, batch=(1, 1, 4), dtype="float32" if floats else "uint8"),),
        outputs=(
            TensorSpec.mask(height, width, batch=(1, 1, 4)),
            TensorSpec("logits", "float32", ("N", CLASSES, "h", "w")),
        ),
        classes=tuple("abcde"),
        palette=((0, 0, 0),) * CLASSES,
    )


def manifest_of(*, dynamic: bool = False, seeded: bool = True) -> Manifest:
    return Manifest(
        interface=interface_of(dynamic=dynamic),
        model=MODEL,
        padding="parity",
        precision="fp16",
        opset=17,
        source=Source(seeded=True) if seeded else Source(checkpoint="x.pth", sha256="0" * 64),
        rebuild="twins-trt build twins_svt-demo_fpn --seeded --out x.bundle",
    )


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    return TorchEngine(model_of(), interface_of(dynamic=True), device="cpu")


def raises(error: Exception) -> Callable[..., Any]:
    def function(*_: object, **__: object) -> None:
        raise error

    return function


def inside(model: Segmentor) -> nn.Module:
    """A part of the network that every call runs, once, on tokens [B, N, C] at stride 4."""
    return cast(nn.Module, model.backbone.layers[0][0].attn)  # type: ignore[index]


def pictures(batch: int, height: int, width: int) -> np.ndarray:
    patches = np.random.default_rng(0).integers(0, 256, (batch, -(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return patches.repeat(8, 1).repeat(8, 2)[:, :height, :width]


def step_by_step(model: Segmentor, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and logits at the image's size."""
    planes = np.stack([normalized_planes(image, interface_of().preprocessing) for image in images])
    with torch.inference_mode():
        logits = model(torch.from_numpy(planes))
        full = torch.nn.functional.interpolate(logits, images.shape[1:3], mode="bilinear", align_corners=False)
    return logits.numpy(), full.numpy()


def assert_same_mask(mask: np.ndarray, full: np.ndarray) -> None:
    """Equal, save where two classes are so close that folding BatchNorm decides between them."""
    expected = full.argmax(1)
    assert mask.dtype == np.uint8 and mask.shape == expected.shape
    best = full.max(1)
    chosen = np.take_along_axis(full, mask[:, None].astype(np.int64), 1)[:, 0]
    assert (best - chosen).max() <= 1e-4 * np.abs(full).max()
    assert (mask != expected).mean() <= 1e-3


@pytest.mark.parametrize("shape", [(1, 64, 96), (3, 61, 83)])
def test_masks_and_logits_are_the_models(engine: TorchEngine, shape: tuple[int, int, int]) -> None:
    images = pictures(*shape)
    logits, full = step_by_step(model_of(), images)
    found = engine(images)
    np.testing.assert_allclose(found["logits"], logits, rtol=0, atol=1e-4 * np.abs(logits).max())
    assert_same_mask(found["mask"], full)
    assert len(np.unique(found["mask"])) > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["twins_pcpvt-s_fpn", "twins_svt-s_upernet"])
def test_other_models(name: str) -> None:
    images = pictures(1, *SIZE)
    _, full = step_by_step(model_of(name), images)
    assert_same_mask(TorchEngine(model_of(name), interface_of(), device="cpu")(images, outputs=["mask"])["mask"], full)


def test_a_segmenter_runs_it(engine: TorchEngine, tmp_path: Path) -> None:
    manifest = manifest_of(dynamic=True)
    bundle = write_bundle(tmp_path / "x.bundle", manifest, {GRAPH: b"not read"})
    image = pictures(1, 61, 83)[0]
    segmenter = Segmenter(bundle, engine)
    assert_same_mask(segmenter(image).mask[None], step_by_step(model_of(), image[None])[1])
    assert [frame.error for frame in segmenter.stream([image, image])] == [None, None]


def test_normalized_planes_go_in_as_they_are() -> None:
    images = pictures(2, *SIZE)
    planes = np.stack([normalized_planes(image, interface_of().preprocessing) for image in images])
    engine = TorchEngine(model_of(), interface_of(floats=True), device="cpu")
    assert_same_mask(engine(planes, outputs=["mask"])["mask"], step_by_step(model_of(), images)[1])


def test_only_what_is_asked_for_comes_back_and_into_the_callers_buffers(engine: TorchEngine) -> None:
    images = pictures(1, 64, 96)
    mask = engine(images, outputs=["mask"])
    assert set(mask) == {"mask"}
    buffer = np.full((1, 64, 96), 255, np.uint8)
    found = engine(images, outputs=["mask"], out={"mask": buffer})
    assert found["mask"] is buffer
    assert np.array_equal(buffer, mask["mask"])
    second = engine(pictures(1, 64, 96)[:, ::-1], outputs=["mask"])["mask"]
    assert not np.array_equal(second, mask["mask"])  # and the first is still the caller's
    assert np.array_equal(buffer, mask["mask"])
    with pytest.raises(EngineError, match="buffer for mask"):
        engine(images, out={"mask": np.zeros((1, 64, 96), np.int32)})


def test_an_image_outside_the_limits_is_refused(engine: TorchEngine) -> None:
    with pytest.raises(EngineError, match=r"the model accepts image uint8"):
        engine(pictures(1, 64, 200))


@pytest.mark.parametrize("error", [RuntimeError("cuDNN failed\nCompile with TORCH_USE_CUDA_DSA"), RuntimeError()])
def test_what_torch_raises_fails_one_call(error: RuntimeError) -> None:
    model = model_of()
    engine = TorchEngine(model, interface_of(), device="cpu")
    image = pictures(1, *SIZE)
    said = r"failed on \[1, 64, 96, 3\]: (cuDNN failed|RuntimeError)$"
    with inside(model).register_forward_pre_hook(raises(error)), pytest.raises(EngineError, match=said):
        engine(image)
    assert engine(image)["mask"].shape == (1, *SIZE)


class KernelError(Exception):
    """Like Triton's errors, it is no RuntimeError."""


def test_what_a_kernel_raises_is_typed_too() -> None:
    model = model_of()
    engine = TorchEngine(model, interface_of(), device="cpu")
    with (
        inside(model).register_forward_pre_hook(raises(KernelError("out of resource: shared memory"))),
        pytest.raises(EngineError, match=r"failed on .*: out of resource: shared memory"),
    ):
        engine(pictures(1, *SIZE))


def test_the_callers_settings_of_cudnn_stay_and_do_no_harm(engine: TorchEngine) -> None:
    cudnn = torch.backends.cudnn
    before, precision = (cudnn.benchmark, cudnn.deterministic), cudnn.conv.fp32_precision
    seen: list[tuple[bool, bool, str]] = []
    network = engine._network
    assert network is not None

    def look(*_: object) -> None:
        seen.append((cudnn.benchmark, cudnn.deterministic, cudnn.conv.fp32_precision))

    try:
        cudnn.benchmark, cudnn.deterministic = True, False
        cudnn.conv.fp32_precision = "ieee"  # with it, torch can no longer say whether cuDNN may use TF32
        with network.register_forward_pre_hook(look):
            engine(pictures(1, 64, 96))
        assert seen == [(False, True, "ieee")]
        assert (cudnn.benchmark, cudnn.deterministic) == (True, False)
    finally:
        (cudnn.benchmark, cudnn.deterministic), cudnn.conv.fp32_precision = before, precision


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeTorchCuda:
    return FakeTorchCuda(monkeypatch)


def capturing(cuda: FakeTorchCuda, model: Segmentor | None = None, **options: Any) -> TorchEngine:
    """An engine that captures on a stand-in for torch.cuda."""
    return TorchEngine(
        model or model_of(),
        interface_of(dynamic=True),
        device="cpu",
        graphs=CudaGraphs(DEVICE),
        options=RuntimeOptions(**options),
        owner="x.bundle",
    )


def replays(cuda: FakeTorchCuda) -> int:
    return sum(graph.replays for graph in cuda.graphs)


def test_a_shape_that_comes_back_is_replayed_with_the_same_masks(engine: TorchEngine, cuda: FakeTorchCuda) -> None:
    captured = capturing(cuda)
    first = pictures(1, 64, 96)
    for number, images in enumerate((first, first, first[:, ::-1], first[:, :, ::-1])):
        found, expected = captured(images), engine(images)
        assert replays(cuda) == number  # the second is captured and replayed
        assert np.array_equal(found["mask"], expected["mask"])
        np.testing.assert_allclose(found["logits"], expected["logits"], rtol=0, atol=1e-5)
    captured(pictures(2, 64, 96), outputs=["mask"])
    assert len(cuda.graphs) == 1
    captured.close()
    assert set(cuda.users.values()) == {0}


def test_without_cuda_graphs_nothing_is_captured(cuda: FakeTorchCuda) -> None:
    plain = capturing(cuda, cuda_graph=False)
    for _ in range(3):
        plain(pictures(1, 64, 96), outputs=["mask"])
    assert cuda.graphs == [] and len(cuda.streams) == 1


def test_a_shape_whose_capture_fails_runs_without_one(
    engine: TorchEngine, cuda: FakeTorchCuda, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of()
    captured = capturing(cuda, model)
    wide, narrow = pictures(1, 64, 96), pictures(1, 64, 64)

    def wait(module: object, inputs: Any) -> None:
        """What a wide picture's program does, and a capture does not allow."""
        if inputs[0].shape[1] > 16 * 16:
            cuda.current.synchronize()

    with inside(model).register_forward_pre_hook(wait), caplog.at_level(logging.WARNING, logger="twins_trt"):
        for images in (narrow, narrow, wide, wide, wide, wide, narrow, narrow, narrow):
            found = captured(images, outputs=["mask"])["mask"]
            assert np.array_equal(found, engine(images, outputs=["mask"])["mask"])
    (record,) = caplog.records
    reason = "CUDA error: operation not permitted when stream is capturing"
    assert record.getMessage() == (
        f"x.bundle: [1, 64, 96, 3] runs without a CUDA graph, since capturing it failed: {reason}"
    )
    shapes = [tuple(graph.stream is stream for stream in cuda.streams) for graph in cuda.graphs]
    assert shapes == [(True, False), (True, False), (False, True)]  # narrow, wide, and narrow on the new stream
    assert list(cuda.users.values()) == [0, 1]
    assert cuda.in_order and replays(cuda) == 1 + 2


@pytest.mark.parametrize("in_capture", [True, False])
def test_captures_of_other_shapes_go_where_memory_does_not_suffice(
    engine: TorchEngine, cuda: FakeTorchCuda, caplog: pytest.LogCaptureFixture, in_capture: bool
) -> None:
    model = model_of()
    captured = capturing(cuda, model)
    small, large = pictures(1, 64, 64), pictures(1, 64, 96)

    def allocate(module: object, inputs: Any) -> None:
        held = sum(graph.ended for graph in cuda.graphs)
        if inputs[0].shape[1] > 16 * 16 and held and (cuda.capturing or not in_capture):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with inside(model).register_forward_pre_hook(allocate), caplog.at_level(logging.WARNING, logger="twins_trt"):
        for images in (small, small, large, large, large, large, small, small, large):
            found = captured(images, outputs=["mask"])["mask"]
            assert np.array_equal(found, engine(images, outputs=["mask"])["mask"])
    assert caplog.records == [] and cuda.in_order
    assert [graph.replays for graph in cuda.graphs if graph.ended] == [1]  # one fits at a time
    assert cuda.emptied >= 1


def test_too_little_memory_for_a_capture_is_no_error(cuda: FakeTorchCuda, caplog: pytest.LogCaptureFixture) -> None:
    model = model_of()
    captured = capturing(cuda, model)

    def allocate(*_: object) -> None:
        if cuda.capturing:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with inside(model).register_forward_pre_hook(allocate), caplog.at_level(logging.WARNING, logger="twins_trt"):
        for _ in range(4):
            assert captured(pictures(1, 64, 96), outputs=["mask"])["mask"].shape == (1, 64, 96)
    assert len(caplog.records) == len(cuda.graphs) == 1 and cuda.in_order


def test_too_little_memory_without_captures_is_a_typed_error() -> None:
    model = model_of()
    engine = TorchEngine(model, interface_of(), device="cpu")
    said = "memory does not suffice for"
    with (
        inside(model).register_forward_pre_hook(raises(torch.cuda.OutOfMemoryError("no room"))),
        pytest.raises(EngineError, match=said) as caught,
    ):
        engine(pictures(1, *SIZE))
    assert caught.value.fix is not None and "smaller batch" in caught.value.fix


def test_observing_can_begin_and_end_between_calls_and_only_then_stages_are_waited_for(cuda: FakeTorchCuda) -> None:
    watched = capturing(cuda, cuda_graph=False)
    (stream,) = cuda.streams
    told: list[str] = []
    for observe, stages, waits in ((None, 0, 0), (lambda stage, seconds: told.append(stage), 3, 2), (None, 3, 2)):
        watched.observe = observe
        watched(pictures(1, 64, 96), outputs=["mask"])
        assert (len(told), stream.waits) == (stages, waits)


def test_stages_are_reported_and_a_closed_engine_says_so() -> None:
    told: list[str] = []
    options = RuntimeOptions(observe=lambda stage, seconds: told.append(stage))
    engine = TorchEngine(model_of(), interface_of(), device="cpu", options=options)
    engine(pictures(1, *SIZE))
    assert told == ["copy_in", "engine", "copy_out"]
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine(pictures(1, *SIZE))


def test_bundles_carry_weights_or_a_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bundle(name: str, *, seeded: bool, weights: bool) -> Bundle:
        files: dict[str, bytes | Path] = {GRAPH: b"not read"}
        if weights:
            other = model_of()
            with torch.no_grad():
                other.decode_head.conv_seg.bias.add_(1)
            torch.save({"state_dict": other.state_dict(), "meta": {}}, tmp_path / "saved.pth")
            files[WEIGHTS] = tmp_path / "saved.pth"
        return write_bundle(tmp_path / name, manifest_of(seeded=seeded), files)

    install_driver(monkeypatch, None)
    bare, seeded = bundle("bare", seeded=False, weights=False), bundle("seeded", seeded=True, weights=False)
    whole = bundle("whole", seeded=False, weights=True)
    assert why_not(bare) == "the bundle holds no weights.pth: build it with with_weights=True"
    with on_command_line(FLAGS):
        assert why_not(bare) == "the bundle holds no weights.pth: build it with --with-weights"
    assert why_not(seeded) == why_not(whole) == "there is no CUDA GPU"
    with pytest.raises(BundleError, match="--with-weights --overwrite"):
        open_engine(bare, RuntimeOptions())
    bias = "decode_head.conv_seg.bias"
    assert torch.equal(load_model(seeded).state_dict()[bias] + 1, load_model(whole).state_dict()[bias])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="needs a CUDA GPU") as refused:
        open_engine(whole, RuntimeOptions())
    assert refused.value.fix == 'use engine="onnxruntime" on a CPU'
    with on_command_line(FLAGS), pytest.raises(EngineError) as refused:
        open_engine(whole, RuntimeOptions())
    assert refused.value.fix == "use --engine onnxruntime on a CPU"
    install_driver(monkeypatch, Device("NVIDIA RTX 4000 Ada", "sm_89"))
    assert why_not(whole) is None
