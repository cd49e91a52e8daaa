"""How models and bundles are tested: flags, then what the checkpoint says, then defaults."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_graphs import CLASSES, MakeBundle, nearest_class

from twins_trt import evaluate
from twins_trt.data import open_dataset
from twins_trt.data.preprocessing import Preprocessing
from twins_trt.errors import UsageError
from twins_trt.inference.modes import InferenceMode
from twins_trt.models.conventions import Conventions, Fact, TestMode
from twins_trt.models.segmentor import build_model
from twins_trt.runtime import Bundle
from twins_trt.verbs.evaluate import EvaluateRequest, Evaluation, resolve_evaluation
from twins_trt.verbs.groups.tested import resolve_test, told_by_bundle
from twins_trt.verbs.predict import PredictRequest, predict, resolve_prediction

MODEL = "twins_svt-demo_fpn"
WINDOWS = TestMode("slide", (16, 24), (8, 16))
CASES = Path(__file__).parents[2].parent / "shared" / "data" / "cases"


def folder_of(path: Path, image: np.ndarray, label: np.ndarray, *, classes: tuple[str, ...] = ()) -> Path:
    for name, pixels in (("images", image), ("labels", label)):
        (path / name).mkdir(parents=True)
        Image.fromarray(pixels).save(path / name / "a.png")
    if classes:
        (path / "classes.txt").write_text("\n".join(classes))
    return path


def told_bundle(bundle: Bundle, **fields: object) -> Bundle:
    """The bundle, whose manifest says this of labels and tests."""
    return replace(bundle, manifest=replace(bundle.manifest, **fields))  # type: ignore[arg-type]


def saved(path: Path, *, cfg: str) -> Path:
    """A checkpoint of the demo's model as mmengine writes it, with five classes."""
    torch.manual_seed(0)
    torch.save({"state_dict": build_model(MODEL, 5).state_dict(), "meta": {"cfg": cfg}}, path)
    return path


def test_labels_that_count_from_one(make_bundle: MakeBundle, rng: np.random.Generator, tmp_path: Path) -> None:
    image = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    data = folder_of(tmp_path, image, nearest_class(image) + 1, classes=CLASSES)
    bundle = told_bundle(
        make_bundle(24, 32), reduce_zero_label=True, facts=(Fact("reduce_zero_label", "true", "file"),)
    )
    found = evaluate(bundle, f"folder:{data}")
    assert found.scores.miou == 100
    assert [(fact.name, fact.value, fact.origin) for fact in found.conventions] == [
        ("reduce_zero_label", "true", "file")
    ]
    assert "reduce_zero_label true: file" in found.table()
    assert Evaluation.from_json(found.to_json()) == found


def test_a_result_of_an_earlier_version_is_read(
    make_bundle: MakeBundle, rng: np.random.Generator, tmp_path: Path
) -> None:
    image = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    data = folder_of(tmp_path, image, nearest_class(image), classes=CLASSES)
    values = evaluate(make_bundle(24, 32), f"folder:{data}").to_json()
    del values["conventions"]
    assert Evaluation.from_json(values).conventions == ()


def test_an_own_ignore_index_and_its_flag(make_bundle: MakeBundle, rng: np.random.Generator, tmp_path: Path) -> None:
    image = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    label = nearest_class(image)
    label[:5] = 200
    data = f"folder:{folder_of(tmp_path, image, label, classes=CLASSES)}"
    bundle = told_bundle(make_bundle(24, 32), ignore_index=200)
    assert evaluate(bundle, data).scores.miou == 100
    flagged = evaluate(make_bundle(24, 32), data, more=EvaluateRequest(conventions={"ignore_index": "200"}))
    assert flagged.scores.miou == 100
    assert [(fact.value, fact.origin) for fact in flagged.conventions] == [("200", "flag")]


def test_what_is_inside_a_graph_is_not_overridden(make_bundle: MakeBundle) -> None:
    with pytest.raises(UsageError, match="mean is inside the graph"):
        told_by_bundle(make_bundle(24, 32), {"mean": "0,0,0"})


