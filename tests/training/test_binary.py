"""Heads of one logit: their loss against mmsegmentation's formula, which data they take, and a run that learns."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toy
from PIL import Image
from toy import Options, log_rows, stop_after, weights

from twins_trt.cli import main
from twins_trt.data import open_dataset
from twins_trt.errors import DataError, TwinsError, UsageError
from twins_trt.evaluation import evaluate_model
from twins_trt.evaluation.bundles import score_bundle
from twins_trt.models import build_model
from twins_trt.models.mmseg_model import THRESHOLD
from twins_trt.models.seeded import seed_weights
from twins_trt.models.segmentor import Segmentor
from twins_trt.models.zoo import get_spec
from twins_trt.runtime import open_bundle
from twins_trt.training import TrainRequest, resolve_training, train
from twins_trt.training.step.losses import SegmentationLoss, binary_cross_entropy, count_right


@pytest.fixture
def water(tmp_path: Path) -> str:
    """`folder:PATH` of background and water, with ignored rows."""
    return draw(tmp_path / "water", "background\nwater\n")


def draw(root: Path, classes: str, *, foreground: int = 1) -> str:
    """Blocks of two classes, from the three of `toy.draw`: the first is the foreground."""
    toy.draw(root)
    (root / "classes.txt").write_text(classes)
    for path in root.glob("*/labels/*.png"):
        label = np.asarray(Image.open(path)).copy()
        label[label != 255] = np.where(label[label != 255] == 0, foreground, 0)
        Image.fromarray(label).save(path)
    return f"folder:{root}"


# --- the loss ------------------------------------------------------------------------------------------------------


def seeded_pixels() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(2, 1, 6, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 2, (2, 6, 5), generator=generator)
    labels[0, :2] = 255
    return logits, labels


def test_the_loss_of_one_logit_is_mmsegmentations() -> None:
    """`binary_cross_entropy` with one channel: each labelled pixel's -log of its probability; the sum over all pixels,
    ignored ones among the divisor (avg_non_ignore=False)."""
    logits, labels = seeded_pixels()
    total = 0.0
    for logit, label in zip(logits.flatten().tolist(), labels.flatten().tolist(), strict=True):
        probability = 1 / (1 + math.exp(-logit))
        total += {0: -math.log(1 - probability), 1: -math.log(probability), 255: 0.0}[label]
    assert binary_cross_entropy(logits, labels).item() == pytest.approx(total / labels.numel(), rel=1e-12)
    kept = labels != 255
    torchs = F.binary_cross_entropy_with_logits(logits[:, 0][kept], labels[kept].double(), reduction="sum")
    assert binary_cross_entropy(logits, labels).item() == pytest.approx(torchs.item() / labels.numel(), rel=1e-12)


def test_ignored_pixels_have_no_gradient() -> None:
    logits, labels = seeded_pixels()
    logits.requires_grad_()
    binary_cross_entropy(logits, labels).backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad[:, 0] == 0, labels == 255)
    labels[:] = 255
    assert binary_cross_entropy(logits, labels).item() == 0


def test_accuracy_counts_with_the_threshold() -> None:
    model = Segmentor(get_spec(toy.TOY), 2, threshold=0.3)
    logits = torch.logit(torch.tensor([0.2, 0.29, 0.31, 0.9])).view(1, 1, 1, 4)
    labels = torch.tensor([[[0, 1, 1, 255]]])
    counts = count_right(model.class_logits(logits), labels)
    assert (int(counts["labelled"]), int(counts["right"])) == (3, 2)


def test_the_auxiliary_head_has_the_same_loss() -> None:
    model = Segmentor(get_spec(toy.TOY_UPERNET), 2, threshold=0.3)
    seed_weights(model)
    images, labels = torch.randn(2, 3, 64, 64), torch.randint(0, 2, (2, 64, 64))
    model.eval()
    losses = SegmentationLoss(model, aux_weight=0.4)(images, labels)
    logits = model.auxiliary_head(model.forward_features(images)[2])
    assert logits.shape[1] == 1
    logits = F.interpolate(logits, size=(64, 64), mode="bilinear", align_corners=False)
    wanted = F.binary_cross_entropy_with_logits(logits[:, 0], labels.float())
    assert losses["auxiliary"].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx(losses["decode"].item() + 0.4 * wanted.item(), rel=1e-5)


# --- which heads, which data ---------------------------------------------------------------------------------------


def test_one_class_with_softmax_is_refused(
    options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its loss would be 0 from the start. Nothing is written, and a dry run says the same."""
    data = draw(tmp_path / "data", "water\n", foreground=0)
    with pytest.raises(UsageError, match="names one class, water: with softmax") as raised:
        train(options(data=data))
    assert raised.value.fix is not None and raised.value.fix.startswith("binary=True")
    out = tmp_path / "run"
    words = ["train", toy.TOY, "--scratch", "--data", data, "--iterations", "3", "--batch", "2", "--out", str(out)]
    said = []
    for more in ([], ["--dry-run"]):
        assert main([*words, *more]) == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1] and "--binary, with labels 0 for the rest and 1 for water" in said[0]
    assert not out.exists()


