"""The demo as a newcomer runs it, smaller; and the checkpoint that it ships with."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import twins_trt
from twins_trt.cli import main
from twins_trt.data import open_dataset
from twins_trt.demo.scenes import CLASSES, PALETTE, write_scenes
from twins_trt.demo.train import FIRST_HELD_OUT_SCENE
from twins_trt.evaluation import evaluate_model
from twins_trt.models.checkpoint import read_checkpoint
from twins_trt.models.segmentor import build_model
from twins_trt.models.zoo import DEMO
from twins_trt.runtime import open_bundle

WEIGHTS = Path(twins_trt.__file__).parent / DEMO.packaged
LARGEST = 5_000_000  # bytes
LONGEST_S = 180


def test_the_checkpoint_says_how_it_was_trained() -> None:
    assert WEIGHTS.stat().st_size < LARGEST
    meta = read_checkpoint(WEIGHTS).meta
    assert meta.classes == CLASSES and meta.palette == PALETTE
    assert meta.raw["command"].startswith("python -m twins_trt.demo.train ")
    assert meta.raw["seed"] == 0 and meta.raw["held_out_scenes"] == 100


@pytest.mark.parametrize("command", ["eval", "calibrate"])
def test_commands_take_the_model_by_its_name(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_scenes(tmp_path, "val", range(8), size=DEMO.crop_size)
    more = ["--out", str(tmp_path / "ranges.json")] if command == "calibrate" else []
    assert main([command, DEMO.name, "--data", data, "--split", "val", "--dry-run", "--json", *more]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 8


def test_the_checkpoint_scores_what_it_says(tmp_path: Path) -> None:
    """On the first 10 of the 100 scenes: the score of so few may differ by a few points from that of all."""
    model = build_model(DEMO.name, len(CLASSES), WEIGHTS)
    held_out = range(FIRST_HELD_OUT_SCENE, FIRST_HELD_OUT_SCENE + 10)
    dataset = open_dataset(write_scenes(tmp_path, "val", held_out, size=DEMO.crop_size), split="val")
    assert model.meta is not None
    assert evaluate_model(model, dataset).scores.miou == pytest.approx(model.meta.raw["mIoU"], abs=6)


@pytest.mark.slow
def test_everything_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX missing: pip install 'twins-trt[rtx]'")
    out = tmp_path / "demo"
    words = ["demo", "--out", str(out), "--calib-scenes", "8", "--gate-scenes", "30", "--rounds", "2", "--json"]
    started = time.process_time()
    assert main(words) == 0
    # Of the processor, not of the clock: what else a machine does must not fail this. One core alone would be in time.
    assert time.process_time() - started < LONGEST_S
    said = json.loads(capsys.readouterr().out)
    assert said["passed"] and said["simulated"] and said["drop_high"] <= 0.5
    assert said["fused_attentions"] == said["attentions"] == sum(DEMO.depths)
    assert said["total_seconds"] == pytest.approx(sum(said["seconds"].values()), abs=0.1)
    assert list(said["seconds"]) == ["scenes", "build", "pictures", "profile", "report", "overlay"]
    bundle = open_bundle(out / "demo.bundle")
    assert bundle.manifest.precision == "int8" and bundle.manifest.gate == "passed"
    assert {"plan.json", "calibration.json", "audit.json", "gate.json", "profile.json"} <= set(bundle.files)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 5 * 8  # five panels of the eight worst
    assert "No profile" not in page and "ungated" not in page
    with Image.open(out / "overlay.png") as picture:
        assert picture.size == (4 * DEMO.crop_size[1], 2 * DEMO.crop_size[0])
        left, right = np.split(np.asarray(picture.convert("RGB"), np.int16), 2, axis=1)
    assert np.abs(left - right).mean() > 10  # colours lie over the right half
    assert main(words) == 2  # it does not write into a folder that holds something
    assert "is there already" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.slow
def test_without_a_compiler_the_graph_alone_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    out = tmp_path / "demo"
    words = ["demo", "--out", str(out), "--calib-scenes", "8", "--gate-scenes", "30", "--rounds", "1"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "passed" in said and "TensorRT-RTX is not installed" in said
    bundle = open_bundle(out / "demo.bundle")
    assert bundle.manifest.engines == () and "audit.json" not in bundle.files
