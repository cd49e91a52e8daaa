"""The gate's reference treats images, scores and labels as its checkpoint says."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

import twins_trt
from twins_trt.builders.gate import load_reference, open_pack
from twins_trt.data import open_dataset
from twins_trt.data.preprocessing import Preprocessing
from twins_trt.errors import CheckpointError, PackError
from twins_trt.inference import predict_mask
from twins_trt.models.weights import load_weights
from twins_trt.runtime import Bundle, open_bundle, write_bundle
from twins_trt.verbs.gate import GateRequest

SIZE, CLASSES, IMAGES = (64, 96), 4, 8
BLUE_FIRST = Preprocessing(mean=(0, 0, 0), std=(255, 255, 255), channels="bgr")
SAYS_SO = (
    "model = dict(data_preprocessor=dict(type='SegDataPreProcessor', mean=[0, 0, 0], std=[255, 255, 255], "
    "bgr_to_rgb=False))\n"
)
FEW = GateRequest(min_images=IMAGES)


def write(path: Path, *, binary: bool = False, **meta: Any) -> Any:
    """A checkpoint of the demo's architecture with random weights, and the model that it holds."""
    import torch

    more: dict[str, Any] = {"conventions": {"threshold": "0.3"}} if binary else {"num_classes": CLASSES}
    model, _ = load_weights("twins_svt-demo_fpn", seeded=True, **more)
    torch.save({"state_dict": model.state_dict(), "meta": meta}, path)
    return model


