"""What a gate demands, and on which images. Light: requests name the defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twins_trt.errors import DataError, UsageError

if TYPE_CHECKING:
    from twins_trt.data import Dataset

MAX_DROP = {"fp32": 0.1, "fp16": 0.1, "int8": 0.5}
"""Points of mIoU that a precision may lose."""

MIN_IMAGES = 30
"""A bootstrap over few images is too sure of itself (one image: an interval of no width), so fewer fail outright."""


@dataclass(frozen=True)
class Thresholds:
    """What a bundle must keep. max_drop: points of mIoU, held against the upper end of the interval, not the mean.

    min_images: fewer fail. min_agreement: share of pixels that must equal the reference's, or None.
    """

    max_drop: float
    min_images: int = MIN_IMAGES
    min_agreement: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop < math.inf:  # nor NaN
            raise UsageError(f"a drop of {self.max_drop} points cannot be demanded", "give 0 or more")
        if self.min_images < 1:
            raise UsageError(f"at least {self.min_images} images is no bound", "give 1 or more")
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise UsageError(f"an agreement of {self.min_agreement} is no share", "give 0 to 1")

    @classmethod
    def of(
        cls,
        precision: str,
        *,
        max_drop: float | None = None,
        min_images: int = MIN_IMAGES,
        min_agreement: float | None = None,
    ) -> Thresholds:
        """Those of a precision (`MAX_DROP`), save what is given."""
        return cls(MAX_DROP[precision] if max_drop is None else max_drop, min_images, min_agreement)


@dataclass(frozen=True)
class GateOptions:
    """What a build is judged on, and what follows a failure.

    data, split, limit: the labelled images; limit: only the first so many. thresholds: what the build must keep.
    fallback: whether blocks of an INT8 build that fails go back to FP16, worst first, until it passes.
    max_evaluations: how often the search may judge a plan, the first verdict included.
    """

    data: str
    split: str
    limit: int | None
    thresholds: Thresholds
    fallback: bool
    max_evaluations: int

    def open(self) -> Dataset:
        """The images to judge on. Raises as `open_dataset` does, and `DataError` where they have no labels."""
        from twins_trt.data import open_dataset

        dataset = open_dataset(self.data, split=self.split).first(self.limit)
        if not dataset.labelled:
            raise DataError(f"{self.data} has no labels to score against", "use a data set with labels")
        return dataset