def test_a_head_of_one_logit_gets_a_background(rng: np.random.Generator, tmp_path: Path) -> None:
    image = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    data = open_dataset(f"folder:{folder_of(tmp_path, image, image[..., 0] // 128, classes=('road',))}")
    assert Conventions(threshold=0.3).labels_of(data).classes == ("background", "road")
    assert Conventions().labels_of(data).classes == ("road",)


def test_windows_of_the_checkpoint(make_bundle: MakeBundle) -> None:
    told = Conventions(test_mode=WINDOWS, facts=(Fact("test_mode", "slide:16x24:8x16", "file"),))
    slide = InferenceMode("slide", crop=(16, 24), stride=(8, 16))
    assert resolve_test(told).mode == slide
    assert resolve_test(Conventions()).mode == "whole"
    flag = resolve_test(told, mode="whole")
    assert flag.mode == "whole" and flag.told.fact("test_mode") == Fact("test_mode", "whole", "flag")
    can = make_bundle((8, 24, 64), (8, 32, 64), outputs=("mask", "logits")).interface
    assert resolve_test(told, interface=can) == resolve_test(told)
    for graph, reason in (
        (make_bundle(24, 32), "gives no logits"),
        (make_bundle(8, 32, outputs=("logits",)), "the graph takes image uint8"),
    ):
        tested = resolve_test(told, interface=graph.interface)
        assert tested.mode == "whole" and reason in tested.notes[0]


def test_a_bundle_runs_the_windows_of_its_checkpoint(
    make_bundle: MakeBundle, rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)
    data = f"folder:{folder_of(tmp_path / 'data', image, nearest_class(image), classes=CLASSES)}"
    size = ((8, 24, 64), (8, 32, 64))
    bundle = told_bundle(make_bundle(*size, outputs=("mask", "logits")), test_mode=WINDOWS)
    found = evaluate(bundle, data)
    assert found.result.mode == "slide" and not found.notes
    whole = evaluate(told_bundle(make_bundle(*size), test_mode=WINDOWS), data)
    assert whole.result.mode == "whole"
    assert any("windows of 16x24, but images were run whole" in note for note in whole.notes)
    monkeypatch.setattr("twins_trt.runtime.open_bundle", lambda path: bundle)
    request = PredictRequest(bundle="x", images=(str(tmp_path / "data/images/a.png"),), out=str(tmp_path / "out"))
    job = resolve_prediction(request)
    assert job.tested.mode == InferenceMode("slide", crop=(16, 24), stride=(8, 16))
    (done,) = predict(job)
    assert done.error is None and done.mask is not None and done.mask.is_file()


def test_a_caller_who_contradicts_the_file_is_told(caplog: pytest.LogCaptureFixture) -> None:
    told = Conventions(
        Preprocessing(test_scale=(96, 64)),
        test_mode=WINDOWS,
        facts=(
            Fact("test_scale", "96x64", "file", "cfg: test_pipeline"),
            Fact("test_mode", "slide:16x24:8x16", "file", "cfg: model.test_cfg"),
        ),
    )
    resolve_test(told, data="folder:x")
    resolve_test(told, data="folder:x", test_scale=(96, 64), mode="tile")
    resolve_test(Conventions(), data="folder:x", test_scale=(80, 40), mode="slide")  # a default is no statement
    resolve_test(replace(told, test_mode=TestMode()), mode="ms_flip")  # of whole images, as the file's
    assert not caplog.messages
    for mode, shown in (("whole", "whole"), ("slide", "slide in windows of 512x512"), ("ms_flip", "ms_flip")):
        caplog.clear()
        resolve_test(told, mode=mode)
        says = "although the file says slide:16x24:8x16 (cfg: model.test_cfg)"
        assert caplog.messages == [f"test_mode is {shown}, as you say, {says}"]
    caplog.clear()
    resolve_test(told, data="folder:x", test_scale="none")
    assert caplog.messages == ["test_scale is none, as you say, although the file says 96x64 (cfg: test_pipeline)"]


