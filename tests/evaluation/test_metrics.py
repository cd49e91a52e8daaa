from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from twins_trt.errors import UsageError
from twins_trt.evaluation import ConfusionMatrix, Scores

CLASSES = 5


@st.composite
def pairs(draw: st.DrawFn, classes: int = CLASSES) -> tuple[np.ndarray, np.ndarray]:
    """A mask and a label of one shape, the label with ignored pixels, either with classes missing."""
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    mask = draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, classes - 1)))
    label = draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from([*range(classes), 255])))
    return mask, label


def by_sets(batch: list[tuple[np.ndarray, np.ndarray]], classes: int) -> tuple[list[float], list[float], float]:
    """IoU, accuracy and pixel accuracy in percent from sets of pixel positions: the definition, slowly."""
    predicted: dict[int, set] = {c: set() for c in range(classes)}
    labelled: dict[int, set] = {c: set() for c in range(classes)}
    for number, (mask, label) in enumerate(batch):
        for position in np.ndindex(label.shape):
            if label[position] != 255:
                labelled[int(label[position])].add((number, position))
                predicted[int(mask[position])].add((number, position))
    iou, acc = [], []
    for c in range(classes):
        union = len(predicted[c] | labelled[c])
        iou.append(100 * len(predicted[c] & labelled[c]) / union if union else math.nan)
        acc.append(100 * len(predicted[c] & labelled[c]) / len(labelled[c]) if labelled[c] else math.nan)
    pixels = sum(len(s) for s in labelled.values())
    hits = sum(len(predicted[c] & labelled[c]) for c in range(classes))
    return iou, acc, 100 * hits / pixels if pixels else math.nan


@settings(deadline=None, max_examples=60)
@given(st.lists(pairs(), min_size=1, max_size=3))
def test_scores_are_the_definitions(batch: list[tuple[np.ndarray, np.ndarray]]) -> None:
    matrix = ConfusionMatrix(CLASSES)
    for mask, label in batch:
        matrix.update(mask, label)
    scores = matrix.scores()
    iou, acc, aacc = by_sets(batch, CLASSES)
    np.testing.assert_allclose(scores.iou, iou, rtol=1e-12)
    np.testing.assert_allclose(scores.acc, acc, rtol=1e-12)
    np.testing.assert_allclose(scores.aacc, aacc, rtol=1e-12)
    present = [value for value in iou if not math.isnan(value)]
    np.testing.assert_allclose(scores.miou, sum(present) / len(present) if present else math.nan, rtol=1e-12)


@settings(deadline=None, max_examples=40)
@given(pairs(), pairs(), pairs())
def test_merging_is_counting_in_any_order(a: tuple, b: tuple, c: tuple) -> None:
    one, two, three = (ConfusionMatrix.of(*pair, num_classes=CLASSES) for pair in (a, b, c))
    at_once = ConfusionMatrix(CLASSES).update(*c).update(*a).update(*b)
    assert one + two + three == at_once
    assert one + (three + two) == at_once
    assert at_once.pixels == sum(int((label != 255).sum()) for _, label in (a, b, c))


@settings(deadline=None, max_examples=40)
@given(pairs(), st.permutations(range(CLASSES)))
def test_renaming_the_classes_renames_the_scores(pair: tuple, order: list[int]) -> None:
    mask, label = pair
    rename = np.array([*order, *[0] * (255 - CLASSES), 255], np.uint8)
    before = ConfusionMatrix.of(mask, label, num_classes=CLASSES).scores()
    after = ConfusionMatrix.of(rename[mask], rename[label], num_classes=CLASSES).scores()
    np.testing.assert_array_equal([after.iou[new] for new in order], before.iou)
    np.testing.assert_allclose(after.miou, before.miou)


@settings(deadline=None, max_examples=40)
@given(pairs())
def test_bounds_and_the_perfect_mask(pair: tuple) -> None:
    mask, label = pair
    scores = ConfusionMatrix.of(mask, label, num_classes=CLASSES).scores()
    for iou, acc in zip(scores.iou, scores.acc, strict=True):
        assert math.isnan(acc) or 0 <= iou <= acc <= 100
    perfect = ConfusionMatrix.of(np.where(label == 255, mask, label), label, num_classes=CLASSES).scores()
    if (label != 255).any():
        assert (perfect.miou, perfect.macc, perfect.aacc) == (100, 100, 100)


