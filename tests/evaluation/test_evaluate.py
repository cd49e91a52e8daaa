from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from told import Told

from twins_trt.data import Dataset, Preprocessing, open_dataset
from twins_trt.errors import DataError, EngineError, ImageError, UsageError
from twins_trt.evaluation import EvalResult, EvaluationOptions, evaluate_logits, evaluate_masks, evaluate_model

torch = pytest.importorskip("torch")

NAMES = ("sky", "road", "tree")


@pytest.fixture
def dataset(tmp_path: Path, rng: np.random.Generator) -> Dataset:
    """Five pictures of different sizes whose label is the brightest channel, a tenth of it ignored."""
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for index in range(5):
        image = rng.integers(0, 256, (12 + 4 * index, 20, 3)).astype(np.uint8)
        label = image.argmax(axis=2).astype(np.uint8)
        label[rng.random(label.shape) < 0.1] = 255
        Image.fromarray(image).save(tmp_path / "images" / f"{index}.png")
        Image.fromarray(label).save(tmp_path / "labels" / f"{index}.png")
    return open_dataset(f"folder:{tmp_path}")


def brightest(image: np.ndarray) -> np.ndarray:
    return image.argmax(axis=2)


def always_road(image: np.ndarray) -> np.ndarray:
    return np.ones(image.shape[:2], np.uint8)


