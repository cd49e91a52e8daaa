"""Changes to an INT8 graph: one that breaks it fails the gate, one that is said to break it and does not passes.

The graph is that of the demo's trained model, on drawn scenes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

pytest.importorskip("torch")
pytest.importorskip("onnx_graphsurgeon")

from twins_trt.builders.bundle.run import build_bundle
from twins_trt.builders.gate import GateResult, Thresholds, gate_bundle, reference_images
from twins_trt.data import open_dataset
from twins_trt.demo.scenes import write_scenes
from twins_trt.models.weights import load_weights
from twins_trt.models.zoo import DEMO
from twins_trt.runtime import Bundle, write_bundle
from twins_trt.verbs.build import BuildRequest

CALIBRATION, GATE = range(300_000, 300_012), range(400_000, 400_032)  # scenes that nothing was trained on


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, "train", CALIBRATION, size=DEMO.crop_size)
    return write_scenes(folder, "val", GATE, size=DEMO.crop_size)


@pytest.fixture(scope="module")
def built(data: str, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = str(tmp_path_factory.mktemp("built") / "x.bundle")
    calibration = {"calibrate_on": data, "calib_images": len(CALIBRATION)}
    request = BuildRequest(DEMO.name, out, precision="int8", targets=("cpu",), no_gate=True, **calibration)
    return build_bundle(request).bundle


@pytest.fixture(scope="module")
def judged(data: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Bundle], GateResult]:
    """Judges a bundle by the default thresholds of INT8."""
    model, _ = load_weights(DEMO.name)
    cache = tmp_path_factory.mktemp("reference")
    dataset = open_dataset(data, split="val")
    return lambda bundle: gate_bundle(
        bundle, reference_images(bundle, model, dataset, cache=cache), thresholds=Thresholds.of("int8")
    )


def quantize_residuals(proto: onnx.ModelProto, data: str) -> None:
    """Quantizes the output of every residual sum to INT8, with its full range, as a quantizer of every Add does."""
    names = [n.output[0] for n in proto.graph.node if n.op_type == "Add" and n.name.endswith("/residual")]
    assert len(names) == 2 * sum(DEMO.depths)
    looked_at = onnx.ModelProto.FromString(proto.SerializeToString())
    looked_at.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(looked_at.SerializeToString(), providers=["CPUExecutionProvider"])
    largest = dict.fromkeys(names, 0.0)
    for sample in open_dataset(data, split="train").load():
        for name, value in zip(names, session.run(names, {"image": sample.image[None]}), strict=True):
            largest[name] = max(largest[name], float(np.abs(value).max()))
    proto.graph.initializer.append(numpy_helper.from_array(np.int8(0), "sabotage.zero"))
    for place, node in reversed(list(enumerate(proto.graph.node))):
        name = next(iter(node.output), "")
        if name in largest:
            node.output[0] = f"{name}.float"
            proto.graph.initializer.append(numpy_helper.from_array(np.float32(largest[name] / 127), f"{name}.step"))
            scale = [f"{name}.step", "sabotage.zero"]
            quantize = helper.make_node("QuantizeLinear", [f"{name}.float", *scale], [f"{name}.rounded"])
            dequantize = helper.make_node("DequantizeLinear", [f"{name}.rounded", *scale], [name])
            proto.graph.node.insert(place + 1, dequantize)
            proto.graph.node.insert(place + 1, quantize)


def normalize_wrongly(proto: onnx.ModelProto, data: str) -> None:
    """Scales pixels to 0 to 1, as for many models, instead of ImageNet's mean and standard deviation."""
    weights = {weight.name: weight for weight in proto.graph.initializer}
    nodes = {node.name: node for node in proto.graph.node}
    for node, value in (("input/mean", 0.0), ("input/std", 1 / 255)):
        constant = weights[nodes[node].input[1]]
        constant.CopyFrom(numpy_helper.from_array(np.full((1, 3, 1, 1), value, np.float32), constant.name))


def tampered(bundle: Bundle, sabotage: Callable[[onnx.ModelProto, str], None], data: str, path: Path) -> Bundle:
    proto = onnx.load(str(bundle.graph))
    sabotage(proto, data)
    return write_bundle(path, replace(bundle.manifest), {"graph.onnx": proto.SerializeToString()})


def test_wrong_normalization_fails_the_gate(
    built: Bundle, judged: Callable[[Bundle], GateResult], data: str, tmp_path: Path
) -> None:
    assert judged(built).passed
    result = judged(tampered(built, normalize_wrongly, data, tmp_path / "x.bundle"))
    assert not result.passed and result.drop.low > 10
    assert "mIoU may drop" in result.reasons[0]


def test_residual_sums_in_int8_cost_pixels_but_not_the_gate(
    built: Bundle, judged: Callable[[Bundle], GateResult], data: str, tmp_path: Path
) -> None:
    """INT8 residual sums are said to ruin a ViT-B. Twins keeps its mIoU, and the gate must see that too.

    Plans still do not quantize them: nothing would run faster."""
    before = judged(built)
    after = judged(tampered(built, quantize_residuals, data, tmp_path / "x.bundle"))
    assert after.agreement < before.agreement - 2e-4
    assert after.passed and after.drop.high < 0.5
