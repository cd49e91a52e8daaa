"""Segmentation scores from a confusion matrix, as mmsegmentation's IoUMetric defines them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from twins_trt.data.images import IGNORE_INDEX
from twins_trt.errors import UsageError


@dataclass(frozen=True)
class Scores:
    """Scores in percent.

    miou: mean IoU. aacc: share of the labelled pixels that are right. macc: mean accuracy. iou, acc: per class.
    The IoU of a class that is neither predicted nor labelled is NaN and left out of the mean; so is the accuracy of a
    class that is not labelled (IoUMetric with `nan_to_num=None`).
    """

    miou: float
    aacc: float
    macc: float
    iou: tuple[float, ...]
    acc: tuple[float, ...]

    def __eq__(self, other: object) -> bool:
        """NaN equals NaN here: two records of one result are equal."""
        return isinstance(other, Scores) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(tuple(_to_plain(value) for value in (self.miou, self.aacc, self.macc, *self.iou, *self.acc)))

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN becomes None, since JSON has no NaN."""
        return {
            "miou": _to_plain(self.miou),
            "aacc": _to_plain(self.aacc),
            "macc": _to_plain(self.macc),
            "iou": [_to_plain(value) for value in self.iou],
            "acc": [_to_plain(value) for value in self.acc],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Scores:
        """The inverse of `to_json`."""
        return cls(
            miou=_from_plain(values["miou"]),
            aacc=_from_plain(values["aacc"]),
            macc=_from_plain(values["macc"]),
            iou=tuple(_from_plain(value) for value in values["iou"]),
            acc=tuple(_from_plain(value) for value in values["acc"]),
        )

    def table(self, classes: Sequence[str] = ()) -> str:
        """One line a class and one of means, for a terminal. Classes without a name are numbered; NaN shows as `-`."""
        names = [classes[i] if i < len(classes) else str(i) for i in range(len(self.iou))]
        width = max(len(name) for name in [*names, "class"])
        rows = [f"{'class':<{width}}  {'IoU':>6}  {'Acc':>6}"]
        for name, iou, acc in zip(names, self.iou, self.acc, strict=True):
            rows.append(f"{name:<{width}}  {_percent(iou):>6}  {_percent(acc):>6}")
        rows.append(f"{'mean':<{width}}  {_percent(self.miou):>6}  {_percent(self.macc):>6}")
        rows.append(f"{'pixels':<{width}}  {'':>6}  {_percent(self.aacc):>6}")
        return "\n".join(row.rstrip() for row in rows)


class ConfusionMatrix:
    """Pixel counts `counts[label, prediction]`, int64 [C, C]; adding two merges what they counted."""

    def __init__(self, num_classes: int) -> None:
        if not 1 <= num_classes <= IGNORE_INDEX:
            raise UsageError(f"{num_classes} classes cannot be counted", "1 to 255 classes fit a uint8 mask")
        self.num_classes = num_classes
        self.counts: npt.NDArray[np.int64] = np.zeros((num_classes, num_classes), np.int64)

    @classmethod
    def of(cls, mask: npt.ArrayLike, label: npt.ArrayLike, *, num_classes: int) -> ConfusionMatrix:
        """The matrix of a single pair."""
        return cls(num_classes).update(mask, label)

    def update(self, mask: npt.ArrayLike, label: npt.ArrayLike) -> ConfusionMatrix:
        """Count a predicted mask against a label map of the same shape; label 255 is ignored. Returns itself.

        Raises UsageError, and counts nothing, where the shapes differ or a class does not exist.
        """
        mask, label = np.asarray(mask), np.asarray(label)
        if mask.shape != label.shape:
            raise UsageError(f"a mask of {list(mask.shape)} cannot be scored against a label of {list(label.shape)}")
        if mask.dtype == np.uint8 and label.dtype == np.uint8:
            return self._count_bytes(mask, label)
        valid = label != IGNORE_INDEX
        predicted, labelled = mask[valid].astype(np.int64), label[valid].astype(np.int64)
        for what, values in (("mask", predicted), ("label", labelled)):
            if values.size and (values.min() < 0 or values.max() >= self.num_classes):
                raise self._no_class(what, int(values.min() if values.min() < 0 else values.max()))
        pairs = np.bincount(labelled * self.num_classes + predicted, minlength=self.num_classes**2)
        self.counts += pairs.reshape(self.num_classes, self.num_classes)
        return self

    def _count_bytes(self, mask: npt.NDArray[np.uint8], label: npt.NDArray[np.uint8]) -> ConfusionMatrix:
        """The same in one pass over the pixels: four times as fast, which a Jetson's processor needs."""
        pairs = label.astype(np.uint16)
        pairs <<= 8
        pairs |= mask
        counted = np.bincount(pairs.ravel(), minlength=1 << 16).reshape(256, 256)[:IGNORE_INDEX]
        for what, axis in (("mask", 0), ("label", 1)):
            wrong = np.flatnonzero(counted.sum(axis=axis)[self.num_classes :])
            if wrong.size:
                raise self._no_class(what, self.num_classes + int(wrong[-1]))
        self.counts += counted[: self.num_classes, : self.num_classes]
        return self

    def _no_class(self, what: str, wrong: int) -> UsageError:
        return UsageError(
            f"a {what} has class {wrong}, but there are {self.num_classes} classes",
            "check that the model and the data set have the same classes",
        )

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        if other.num_classes != self.num_classes:
            raise UsageError(f"matrices of {self.num_classes} and {other.num_classes} classes do not add up")
        total = ConfusionMatrix(self.num_classes)
        total.counts = self.counts + other.counts
        return total

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConfusionMatrix) and np.array_equal(self.counts, other.counts)

    __hash__ = None  # type: ignore[assignment]  # mutable: it cannot be a key

    @property
    def pixels(self) -> int:
        """How many labelled pixels were counted."""
        return int(self.counts.sum())

    def scores(self) -> Scores:
        """The percentages; NaN throughout while nothing has been counted."""
        hits = np.diag(self.counts).astype(np.float64)
        labelled = self.counts.sum(axis=1).astype(np.float64)
        predicted = self.counts.sum(axis=0).astype(np.float64)
        iou = _ratio(hits, labelled + predicted - hits)
        acc = _ratio(hits, labelled)
        return Scores(
            miou=_mean(iou),
            aacc=float(_ratio(hits.sum(keepdims=True), labelled.sum(keepdims=True))[0]),
            macc=_mean(acc),
            iou=tuple(float(value) for value in iou),
            acc=tuple(float(value) for value in acc),
        )


def _ratio(part: npt.NDArray[np.float64], whole: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Percent, NaN where `whole` is 0."""
    return np.divide(100 * part, whole, out=np.full_like(whole, np.nan), where=whole > 0)


def _mean(values: npt.NDArray[np.float64]) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else math.nan


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _to_plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _from_plain(value: float | None) -> float:
    return math.nan if value is None else float(value)
