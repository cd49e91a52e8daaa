"""`twins-trt train`: its dry run, its report, resuming, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import toy

from twins_trt.cli import main
from twins_trt.training import load_options


def words(blocks: str, out: Path, *more: str) -> list[str]:
    small = ["--scratch", "--iterations", "2", "--batch", "2", "--crop", "64", "--threads", "1"]
    return ["train", toy.TOY, "--data", blocks, "--out", str(out), *small, *more]


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    blocks: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(blocks, tmp_path / "run", "--dry-run", "--json")) == 0
    job = json.loads(capsys.readouterr().out)
    assert (job["images"], job["val_images"], job["epochs"], job["start"]) == (8, 2, 0.5, "scratch")
    assert job["options"]["crop"] == [64, 64] and job["options"]["lr"] == 1e-4
    assert not (tmp_path / "run").exists()
    assert main(words(blocks, tmp_path / "run", "--dry-run")) == 0
    assert "2 iterations of 2 images (0.5 epochs)" in capsys.readouterr().out


def test_train_reports_and_resumes(blocks: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(words(blocks, run, "--no-distort", "--ratios", "0.9:1.1", "--json")) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert (report["iterations"], report["resumed"], report["last"]) == (2, 0, str(run / "last.pth"))
    assert "iteration" in err and "left" in err
    saved = load_options(run)
    assert (saved.distort, saved.ratios, saved.flip) == (False, (0.9, 1.1), 0.5)
    assert main(["train", "--resume", str(run), "--threads", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["resumed"] == 2


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        (["train"], 2, "MODEL is missing"),
        (["train", toy.TOY, "--data", "camvid:x"], 2, "--out is missing"),
        (["train", "--resume", "nowhere"], 1, "holds no training run"),
        (["train", "--resume", "nowhere", "--lr", "1"], 2, "lr among them"),
        (["train", toy.TOY, "--data", "camvid:x", "--out", "y", "--crop", "big"], 2, "'big' is not a size"),
        (["train", toy.TOY, "--data", "camvid:x", "--out", "y", "--ratios", "1"], 2, "are not two ratios"),
        (["train", toy.TOY, "--data", "camvid:x", "--out", "y", "--lr", "fast"], 2, "--lr"),
        (["train", toy.TOY, "--data", "camvid:x", "--out", "y", "--scratch"], 1, "there is no folder x"),
    ],
)
def test_what_is_wrong_is_said(given: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(given) == code
    assert message in capsys.readouterr().err


def test_the_package_loads_no_torch_before_it_trains() -> None:
    use = "t.TrainOptions, t.TrainRequest, t.resolve_options"
    code = f"import sys, twins_trt.training as t; {use}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
