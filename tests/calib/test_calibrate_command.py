"""`twins-trt calibrate`: from a graph or a model and a data set to the range file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calib_graphs import OBSERVED, photo, photos
from commands import CommandResult, run_command
from PIL import Image
from told import Told

import twins_trt
from twins_trt.calib import CalibrationOptions, calibrate, collect, load_ranges, save_collection
from twins_trt.errors import DataError


def run_calibrate(*words: object) -> CommandResult:
    return run_command("calibrate", *words)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures without labels."""
    folder = tmp_path_factory.mktemp("pictures")
    for index, image in enumerate(photos(20)):
        Image.fromarray(image).save(folder / f"{index:02}.png")
    return folder


def test_a_graph(graph: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "calibration.json"
    ran = run_calibrate(graph, "--data", f"folder:{data}", "--images", 10, "--observer", "entropy,minmax", "--out", out)
    assert ran.code == 0, ran.err
    # Ten of twenty, spread: every second one.
    options = CalibrationOptions(observers=("entropy", "minmax"))
    expected = calibrate(graph, photos(20)[::2], options=options)
    assert load_ranges(out, graph=graph, images=photos(20)[::2], options=options) == expected
    assert f"{len(OBSERVED)} tensors over 10 images" in ran.out and expected.key[:12] in ran.out
    assert "most clipped" in ran.out and "calibrate  10 %  1 of 10 images" in ran.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calibration.json"]


def test_from_python(graph: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = Told()
    asked: dict[str, Any] = {"images": 10, "observers": "entropy,minmax"}
    ranges = twins_trt.calibrate(graph, f"folder:{data}", **asked, progress=told)
    options = CalibrationOptions(observers=("entropy", "minmax"))
    assert ranges == calibrate(graph, photos(20)[::2], options=options)
    assert [share for _, _, share in told.calls] == [pytest.approx(done / 10) for done in range(1, 11)]
    assert not list(tmp_path.iterdir())
    out = tmp_path / "calibration.json"
    assert twins_trt.calibrate(graph, f"folder:{data}", out=out, **asked) == ranges == load_ranges(out, graph=graph)
    with pytest.raises(DataError, match=r"exists\n.*overwrite=True"):
        twins_trt.calibrate(graph, f"folder:{data}", out=out, **asked)


def test_a_graph_needs_no_package_of_a_build(graph: Path, data: Path) -> None:
    call = f"twins_trt.calibrate({str(graph)!r}, {f'folder:{data}'!r})"
    code = f"import sys, twins_trt; {call}; print({{'torch', 'onnx_graphsurgeon'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "set()"


def test_json_and_all_images(graph: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "calibration.json"
    ran = run_calibrate(graph, "--data", f"folder:{data}", "--images", 0, "--out", out, "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["images"], ran.json["tensors"], ran.json["out"]) == (20, len(OBSERVED), str(out))
    assert ran.json["key"] == load_ranges(out, graph=graph).key
    assert ran.json["settings"]["observers"] == ["mse", "percentile", "entropy", "minmax"]


def test_a_model(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnx_graphsurgeon")
    model = ["twins_svt-s_fpn", "--seeded", "--num-classes", 4, "--size", "64x96"]
    out, exported = tmp_path / "calibration.json", tmp_path / "graph.onnx"
    ran = run_calibrate(*model, "--data", f"folder:{data}", "--images", 3, "--minimum", 3, "--out", out)
    assert ran.code == 0, ran.err
    exporting = run_command("export", *model, "--precision", "fp32", "--opset", 20, "--out", exported)
    assert exporting.code == 0, exporting.err
    # The file holds for what export writes, byte for byte.
    assert load_ranges(out, graph=exported).amax("stages.0.blocks.0.attn/norm1") > 0
    refused = run_calibrate(*model, "--precision", "fp16", "--data", f"folder:{data}", "--out", out, "--overwrite")
    assert refused.code == 2 and "FP32 graph" in refused.err


def test_dry_run_writes_nothing(graph: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "calibration.json"
    ran = run_calibrate(graph, "--data", f"folder:{data}", "--out", out, "--dry-run", "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["images"], ran.json["tensors"]) == (20, len(OBSERVED))
    assert not list(tmp_path.iterdir())


def test_the_work_of_a_killed_run_is_taken_up(graph: Path, data: Path, tmp_path: Path) -> None:
    out, partial = tmp_path / "calibration.json", tmp_path / "calibration.json.partial"
    save_collection(collect(graph, photos(12), options=CalibrationOptions()), partial)
    ran = run_calibrate(graph, "--data", f"folder:{data}", "--out", out)
    assert ran.code == 0, ran.err
    assert f"continuing from {partial}" in ran.err and "13 of 20 images" in ran.err
    assert load_ranges(out, graph=graph) == calibrate(graph, photos(20))
    assert not partial.exists()


def test_what_is_refused(graph: Path, data: Path, tmp_path: Path) -> None:
    out, source = tmp_path / "calibration.json", f"folder:{data}"
    blank = tmp_path / "blank"
    blank.mkdir()
    for index in range(9):
        Image.fromarray(photo(index) * np.uint8(index != 4)).save(blank / f"{index}.png")
    for words, code, said in (
        ((graph, "--data", source, "--images", 3, "--out", out), 1, "3 different images are too few"),
        ((graph, "--data", f"folder:{blank}", "--out", out), 1, f"{blank / '4.png'} has the value 0 everywhere"),
        ((graph, "--data", source, "--observer", "kl", "--out", out), 2, "--observer cannot be kl"),
        ((graph, "--data", source, "--seeded", "--out", out), 2, "a graph has its weights inside"),
        ((graph, "--data", source, "--images", -1, "--out", out), 2, "--images is -1"),
        ((graph, "--data", source, "--memory", 0, "--out", out), 2, "--memory is 0"),
        (("twins_svt-s_fp", "--data", source, "--out", out), 2, "twins_svt-s_fpn"),
        ((tmp_path, "--data", source, "--out", out), 2, "is a folder"),
        ((graph, "--data", source, "--out", tmp_path), 1, "is a folder"),
        ((graph, "--data", source, "--out", tmp_path / "a" / "b.json"), 1, "there is no folder"),
        ((graph, "--data", source, "--out", graph), 1, "exists"),
    ):
        ran = run_calibrate(*words)
        assert ran.code == code and said in ran.err, ran.err
        assert not out.exists()


def test_overwrite(graph: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "calibration.json"
    out.write_text("old")
    ran = run_calibrate(graph, "--data", f"folder:{data}", "--out", out, "--overwrite")
    assert ran.code == 0, ran.err
    assert load_ranges(out, graph=graph).images == 20
