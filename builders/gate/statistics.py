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


def mean_iou(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The mIoU of confusion matrices [..., C, C] (label, prediction), percent, over the classes that occur."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    union = counts.sum(-1) + counts.sum(-2) - hits
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = np.where(union > 0, hits / union, np.nan)
    return 100 * np.nanmean(iou, axis=-1)


def bootstrap_drop(
    reference: Sequence[ConfusionMatrix], engine: Sequence[ConfusionMatrix], *, confidence: float = 0.95
) -> Drop:
    """The drop over all images, and its interval over resamples of the images (Efron's percentile interval).

    reference, engine: one matrix for each image, in the same order. A resample draws the same images for both, so that
    the difficulty of an image cancels out. confidence: of the interval, 0 to 1.
    """
    pairs = [np.stack([m.counts for m in each]).astype(np.float64) for each in (reference, engine)]  # [I, C, C]
    images = len(reference)
    mean = mean_iou(pairs[0].sum(0)) - mean_iou(pairs[1].sum(0))
    rng = np.random.default_rng(SEED)
    times = rng.multinomial(images, np.full(images, 1 / images), size=RESAMPLES).astype(np.float64)  # [R, I]
    drops = np.zeros(RESAMPLES)
    for sign, counts in zip((1, -1), pairs, strict=True):
        drops += sign * mean_iou(np.tensordot(times, counts, axes=1))
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(drops, [tail, 100 - tail])
    return Drop(float(mean), float(low), float(high), confidence)