def test_labels_of_one_class_are_refused(options: Options, tmp_path: Path) -> None:
    """The foreground is 0 and the rest ignored: a sigmoid would learn that everything is background."""
    root = tmp_path / "data"
    data = draw(root, "water\n")
    for path in root.glob("train/labels/*.png"):
        label = np.asarray(Image.open(path))
        Image.fromarray(np.where(label == 1, 0, 255).astype(np.uint8)).save(path)
    with pytest.raises(DataError, match=r"hold only pixels of background \(0\): nothing is to be learned") as raised:
        resolve_training(options(data=data, binary=True))
    assert "0 for background, 1 for water" in str(raised.value.fix)
    for path in root.glob("train/labels/*.png"):
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 255)).save(path)
    with pytest.raises(DataError, match="hold no pixel of any class"):
        resolve_training(options(data=data, binary=True))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"binary": True}, "a head with one logit tells 2 classes apart, folder:.* has 3"),
        ({"conventions": {"threshold": "0.5"}}, "a head with one logit tells 2 classes apart"),
    ],
)
def test_a_head_that_cannot_learn_the_classes_is_refused(
    options: Options, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(TwinsError, match=message):
        resolve_training(options(**fields))


def test_where_the_threshold_comes_from(options: Options, water: str, tmp_path: Path) -> None:
    softmax = resolve_training(options(data=water))
    assert softmax.model.conventions.threshold is None and softmax.options.binary is False
    own = resolve_training(options(data=water, binary=True)).model
    assert (own.num_classes, own.conventions.threshold) == (2, THRESHOLD)
    assert own.conventions.fact("threshold").origin == "default"  # type: ignore[union-attr]
    flag = resolve_training(options(data=water, conventions={"threshold": "0.45"})).model.conventions
    assert flag.threshold == 0.45 and flag.fact("threshold").origin == "flag"  # type: ignore[union-attr]


# --- a run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", ["background\nwater\n", "water\n"])
def test_a_run_learns_and_its_checkpoint_builds(options: Options, tmp_path: Path, classes: str) -> None:
    """Data that names the foreground alone gives the same as data that names both."""
    data = draw(tmp_path / "data", classes)
    report = train(options(data=data, binary=True, iterations=60, batch=4, lr=4e-3, validate_every=30, distort=False))
    assert report.first_loss == pytest.approx(math.log(2), abs=0.15)
    assert report.last_loss is not None and report.last_loss < 0.25
    assert report.miou is not None and report.miou > 80
    assert float(log_rows(report.out)[-1][4]) > 90  # accuracy, percent

    model = build_model(checkpoint=report.last)
    assert (model.num_classes, model.num_logits, model.threshold) == (2, 1, THRESHOLD)
    assert model.conventions.classes == ("background", "water")
    assert model.conventions.miou == report.miou
    again = evaluate_model(model, open_dataset(data, split="val").with_background())
    assert again.scores.miou == pytest.approx(report.miou, abs=1e-9)

    bundle = tmp_path / "water.bundle"
    words = ["build", "--checkpoint", report.last, "--size", "72x88", "--target", "cpu"]
    assert main([*words, "--precision", "fp32", "--out", str(bundle)]) == 0
    built = open_bundle(bundle)
    assert (built.interface.threshold, built.manifest.miou) == (THRESHOLD, report.miou)
    scored = score_bundle(built, open_dataset(data, split="val").with_background())
    assert scored.result.scores.miou == pytest.approx(report.miou, abs=0.2)


def test_a_binary_run_resumes_bit_for_bit(options: Options, water: str, tmp_path: Path) -> None:
    whole = options(data=water, conventions={"threshold": "0.4"}, out=str(tmp_path / "whole"), validate_every=2)
    train(whole)
    broken = replace(whole, out=str(tmp_path / "broken"))
    with pytest.raises(KeyboardInterrupt):
        train(broken, observe=stop_after(2))
    train(TrainRequest(out=broken.out), resume=True)
    assert log_rows(broken.out) == log_rows(whole.out)
    assert (tmp_path / "broken" / "model.json").read_text() == (tmp_path / "whole" / "model.json").read_text()
    assert build_model(checkpoint=tmp_path / "broken" / "last.pth").threshold == 0.4


def test_a_head_of_one_logit_is_kept_or_replaced(
    options: Options, water: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint's own head goes on with its threshold; other data, or the caller, replace it."""
    first = train(options(data=water, conventions={"threshold": "0.4"}, val_split="", out=str(tmp_path / "first")))
    common = {"scratch": False, "checkpoint": first.last, "out": str(tmp_path / "next")}
    job = resolve_training(options(data=water, **common))
    assert (job.model.conventions.threshold, job.options.binary) == (0.4, True)
    assert job.model.conventions.fact("threshold").origin == "file"  # type: ignore[union-attr]
    kept = train(options(data=water, **common, iterations=1, lr=1e-9))
    assert kept.start.anew == ()
    assert weights(kept.last)["decode_head.conv_seg.bias"] == pytest.approx(
        weights(first.last)["decode_head.conv_seg.bias"], abs=1e-6
    )
    three = options(**{**common, "out": str(tmp_path / "three")})  # 3 classes
    assert resolve_training(three).model.conventions.threshold is None
    assert "the head's classifier of one logit is replaced" in train(three).start.anew[0]
