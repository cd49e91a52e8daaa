"""Checkpoints as mmsegmentation's users have them, against the masks and scores that mmsegmentation 1.2.2 recorded.

The files are built anew (`mmseg_variants.py`), scored by `evaluate`, and compared with `recorded.json`.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run_command
from mmseg_variants import (
    REFUSED,
    SIZE,
    VARIANTS,
    WRAPPERS,
    UInt8Array,
    Variant,
    checkpoint_of,
    drawn_image,
    seeded_state,
    unpacked,
    write_drawn,
)
from torch.nn import functional

from twins_trt import Segmenter, build, build_model, evaluate
from twins_trt.data.preprocessing import normalized_planes
from twins_trt.errors import CheckpointError, DataError
from twins_trt.models.examine import examine
from twins_trt.verbs.build import BuildRequest
from twins_trt.verbs.evaluate import EvaluateRequest

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("recorded.json").read_text())
SAME = 99.9
"""Percent of pixels: float32 sums in another order move a boundary by a pixel."""
OTHER = 98.0
"""Percent of pixels, below which a mask is another one."""
SCORE = 0.05
"""Points of mIoU: one pixel of 11520 moves it by less."""
LOGITS = 1e-4
"""Of the largest magnitude."""

LABELS = ("reduce_zero_label", "ignore_index", "ignore_index_of_a_class")
"""Variants that differ in how labels are read, and not in their masks."""
LOADED = [name for name in VARIANTS if name not in REFUSED]
FILES = [(name, version) for name in LOADED for version in ("1.x", "0.x") if version == "1.x" or VARIANTS[name].old]


def recorded_mask(name: str) -> UInt8Array:
    record = RECORDED["variants"][name]
    return np.frombuffer(unpacked(record["mask"]), np.uint8).reshape(record["shape"])


def content(name: str, *, version: str = "1.x") -> dict[str, Any]:
    """A variant's file, as mmsegmentation writes it."""
    record = RECORDED["variants"][name]
    shapes = json.loads(unpacked(RECORDED["shapes"][record["architecture"]]))
    record = {"dataset_meta": {"classes": None, "palette": None}, **record}
    return checkpoint_of(seeded_state(shapes, VARIANTS[name]), record, version=version)


def saved(name: str, folder: Path, *, version: str = "1.x") -> Path:
    path = folder / f"{name}.pth"
    torch.save(content(name, version=version), path)
    return path


def agreement(path: Path, variant: Variant, mask: UInt8Array, folder: Path, **more: Any) -> float:
    """Percent of the pixels in which the file's masks equal `mask`: it is the label, so that the accuracy tells."""
    write_drawn(variant, folder, mask + variant.first_label)
    return evaluate(str(path), f"folder:{folder}", more=EvaluateRequest(**more)).scores.aacc


def miou(path: Path, variant: Variant, folder: Path, **more: Any) -> float:
    write_drawn(variant, folder)
    return evaluate(str(path), f"folder:{folder}", more=EvaluateRequest(**more)).scores.miou


@pytest.mark.parametrize(("name", "version"), FILES)
def test_masks_are_mmsegmentations(tmp_path: Path, name: str, version: str) -> None:
    path = saved(name, tmp_path, version=version)
    assert agreement(path, VARIANTS[name], recorded_mask(name), tmp_path / "data") >= SAME


@pytest.mark.parametrize("name", [name for name in LOADED if "scores" in RECORDED["variants"][name]])
def test_scores_are_mmsegmentations(tmp_path: Path, name: str) -> None:
    score = miou(saved(name, tmp_path), VARIANTS[name], tmp_path / "data")
    assert score == pytest.approx(RECORDED["variants"][name]["scores"]["mIoU"], abs=SCORE)


@pytest.mark.parametrize("name", [name for name in LOADED if VARIANTS[name].wrong])
def test_another_reading_gives_another_result(tmp_path: Path, name: str) -> None:
    """So the tests above do see the convention; and a flag overrides the file."""
    variant, path = VARIANTS[name], saved(name, tmp_path)
    wrong = dict(variant.wrong)
    if name in LABELS:
        with contextlib.suppress(DataError):  # labels that are no classes
            recorded = RECORDED["variants"][name]["scores"]["mIoU"]
            assert abs(miou(path, variant, tmp_path / "data", conventions=wrong) - recorded) > 10 * SCORE
    else:
        assert agreement(path, variant, recorded_mask(name), tmp_path / "data", conventions=wrong) < OTHER