class Brightest(torch.nn.Module):
    """A model whose logits are its input. With equal means and stds, the brightest channel stays the largest."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.seen: list[bool] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(self.training or torch.is_grad_enabled())
        return x * self.scale


EQUAL = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def test_masks_are_scored(dataset: Dataset) -> None:
    perfect = evaluate_masks(brightest, dataset, name="brightest")
    assert (perfect.scores.miou, perfect.scores.aacc, perfect.images) == (100, 100, 5)
    assert (perfect.name, perfect.split, perfect.classes, perfect.mode) == ("brightest", "val", NAMES, "whole")
    assert perfect.preprocessing is None
    assert perfect.seconds > 0

    road = evaluate_masks(always_road, dataset)
    labels = np.concatenate([sample.label.ravel() for sample in dataset])
    share = 100 * (labels == 1).sum() / (labels != 255).sum()
    np.testing.assert_allclose(road.scores.iou, [0, share, 0])
    np.testing.assert_allclose([road.scores.aacc, road.scores.miou], [share, share / 3])


def test_a_model_and_its_logits_score_alike(dataset: Dataset) -> None:
    model = Brightest().train()
    result = evaluate_model(model, dataset, preprocessing=EQUAL)
    assert (result.scores.miou, result.name, result.preprocessing) == (100, "Brightest", EQUAL)
    assert model.training  # left as it was found
    assert model.seen == [False] * 5  # but run in eval mode and without gradients
    logits = evaluate_logits(lambda pixels: pixels, dataset, preprocessing=EQUAL)
    assert logits.scores == result.scores


def test_the_mode_reaches_the_network(dataset: Dataset) -> None:
    sizes: list[tuple[int, ...]] = []

    def watch(pixels: np.ndarray) -> np.ndarray:
        sizes.append(pixels.shape[2:])
        return pixels

    result = evaluate_logits(watch, dataset.first(1), mode="ms_flip", preprocessing=EQUAL)
    assert result.mode == "ms_flip"
    assert sizes == [s for s in [(6, 10), (9, 15), (12, 20), (15, 25), (18, 30), (21, 35)] for _ in range(2)]


def test_progress_and_observers_see_every_image_in_order(dataset: Dataset) -> None:
    told = Told()
    seen = []
    result = evaluate_masks(
        always_road,
        dataset,
        options=EvaluationOptions(
            progress=told,
            observe=lambda sample, mask, matrix: seen.append((sample.name, mask, matrix)),
        ),
    )
    matrices = [matrix for _, _, matrix in seen]
    so_far = [sum(matrices[1:done], matrices[0]).scores().miou for done in range(1, 6)]
    assert told.calls == [
        ("evaluate", f"{done} of 5 images, mIoU {miou:.2f}", done / 5) for done, miou in enumerate(so_far, start=1)
    ]
    assert so_far[-1] == result.scores.miou
    assert [name for name, _, _ in seen] == list(dataset.names)
    total = seen[0][2] + seen[1][2] + seen[2][2] + seen[3][2] + seen[4][2]
    assert total.scores() == result.scores
    assert seen[2][1].shape == (20, 20)


def test_a_part_of_the_data_and_workers(dataset: Dataset) -> None:
    assert evaluate_masks(always_road, dataset.first(2)).images == 2
    assert evaluate_masks(always_road, dataset.first(99)).images == 5
    read_ahead = evaluate_masks(always_road, dataset, options=EvaluationOptions(workers=2))
    assert read_ahead.scores == evaluate_masks(always_road, dataset).scores
    with pytest.raises(UsageError, match="limit"):
        dataset.first(0)


def test_json_round_trip(dataset: Dataset) -> None:
    for result in (
        evaluate_masks(brightest, dataset),
        evaluate_logits(lambda pixels: pixels, dataset, preprocessing=Preprocessing(test_scale=(40, 30))),
    ):
        text = json.dumps(result.to_json(), allow_nan=False)
        assert EvalResult.from_json(json.loads(text)) == result
    assert "brightest" not in evaluate_masks(brightest, dataset).table()
    table = evaluate_masks(brightest, dataset, name="engine").table().splitlines()
    assert table[0].startswith("engine on folder:")
    assert table[2].split() == ["sky", "100.00", "100.00"]


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (lambda image: np.zeros((3, 3), np.uint8), r"uint8 \[3, 3\]"),
        (lambda image: np.zeros(image.shape[:2], np.float32), "float32"),
        (lambda image: np.full(image.shape[:2], 3, np.uint8), "class 3, there are 3 classes"),
        (lambda image: np.full(image.shape[:2], -1, np.int64), "class -1, there are 3 classes"),
    ],
)
def test_a_mask_that_does_not_fit_is_an_engine_error(dataset: Dataset, mask: object, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        evaluate_masks(mask, dataset)


def test_a_data_set_that_does_not_fit_is_refused_before_the_network_runs(dataset: Dataset, tmp_path: Path) -> None:
    root = Path(dataset.source.partition(":")[2])

    def never(image: np.ndarray) -> np.ndarray:
        raise AssertionError("ran")

    with pytest.raises(DataError, match=r"4 classes, .* has 3"):
        evaluate_masks(never, dataset, num_classes=4)
    (root / "classes.txt").unlink()
    unnamed = open_dataset(dataset.source)
    with pytest.raises(DataError, match="how many classes"):
        evaluate_masks(never, unnamed)
    assert evaluate_masks(brightest, unnamed, num_classes=3).scores.miou == 100
    with pytest.raises(DataError, match="value 2, the model has 2 classes"):
        evaluate_masks(lambda image: np.zeros(image.shape[:2], np.uint8), unnamed, num_classes=2)
    with pytest.raises(DataError, match="has no labels"):
        evaluate_masks(never, open_dataset(f"folder:{root / 'images'}"), num_classes=3)
    for path in (root / "labels").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 255)).save(path)
    with pytest.raises(DataError, match="no pixel"):
        evaluate_masks(always_road, unnamed, num_classes=3)
    (root / "images/0.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"0\.png"):
        evaluate_masks(always_road, unnamed, num_classes=3)


def test_classes_named_otherwise_are_warned_of(dataset: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    model = Brightest()
    for names, warned in ((("Sky ", "ROAD", "tree"), False), (("road", "sky", "tree"), True)):
        model.meta = SimpleNamespace(classes=names)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="twins_trt"):
            evaluate_model(model, dataset.first(1), preprocessing=EQUAL)
        assert bool(caplog.records) is warned


def camvid_model(checkpoint: Path) -> torch.nn.Module:
    from twins_trt.models import build_model

    return build_model("twins_svt-s_fpn", 11, checkpoint)


@pytest.mark.shared
def test_real_images_score_as_counted_by_hand(camvid: Path, camvid_checkpoint: Path) -> None:
    """The trained model on four images: the whole chain against torch operations and pixel counts written out here."""
    model = camvid_model(camvid_checkpoint)
    dataset = open_dataset(f"camvid:{camvid}").first(4)
    result = evaluate_model(model, dataset)

    masks, labels = [], []
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    for item in dataset.items:
        image = torch.from_numpy(np.array(Image.open(item.image).convert("RGB")))
        with torch.no_grad():
            logits = model(((image.float() - mean) / std).permute(2, 0, 1)[None])
            full = torch.nn.functional.interpolate(logits, size=(360, 480), mode="bilinear", align_corners=False)
        masks.append(full[0].argmax(0).numpy())
        labels.append(np.array(Image.open(item.label)))
    mask, label = np.stack(masks), np.stack(labels)
    mask[label == 11] = 11  # void
    expected = []
    for index in range(11):
        union = ((mask == index) | (label == index)).sum()
        expected.append(100 * ((mask == index) & (label == index)).sum() / union if union else np.nan)
    # A pixel whose two best classes are level to float rounding may fall either way: 1e-3 percent allows a few.
    np.testing.assert_allclose(result.scores.iou, expected, atol=5e-3)
    np.testing.assert_allclose(result.scores.aacc, 100 * (mask == label)[label != 11].mean(), atol=1e-3)
    assert result.name == "twins_svt-s_fpn"
    assert result.scores.miou > 40


@pytest.mark.shared
@pytest.mark.slow
def test_the_checkpoints_own_score_is_reproduced(camvid: Path, camvid_checkpoint: Path) -> None:
    """All 101 images. The scores in the checkpoint were measured by mmsegmentation."""
    model = camvid_model(camvid_checkpoint)
    meta = model.meta.raw
    scores = evaluate_model(model, open_dataset(f"camvid:{camvid}")).scores
    measured = [scores.miou, scores.aacc, scores.macc]
    np.testing.assert_allclose(measured, [meta[k] for k in ("val_miou", "val_aacc", "val_macc")], atol=0.01)
    np.testing.assert_allclose(scores.iou, meta["val_iou"], atol=0.02)
