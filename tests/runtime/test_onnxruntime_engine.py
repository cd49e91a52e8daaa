"""The ONNX Runtime engine against distances computed in numpy, and the inputs that it refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_graphs import QUARTER, MakeBundle, UInt8Array, nearest_class, scores, tensors, tiny_graph

from twins_trt.errors import BundleError, EngineError, MissingDependencyError, UsageError
from twins_trt.runtime import Engine, RuntimeOptions, TensorSpec, open_engine
from twins_trt.runtime.engines import KINDS, LayerTime, ProfilesLayers
from twins_trt.runtime.engines.onnxruntime import OnnxRuntimeEngine, _layer_times

Draw = Callable[[int, int], UInt8Array]


def test_masks_and_logits_are_right(make_bundle: MakeBundle, picture: Draw) -> None:
    engine = open_engine(make_bundle(outputs=("mask", "logits")))
    image = picture(24, 32)
    result = engine(image[None])
    assert list(result) == ["mask", "logits"]
    assert np.array_equal(result["mask"][0], nearest_class(image))
    blocks = scores(image).reshape(6, QUARTER, 8, QUARTER, -1).mean((1, 3))
    assert np.allclose(result["logits"][0], blocks.transpose(2, 0, 1), rtol=1e-5, atol=0.1)


def test_an_engine_is_what_the_protocol_asks_for(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(batch=(1, 2, 4))
    engine = open_engine(bundle, "onnxruntime")
    assert isinstance(engine, Engine)
    assert (engine.name, engine.concurrent) == ("onnxruntime", True)
    assert engine.inputs == bundle.interface.inputs  # with the profile, which the graph does not hold
    assert engine.outputs == bundle.interface.outputs


def test_layers_are_timed_in_order_and_leave_nothing_behind(
    make_bundle: MakeBundle, picture: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    engine = open_engine(make_bundle(outputs=("mask", "logits")), options=RuntimeOptions(threads=1))
    assert isinstance(engine, ProfilesLayers)
    before = set(tmp_path.rglob("*"))
    layers = engine.profile_layers(picture(24, 32)[None], runs=3)
    assert set(tmp_path.rglob("*")) == before
    operators = [layer.operator for layer in layers]
    assert (operators[0], operators.count("ArgMax"), operators.count("AveragePool")) == ("Cast", 1, 1)
    assert operators.index("ArgMax") < len(operators) - operators[::-1].index("Cast")  # to uint8, at the end
    assert all(layer.name and 0 <= layer.milliseconds < 1000 for layer in layers)
    with pytest.raises(EngineError, match="accepts image uint8"):
        engine.profile_layers(picture(24, 40)[None])


def test_only_the_last_runs_of_a_trace_count() -> None:
    def event(name: str, ts: int, dur: int) -> dict[str, Any]:
        return {"name": name, "ts": ts, "dur": dur, "args": {"op_name": "Conv"}}

    events = []
    for start, dur in ((0, 9000), (100, 1000), (200, 3000)):
        events += [event("a_kernel_time", start + 1, dur), event("b_kernel_time", start + 2, 500)]
        events.append(event("model_run", start, 2 * dur))
    assert _layer_times(events, 2) == (LayerTime("a", 2.0, "Conv"), LayerTime("b", 0.5, "Conv"))


def test_only_the_outputs_asked_for_are_computed(make_bundle: MakeBundle, picture: Draw) -> None:
    engine = open_engine(make_bundle(outputs=("mask", "logits")))
    assert list(engine(picture(24, 32)[None], outputs=("logits",))) == ["logits"]
    with pytest.raises(UsageError, match="has no output 'softmax'"):
        engine(picture(24, 32)[None], outputs=("softmax",))


def test_results_are_written_into_the_callers_buffers(make_bundle: MakeBundle, picture: Draw) -> None:
    engine = open_engine(make_bundle(outputs=("mask", "logits")))
    mask = np.full((1, 24, 32), 99, np.uint8)
    for _ in range(2):
        image = picture(24, 32)
        result = engine(image[None], out={"mask": mask})
        assert result["mask"] is mask
        assert np.array_equal(mask[0], nearest_class(image))
        assert np.array_equal(result["logits"], engine(image[None])["logits"])


def test_a_result_without_a_buffer_is_the_callers_to_keep(make_bundle: MakeBundle, picture: Draw) -> None:
    engine = open_engine(make_bundle())
    first, second = picture(24, 32), picture(24, 32)
    kept = engine(first[None])["mask"]
    engine(second[None])
    assert np.array_equal(kept[0], nearest_class(first))


@pytest.mark.parametrize(
    ("buffer", "said"),
    [
        (
            np.zeros((1, 24, 31), np.uint8),
            r"buffer for mask is uint8 \[1, 24, 31\], the output is mask uint8 \[1, 24, 32\]",
        ),
        (np.zeros((24, 32), np.uint8), r"buffer for mask is uint8 \[24, 32\]"),
        (np.zeros((1, 24, 32), np.int32), r"buffer for mask is int32"),
        (np.zeros((1, 24, 64), np.uint8)[:, :, ::2], r"C-contiguous and writeable"),
    ],
)
def test_a_buffer_that_does_not_fit_is_refused(
    make_bundle: MakeBundle, picture: Draw, buffer: UInt8Array, said: str
) -> None:
    with pytest.raises(EngineError, match=said):
        open_engine(make_bundle())(picture(24, 32)[None], out={"mask": buffer})


def test_a_buffer_of_another_batch_than_the_image_is_refused(make_bundle: MakeBundle, picture: Draw) -> None:
    engine = open_engine(make_bundle(batch=(1, 2, 4)))
    with pytest.raises(EngineError, match="failed on ONNX Runtime"):
        engine(picture(24, 32)[None], out={"mask": np.zeros((2, 24, 32), np.uint8)})


@pytest.mark.parametrize(
    ("image", "given"),
    [
        (np.zeros((1, 24, 33, 3), np.uint8), r"uint8 \[1, 24, 33, 3\]"),
        (np.zeros((5, 24, 32, 3), np.uint8), r"uint8 \[5, 24, 32, 3\]"),
        (np.zeros((0, 24, 32, 3), np.uint8), r"uint8 \[0, 24, 32, 3\]"),
        (np.zeros((24, 32, 3), np.uint8), r"uint8 \[24, 32, 3\]"),
        (np.zeros((1, 24, 32, 3), np.float32), r"float32 \[1, 24, 32, 3\]"),
    ],
)
def test_an_input_that_does_not_fit_is_refused_with_both_shapes(
    make_bundle: MakeBundle, image: UInt8Array, given: str
) -> None:
    bundle = make_bundle(batch=(1, 2, 4))
    with pytest.raises(EngineError, match=rf"accepts image uint8 \[N=1-4, 24, 32, 3\], not {given}") as caught:
        open_engine(bundle)(image)
    assert str(bundle.path) in caught.value.cause


def test_an_input_need_not_be_contiguous(make_bundle: MakeBundle, picture: Draw) -> None:
    image = picture(24, 64)[:, ::-2]
    assert np.array_equal(open_engine(make_bundle())(image[None])["mask"][0], nearest_class(image))


def test_a_closed_engine_says_so(make_bundle: MakeBundle, picture: Draw) -> None:
    engine = open_engine(make_bundle())
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="is closed"):
        engine(picture(24, 32)[None])


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x08"])
def test_a_graph_that_is_refused_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(EngineError, match=r"ONNX Runtime [\d.]+ refuses .*bad\.onnx"):
        OnnxRuntimeEngine(tmp_path / "bad.onnx")
    with pytest.raises(EngineError, match=r"refuses .*absent\.onnx"):
        OnnxRuntimeEngine(tmp_path / "absent.onnx")


def test_a_bare_graph_runs_and_knows_its_shapes(picture: Draw) -> None:
    image, outputs = tensors(24, 32, (1, 2, 4), ("mask",), "uint8")
    engine = OnnxRuntimeEngine(tiny_graph(image, outputs), options=RuntimeOptions(threads=1))
    assert engine.inputs == (TensorSpec("image", "uint8", ("N", 24, 32, 3)),)
    assert engine.outputs == outputs
    pixels = picture(24, 32)
    assert np.array_equal(engine(pixels[None])["mask"][0], nearest_class(pixels))


@pytest.mark.parametrize(
    ("field", "spec", "said"),
    [
        ("inputs", TensorSpec.image(24, 40), r"inputs\[0\] is image uint8 \[1, 24, 40, 3\], .* has image .* 32, 3\]"),
        (
            "inputs",
            TensorSpec.image(24, 32, batch=(1, 1, 2)),
            r"inputs\[0\] is image uint8 \[N=1-2, .* has image uint8 \[1",
        ),
        ("inputs", TensorSpec.image(24, 32, dtype="float32"), r"inputs\[0\] is image float32 .* has image uint8"),
        ("outputs", TensorSpec("logits", "float32", (1, 5, 6, 8)), r"outputs\[0\] is logits .* has mask uint8"),
    ],
)
def test_a_graph_that_is_not_what_the_manifest_says_is_refused(
    make_bundle: MakeBundle, field: str, spec: TensorSpec, said: str
) -> None:
    bundle = make_bundle()
    interface = replace(bundle.interface, **{field: (spec,)})  # type: ignore[arg-type]
    wrong = replace(bundle, manifest=replace(bundle.manifest, interface=interface))
    with pytest.raises(BundleError, match=said) as caught:
        open_engine(wrong)
    assert caught.value.fix == bundle.manifest.rebuild


def test_without_onnxruntime_the_error_names_the_extra(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="onnxruntime, which is not installed") as caught:
        open_engine(bundle, "onnxruntime")
    assert caught.value.fix == 'pip install "twins-trt[cpu]"'
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"no engine can run .* onnxruntime is not installed"):
        open_engine(bundle)


def test_unknown_kinds_and_options_are_refused(make_bundle: MakeBundle) -> None:
    with pytest.raises(UsageError, match=r"no engine 'tflite'") as caught:
        open_engine(make_bundle(), "tflite")
    assert all(kind in (caught.value.fix or "") for kind in KINDS)
    with pytest.raises(UsageError, match="threads is 0"):
        RuntimeOptions(threads=0)
