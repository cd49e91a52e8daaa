"""The same request from Python and on a command line gives the same bundle, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx_graphsurgeon")
pytest.importorskip("onnxruntime")
pytest.importorskip("tensorrt_rtx")

import twins_trt
from twins_trt.cli import main
from twins_trt.demo.scenes import write_scenes
from twins_trt.models.zoo import DEMO
from twins_trt.runtime import open_bundle

DATES = {"manifest.json": ("created",), "gate.json": ("created", "seconds")}


def content(path: Path) -> dict[str, Any]:
    """Every file of a bundle by name: bytes, or what is in it without dates, wall times and what follows from them."""
    bundle = open_bundle(path)
    found: dict[str, Any] = {}
    for name in (*bundle.files, "manifest.json"):
        found[name] = (path / name).read_bytes()
        if name in DATES:
            values = json.loads(found[name])
            found[name] = {key: value for key, value in values.items() if key not in DATES[name]}
    found["manifest.json"]["files"] = [each for each in found["manifest.json"]["files"] if each["path"] not in DATES]
    return found


@pytest.mark.slow
def test_an_int8_build_of_the_demos_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scenes(tmp_path / "scenes", "train", range(300_000, 300_008), size=DEMO.crop_size)
    data = write_scenes(tmp_path / "scenes", "val", range(400_000, 400_030), size=DEMO.crop_size)
    for place in ("python", "line"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "python")
    report = twins_trt.build(
        DEMO.name,
        "x.bundle",
        size=DEMO.crop_size,
        precision="int8",
        targets=["sm_86", "sm_89"],
        calibrate_on=data,
        gate_on=data,
        threads=2,
    )
    assert report.gate is not None and report.gate.passed and report.bundle.manifest.gate == "passed"
    with twins_trt.Segmenter(report.bundle) as segmenter:
        picture = sorted((tmp_path / "scenes" / "val" / "images").iterdir())[0]
        segmenter(picture).save(tmp_path / "mask.png")
    assert (tmp_path / "mask.png").stat().st_size > 100
    monkeypatch.chdir(tmp_path / "line")
    height, width = DEMO.crop_size
    words = ["build", DEMO.name, "--size", f"{height}x{width}", "--precision", "int8", "--target", "sm_86,sm_89"]
    assert main([*words, "--calib-data", data, "--gate-data", data, "--threads", "2", "--out", "x.bundle"]) == 0
    ours, theirs = content(tmp_path / "python" / "x.bundle"), content(tmp_path / "line" / "x.bundle")
    assert set(ours) == {
        "audit.json",
        "calibration.json",
        "engines/tensorrt_rtx-sm_86-sm_89.engine",
        "gate.json",
        "graph.onnx",
        "manifest.json",
        "plan.json",
    }
    assert [name for name in sorted(ours) if ours[name] != theirs[name]] == []
    assert set(theirs) == set(ours)


@pytest.mark.slow
def test_the_readmes_example_on_camvid(
    camvid: Path, camvid_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the first page has it, on fewer images."""
    monkeypatch.chdir(tmp_path)
    few = twins_trt.BuildRequest(calib_images=8, gate_limit=30)
    report = twins_trt.build(
        "twins_svt-s_fpn",
        "road.bundle",
        checkpoint=camvid_checkpoint,
        size=(360, 480),
        precision="int8",
        targets=["sm_86", "sm_89"],
        calibrate_on=f"camvid:{camvid}",
        gate_on=f"camvid:{camvid}",
        more=few,
    )
    assert report.gate is not None and report.gate.passed and report.gate.images == 30
    assert "gate          passed" in report.gate.table()
    assert report.bundle.manifest.num_classes == 11 and report.bundle.manifest.classes[0] == "sky"
    assert all(audit.attentions == audit.expected_attentions == 18 for audit in report.audits.values())