@settings(deadline=None, max_examples=40)
@given(pairs())
def test_json_round_trip(pair: tuple) -> None:
    scores = ConfusionMatrix.of(*pair, num_classes=CLASSES).scores()
    text = json.dumps(scores.to_json(), allow_nan=False)
    again = Scores.from_json(json.loads(text))
    assert (again, hash(again)) == (scores, hash(scores))
    np.testing.assert_array_equal(again.iou, scores.iou)
    assert again != ConfusionMatrix.of([[0, 1, 2]], [[0, 1, 1]], num_classes=CLASSES + 1).scores()


def test_an_absent_class_is_left_out_and_a_wrongly_predicted_one_is_not() -> None:
    label = np.array([[0, 0, 1, 1]], np.uint8)
    scores = ConfusionMatrix.of(np.array([[0, 0, 1, 2]], np.uint8), label, num_classes=4).scores()
    np.testing.assert_array_equal(scores.iou, [100, 50, 0, np.nan])
    np.testing.assert_array_equal(scores.acc, [100, 50, np.nan, np.nan])
    assert (scores.miou, scores.macc, scores.aacc) == (50, 75, 75)


def test_nothing_counted_scores_nan() -> None:
    scores = ConfusionMatrix.of([[0, 1]], [[255, 255]], num_classes=2).scores()
    assert all(math.isnan(value) for value in (scores.miou, scores.aacc, scores.macc, *scores.iou))
    assert scores.to_json()["miou"] is None


def test_the_table_has_a_line_a_class() -> None:
    label = np.array([[0, 0, 1, 1]], np.uint8)
    scores = ConfusionMatrix.of(np.array([[0, 0, 1, 2]], np.uint8), label, num_classes=4).scores()
    assert scores.table(("sky", "building")).splitlines() == [
        "class        IoU     Acc",
        "sky       100.00  100.00",
        "building   50.00   50.00",
        "2           0.00       -",
        "3              -       -",
        "mean       50.00   75.00",
        "pixels             75.00",
    ]


def test_what_cannot_be_counted_is_refused_and_counts_nothing() -> None:
    matrix = ConfusionMatrix(3)
    for mask, label, said in (
        ([[0, 1]], [[0], [1]], "scored against"),
        ([[0, 3]], [[0, 1]], "mask has class 3"),
        ([[0, 255]], [[0, 1]], "mask has class 255"),
        ([[0, -1]], [[0, 1]], "mask has class -1"),
        ([[0, 1]], [[0, 3]], "label has class 3"),
    ):
        with pytest.raises(UsageError, match=said):
            matrix.update(np.array(mask), np.array(label))
    assert matrix.pixels == 0
    assert matrix.update(np.array([[0, 9]]), np.array([[0, 255]])).pixels == 1  # what is ignored may be anything
    for classes in (0, 256):
        with pytest.raises(UsageError):
            ConfusionMatrix(classes)
    with pytest.raises(UsageError, match="do not add up"):
        matrix + ConfusionMatrix(4)


@settings(deadline=None, max_examples=60)
@given(pairs())
def test_bytes_and_wider_integers_are_counted_alike(pair: tuple[np.ndarray, np.ndarray]) -> None:
    mask, label = pair
    assert ConfusionMatrix.of(mask, label, num_classes=CLASSES) == ConfusionMatrix.of(
        mask.astype(np.int64), label.astype(np.int64), num_classes=CLASSES
    )


@pytest.mark.parametrize("kind", [np.uint8, np.int64])
@pytest.mark.parametrize(
    ("mask", "label", "words"), [(200, 0, "a mask has class 200"), (0, 254, "a label has class 254")]
)
def test_a_class_that_does_not_exist_is_named_for_every_kind_of_integer(
    kind: type, mask: int, label: int, words: str
) -> None:
    matrix = ConfusionMatrix(CLASSES)
    with pytest.raises(UsageError, match=words):
        matrix.update(np.array([[mask, 0]], kind), np.array([[label, 0]], kind))
    assert matrix.pixels == 0
    matrix.update(np.array([[200, 0]], kind), np.array([[255, 0]], kind))  # ignored where the label is
    assert matrix.pixels == 1
