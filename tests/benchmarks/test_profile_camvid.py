"""A mask that differs too much is refused, and a Segmenter's overhead is measured beside the bare session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_graphs import MakeBundle

from benchmarks import profile_camvid
from twins_trt.profiling.candidates import Candidate, bundle_candidate
from twins_trt.profiling.picture import draw_picture
from twins_trt.runtime import Engine, RuntimeOptions, Segmenter

pytest.importorskip("onnxruntime")


@pytest.fixture
def named(make_bundle: MakeBundle) -> list[Candidate]:
    """A tiny bundle in place of PyTorch and of the float32 graph."""
    path = make_bundle(24, 32).path
    return [bundle_candidate(path, label=label) for label in (profile_camvid.EAGER, "fp32")]


def test_candidates_that_agree_are_listed(named: list[Candidate], tmp_path: Path) -> None:
    draw_picture(tmp_path / "picture.jpg", (24, 32))
    rows = profile_camvid.check(named, tmp_path / "picture.jpg", threads=1)
    assert rows == [{"what": "agreement", "label": each, "value": 1.0} for each in (profile_camvid.EAGER, "fp32")]


class Inverted:
    """An engine that gives the classes of another one in reverse order."""

    name, concurrent = "inverted", True

    def __init__(self, engine: Engine) -> None:
        self.inputs, self.outputs, self._engine = engine.inputs, engine.outputs, engine

    def __call__(self, *given: Any, **named: Any) -> dict[str, Any]:
        return {"mask": 4 - self._engine(*given, **named)["mask"]}

    def close(self) -> None:
        self._engine.close()


def test_where_one_computes_something_else_nothing_is_written(named: list[Candidate], tmp_path: Path) -> None:
    draw_picture(tmp_path / "picture.jpg", (24, 32))

    def open_other(options: RuntimeOptions) -> object:
        segmenter, subject = named[1].open(options)
        return Segmenter(segmenter.interface, Inverted(segmenter.engine)), subject

    with pytest.raises(SystemExit, match=r"fp32 agrees with PyTorch eager on .* nothing is written"):
        profile_camvid.check([named[0], Candidate("fp32", open_other)], tmp_path / "picture.jpg", threads=1)  # type: ignore[arg-type]


def test_the_overhead_is_a_ratio_with_its_interval(make_bundle: MakeBundle) -> None:
    row = profile_camvid.overhead(make_bundle(24, 32).path, threads=1, size=(24, 32))
    assert row["low"] <= row["value"] <= row["high"]
    assert row["value"] > 1.0  # of a graph that takes microseconds, Python's share is most

    # Real times of microseconds are too uneven for more; on a clock that is not, the row's figures fit each other.
    def seconds(call: Callable[[], object]) -> float:
        return 0.004 if isinstance(call(), list) else 0.006  # a bare session gives a list

    row = profile_camvid.overhead(make_bundle(24, 32).path, threads=1, size=(24, 32), seconds=seconds)
    assert np.isclose(row["whole_ms"] / row["bare_ms"], row["value"]) and row["value"] == pytest.approx(1.5)
