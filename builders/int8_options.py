"""What an INT8 build is asked to do, and by what a build is judged. Parts of `BuildOptions`."""

from __future__ import annotations

from dataclasses import dataclass, field

from twins_trt.builders.levels import LEVELS
from twins_trt.calib.settings import CalibrationSettings
from twins_trt.errors import UsageError

SEARCH = "search"
STRENGTHS = (0.25, 0.5, 0.75)  # of SmoothQuant; beside none at all, what a search tries


@dataclass(frozen=True)
class Int8Options:
    """Where ranges and the precision plan come from.

    level: of the uniform plan (`builders.levels.LEVELS`). plan: the file of a plan to build instead, as a bundle holds
    one (`plan.json`), perhaps edited; level, smooth and bias_correction are then the plan's own.
    data, split, images: what to calibrate on, how many images, spread over the set; 0 for all. calibration: a range
    file to take instead (`twins-trt calibrate`). settings: of the calibration; the first observer is the one used.
    smooth: SmoothQuant's strength, 0 to 1; `search` for the best of `STRENGTHS` and none; None for none.
    bias_correction: whether the mean shift of every quantised product goes into its bias.
    """

    level: str = "int8-linear+conv"
    plan: str | None = None
    data: str | None = None
    split: str = "train"
    images: int = 64
    calibration: str | None = None
    settings: CalibrationSettings = field(default_factory=CalibrationSettings)
    smooth: float | str | None = None
    bias_correction: bool = False

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise UsageError(f"unknown precision level {self.level!r}", f"use one of {', '.join(LEVELS)}")
        if self.images < 0:
            raise UsageError(f"{self.images} calibration images", "give how many, or 0 for all")
        if self.data is None and self.calibration is None:
            raise UsageError(
                "INT8 needs the ranges of the activations",
                "name images to calibrate on: --calib-data KIND:PATH, or a range file: --calibration FILE",
            )
        if self.data is None and (self.smooth == SEARCH or self.bias_correction):
            what = "SmoothQuant's strength is searched" if self.smooth == SEARCH else "biases are corrected"
            raise UsageError(f"{what} on images, and there are none", "name some: --calib-data KIND:PATH")
        number = isinstance(self.smooth, (int, float)) and 0 <= self.smooth <= 1
        if not (self.smooth is None or self.smooth == SEARCH or number):
            raise UsageError(f"a SmoothQuant strength of {self.smooth}", f"give 0 to 1, {SEARCH} or none")


@dataclass(frozen=True)
class GateOptions:
    """What a build is judged on, and what follows a failure.

    data, split, limit: the labelled images; limit: only the first so many. max_drop: points of mIoU, None for the
    precision's own (`builders.gate.MAX_DROP`). min_images, min_agreement: as in `Thresholds`.
    fallback: whether blocks of an INT8 build that fails go back to FP16, worst first, until it passes.
    max_evaluations: how often the search may judge a plan, the first verdict included. threads: of the CPU, where a
    graph runs there; None for every core.
    """

    data: str
    split: str = "val"
    limit: int | None = None
    max_drop: float | None = None
    min_images: int = 30
    min_agreement: float | None = None
    fallback: bool = True
    max_evaluations: int = 16
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"a gate on {self.limit} images", "give a limit of at least 1")
        if self.max_evaluations < 1:
            raise UsageError(f"at most {self.max_evaluations} evaluations", "give 1 or more")
