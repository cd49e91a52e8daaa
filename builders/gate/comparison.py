"""Compares the masks of a reference and an engine over many images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twins_trt.builders.gate.images import JudgedImage
from twins_trt.builders.gate.result import ImageResult
from twins_trt.builders.gate.statistics import Drop, bootstrap_drop, overlap
from twins_trt.evaluation import ConfusionMatrix, Scores

WORST = 8  # images listed

Mask = npt.NDArray[np.uint8]
Overlap = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ComparisonResult:
    """How far an engine falls behind its reference.

    images: how many. drop: of the mIoU. agreement: the share of all pixels on which both agree, 0 to 1. class_drops:
    points of IoU by class, NaN for a class that does not occur. worst: the images on which both agree least.
    impossible: the share of all pixels to which the engine gave a class that the model does not have, 0 to 1.
    """

    images: int
    drop: Drop
    reference: Scores
    scores: Scores
    class_drops: tuple[float, ...]
    agreement: float
    worst: tuple[ImageResult, ...]
    impossible: float


class Comparison:
    """Counts the masks of a reference and an engine, image by image."""

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self._overlaps: tuple[list[Overlap], list[Overlap]] = ([], [])
        self._totals = (ConfusionMatrix(num_classes), ConfusionMatrix(num_classes))
        self._rows: list[ImageResult] = []
        self._equal = self._impossible = self._pixels = 0

    def add(self, judged: JudgedImage, engine: Mask) -> None:
        """Counts one image. engine: its mask, uint8 [H, W]. The reference's is counted already."""
        possible = self._possible(engine, judged.label)
        pair = (judged.counts, ConfusionMatrix.of(possible, judged.label, num_classes=self._num_classes))
        for matrix, overlaps, total in zip(pair, self._overlaps, self._totals, strict=True):
            overlaps.append(overlap(matrix))
            total.counts += matrix.counts
        equal = int(np.count_nonzero(engine == judged.reference))
        self._equal, self._pixels = self._equal + equal, self._pixels + engine.size
        drop = pair[0].scores().miou - pair[1].scores().miou
        self._rows.append(ImageResult(judged.name, equal / engine.size, drop))

    def _possible(self, mask: Mask, label: Mask) -> Mask:
        """The mask with a class of the model, and a wrong one, wherever it has a class that the model does not have.

        Only a broken engine gives such a class. It has to fail, with a verdict, and not to end the gate.
        """
        impossible = mask >= self._num_classes
        if not impossible.any():
            return mask
        self._impossible += int(np.count_nonzero(impossible))
        wrong = np.where(label == 0, self._num_classes - 1, 0).astype(np.uint8)
        return np.where(impossible, wrong, mask)

    @property
    def images(self) -> int:
        """The number of images counted so far."""
        return len(self._rows)

    @property
    def drop(self) -> float:
        """The engine's loss of mIoU over the images counted so far, points."""
        reference, engine = self._totals
        return reference.scores().miou - engine.scores().miou

    def result(self) -> ComparisonResult:
        """The result over all images, with the interval of the drop."""
        reference, scores = (total.scores() for total in self._totals)
        return ComparisonResult(
            images=len(self._rows),
            drop=bootstrap_drop(*self._overlaps),
            reference=reference,
            scores=scores,
            class_drops=tuple(a - b for a, b in zip(reference.iou, scores.iou, strict=True)),
            agreement=self._equal / self._pixels,
            worst=tuple(sorted(self._rows, key=lambda row: row.agreement)[:WORST]),
            impossible=self._impossible / self._pixels,
        )
