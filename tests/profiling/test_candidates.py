"""As candidates, bundles, plain graphs and PyTorch models give the masks that they give elsewhere."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_graphs import CLASSES, FOR_CPUS, MakeBundle, nearest_class, tensors, tiny_graph

from twins_trt.errors import BundleError, EngineError, MissingDependencyError, UsageError
from twins_trt.files import sha256_of
from twins_trt.models.conventions import Conventions
from twins_trt.models.zoo import get_spec
from twins_trt.profiling.candidates import (
    EagerEngine,
    bundle_candidate,
    noise,
    onnx_candidate,
    torch_candidate,
)
from twins_trt.runtime import RuntimeOptions, Source
from twins_trt.runtime.engines import Stage
from twins_trt.runtime.manifest import AwaitedEngine, EngineFile

pytest.importorskip("onnxruntime")

COLOURS = np.array([[0, 0, 0], [250, 250, 250], [200, 30, 40], [30, 190, 60]], np.uint8)


def picture(height: int = 24, width: int = 32) -> np.ndarray:
    rng = np.random.default_rng(3)
    return COLOURS[rng.integers(0, 4, (height // 4, width // 4)).repeat(4, 0).repeat(4, 1)]


def observed(spent: list[Stage], threads: int | None = None) -> RuntimeOptions:
    return RuntimeOptions(threads=threads, observe=lambda stage, seconds: spent.append(stage))


def test_a_bundle_is_named_after_its_folder_and_engine(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(batch=(1, 2, 4), rebuild=FOR_CPUS)
    stages: list[Stage] = []
    segmenter, subject = bundle_candidate(bundle.path).open(observed(stages, 1))
    with segmenter:
        assert np.array_equal(segmenter(picture()).mask, nearest_class(picture()))
    assert stages == ["decode", "preprocess", "run", "postprocess"]
    assert (subject.label, subject.kind, subject.engine, subject.threads) == ("tiny1", "bundle", "onnxruntime", 1)
    assert (subject.size, subject.batch, subject.precision, subject.simulated) == ((24, 32), 1, "fp32", False)
    assert subject.graph_sha256 == sha256_of(bundle.graph)
    assert subject.weights_sha256 == "ab" * 32


def test_a_stand_in_for_an_engine_is_called_simulated(make_bundle: MakeBundle) -> None:
    engine = EngineFile("engines/x.engine", "tensorrt", "10.3.0", ("sm_87",))
    for engines in ({"engines": (engine,)}, {"awaits": (AwaitedEngine("sm_87"),)}, {}):  # {}: they stayed behind
        _, subject = bundle_candidate(make_bundle(**engines).path, "onnxruntime").open(RuntimeOptions())
        assert subject.simulated


def test_a_damaged_bundle_is_refused_before_anything_is_measured(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    bundle.graph.write_bytes(bundle.graph.read_bytes()[:-1])
    with pytest.raises(BundleError, match="size of graph"):
        bundle_candidate(bundle.path)


@pytest.mark.parametrize("output", ["mask", "logits"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_plain_graph_may_call_its_tensors_anything(tmp_path: Path, dtype: str, output: str) -> None:
    onnx = pytest.importorskip("onnx")
    image, outputs = tensors(24, 32, 1, (output,), dtype)
    model = onnx.load_from_string(tiny_graph(image, outputs))
    for node in model.graph.node:
        node.input[:] = ["input.1" if name == "image" else name for name in node.input]
        node.output[:] = ["1234" if name == output else name for name in node.output]
    model.graph.input[0].name, model.graph.output[0].name = "input.1", "1234"
    path = tmp_path / "plain.onnx"
    onnx.save(model, path)
    segmenter, subject = onnx_candidate(path).open(RuntimeOptions(threads=1))
    mask = segmenter(picture()).mask
    expected = nearest_class(picture())
    # Logits of blocks of 4×4 pixels, which the picture's patches fill, are blurred by the resize to full size.
    assert (mask == expected).mean() > (0.99 if output == "mask" else 0.7)
    assert (subject.label, subject.kind, subject.precision) == ("plain", "onnx", None)
    assert subject.graph_sha256 == sha256_of(path)
    assert segmenter.interface.num_classes == (255 if output == "mask" else len(CLASSES))
    layers = segmenter.engine.profile_layers(noise(segmenter, (24, 32), 1), runs=1)  # type: ignore[attr-defined]
    assert {"MatMul", "Gemm"} & {layer.operator for layer in layers}


def test_graphs_that_are_no_segmentation_are_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    image, outputs = tensors(24, 32, 1, ("mask",), "uint8")
    model = onnx.load_from_string(tiny_graph(image, outputs))
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    model.graph.node[-1].attribute[0].i = onnx.TensorProto.FLOAT
    onnx.save(model, tmp_path / "depth.onnx")
    with pytest.raises(EngineError, match="neither logits"):
        onnx_candidate(tmp_path / "depth.onnx").open(RuntimeOptions())
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(EngineError, match="refuses"):
        onnx_candidate(tmp_path / "text.onnx").open(RuntimeOptions())
    with pytest.raises(UsageError, match="does not exist"):
        onnx_candidate(tmp_path / "none.onnx")


def test_a_pytorch_model_gives_the_mask_of_its_resized_logits() -> None:
    torch = pytest.importorskip("torch")
    from twins_trt.data.preprocessing import Preprocessing, normalized_planes
    from twins_trt.models import build_model
    from twins_trt.models.seeded import seed_weights

    model = build_model("twins_svt-s_fpn", 4)
    seed_weights(model)
    source = Source("tiny.pth", "cd" * 32)
    stages: list[Stage] = []
    candidate = torch_candidate("twins_svt-s_fpn", lambda: (model, source), size=(64, 96))
    segmenter, subject = candidate.open(observed(stages))
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    mask = segmenter(image).mask
    with torch.inference_mode():
        logits = model.eval()(torch.from_numpy(normalized_planes(image, Preprocessing())[None]))
        full = torch.nn.functional.interpolate(logits, (64, 96), mode="bilinear", align_corners=False)
    assert (mask == full.argmax(1)[0].numpy()).mean() > 0.999  # ties within rounding
    assert stages == ["decode", "preprocess", "run", "postprocess"]  # on a CPU nothing is copied
    assert (subject.engine, subject.kind, subject.weights_sha256) == ("pytorch", "torch", "cd" * 32)
    assert segmenter([image] * 2)[1].mask.shape == (64, 96)
    assert isinstance(segmenter.engine, EagerEngine) and not segmenter.engine.on_gpu


def test_sizes_that_a_graph_is_made_for(make_bundle: MakeBundle) -> None:
    assert make_bundle(24, 32).interface.opt_size == (24, 32)
    dynamic = make_bundle((16, 24, 48), (32, 40, 64), dtype="float32").interface
    assert dynamic.opt_size == (24, 40)
    open_ended = replace(dynamic.image, min=None, opt=None, max=None)
    assert replace(dynamic, inputs=(open_ended,)).opt_size is None


def test_an_engine_that_is_missing_is_named(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, package, None)
    candidate = bundle_candidate(make_bundle().path)
    with pytest.raises(MissingDependencyError, match=r"no engine can run .*onnxruntime: .*openvino: "):
        candidate.open(RuntimeOptions())


def test_memory_that_runs_out_in_pytorch_is_a_typed_error() -> None:
    torch = pytest.importorskip("torch")

    class Greedy(torch.nn.Module):  # type: ignore[name-defined]
        spec = get_spec("twins_svt-s_fpn")
        conventions = Conventions()
        class_logits = staticmethod(lambda logits: logits)

        def forward(self, x: object) -> object:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    engine = EagerEngine(Greedy(), (8, 8))  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=r"twins_svt-s_fpn failed in PyTorch: CUDA out of memory\.$"):
        engine(np.zeros((1, 8, 8, 3), np.uint8))


def test_pytorch_waits_for_its_stages_on_a_gpu_only_if_somebody_observes(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from twins_trt.models import build_model

    class OnGpu(EagerEngine):
        on_gpu = True

    waits: list[bool] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(True))
    engine = OnGpu(build_model("twins_svt-demo_fpn", 3), (32, 32))
    seen: list[Stage] = []
    for observe, count in ((None, 0), (lambda stage, seconds: seen.append(stage), 3), (None, 3)):
        engine.observe = observe
        engine(picture(32, 32)[None])
        assert len(waits) == len(seen) == count
    assert seen == ["copy_in", "engine", "copy_out"]