def test_windows_that_are_padded_are_not_exact(
    make_bundle: MakeBundle, rng: np.random.Generator, tmp_path: Path
) -> None:
    """A graph of fixed size takes whole windows alone; mmsegmentation runs smaller ones of a smaller image."""
    told = TestMode("slide", (24, 32), (16, 16))
    bundle = told_bundle(make_bundle(24, 32, outputs=("mask", "logits")), test_mode=told)
    for name, side, exact in (("large", 40, True), ("small", 28, False)):
        image = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        data = folder_of(tmp_path / name, image, nearest_class(image), classes=CLASSES)
        found = evaluate(bundle, f"folder:{data}")
        assert (found.result.mode, found.exact) == ("slide", exact)
        assert any("1 images have parts that are smaller" in note for note in found.notes) is not exact


def test_the_test_scale_that_holds() -> None:
    told = Conventions(Preprocessing(test_scale=(96, 64), keep_ratio=False))
    for data, flag, scale, keep_ratio in (
        ("folder:x", None, (96, 64), False),
        ("ade20k:x", None, (96, 64), False),
        ("folder:x", (80, 40), (80, 40), True),
        ("folder:x", "none", None, True),
    ):
        found = resolve_test(told, data=data, test_scale=flag).told.preprocessing
        assert (found.test_scale, found.keep_ratio) == (scale, keep_ratio)
    assert resolve_test(Conventions(), data="ade20k:x").told.preprocessing.test_scale == (2048, 512)
    assert resolve_test(Conventions(), data="folder:x").told.preprocessing.test_scale is None


def test_a_checkpoint_is_scored_as_its_configuration_says(rng: np.random.Generator, tmp_path: Path) -> None:
    """Its own masks, saved as labels that count from 1, score 100 only if everything is obeyed."""
    cfg = (
        "model = dict(data_preprocessor=dict(mean=[0., 0., 0.], std=[255., 255., 255.], bgr_to_rgb=False),"
        " test_cfg=dict(mode='slide', crop_size=(32, 48), stride=(16, 32)))\n"
        "test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(96, 64), keep_ratio=True),"
        " dict(type='LoadAnnotations', reduce_zero_label=True), dict(type='PackSegInputs')]\n"
    )
    checkpoint = saved(tmp_path / "own.pth", cfg=cfg)
    image = rng.integers(0, 256, (48, 72, 3), dtype=np.uint8)
    from twins_trt.inference import predict_mask

    model = build_model(checkpoint=checkpoint)
    bgr = Preprocessing((0.0, 0.0, 0.0), (255.0, 255.0, 255.0), test_scale=(96, 64), channels="bgr")

    def logits(pixels: np.ndarray) -> torch.Tensor:
        with torch.inference_mode():
            return model(torch.from_numpy(pixels))

    slide = InferenceMode("slide", crop=(32, 48), stride=(16, 32))
    label = predict_mask(logits, image, preprocessing=bgr, mode=slide) + 1
    data = f"folder:{folder_of(tmp_path / 'data', image, label, classes=CLASSES)}"
    found = evaluate(checkpoint, data)
    assert (found.scores.aacc, found.result.mode) == (100, "slide")
    assert found.result.preprocessing == bgr
    origins = {fact.name: fact.origin for fact in found.conventions}
    assert {"mean", "std", "channels", "test_scale", "test_mode", "reduce_zero_label"} <= {
        name for name, origin in origins.items() if origin == "file"
    }
    whole = resolve_evaluation(EvaluateRequest(what=str(checkpoint), data=data, mode="whole"))
    assert whole.tested.mode == "whole" and whole.dataset.reduce_zero


@pytest.mark.slow
@pytest.mark.shared
def test_camvids_labels_that_count_from_one(tmp_path: Path) -> None:
    case = CASES / "zero_is_void"
    if not case.is_dir():
        pytest.skip(f"there is no {case}")
    file = CASES.parent / "checkpoints" / "twins_svt-s_fpn_camvid.pth"
    told = tmp_path / "told.pth"
    subprocess.run(
        [sys.executable, CASES / "make_checkpoint.py", "reduce_zero", told],
        check=True,
        env={"CK": str(file), "PATH": ""},
    )
    assert evaluate(told, f"folder:{case / 'in'}").scores.miou == pytest.approx(43, abs=1)
