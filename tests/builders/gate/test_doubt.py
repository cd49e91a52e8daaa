"""A reference that its own labels contradict is doubtful; an honest one is not, on however few images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from twins_trt.builders.gate.chance import ALIKE, Tally, chance
from twins_trt.builders.gate.doubt import (
    OTHER_LABELS,
    OTHER_ORDER,
    ZERO_IS_VOID,
    ReferenceCheck,
    check_reference,
    recorded_miou,
)
from twins_trt.builders.gate.images import JudgedImage
from twins_trt.data.ade20k import ADE20K_CLASSES
from twins_trt.evaluation import ConfusionMatrix
from twins_trt.models.source import Source
from twins_trt.models.zoo import get_spec

CLASSES, SIZE = 6, (48, 64)
Mask = np.ndarray


def scenes(count: int, seed: int = 0) -> list[Mask]:
    """Label maps with what all share, class 0 above class 1, and two boxes of other classes at places of their own."""
    rng, labels = np.random.default_rng(seed), []
    for _ in range(count):
        label = np.zeros(SIZE, np.uint8)
        label[rng.integers(20, 28) :] = 1
        for _ in range(2):
            top, left = rng.integers(0, 30), rng.integers(0, 40)
            label[top : top + 18, left : left + 22] = rng.integers(2, CLASSES)
        labels.append(label)
    return labels


def masks_of(labels: list[Mask], *, wrong: float = 0.3, seed: int = 1) -> list[Mask]:
    """Masks that have a random class in so many of the blocks of 4 × 4 pixels."""
    rng, masks = np.random.default_rng(seed), []
    for label in labels:
        blocks = rng.random((SIZE[0] // 4, SIZE[1] // 4)).repeat(4, 0).repeat(4, 1)
        noise = rng.integers(0, CLASSES, (SIZE[0] // 4, SIZE[1] // 4)).repeat(4, 0).repeat(4, 1)
        masks.append(np.where(blocks < wrong, noise, label).astype(np.uint8))
    return masks


def tally(masks: list[Mask], labels: list[Mask], classes: int = CLASSES) -> Tally:
    counted = Tally(classes, len(masks))
    for i, (mask, label) in enumerate(zip(masks, labels, strict=True)):
        strange = (label >= classes) & (label != 255)
        clean = np.where(strange, 255, label).astype(np.uint8)
        counts = ConfusionMatrix.of(mask, clean, num_classes=classes)
        highest = int(label[strange].max()) if strange.any() else 0
        counted.add(JudgedImage(f"{i}", clean, clean, mask, counts, int(strange.sum()), highest))
    return counted


def check(masks: list[Mask], labels: list[Mask], recorded: float | None = None, **more: Any) -> ReferenceCheck:
    return check_reference(tally(masks, labels), recorded=recorded, seeded=more.pop("seeded", False), **more)


def shuffled(labels: list[Mask], seed: int) -> list[Mask]:
    return [labels[i] for i in np.random.default_rng(seed).permutation(len(labels))]


@pytest.mark.parametrize("recorded", [None, 60.0])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 30])
def test_an_honest_reference_is_not_doubtful(count: int, recorded: float | None) -> None:
    for seed in range(5):
        labels = scenes(count, seed)
        found = check(masks_of(labels, seed=seed), labels, recorded)
        assert not found.doubtful and found.causes == () and found.miou > 30


def test_a_weak_reference_is_not_doubtful_where_nothing_is_recorded() -> None:
    labels = scenes(30)
    found = check(masks_of(labels, wrong=0.85), labels)
    assert not found.doubtful and found.chance is not None and found.chance < found.miou < 2.2 * found.chance


def test_labels_of_other_images_are_found_with_and_without_a_record() -> None:
    """Without a record one of a hundred shuffles may escape, because it fits by luck."""
    labels = scenes(30)
    masks = masks_of(labels, wrong=0.1)
    escaped = 0
    for seed in range(20):
        found = check(masks, shuffled(labels, seed))
        escaped += not found.doubtful
        assert found.chance is not None and found.miou > 1.1 * found.chance  # so chance alone would not find them
    assert escaped <= 1
    found = check(masks, shuffled(labels, 0), 80.0)
    assert found.grounds == (f"its mIoU is {found.miou:.2f}, below 0.7 times the 80.00 recorded of these classes",)
    assert found.causes[0] == OTHER_LABELS
    unrecorded = check(masks, shuffled(labels, 0))
    assert unrecorded.grounds == ("its masks fit labels of other images as well as their own",)
    assert unrecorded.causes[0] == OTHER_LABELS and unrecorded.recorded is None


def test_a_record_counts_from_seven_tenths_on_with_the_whole_interval() -> None:
    labels = scenes(30)
    masks = masks_of(labels)
    found = check(masks, labels)
    assert found.low < found.miou < found.high
    assert not check(masks, labels, (found.high - 0.01) / 0.7).doubtful
    behind = check(masks, labels, (found.high + 0.01) / 0.7)
    assert behind.doubtful and behind.recorded == (found.high + 0.01) / 0.7
    assert behind.own is not None and behind.foreign is not None and behind.own > behind.foreign
    assert behind.causes[-1] == OTHER_LABELS  # the masks fit their own images, so it is the unlikeliest


@pytest.mark.parametrize(
    "masks",
    [
        lambda rng, labels: [np.zeros(SIZE, np.uint8)] * len(labels),
        lambda rng, labels: [np.full(SIZE, 1, np.uint8)] * len(labels),
        lambda rng, labels: [rng.integers(0, CLASSES, SIZE).astype(np.uint8) for _ in labels],
        lambda rng, labels: [np.where(label == 0, 1, 0).astype(np.uint8) for label in labels],
    ],
)
def test_masks_that_know_nothing_of_the_labels_are_doubtful(masks: Callable[..., list[Mask]]) -> None:
    for count in (1, 4, 30):
        labels = scenes(count)
        found = check(masks(np.random.default_rng(1), labels), labels)
        assert any("is not above chance" in doubt for doubt in found.grounds)


def test_chance_is_the_score_of_independent_and_of_constant_masks() -> None:
    labels, rng = scenes(30), np.random.default_rng(0)
    label = np.stack(labels)
    counts = np.bincount(label.ravel(), minlength=CLASSES)
    drawn = rng.choice(CLASSES, label.shape, p=[0.3, 0.3, 0.1, 0.1, 0.1, 0.1]).astype(np.uint8)
    taken = np.bincount(drawn.ravel(), minlength=CLASSES)
    found = float(chance(np.stack([np.zeros(CLASSES), counts, taken]).astype(float)))
    assert found == pytest.approx(ConfusionMatrix.of(drawn, label, num_classes=CLASSES).scores().miou, abs=0.3)
    only = np.eye(CLASSES)[0] * label.size
    constant = ConfusionMatrix.of(np.zeros_like(label), label, num_classes=CLASSES).scores().miou
    assert counts.argmax() == 0
    assert float(chance(np.stack([np.zeros(CLASSES), counts, only]))) == pytest.approx(constant)


def test_a_camera_that_does_not_move_is_not_taken_for_other_labels() -> None:
    """Every image has the labels of every other, so that none of them is another image's."""
    labels = [scenes(1)[0]] * 20
    found = check(masks_of(labels), labels)
    assert not found.doubtful and found.own is None and found.foreign is None


