"""The drop of an engine's mIoU below its reference's, with an interval from a paired bootstrap over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twins_trt.evaluation import ConfusionMatrix

RESAMPLES = 2000
SEED = 0  # the same images give the same interval


@dataclass(frozen=True)
class Drop:
    """mIoU of the reference minus mIoU of the engine, percentage points; positive: the engine is worse.

    low, high: the interval that holds the share `confidence` of the bootstrap's resamples.
    """

    mean: float
    low: float
    high: float
    confidence: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} points, {self.confidence:.0%} interval {self.low:+.3f} to {self.high:+.3f}"


def overlap(matrix: ConfusionMatrix) -> npt.NDArray[np.float64]:
    """What the mIoU of an image depends on: pixels that label and mask share, and that either has, by class: [2, C].

    A fraction of the confusion matrix, so that those of many images fit into a device's memory. The sums over images
    are of whole numbers below 2**53, so they are exact.
    """
    counts = matrix.counts
    hits = np.diagonal(counts)
    return np.stack([hits, counts.sum(axis=0) + counts.sum(axis=1) - hits]).astype(np.float64)


def mean_iou(overlaps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The mIoU of overlaps [..., 2, C], percent, over the classes that occur."""
    hits, union = overlaps[..., 0, :], overlaps[..., 1, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = np.where(union > 0, hits / union, np.nan)
    return 100 * np.nanmean(iou, axis=-1)


def bootstrap_drop(
    reference: Sequence[npt.NDArray[np.float64]],
    engine: Sequence[npt.NDArray[np.float64]],
    *,
    confidence: float = 0.95,
) -> Drop:
    """The drop over all images, and its interval over resamples of the images (Efron's percentile interval).

    reference, engine: the `overlap` of each image, in the same order. A resample draws the same images for both, so
    that the difficulty of an image cancels out. confidence: of the interval, 0 to 1.
    """
    pairs = [np.stack(each) for each in (reference, engine)]  # [I, 2, C]
    mean = mean_iou(pairs[0].sum(0)) - mean_iou(pairs[1].sum(0))
    drops = np.zeros(RESAMPLES)
    for sign, overlaps in zip((1, -1), pairs, strict=True):
        drops += sign * mean_iou(resample(overlaps))
    low, high = interval(drops, confidence=confidence)
    return Drop(float(mean), low, high, confidence)


def resample(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sums over resamples of the images: [I, ...] to [RESAMPLES, ...]. Every call draws the same images."""
    images = len(values)
    rng = np.random.default_rng(SEED)
    times = rng.multinomial(images, np.full(images, 1 / images), size=RESAMPLES).astype(np.float64)  # [R, I]
    return np.tensordot(times, values, axes=1)


def interval(drawn: npt.NDArray[np.float64], *, confidence: float = 0.95) -> tuple[float, float]:
    """The ends of the interval that holds the share `confidence` of the values [RESAMPLES]."""
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return float(low), float(high)
