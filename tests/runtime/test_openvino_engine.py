"""The OpenVINO engine against ONNX Runtime and distances computed in numpy, and the inputs that it refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_graphs import MakeBundle, UInt8Array, nearest_class, tensors, tiny_graph

from twins_trt.builders.export import ExportOptions, export_graph
from twins_trt.errors import BundleError, EngineError, MissingDependencyError, UsageError
from twins_trt.models import build_model
from twins_trt.models.seeded import seed_weights
from twins_trt.runtime import Engine, RuntimeOptions, Segmenter, TensorSpec, open_engine
from twins_trt.runtime.engines import ProfilesLayers, why_not
from twins_trt.runtime.engines.onnxruntime import OnnxRuntimeEngine
from twins_trt.runtime.engines.openvino import OpenVinoEngine
from twins_trt.verbs.command_line import on_command_line
from twins_trt.verbs.predict import FLAGS

Draw = Callable[[int, int], UInt8Array]


def test_masks_are_right_and_logits_those_of_onnxruntime(make_bundle: MakeBundle, picture: Draw) -> None:
    bundle = make_bundle(outputs=("mask", "logits"))
    engine, other = open_engine(bundle, "openvino"), open_engine(bundle, "onnxruntime")
    image = picture(24, 32)
    result, wanted = engine(image[None]), other(image[None])
    assert list(result) == ["mask", "logits"]
    assert np.array_equal(result["mask"][0], nearest_class(image))
    np.testing.assert_allclose(result["logits"], wanted["logits"], rtol=1e-5, atol=1e-2)


def test_a_model_of_the_zoo_gets_the_masks_of_onnxruntime(tmp_path: Path) -> None:
    model = build_model("twins_svt-s_fpn", 19)
    seed_weights(model)
    options = ExportOptions(64, 96, target="cpu", outputs=("mask", "logits"))
    export_graph(model, tmp_path / "g.onnx", options)
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)
    got, wanted = (kind(tmp_path / "g.onnx")(image) for kind in (OpenVinoEngine, OnnxRuntimeEngine))
    assert np.abs(got["logits"] - wanted["logits"]).max() <= 1e-5 * np.abs(wanted["logits"]).max()
    assert len(np.unique(wanted["mask"])) > 1
    assert (got["mask"] == wanted["mask"]).mean() >= 0.999  # the rest may be ties within rounding


def test_an_engine_is_what_the_protocol_asks_for(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(batch=(1, 2, 4))
    engine = open_engine(bundle, "openvino")
    assert isinstance(engine, Engine) and isinstance(engine, ProfilesLayers)
    assert (engine.name, engine.concurrent) == ("openvino", False)
    assert engine.inputs == bundle.interface.inputs and engine.outputs == bundle.interface.outputs


def test_every_batch_of_a_profile_runs(make_bundle: MakeBundle, picture: Draw) -> None:
    engine = open_engine(make_bundle(batch=(1, 2, 4)), "openvino")
    for batch in (1, 4, 2):
        images = np.stack([picture(24, 32) for _ in range(batch)])
        assert np.array_equal(engine(images)["mask"], np.stack([nearest_class(image) for image in images]))


def test_a_segmenter_may_be_called_from_many_threads(make_bundle: MakeBundle, picture: Draw) -> None:
    from concurrent.futures import ThreadPoolExecutor

    segmenter = Segmenter(make_bundle(), "openvino", options=RuntimeOptions(threads=1))
    images = [picture(24, 32) for _ in range(16)]
    with ThreadPoolExecutor(4) as pool:
        masks = list(pool.map(lambda image: segmenter(image).mask, images))
    assert all(np.array_equal(mask, nearest_class(image)) for mask, image in zip(masks, images, strict=True))


def test_results_are_the_callers_own(make_bundle: MakeBundle, picture: Draw) -> None:
    engine = open_engine(make_bundle(outputs=("mask", "logits")), "openvino")
    first, buffer = picture(24, 32), np.full((1, 24, 32), 99, np.uint8)
    kept = engine(first[None], outputs=("logits", "mask"))
    assert list(kept) == ["logits", "mask"]
    into = engine(picture(24, 32)[None], outputs=("mask",), out={"mask": buffer})
    assert list(into) == ["mask"] and into["mask"] is buffer
    assert np.array_equal(kept["mask"][0], nearest_class(first))
    with pytest.raises(UsageError, match="has no output 'softmax'"):
        engine(first[None], outputs=("softmax",))


def test_what_does_not_fit_is_refused(make_bundle: MakeBundle, picture: Draw) -> None:
    engine = open_engine(make_bundle(batch=(1, 2, 4)), "openvino")
    with pytest.raises(EngineError, match=r"accepts image uint8 \[N=1-4, 24, 32, 3\], not uint8 \[1, 24, 40, 3\]"):
        engine(picture(24, 40)[None])
    with pytest.raises(EngineError, match=r"buffer for mask is int32"):
        engine(picture(24, 32)[None], out={"mask": np.zeros((1, 24, 32), np.int32)})
    with pytest.raises(EngineError, match=r"the buffer for mask is \(2, 24, 32\), the output is \(1, 24, 32\)"):
        engine(picture(24, 32)[None], out={"mask": np.zeros((2, 24, 32), np.uint8)})


def test_layers_are_timed(make_bundle: MakeBundle, picture: Draw) -> None:
    engine = open_engine(make_bundle(), "openvino", options=RuntimeOptions(threads=1))
    assert isinstance(engine, ProfilesLayers)
    layers = engine.profile_layers(picture(24, 32)[None], runs=2)
    assert layers and all(layer.name and layer.operator and 0 <= layer.milliseconds < 1000 for layer in layers)


def test_a_closed_engine_says_so(make_bundle: MakeBundle, picture: Draw) -> None:
    engine = open_engine(make_bundle(), "openvino")
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="is closed"):
        engine(picture(24, 32)[None])


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"not a graph", "can't be parsed"), (b"\x08\x08", "."), (b"", "."), (None, "Could not open the file")],
    ids=["text", "cut off", "empty", "absent"],
)
def test_a_graph_that_is_refused_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "bad.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError, match=rf"bad\.onnx.*{said}"):
        OpenVinoEngine(path)


def test_a_bare_graph_runs_and_knows_its_shapes(picture: Draw) -> None:
    image, outputs = tensors(24, 32, (1, 2, 4), ("mask",), "uint8")
    engine = OpenVinoEngine(tiny_graph(image, outputs), options=RuntimeOptions(threads=1))
    assert engine.inputs == (TensorSpec("image", "uint8", ("image.0", 24, 32, 3)),)
    pixels = picture(24, 32)
    assert np.array_equal(engine(pixels[None])["mask"][0], nearest_class(pixels))


def test_a_graph_that_is_not_what_the_manifest_says_is_refused(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    interface = replace(bundle.interface, inputs=(TensorSpec.image(24, 40),))
    wrong = replace(bundle, manifest=replace(bundle.manifest, interface=interface))
    with pytest.raises(BundleError, match=r"inputs\[0\] is image uint8 \[1, 24, 40, 3\], .* has image .* 32, 3\]"):
        open_engine(wrong, "openvino")


def test_a_graph_in_fp16_is_left_to_onnxruntime(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    half = replace(bundle, manifest=replace(bundle.manifest, precision="fp16"))
    with pytest.raises(EngineError, match="computes FP16 in float32") as caught:
        open_engine(half, "openvino")
    assert caught.value.fix == 'take engine="onnxruntime", or build with targets="cpu"'
    with on_command_line(FLAGS), pytest.raises(EngineError) as caught:
        open_engine(half, "openvino")
    assert caught.value.fix == "take --engine onnxruntime, or build with --target cpu"
    assert open_engine(half).name == "onnxruntime"


def test_int8_is_run_where_its_graph_is_for_cpus(make_bundle: MakeBundle) -> None:
    """For a GPU the graph has FP16 beside INT8, whether its engine is in the bundle or still to be compiled."""
    plain = make_bundle(precision="int8")
    for target, runs in (("cpu", True), ("jetson-orin", False), ("sm_86", False)):
        rebuild = f"{plain.rebuild} --target {target}"
        bundle = replace(plain, manifest=replace(plain.manifest, rebuild=rebuild))
        assert (why_not(bundle, "openvino") is None) == runs, target


def test_without_openvino_the_error_names_the_extra(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match="openvino, which is not installed") as caught:
        open_engine(bundle, "openvino")
    assert caught.value.fix == 'pip install "twins-trt[openvino]"'


def test_without_onnxruntime_auto_takes_openvino(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle()
    assert open_engine(bundle).name == "onnxruntime"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert open_engine(bundle).name == "openvino"
