"""Real labels, real weights: labels of other images and wrong ranges of a stage fail, an intact INT8 graph passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_packs import Given

pytest.importorskip("torch")
pytest.importorskip("onnx_graphsurgeon")

import twins_trt
from twins_trt.builders.gate import (
    PackKey,
    gate_bundle,
    load_reference,
    open_pack,
    packing,
    record_gate,
    reference_images,
)
from twins_trt.data import open_dataset
from twins_trt.evaluation import ConfusionMatrix
from twins_trt.runtime import Bundle, open_bundle, write_bundle
from twins_trt.verbs.build import BuildRequest

pytestmark = [pytest.mark.slow, pytest.mark.shared]

RECORDED = 51.8452  # by mmsegmentation, on all 101 images: the checkpoint's val_miou


@pytest.fixture(scope="module")
def built(camvid: Path, camvid_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An INT8 graph for the CPU."""
    return twins_trt.build(
        out=tmp_path_factory.mktemp("built") / "x.bundle",
        checkpoint=camvid_checkpoint,
        size="360x480",
        precision="int8",
        targets="cpu",
        calibrate_on=f"camvid:{camvid}",
        more=BuildRequest(calib_images=16, no_gate=True),
    ).bundle


@pytest.fixture(scope="module")
def pack(built: Bundle, camvid: Path, camvid_checkpoint: Path) -> Path:
    """Thirty images of all sequences with the reference's masks. The gate that writes it judges the intact graph."""
    path = built.path.with_name("x.pack")
    model = load_reference(built, checkpoint=str(camvid_checkpoint), seeded=False)
    images = reference_images(built, model, open_dataset(f"camvid:{camvid}").thinned(30))
    with packing(path, images, PackKey.of_bundle(built), limit=None) as written:
        record_gate(built, gate_bundle(built, written))
    return path


def test_an_intact_int8_graph_passes_by_its_record(built: Bundle, pack: Path) -> None:
    found = open_bundle(built.path).read_json("gate.json")
    assert found["passed"] and 0.99 < found["agreement"] < 0.999
    check = found["reference_check"]
    assert check["recorded"] == pytest.approx(RECORDED, abs=1e-3) and check["grounds"] == []
    assert open_pack(pack).miou == pytest.approx(RECORDED, abs=1e-3)


def test_ranges_of_a_stage_that_are_too_small_fail_by_the_agreement_whatever_the_miou(
    built: Bundle, pack: Path, tmp_path: Path
) -> None:
    proto = onnx.load(str(built.graph))
    quantized = [node for node in proto.graph.node if node.op_type == "QuantizeLinear" and "stages.2." in node.name]
    scales = {node.input[1] for node in quantized}
    assert len(scales) == 52  # those of a graph for the CPU
    for weight in proto.graph.initializer:
        if weight.name in scales:
            value = (0.3 * numpy_helper.to_array(weight)).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(value, weight.name))
    manifest = replace(built.manifest, files=())
    broken = write_bundle(tmp_path / "x.bundle", manifest, {"graph.onnx": proto.SerializeToString()})
    found = twins_trt.gate(broken, pack=pack)
    (reason,) = found.reasons
    assert 0.96 < found.agreement < 0.975 and found.drop.high < 0
    assert reason.endswith(" % of the pixels agree, 98.5 % are asked for until more builds are measured")


@pytest.mark.parametrize("told", [RECORDED, None])
def test_labels_of_other_images_are_doubtful(built: Bundle, pack: Path, tmp_path: Path, told: float | None) -> None:
    """Every mask of the engine is still what it was. told: what was recorded of the weights."""
    images = list(open_pack(pack))
    order = np.random.default_rng(0).permutation(len(images))
    foreign = []
    for image, other in zip(images, order, strict=True):
        label = images[other].label
        counts = ConfusionMatrix.of(image.reference, label, num_classes=len(built.interface.classes))
        foreign.append(replace(image, label=label, counts=counts))
    given, path = Given(foreign, miou=told), tmp_path / "x.pack"
    with packing(path, given, PackKey.of_bundle(built), limit=None) as written:  # type: ignore[arg-type]
        for _ in written:
            pass
    silent = replace(built.manifest, miou=told, files=())
    bundle = write_bundle(tmp_path / "x.bundle", silent, {"graph.onnx": built.graph.read_bytes()})
    found = twins_trt.gate(bundle, pack=path, max_drop=100.0)
    assert 20 < found.reference.miou < 0.7 * RECORDED and found.agreement > 0.99
    (reason,) = found.reasons
    behind = f"its mIoU is {found.reference.miou:.2f}, below 0.7 times the 51.85 recorded of these classes"
    alike = "its masks fit labels of other images as well as their own"
    assert reason == f"reference doubtful: {alike if told is None else behind}"
    assert found.reference_check is not None
    assert found.reference_check.causes[0] == "the labels are of other images, or of another split"
