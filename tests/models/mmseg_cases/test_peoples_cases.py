"""Files that people have, made from the trained CamVid checkpoint: what each command makes of them.

The right values are mmsegmentation's own masks and scores of the same files (`recorded.json`, `cases`).
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run_command
from mmseg_variants import unpacked
from PIL import Image

from twins_trt import evaluate
from twins_trt.errors import CheckpointError, UsageError
from twins_trt.models.examine import examine

pytestmark = pytest.mark.shared
RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("recorded.json").read_text())["cases"]
SAME = 99.9
"""Percent of pixels: decoders of JPEG files and float32 sums differ in the last digit."""
SCORE = 0.1
"""Points of mIoU, for the same reason."""

MakeCase = Callable[[str], Path]


@pytest.fixture(scope="session")
def cases(shared: Path) -> Path:
    folder = shared / "data" / "cases"
    if not folder.is_dir():
        pytest.skip("acceptance data missing: data/cases")
    return folder


@pytest.fixture
def make_case(cases: Path, camvid_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeCase:
    """`make_case(name)`: the checkpoint's variant of that name."""
    monkeypatch.setenv("CK", str(camvid_checkpoint))
    spec = importlib.util.spec_from_file_location("make_checkpoint", cases / "make_checkpoint.py")
    assert spec is not None and spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)

    def make(name: str) -> Path:
        path = tmp_path / f"{name}.pth"
        torch.save(getattr(maker, f"v_{name}")(maker.base()), path)
        return path

    return make


def agreement(path: Path, name: str, cases: Path, folder: Path) -> float:
    """Percent of the pixels in which the file's masks of the case's images equal mmsegmentation's."""
    record = RECORDED[name]
    (folder / "labels").mkdir(parents=True)
    (folder / "images").symlink_to(cases / record["folder"] / "images")
    for image in record["images"]:
        mask = np.frombuffer(unpacked(image["mask"]), np.uint8).reshape(image["shape"])
        Image.fromarray(mask).save(folder / "labels" / f"{image['name']}.png")
    return evaluate(str(path), f"folder:{folder}").scores.aacc


def score(path: Path, name: str, cases: Path) -> float:
    return evaluate(str(path), f"folder:{cases / RECORDED[name]['folder']}").scores.miou


def mmseg_score(name: str) -> Any:
    return pytest.approx(RECORDED[name]["images"][0]["scores"]["mIoU"], abs=SCORE)


@pytest.mark.parametrize("wrapper", ["compile", "ddp_compile", "compile_backbone", "lightning", "model_state_dict"])
def test_wrappers_are_taken_off(tmp_path: Path, make_case: MakeCase, cases: Path, wrapper: str) -> None:
    path = make_case(wrapper)
    assert "twins_svt-s_fpn" in run_command("inspect", path).out
    assert agreement(path, "ckpt_prefixes", cases, tmp_path / "data") >= SAME
    assert score(path, "ckpt_prefixes", cases) == mmseg_score("ckpt_prefixes")


def test_labels_count_from_1_where_the_file_says_so(make_case: MakeCase, cases: Path) -> None:
    assert RECORDED["zero_is_void"]["images"][0]["scores"]["mIoU"] > 40
    path = make_case("reduce_zero")
    assert score(path, "zero_is_void", cases) == mmseg_score("zero_is_void")
    assert examine(path).conventions.reduce_zero_label is True


def test_labels_count_from_0_where_no_file_says_otherwise(camvid_checkpoint: Path, cases: Path) -> None:
    assert score(camvid_checkpoint, "zero_is_void_right", cases) == mmseg_score("zero_is_void_right")


def test_a_narrow_neck_is_one_answer(tmp_path: Path, make_case: MakeCase, cases: Path) -> None:
    path = make_case("narrow")
    assert "128" in run_command("inspect", path).out
    assert run_command("export", path, "--size", "360x480", "--out", tmp_path / "x.onnx", "--dry-run").code == 0
    assert agreement(path, "narrow_neck", cases, tmp_path / "data") >= SAME
    assert score(path, "narrow_neck", cases) == mmseg_score("narrow_neck")


def test_many_classes_are_one_refusal(tmp_path: Path, make_case: MakeCase, cases: Path) -> None:
    path = make_case("many")
    with pytest.raises(CheckpointError, match="847 classes") as refused:
        evaluate(str(path), f"folder:{cases / 'exif/in/rot180_upright'}")
    out = tmp_path / "x.bundle"
    for words in (
        ("export", path, "--size", "360x480", "--out", tmp_path / "x.onnx"),
        ("build", path, "--size", "360x480", "--target", "cpu", "--out", out),
        ("build", path, "--size", "360x480", "--target", "cpu", "--out", out, "--dry-run"),
    ):
        done = run_command(*words)
        assert done.code != 0 and refused.value.cause in done.err
    assert not out.exists()
    inspected = run_command("inspect", path).out
    assert "does not fit" in inspected and refused.value.cause.removeprefix(f"{path} ") in inspected


def test_training_of_one_class_with_softmax_is_refused(tmp_path: Path, cases: Path) -> None:
    data = f"folder:{cases / 'one_class_train/in'}"
    words = ("train", "twins_svt-demo_fpn", "--scratch", "--data", data, "--iterations", "3", "--batch", "2")
    raised: list[Exception] = []
    words = (*words, "--crop", "64x64", "--val-split", "", "--out", str(tmp_path / "r"))
    done = run_command(*words, on_error=raised.append)
    assert done.code != 0 and isinstance(raised[0], UsageError)
    assert "--binary" in raised[0].fix
    assert not list(tmp_path.glob("r/**/*.pth"))


def test_a_bare_class_is_one_name(make_case: MakeCase, caplog: pytest.LogCaptureFixture) -> None:
    """One name for 11 classes: it is dropped, and not cut into letters."""
    with caplog.at_level(logging.WARNING, logger="twins_trt"):
        assert examine(make_case("str_class")).conventions.classes is None
    assert any("1 classes" in text or "1 class" in text for text in caplog.messages)
