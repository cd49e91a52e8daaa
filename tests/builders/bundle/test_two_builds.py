"""Two INT8 builds of one bundle: the result is one build's, never parts of both."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx_graphsurgeon")
pytest.importorskip("onnxruntime")

from pictures import CLASSES, MODEL, SIZE

from twins_trt.builders.engine import read_header
from twins_trt.builders.plan.precision_plan import PrecisionPlan
from twins_trt.runtime import open_bundle

LEVELS = ("int8-linear", "int8-linear+conv")
REFUSED = ("is in use by another build", "exists", "was replaced")


def start(data: Path, out: Path, level: str) -> subprocess.Popen[str]:
    size = f"{SIZE[0]}x{SIZE[1]}"
    words = ["build", MODEL, "--seeded", "--num-classes", str(CLASSES), "--size", size, "--target", "cpu"]
    words += ["--precision", "int8", "--level", level]
    words += ["--calib-data", f"folder:{data}", "--gate-data", f"folder:{data}"]
    words += [
        "--max-drop",
        "50",
        "--min-agreement",
        "0",
        "--min-images",
        "8",
        "--threads",
        "1",
        "--overwrite",
        "--out",
        str(out),
    ]
    command = [sys.executable, "-m", "twins_trt", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def level_of(out: Path) -> str:
    """The level that every file of a bundle agrees on."""
    bundle = open_bundle(out)
    plan = PrecisionPlan.from_json(bundle.file("plan.json").read_text())
    quantized = "neck/conv.1.weight.dequantize" in bundle.graph.read_bytes().decode("latin1")
    assert quantized == (plan.level == "int8-linear+conv")
    # The other level is the default, which the command leaves out.
    assert ("--level int8-linear" in bundle.manifest.rebuild) == (plan.level == "int8-linear")
    result = json.loads(bundle.file("gate.json").read_text())
    graph = bundle.manifest.graph_sha256
    assert result["graph_sha256"] == graph and bundle.manifest.gate == "passed"
    assert read_header(bundle.graph).metadata["twins_trt.precision"] == "int8"
    return plan.level


def race(data: Path, out: Path, offset: float) -> str:
    """Runs two builds, the second `offset` seconds after the first. Returns the level of the bundle that results."""
    first = start(data, out, LEVELS[0])
    time.sleep(offset)
    second = start(data, out, LEVELS[1])
    ended = {}
    for level, process in zip(LEVELS, (first, second), strict=True):
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0 or any(each in said for each in REFUSED), said
        ended[level] = process.returncode
    assert 0 in ended.values(), "both were refused"
    found = level_of(out)
    assert ended[found] == 0
    assert not out.with_name(f"{out.name}.work").exists()
    return found


def test_a_second_build_is_refused_by_name(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.bundle"
    first = start(data, out, LEVELS[0])
    while not (out.with_name("x.bundle.work") / "holder.json").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    second = start(data, out, LEVELS[1])
    _, said = second.communicate(timeout=300)
    first.communicate(timeout=300)
    assert (first.returncode, second.returncode) == (0, 1), said
    assert f"another build, process {first.pid}, since 20" in said
    assert level_of(out) == LEVELS[0]


@pytest.mark.slow
def test_two_builds_at_random_offsets_never_give_a_mixed_bundle(data: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    found = [race(data, tmp_path / "x.bundle", rng.uniform(0, 6)) for _ in range(20)]
    assert set(found) <= set(LEVELS)
