"""The same request from Python and on a command line gives the same bundle, byte for byte."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("onnx_graphsurgeon")
pytest.importorskip("onnxruntime")
pytest.importorskip("tensorrt_rtx")

import twins_trt
from twins_trt.cli import main
from twins_trt.demo.scenes import write_scenes
from twins_trt.models.zoo import DEMO
from twins_trt.runtime import open_bundle

ROOT = Path(__file__).resolve().parents[2]
DATES = {"manifest.json": ("created",), "gate.json": ("created", "seconds")}


def content(path: Path) -> dict[str, Any]:
    """The files of a bundle by name: their bytes, or their values without dates, wall times and hashes of those."""
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
def test_the_readmes_example_on_camvid_and_its_twin(
    camvid: Path, camvid_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example of the README, on fewer images."""
    found = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    data, few = f"camvid:{camvid}", "more=twins_trt.BuildRequest(calib_images=8, gate_limit=30), threads=2)"
    example = found[1].replace('gate_on="camvid:PATH")', f'gate_on="camvid:PATH", {few}').replace("camvid:PATH", data)
    assert example.count(data) == 2 and few in example
    for place in ("python", "line"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "road.pth").symlink_to(camvid_checkpoint)
    monkeypatch.chdir(tmp_path / "python")
    shutil.copy(ROOT / "docs" / "images" / "street.jpg", "street.jpg")
    shown: list[str] = []
    names: dict[str, Any] = {"print": shown.append}
    exec(example, names)
    assert shown[0].startswith("gate          passed") and names["report"].gate.images == 30
    with Image.open("mask.png") as mask, Image.open("street.jpg") as picture:
        assert mask.size == picture.size and len(set(np.asarray(mask).flat)) >= 4
    bundle = names["report"].bundle
    assert bundle.interface.num_classes == 11 and bundle.interface.classes[0] == "sky"
    assert [audit.attentions for audit in names["report"].audits.values()] == [18]
    monkeypatch.chdir(tmp_path / "line")
    words = ["build", "twins_svt-s_fpn", "--checkpoint", "road.pth", "--size", "360x480", "--precision", "int8"]
    words += ["--target", "sm_86,sm_89", "--calib-data", data, "--gate-data", data]
    words += ["--calib-images", "8", "--gate-limit", "30", "--threads", "2"]
    assert main([*words, "--out", "road.bundle"]) == 0
    ours, theirs = content(tmp_path / "python" / "road.bundle"), content(tmp_path / "line" / "road.bundle")
    assert set(ours) == set(theirs)
    assert [name for name in sorted(ours) if ours[name] != theirs[name]] == []
