"""The options of a calibration. Every field is part of the range file's key."""

from __future__ import annotations

from dataclasses import dataclass, field

from twins_trt.data.preprocessing import Preprocessing
from twins_trt.errors import UsageError
from twins_trt.inference.fitting import FitMode, fit_mode
from twins_trt.spelling import spelled

# The first is the default. Entropy, TensorRT's default, agrees least with the FP32 model: outputs of GELU and softmax,
# most of whose values are near 0, are clipped to a tenth of their largest value.
OBSERVERS = ("mse", "percentile", "entropy", "minmax")
MIN_BINS, MAX_BINS = 1024, 1 << 16  # at least 8 bins for each of the 127 levels


@dataclass(frozen=True)
class CalibrationOptions:
    """How activations are collected and ranges chosen.

    observers: some of `OBSERVERS`; the first is used where none is named. percentile: the share of absolute values that
    the percentile observer keeps, in percent. bins: of each histogram, a power of two. minimum: how many different
    images there must be. fit: how an image is fitted to a graph of fixed size, as in `Segmenter`. preprocessing: the
    test scale for a graph of dynamic size, and the normalization for a graph that takes float planes.
    Raises UsageError for a value that is not allowed.
    """

    observers: tuple[str, ...] = OBSERVERS
    percentile: float = 99.99
    bins: int = 4096
    minimum: int = 8
    fit: FitMode = "stretch"
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def __post_init__(self) -> None:
        unknown = [name for name in self.observers if name not in OBSERVERS]
        if unknown or not self.observers or len(set(self.observers)) < len(self.observers):
            raise UsageError(
                f"{spelled('observers')} cannot be {', '.join(map(str, self.observers)) or 'none'}",
                f"use some of {', '.join(OBSERVERS)}, each once",
            )
        if not 50 <= self.percentile <= 100:
            raise UsageError(f"{spelled('percentile')} is {self.percentile}", "give one from 50 to 100, such as 99.99")
        if not MIN_BINS <= self.bins <= MAX_BINS or self.bins & (self.bins - 1):
            raise UsageError(f"{spelled('bins')} is {self.bins}", f"give a power of two from {MIN_BINS} to {MAX_BINS}")
        if self.minimum < 1:
            raise UsageError(f"{spelled('minimum')} is {self.minimum}", "give at least 1")
        fit_mode(self.fit)
