from __future__ import annotations

from pathlib import Path

import pytest
from commands import MODEL, Twins

from twins_trt.data import Preprocessing, open_dataset
from twins_trt.evaluation import EvalResult, evaluate_masks, evaluate_model
from twins_trt.models import build_model
from twins_trt.runtime import Segmenter


def counted(record: dict) -> EvalResult:
    return EvalResult.from_json({key: record[key] for key in EvalResult.__dataclass_fields__})


def test_a_model_scores_as_the_library_scores_it(twins: Twins, checkpoint: Path, scenes: Path) -> None:
    ran = twins("eval", MODEL, "--checkpoint", checkpoint, "--data", f"folder:{scenes}", "--device", "cpu", "--json")
    assert ran.code == 0, ran.err
    expected = evaluate_model(build_model(MODEL, 4, checkpoint), open_dataset(f"folder:{scenes}"))
    record = ran.json
    assert counted(record).scores == expected.scores
    assert (record["images"], record["engine"], record["mode"]) == (3, "pytorch", "whole")
    assert record["source"]["checkpoint"] == checkpoint.name and record["notes"] == []


def test_a_bundle_of_fixed_size_is_exact_on_images_of_that_size(twins: Twins, bundle: Path, scenes: Path) -> None:
    ran = twins("eval", bundle, "--data", f"folder:{scenes}", "--split", "val", "--json")
    assert ran.code == 0, ran.err
    record = ran.json
    with Segmenter(bundle) as segmenter:
        expected = evaluate_masks(lambda image: segmenter(image).mask, open_dataset(f"folder:{scenes}"))
    assert counted(record).scores == expected.scores
    assert (record["exact"], record["resized_images"], record["notes"]) == (True, 0, [])
    assert (record["engine"], record["precision"], record["model"]) == ("onnxruntime", "fp16", MODEL)


def test_images_of_other_sizes_are_resized_and_that_is_said(twins: Twins, bundle: Path, scenes: Path) -> None:
    ran = twins("eval", bundle, "--data", f"folder:{scenes}", "--split", "odd", "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["exact"], ran.json["resized_images"], ran.json["images"]) == (False, 2, 3)
    assert len(ran.json["notes"]) == 2
    assert "64x96 (stretch)" in ran.json["notes"][0] and "nearest pixel" in ran.json["notes"][1]
    text = twins("eval", bundle, "--data", f"folder:{scenes}", "--split", "odd", "--fit", "letterbox").out
    assert "mean" in text and "\nnote: 2 images were resized" in text and "64x96 (letterbox)" in text


def test_a_dynamic_bundle_with_logits_runs_mmsegs_pipeline(
    twins: Twins, cpu_bundle: Path, checkpoint: Path, scenes: Path
) -> None:
    """The FP32 graph, fed through the runtime's own resizing, against the PyTorch model in mmseg's test pipeline."""
    data = ("--data", f"folder:{scenes}", "--split", "odd", "--test-scale", "160x72", "--json")
    ran = twins("eval", cpu_bundle, *data)
    assert ran.code == 0, ran.err
    assert (ran.json["exact"], ran.json["resized_images"], ran.json["notes"]) == (True, 3, [])
    torch_ran = twins("eval", MODEL, "--checkpoint", checkpoint, "--device", "cpu", *data)
    assert torch_ran.code == 0, torch_ran.err
    ours, theirs = ran.json["scores"], torch_ran.json["scores"]
    assert ours["miou"] == pytest.approx(theirs["miou"], abs=0.05)
    assert ours["aacc"] == pytest.approx(theirs["aacc"], abs=0.05)
    assert Preprocessing.from_json(ran.json["preprocessing"]).test_scale == (160, 72)


def test_an_image_outside_of_the_profile_is_not_called_exact(twins: Twins, cpu_bundle: Path, scenes: Path) -> None:
    ran = twins("eval", cpu_bundle, "--data", f"folder:{scenes}", "--split", "odd", "--test-scale", "400x200", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["exact"] is False
    assert ran.json["notes"] == [
        "3 images were resized to the graph's limits, the profile's sizes, "
        "instead of as mmsegmentation's test pipeline would"
    ]


def test_limit_and_seeded_weights(twins: Twins, scenes: Path) -> None:
    words = ("--seeded", "--num-classes", "4", "--data", f"folder:{scenes}", "--limit", "1")
    ran = twins("eval", MODEL, *words, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["images"] == 1 and ran.json["notes"] == ["random weights: the scores mean nothing"]


def test_a_dry_run_scores_nothing(twins: Twins, cpu_bundle: Path, checkpoint: Path, scenes: Path) -> None:
    data = ("--data", f"folder:{scenes}", "--dry-run")
    ran = twins("eval", MODEL, "--checkpoint", checkpoint, *data, "--json")
    assert (ran.code, ran.json["images"], ran.json["weights"]) == (0, 3, str(checkpoint))
    assert ran.json["classes"] == ["sky", "road", "tree", "car"]
    text = twins("eval", cpu_bundle, *data).out
    assert text == f"{cpu_bundle} would be scored on 3 images of folder:{scenes} (val) with auto\n"


@pytest.mark.shared
@pytest.mark.slow
def test_the_camvid_checkpoint_scores_what_its_meta_says(
    twins: Twins, camvid: Path, camvid_checkpoint: Path, tmp_path: Path
) -> None:
    """The first 8 images: PyTorch, the FP32 and the FP16 graph agree."""
    data = ("--data", f"camvid:{camvid}", "--split", "val", "--limit", "8", "--json")
    words = ("--checkpoint", camvid_checkpoint, "--num-classes", "11")
    scores = {"torch": twins("eval", "twins_svt-s_fpn", *words, *data).json["scores"]["miou"]}
    for precision in ("fp32", "fp16"):
        out = tmp_path / f"{precision}.bundle"
        size = ("--size", "360x480", "--precision", precision, "--target", "cpu")
        assert twins("build", "twins_svt-s_fpn", *words, *size, "--out", out).code == 0
        ran = twins("eval", out, *data)
        assert ran.json["exact"] is True and ran.json["resized_images"] == 0
        scores[precision] = ran.json["scores"]["miou"]
    assert scores["fp32"] == pytest.approx(scores["torch"], abs=0.05)
    assert scores["fp16"] == pytest.approx(scores["torch"], abs=0.1)