def test_few_images_of_one_scene_are_not_taken_for_other_labels_either() -> None:
    """Masks that see the scene alone fit every image of it as well: labels so much alike do not tell."""
    (scene,) = scenes(1)
    labels = []
    for i in range(6):
        label = scene.copy()
        label[20:24, 8 * i : 8 * i + 4] = 5
        labels.append(label)
    found = check([scene] * 6, labels)
    pairs = ConfusionMatrix.of(labels[0], labels[1], num_classes=CLASSES).scores().miou
    assert pairs > ALIKE and not found.doubtful
    assert found.foreign is None and found.chance is not None and found.miou > found.chance


def test_labels_of_a_single_class_say_nothing_of_chance() -> None:
    labels = [np.zeros(SIZE, np.uint8)] * 5
    few_wrong = [np.where(np.arange(SIZE[1]) < 2, 1, label).astype(np.uint8) for label in labels]
    assert not check(few_wrong, labels).doubtful


def test_labels_outside_the_classes_are_reported_as_such() -> None:
    labels = scenes(10)
    shifted = [(label + 1).astype(np.uint8) for label in labels]
    found = check(masks_of(labels), shifted)
    share = np.mean([np.mean(label == CLASSES) for label in shifted])
    assert found.outside == pytest.approx(share) and found.highest == CLASSES
    assert found.grounds[0] == (
        f"{100 * share:.3g} % of the labelled pixels are of no class of the model: labels reach 6, and its classes are "
        "0 to 5"
    )
    assert found.causes[0] == ZERO_IS_VOID
    random = check(masks_of(labels), shifted, seeded=True)
    assert random.grounds == found.grounds[:1]  # of the data, whatever the weights are


def test_another_count_and_another_order_of_classes_are_named_first() -> None:
    labels = scenes(30)
    masks = masks_of(labels, wrong=0.1)
    reduced = [np.where(label == 0, 255, label - 1).astype(np.uint8) for label in labels]
    assert check(masks, reduced, 80.0).causes[0] == ZERO_IS_VOID
    renamed = [np.array([3, 0, 5, 1, 2, 4], np.uint8)[label] for label in labels]
    found = check(masks, renamed, 80.0)
    assert found.causes[0] == OTHER_ORDER and len(found.causes) == len(set(found.causes)) == 5


def test_random_weights_have_nothing_to_fall_behind() -> None:
    labels = scenes(10)
    found = check([np.zeros(SIZE, np.uint8)] * 10, labels, 80.0, seeded=True)
    assert not found.doubtful and "random weights" in found.line(seeded=True)


def test_labels_that_are_ignored_throughout_are_doubtful() -> None:
    found = check(masks_of(scenes(2)), [np.full(SIZE, 255, np.uint8)] * 2, 50.0)
    assert found.grounds == ("no pixel has a label",)


@pytest.mark.parametrize(
    ("told", "sha256", "classes", "recorded"),
    [
        (51.8, "ab" * 32, ("a", "b"), 51.8),
        (None, "ab" * 32, ADE20K_CLASSES, None),
        (None, "published", ADE20K_CLASSES, get_spec("twins_svt-s_fpn").miou),
        (None, "published", ("a", "b"), None),
        (40.0, "published", ADE20K_CLASSES, 40.0),
        (float("nan"), "ab" * 32, ("a", "b"), None),
    ],
)
def test_what_was_recorded(told: float | None, sha256: str, classes: tuple[str, ...], recorded: float | None) -> None:
    prefix = get_spec("twins_svt-s_fpn").weights_sha256_prefix
    source = Source("x.pth", prefix + "0" * 56 if sha256 == "published" else sha256)
    assert recorded_miou(told, model="twins_svt-s_fpn", source=source, classes=classes) == recorded
    assert recorded_miou(None, model="twins_svt-custom_fpn", source=source, classes=classes) is None
