"""The loop: it learns, logs, validates, keeps checkpoints that load, and resumes bit for bit."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from checkpoints import held
from toy import Options, assert_same, log_rows, stop_after, weights

from twins_trt.data import open_dataset
from twins_trt.errors import TrainingError, UsageError
from twins_trt.evaluation import evaluate_model
from twins_trt.models import build_model
from twins_trt.models.checkpoint import read_checkpoint
from twins_trt.training import TrainOptions, TrainStep, load_options, resolve_options, train


def test_training_learns_and_leaves_what_other_commands_read(options: Options) -> None:
    steps: list[TrainStep] = []
    chosen = options(iterations=60, batch=4, lr=4e-3, validate_every=30, distort=False)
    report = train(chosen, observe=steps.append)
    assert report.first_loss is not None and report.last_loss is not None
    assert report.last_loss < 0.5 * report.first_loss
    assert report.best_miou is not None and report.best_miou > 60

    rows = log_rows(chosen.out)
    assert rows[0] == ("iteration", "loss", "decode", "auxiliary", "accuracy", "lr")
    assert [row[0] for row in rows[1:]] == [str(i) for i in range(1, 61)]
    assert [step.iteration for step in steps if step.phase == "train"] == list(range(1, 61))
    assert [step.share for step in steps if step.phase == "validate"] == [0.5, 1.0, 0.5, 1.0]
    assert steps[-3].seconds_left == 0
    assert list((Path(chosen.out) / "tensorboard").glob("events*"))

    checkpoint = read_checkpoint(report.last)
    assert held(checkpoint.state_dict) == (toy.TOY, 3)
    assert checkpoint.meta.classes == ("red", "green", "blue")
    assert checkpoint.meta.palette is not None and len(checkpoint.meta.palette) == 3
    assert checkpoint.meta.raw["iter"] == 60
    assert checkpoint.meta.raw["mIoU"] == report.miou
    model = build_model(toy.TOY, 3, report.best)
    again = evaluate_model(model, open_dataset(chosen.data, split="val"))
    assert again.scores.miou == pytest.approx(report.best_miou, abs=1e-9)
    assert load_options(chosen.out) == resolve_options(chosen)


@pytest.mark.parametrize("fields", [{}, {"ema": 0.9, "clip_norm": 1.0}])
def test_a_stopped_run_resumes_bit_for_bit(options: Options, tmp_path: Path, fields: dict[str, Any]) -> None:
    whole = options(out=str(tmp_path / "whole"), validate_every=2, **fields)
    report = train(whole)
    broken = replace(whole, out=str(tmp_path / "broken"))
    with pytest.raises(KeyboardInterrupt):
        train(broken, observe=stop_after(2))
    assert len(log_rows(broken.out)) == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    rest = train(broken, resume=True)
    assert (rest.resumed, rest.iterations, rest.start) == (2, 4, report.start)
    assert log_rows(broken.out) == log_rows(whole.out)
    assert (Path(broken.out) / "validation.csv").read_text() == (Path(whole.out) / "validation.csv").read_text()
    for name in ("last.pth", "best.pth"):
        assert_same(weights(Path(broken.out) / name), weights(Path(whole.out) / name))
    assert (rest.miou, rest.best_miou) == (report.miou, report.best_miou)


def test_a_killed_run_resumes_from_its_last_state(options: Options, tmp_path: Path) -> None:
    """Killed before it could save: lines of the log after the state are written again."""

    class Killed(BaseException):
        pass

    def observe(step: TrainStep) -> None:
        if step.iteration == 3:
            raise Killed

    whole = options(out=str(tmp_path / "whole"), save_every=2)
    train(whole)
    broken = replace(whole, out=str(tmp_path / "broken"))
    with pytest.raises(Killed):
        train(broken, observe=observe)
    assert len(log_rows(broken.out)) == 4
    assert train(broken, resume=True).resumed == 2
    assert log_rows(broken.out) == log_rows(whole.out)


def test_the_state_is_written_once_a_point_and_behind_the_best_weights(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    whole = options(out=str(tmp_path / "whole"), validate_every=2, save_every=2)
    written: list[int] = []

    save = torch.save

    def count(content: dict[str, Any], file: Any) -> None:
        if "validated" in content:  # a state, no weights
            written.append(content["validated"])
        save(content, file)

    def kill(content: dict[str, Any], file: Any) -> None:
        if content.get("validated"):
            raise Killed
        save(content, file)

    monkeypatch.setattr(torch, "save", count)
    train(whole)
    assert written == [0, 2, 4]
    broken = replace(whole, out=str(tmp_path / "broken"))
    monkeypatch.setattr(torch, "save", kill)
    with pytest.raises(Killed):
        train(broken)
    assert (Path(broken.out) / "best.pth").is_file()
    monkeypatch.setattr(torch, "save", count)
    assert train(broken, resume=True).resumed == 0
    assert_same(weights(Path(broken.out) / "best.pth"), weights(Path(whole.out) / "best.pth"))


def test_the_workers_do_not_change_the_pictures(options: Options, tmp_path: Path) -> None:
    one = options(out=str(tmp_path / "one"), iterations=2)
    train(one)
    two = replace(one, out=str(tmp_path / "two"), workers=1)
    train(two)
    assert log_rows(two.out) == log_rows(one.out)


def test_a_finished_run_stays_as_it_is(options: Options) -> None:
    chosen = options(iterations=2)
    train(chosen)
    before = log_rows(chosen.out)
    report = train(chosen, resume=True)
    assert (report.resumed, report.first_loss) == (2, None)
    assert log_rows(chosen.out) == before


def test_a_run_is_neither_overwritten_nor_changed(options: Options, tmp_path: Path) -> None:
    chosen = options(iterations=1)
    train(chosen)
    with pytest.raises(TrainingError, match="holds a training run"):
        train(chosen)
    with pytest.raises(UsageError, match=r"started with lr 0\.001, not 0\.1"):
        train(replace(chosen, lr=0.1), resume=True)
    with pytest.raises(TrainingError, match="holds no training run"):
        train(replace(chosen, out=str(tmp_path / "other")), resume=True)
    (Path(chosen.out) / "state.pth").write_bytes(b"no state")
    with pytest.raises(TrainingError, match=r"state\.pth is damaged"):
        train(chosen, resume=True)


def test_a_diverged_run_says_so(options: Options) -> None:
    with pytest.raises(TrainingError, match=r"the loss of iteration \d is (nan|inf)"):
        train(options(iterations=9, lr=1e30, warmup=0))


def test_torch_is_left_as_it_was(options: Options) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    threads = torch.get_num_threads()
    train(options(iterations=1))
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == threads


def test_options_survive_json(options: Options) -> None:
    chosen = resolve_options(options(ema=0.99))
    assert TrainOptions.from_json(chosen.to_json()) == chosen
    with pytest.raises(UsageError, match="lr is 'fast', not a number"):
        TrainOptions.from_json(json.dumps({**json.loads(chosen.to_json()), "lr": "fast"}))
