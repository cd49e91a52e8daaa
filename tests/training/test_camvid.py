"""The whole way on CamVid: 100 iterations on a CPU lower the loss, resume bit for bit, and give a bundle that
passes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from toy import assert_same, log_rows, weights

from twins_trt.cli import main
from twins_trt.training import TrainRequest, TrainStep, train

pytestmark = [pytest.mark.slow, pytest.mark.shared]

MODEL = "twins_svt-s_fpn"


def test_camvid(camvid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = TrainRequest(
        model=MODEL,
        data=f"camvid:{camvid}",
        out=str(tmp_path / "run"),
        scratch=True,
        iterations=100,
        batch=2,
        crop=(48, 48),
        scale=(160, 120),
        lr=5e-4,
        val_split="",
        save_every=95,
    )
    copy = tmp_path / "copy"

    def keep_the_state(step: TrainStep) -> None:
        if step.iteration == 96:
            shutil.copytree(options.out, copy)

    report = train(options, observe=keep_the_state)
    assert report.first_loss is not None and report.last_loss is not None
    assert report.last_loss < 0.9 * report.first_loss

    again = train(replace(options, out=str(copy)), resume=True)
    assert (again.resumed, again.iterations) == (95, 100)
    assert log_rows(copy) == log_rows(tmp_path / "run")
    assert_same(weights(again.last), weights(report.last))

    bundle = str(tmp_path / "x.bundle")
    start = ("--checkpoint", report.last)
    assert main(["build", MODEL, *start, "--size", "360x480", "--target", "cpu", "--out", bundle]) == 0
    data = ("--data", options.data, "--limit", "4", "--min-images", "4")
    capsys.readouterr()
    assert main(["gate", bundle, *start, *data, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    print(f"loss {report.first_loss:.4f} to {report.last_loss:.4f}; {result}")