def write_data(folder: Path, model: Any, preprocessing: Preprocessing, *, add: int = 0) -> str:
    """Images with the model's own masks as labels, save for a tenth of the blocks. add: to every label."""
    import torch

    rng = np.random.default_rng(5)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)

    def logits(x: Any) -> Any:
        with torch.inference_mode():
            return model.class_logits(model(torch.as_tensor(x)))

    for i in range(IMAGES):
        image = rng.integers(0, 255, (8, 12, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        mask = predict_mask(logits, image, preprocessing=preprocessing)
        noise = rng.random((8, 12)).repeat(8, 0).repeat(8, 1) < 0.1
        label = np.where(noise, rng.integers(0, model.num_classes), mask) + add
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
        Image.fromarray(label.astype(np.uint8)).save(folder / "labels" / f"{i}.png")
    return f"folder:{folder}"


def built(path: Path, checkpoint: Path, **fields: Any) -> Bundle:
    more = twins_trt.BuildRequest(size=SIZE, targets=("cpu",), **fields)
    return twins_trt.build(out=path, checkpoint=checkpoint, more=more).bundle


def test_pixels_are_those_that_the_checkpoint_says(tmp_path: Path) -> None:
    """The labels are the masks of the model that sees blue first: any other reference would be doubtful."""
    model = write(tmp_path / "x.pth", cfg=SAYS_SO, mIoU=80.0)
    data = write_data(tmp_path / "data", model, BLUE_FIRST)
    bundle = built(tmp_path / "x.bundle", tmp_path / "x.pth")
    found = twins_trt.gate(bundle, data, checkpoint=tmp_path / "x.pth", pack=tmp_path / "x.pack", more=FEW)
    assert found.passed and found.agreement > 0.999 and found.reference.miou > 60
    assert found.reference_check is not None and found.reference_check.recorded == 80.0
    pack = open_pack(tmp_path / "x.pack")
    assert pack.miou == 80.0 and pack.head.key.preprocessing.channels == "bgr"
    assert twins_trt.gate(bundle.path, pack=pack.path, more=FEW).reference_check == found.reference_check

    unaware = write_bundle(  # as a version that asked no checkpoint built it
        tmp_path / "old.bundle",
        replace(
            bundle.manifest,
            interface=replace(bundle.interface, preprocessing=Preprocessing()),
            facts=(),
            miou=None,
            files=(),
        ),
        {"graph.onnx": bundle.graph.read_bytes()},
    )
    words = r"old.bundle was built with mean 123.675,116.28,103.53, and its checkpoint says 0,0,0"
    with pytest.raises(CheckpointError, match=words) as raised:
        load_reference(unaware, checkpoint=str(tmp_path / "x.pth"), seeded=False)
    assert "build it again: twins-trt build" in str(raised.value.fix)
    with pytest.raises(PackError, match=r"preprocessing\.mean is"):
        twins_trt.gate(unaware, pack=pack.path)


def test_flags_of_the_build_hold_for_the_reference_too(tmp_path: Path) -> None:
    model = write(tmp_path / "x.pth")
    data = write_data(tmp_path / "data", model, BLUE_FIRST)
    flags = {"mean": "0,0,0", "std": "255,255,255", "channels": "bgr"}
    bundle = built(tmp_path / "x.bundle", tmp_path / "x.pth", conventions=flags)
    found = twins_trt.gate(bundle, data, checkpoint=tmp_path / "x.pth", more=FEW)
    assert found.passed and found.reference.miou > 60
    reference = load_reference(bundle, checkpoint=str(tmp_path / "x.pth"), seeded=False)
    assert reference.conventions.preprocessing == BLUE_FIRST


def test_labels_are_those_that_the_checkpoint_says(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Label 0 means no class, in a gate and in the gate of a build."""
    meta = {"dataset_meta": {"classes": list("abcd"), "reduce_zero_label": True}}
    model = write(tmp_path / "x.pth", **meta)
    data = write_data(tmp_path / "data", model, Preprocessing(), add=1)
    report = twins_trt.build(
        out=tmp_path / "x.bundle",
        checkpoint=tmp_path / "x.pth",
        gate_on=data,
        more=twins_trt.BuildRequest(size=SIZE, targets=("cpu",), min_images=IMAGES, pack=str(tmp_path / "x.pack")),
    )
    assert report.gate is not None and report.gate.passed and report.gate.reference.miou > 60
    assert report.bundle.manifest.reduce_zero_label is True
    assert open_pack(tmp_path / "x.pack").head.key.reduce_zero_label is True
    found = twins_trt.gate(report.bundle, data, checkpoint=tmp_path / "x.pth", more=FEW)
    assert found.reference == report.gate.reference and found.reference_check == report.gate.reference_check
    silent = replace(report.bundle.manifest, reduce_zero_label=None, facts=(), files=())
    old = write_bundle(tmp_path / "old.bundle", silent, {"graph.onnx": report.bundle.graph.read_bytes()})
    again = twins_trt.gate(old, data, checkpoint=tmp_path / "x.pth", record=False, more=FEW)
    assert again.reference == found.reference
    assert (
        "old.bundle was built with reduce_zero_label unset, and its checkpoint says True, which is taken" in caplog.text
    )
    assert twins_trt.gate(old, pack=tmp_path / "x.pack", record=False, more=FEW).reference == found.reference

    shifted = shutil.copytree(tmp_path / "data", tmp_path / "counted from 0")
    for path in (Path(shifted) / "labels").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) - np.uint8(1)).save(path)
    doubtful = twins_trt.gate(report.bundle, f"folder:{shifted}", checkpoint=tmp_path / "x.pth", more=FEW)
    assert not doubtful.passed and doubtful.reasons[0].startswith("reference doubtful: ")
    assert doubtful.reference_check is not None and "reduce_zero_label" in doubtful.reference_check.causes[0]
    assert open_dataset(f"folder:{shifted}").reduce_zero is False


def test_a_head_of_one_logit_is_compared_by_its_threshold(tmp_path: Path) -> None:
    text = "model = dict(decode_head=dict(num_classes=2, out_channels=1, threshold=0.3))\n"
    model = write(tmp_path / "x.pth", binary=True, cfg=text)
    data = write_data(tmp_path / "data", model, Preprocessing())
    bundle = built(tmp_path / "x.bundle", tmp_path / "x.pth")
    found = twins_trt.gate(bundle, data, checkpoint=tmp_path / "x.pth", pack=tmp_path / "x.pack", more=FEW)
    assert found.passed and found.agreement > 0.999 and len(found.classes) == 2
    masks = [each.reference for each in open_pack(tmp_path / "x.pack")]
    assert {0, 1} == set(np.unique(np.stack(masks)))
    assert open_pack(tmp_path / "x.pack").head.key.threshold == 0.3
    assert twins_trt.gate(open_bundle(bundle.path), pack=tmp_path / "x.pack", more=FEW).passed