@pytest.mark.parametrize("name", [name for name in LOADED if "slide" not in name and "scale" not in name])
def test_logits_are_mmsegmentations(tmp_path: Path, name: str) -> None:
    record, variant = RECORDED["variants"][name], VARIANTS[name]
    model = build_model(checkpoint=saved(name, tmp_path))
    pixels = normalized_planes(drawn_image(*variant.size), model.conventions.preprocessing)[None]
    with torch.inference_mode():
        logits = functional.interpolate(model(torch.from_numpy(pixels)), size=variant.size, mode="bilinear")
    flat = (logits if model.threshold is None else logits.sigmoid()).numpy().ravel()
    samples = flat[np.linspace(0, flat.size - 1, len(record["logits"])).astype(int)]
    np.testing.assert_allclose(samples, record["logits"], rtol=0, atol=LOGITS * record["absmax"])


@pytest.mark.parametrize(
    "name",
    ["bgr", "unnormalized", "one_logit", "one_logit_threshold", "custom_backbone", "window", "pcpvt", "eps", "upernet"],
)
def test_bundles_give_mmsegmentations_masks(tmp_path: Path, name: str) -> None:
    variant = VARIANTS[name]
    build(str(saved(name, tmp_path)), tmp_path / "x.bundle", size=variant.size, targets="cpu")
    with Segmenter(tmp_path / "x.bundle") as segmenter:
        mask = segmenter(drawn_image(*variant.size)).mask
    assert 100 * float((mask == recorded_mask(name)).mean()) >= SAME


@pytest.mark.parametrize(
    ("name", "size"), [("slide_rectangular", (64, 80)), ("slide_one_logit", (64, 80)), ("reduce_zero_label", SIZE)]
)
def test_bundles_are_scored_as_mmsegmentation_tests(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    """The manifest keeps the test mode and the label conventions."""
    variant, bundle = VARIANTS[name], tmp_path / "x.bundle"
    more = BuildRequest(outputs="mask,logits")
    build(str(saved(name, tmp_path)), bundle, size=size, targets="cpu", more=more)
    assert agreement(bundle, variant, recorded_mask(name), tmp_path / "mask") >= SAME
    recorded = RECORDED["variants"][name]["scores"]["mIoU"]
    assert miou(bundle, variant, tmp_path / "drawn") == pytest.approx(recorded, abs=SCORE)


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_change_no_mask(tmp_path: Path, name: str) -> None:
    """Where mmsegmentation loads the file as it is, its mask was recorded from that file."""
    recorded = RECORDED["wrappers"][name]
    assert not recorded["loads"] or unpacked(recorded["mask"]) == recorded_mask("plain").tobytes()
    path = tmp_path / "x.pth"
    torch.save(WRAPPERS[name](content("plain")), path)
    assert agreement(path, VARIANTS["plain"], recorded_mask("plain"), tmp_path / "data") >= SAME


@pytest.mark.parametrize(("name", "weights"), [("ema_buffers", "ema"), ("ema_of_mmengine", "raw")])
def test_the_other_weights_can_be_asked_for(tmp_path: Path, name: str, weights: str) -> None:
    other = np.frombuffer(unpacked(RECORDED["wrappers"]["averaged"]["mask"]), np.uint8).reshape(VARIANTS["plain"].size)
    assert 100 * float((other == recorded_mask("plain")).mean()) < OTHER
    path = tmp_path / "x.pth"
    torch.save(WRAPPERS[name](content("plain")), path)
    assert agreement(path, VARIANTS["plain"], other, tmp_path / "data", weights=weights) >= SAME


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = saved(name, tmp_path)
    write_drawn(VARIANTS[name], tmp_path / "data")
    with pytest.raises(CheckpointError, match=REFUSED[name]) as examined:
        examine(path)
    with pytest.raises(CheckpointError) as scored:
        evaluate(str(path), f"folder:{tmp_path / 'data'}")
    assert str(scored.value) == str(examined.value)
    dry = run_command("export", path, "--size", "96x120", "--out", tmp_path / "x.onnx", "--dry-run")
    assert dry.code != 0 and examined.value.cause in dry.err
    assert not (tmp_path / "x.onnx").exists()


def test_a_bare_class_is_one_name(tmp_path: Path) -> None:
    assert RECORDED["variants"]["bare_class"]["dataset_meta"]["classes"] == "water"
    assert examine(saved("bare_class", tmp_path)).conventions.classes == ("background", "water")
