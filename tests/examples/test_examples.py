"""The examples run as they are written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(script: str, *arguments: str) -> str:
    words = [sys.executable, str(EXAMPLES / script), *arguments]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_scene_has_its_size_and_the_same_pixels_every_time(tmp_path: Path) -> None:
    pictures = []
    for name, seed in (("a.png", "0"), ("b.png", "0"), ("c.png", "1")):
        run("draw_scene.py", str(tmp_path / "new" / name), "--size", "96x128", "--seed", seed)
        pictures.append(np.asarray(Image.open(tmp_path / "new" / name)))
    assert pictures[0].shape == (96, 128, 3)
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


def test_building_and_segmenting_in_python(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX missing: pip install 'twins-trt[rtx]'")
    said = run("build_and_segment.py", str(tmp_path / "x.bundle"), "--size", "64").splitlines()
    assert "18 fused attentions" in said[0]
    assert said[1].startswith("(300, 400) uint8, ")
    sheet = tmp_path / "sheet.png"
    run("draw_scene.py", str(tmp_path / "scene.png"), "--size", "60x80")
    run("draw_overlay.py", str(tmp_path / "x.bundle"), str(tmp_path / "scene.png"), str(sheet))
    drawn = np.asarray(Image.open(sheet))
    assert drawn.shape[1] == 160 and drawn.shape[0] > 60
    assert np.array_equal(drawn[:60, :80], np.asarray(Image.open(tmp_path / "scene.png")))
