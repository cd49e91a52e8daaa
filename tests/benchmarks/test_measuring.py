"""Benchmarks refuse what is not comparable, and say where a figure came from."""

from __future__ import annotations

import platform
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import cpu, figure, kernels, results


def test_results_say_where_and_when(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    rows = [{"kernels": 3}]
    path = results.write_results("x", command="python -m x", settings={"size": [8, 8]}, rows=rows, folder=folder)
    read = results.read_results("x", folder=folder)
    assert (read["rows"], read["settings"], read["command"]) == ([{"kernels": 3}], {"size": [8, 8]}, "python -m x")
    assert read["versions"]["python"] == platform.python_version()
    assert read["machine"]["cores"] >= 1
    assert (platform.node() or "?") not in path.read_text(encoding="utf-8")
    said = results.describe_run(read)
    assert read["date"] in said and platform.python_version() in said
    assert [file.name for file in path.parent.iterdir()] == ["x.json"]


def test_graphs_that_disagree_are_not_timed() -> None:
    logits = np.zeros((1, 3, 4, 4), np.float32)
    logits[0, 1] = 1
    assert cpu.disagreement_of(logits, logits) == 0
    assert cpu.disagreement_of(logits, np.ones((1, 16, 16), np.uint8)) == 0
    with pytest.raises(SystemExit, match="disagree"):
        cpu.disagreement_of(logits, logits + 0.01)
    with pytest.raises(SystemExit, match="disagree"):
        cpu.disagreement_of(logits, np.zeros((1, 16, 16), np.uint8))


def test_both_graphs_get_the_same_picture() -> None:
    image, planes = cpu.inputs(seed=3)
    assert image.dtype == np.uint8 and image.shape == (1, *cpu.SIZE, 3)
    assert planes.shape == (1, 3, *cpu.SIZE)
    assert planes[0, 1, 5, 7] == pytest.approx((int(image[0, 5, 7, 1]) - 116.28) / 57.12, rel=1e-6)


def test_kept_rows_are_those_of_the_same_compiler() -> None:
    rows = [{"model": "m", "graph": "mmseg"}, {"model": "m", "graph": "twins-trt"}]
    last = {"versions": {"tensorrt-rtx-cu13": "1.7"}, "rows": rows}
    assert kernels.mmseg_rows(last, {"tensorrt-rtx-cu13": "1.7"}) == rows[:1]
    with pytest.raises(SystemExit, match="--mmseg-python"):
        kernels.mmseg_rows(last, {"tensorrt-rtx-cu13": "1.8"})


def test_bars_are_as_long_as_their_values() -> None:
    drawn = figure.bars([("a", 50, 100), ("b", 25, None)], legend=("ours", "theirs"))
    rectangles = ElementTree.fromstring(drawn).findall("{http://www.w3.org/2000/svg}rect")
    lengths = {(bar.get("fill"), float(bar.get("width", 0))) for bar in rectangles if bar.get("x") == str(figure.LABEL)}
    ours = sorted(length for fill, length in lengths if fill == figure.OURS and length != 12)  # 12: in the legend
    theirs = [length for fill, length in lengths if fill == figure.THEIRS and length != 12]
    assert ours == pytest.approx([theirs[0] / 4, theirs[0] / 2], abs=0.1)
    assert len(theirs) == 1
