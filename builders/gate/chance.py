"""What masks that know nothing of their images would score on a gate's labels.

Two such scores are compared with the reference's. `chance` is the mIoU of masks that are independent of the labels: the
best constant mask, or pixels drawn with the shares that the reference gives its classes, whichever is larger.
`Tally.foreign_scores` are those of the reference's own masks on labels of other images. Labels that were shuffled
among the images still share what all images have in common, such as the sky above the road, so that masks score far
above the first on them; but not above the second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twins_trt.builders.gate.images import JudgedImage, UInt8Array
from twins_trt.builders.gate.statistics import interval, mean_iou, resample

GRID = 64
"""Rows and columns of the pixels of an image that are kept for `foreign_scores`."""
KEPT = 64
"""Images at most that are kept for it, at even distances."""
SHUFFLES = 199
"""How often labels are handed to other images."""
ALIKE = 60.0
"""mIoU between labels of different images from which on they are alike, so that a shuffle shows nothing."""
SEED = 0  # the same images give the same scores

Counts = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Advantage:
    """The reference's mIoU and chance's, percent, and the 95 % interval of the difference over resampled images."""

    miou: float
    chance: float
    low: float
    high: float


class Tally:
    """Counts the reference's masks and the labels, image by image. images: how many there will be."""

    def __init__(self, num_classes: int, images: int) -> None:
        self._num_classes = num_classes
        self._step = max(1, math.ceil(images / KEPT))
        self._counts: list[Counts] = []
        self._kept: list[tuple[UInt8Array, UInt8Array]] = []
        self._outside = self._labelled = 0
        self.highest = 0
        self.confusion = np.zeros((num_classes, num_classes), np.int64)  # [label, mask]

    def add(self, judged: JudgedImage) -> None:
        """Counts one image."""
        counts = judged.counts.counts
        self._outside += judged.outside
        self._labelled += int(counts.sum()) + judged.outside
        self.highest = max(self.highest, judged.highest)
        if not counts.any():
            return  # a resample of such images alone would have no score
        if len(self._counts) % self._step == 0:
            self._kept.append((_thinned(judged.reference), _thinned(judged.label)))
        self._counts.append(_sums(counts))
        self.confusion += counts

    @property
    def outside(self) -> float:
        """The share of the labelled pixels whose label is no class of the model, 0 to 1."""
        return self._outside / self._labelled if self._labelled else 0.0

    @property
    def labelled_classes(self) -> int:
        """How many classes occur in the labels."""
        return int(np.count_nonzero(self.confusion.sum(1)))

    def miou(self) -> tuple[float, float, float]:
        """The reference's mIoU over the classes that the labels show, percent, and the ends of its 95 % interval over
        resampled images."""
        counts = np.stack(self._counts)
        low, high = interval(_miou(_shown(resample(counts))))
        return float(_miou(_shown(counts.sum(0)))), low, high

    def advantage(self) -> Advantage:
        """How far the reference lies above chance."""
        counts = np.stack(self._counts)
        total, drawn = counts.sum(0), resample(counts)
        low, high = interval(_miou(drawn) - chance(drawn))
        return Advantage(float(_miou(total)), float(chance(total)), low, high)

    def foreign_scores(self) -> tuple[float, npt.NDArray[np.float64]] | None:
        """The mIoU of the kept masks on their own labels, and on those of other images, once for each shuffle; percent.

        A shuffle gives no image its own labels. None where it would show nothing: for a single image, and where the
        labels of all images are alike, as a camera that does not move gives them.
        """
        if len(self._kept) < 2:
            return None
        masks, labels = (np.stack(each) for each in zip(*self._kept, strict=True))  # [K, P]
        rng, images = np.random.default_rng(SEED), len(masks)
        orders = [_derangement(rng, images) for _ in range(SHUFFLES)]
        between = [self._score(labels, labels[order]) for order in orders[:10]]
        if not float(np.mean(between)) < ALIKE:  # nor where nothing is labelled in two images at once
            return None
        return self._score(masks, labels), np.array([self._score(masks, labels[order]) for order in orders])

    def _score(self, masks: UInt8Array, labels: UInt8Array) -> float:
        """The mIoU of masks on labels, percent; a pixel that is ignored in either does not count."""
        side = self._num_classes
        counted = (masks < side) & (labels < side)
        pairs = labels[counted].astype(np.int64) * side + masks[counted]
        matrix = np.bincount(pairs, minlength=side * side).reshape(side, side)
        return miou_of(matrix)


def chance(counts: Counts) -> npt.NDArray[np.float64]:
    """The mIoU of masks that do not depend on the image, percent.

    counts: [..., 3, C], pixels by class that label and mask share, that the label has and that the mask has.
    Pixels drawn with the mask's shares of classes meet the label's class as often as both shares multiply. A constant
    mask scores the share of its class in the labels, over the number of classes that occur in them.
    """
    labels, masks = counts[..., 1, :], counts[..., 2, :]
    pixels = labels.sum(-1, keepdims=True)
    hits = labels * masks / np.maximum(pixels, 1)
    independent = mean_iou(np.stack([hits, labels + masks - hits], axis=-2))
    constant = 100 * (labels / np.maximum(pixels, 1)).max(-1) / np.maximum(np.count_nonzero(labels, axis=-1), 1)
    return np.maximum(independent, constant)


def miou_of(matrix: npt.NDArray[np.int64]) -> float:
    """The mIoU of a confusion matrix [label, mask], percent; NaN while nothing is counted."""
    if not matrix.any():
        return math.nan
    return float(_miou(_sums(matrix)))


def _sums(matrix: npt.NDArray[np.int64]) -> Counts:
    """The counts of a confusion matrix, as `chance` takes them."""
    return np.stack([np.diagonal(matrix), matrix.sum(1), matrix.sum(0)]).astype(np.float64)


def _miou(counts: Counts) -> npt.NDArray[np.float64]:
    """The mIoU of counts as `chance` takes them."""
    hits = counts[..., 0, :]
    return mean_iou(np.stack([hits, counts[..., 1, :] + counts[..., 2, :] - hits], axis=-2))


def _shown(counts: Counts) -> Counts:
    """The counts without classes that no label has."""
    return np.where(counts[..., 1:2, :] > 0, counts, 0)


def _thinned(classes: UInt8Array) -> UInt8Array:
    """Pixels at even distances of uint8 [H, W]: uint8 [GRID²], at the same relative places for images of any size."""
    rows, columns = ((2 * np.arange(GRID) + 1) * side // (2 * GRID) for side in classes.shape)
    return classes[np.ix_(rows, columns)].ravel()


def _derangement(rng: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
    """A random order in which nothing stays at its place. About every third order is one."""
    while True:
        order = rng.permutation(count)
        if not np.any(order == np.arange(count)):
            return order
