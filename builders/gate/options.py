"""The thresholds of a gate, and the images that it judges on. Requests name them, so nothing heavy is imported here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twins_trt.codec import decode
from twins_trt.errors import BundleError, DataError, UsageError

if TYPE_CHECKING:
    from twins_trt.data import Dataset
    from twins_trt.runtime import Bundle

MAX_DROP = {"fp32": 0.1, "fp16": 0.1, "int8": 0.5}
"""Points of mIoU that a precision may lose."""

MIN_AGREEMENT = {"fp32": 0.995, "fp16": 0.995, "int8": 0.985}
"""The share of pixels that must equal the reference's, 0 to 1, until more builds are measured. The mIoU alone may rise
by luck: on CamVid an intact INT8 graph keeps 99.4 % of the pixels, and one with wrong ranges in one stage 96.8 % at a
higher mIoU."""

PROVISIONAL = "until more builds are measured"
"""What a verdict says of a floor that is the default."""

SPLIT = "val"
"""The split of a data set that is judged on."""

MIN_IMAGES = 30
"""Fewer images fail: a bootstrap over few images gives too narrow an interval (for one image, of no width)."""


@dataclass(frozen=True)
class Thresholds:
    """What a bundle must reach to pass.

    max_drop: points of mIoU that it may lose; compared with the upper end of the drop's interval, not with the mean.
    min_images: fewer images fail. min_agreement: the share of pixels that must equal the reference's, 0 to 1; 0 asks
    for none, and so does None, which verdicts of earlier versions hold. accept_reference: a doubtful reference is no
    reason to fail.
    Raises `UsageError` for a value out of range.
    """

    max_drop: float
    min_images: int = MIN_IMAGES
    min_agreement: float | None = None
    accept_reference: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop < math.inf:  # nor NaN
            raise UsageError(f"a drop of {self.max_drop} points is no threshold", "give 0 or more")
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
        accept_reference: bool = False,
    ) -> Thresholds:
        """The thresholds of a precision (`MAX_DROP`, `MIN_AGREEMENT`), with those that are given in their place."""
        return cls(
            MAX_DROP[precision] if max_drop is None else max_drop,
            min_images,
            MIN_AGREEMENT[precision] if min_agreement is None else min_agreement,
            accept_reference,
        )

    def floor_text(self, precision: str) -> str:
        """The floor of the agreement in words, and that it is provisional where it is the default; empty for none."""
        if not self.min_agreement:
            return ""
        default = f", {PROVISIONAL}" if self.min_agreement == MIN_AGREEMENT[precision] else ""
        return f"at least {100 * self.min_agreement:g} % asked for{default}"


def limit_words(bundle: Bundle) -> tuple[str, ...]:
    """The words of a `gate` command for the limits that a bundle was judged by, where they are not the defaults.

    So a device judges by the limits of the build. Empty without a verdict, or for one that cannot be read.
    """
    from twins_trt.runtime.manifest import GATE

    try:
        found = decode(Thresholds, bundle.read_json(GATE)["thresholds"])
    except (BundleError, TypeError, KeyError, ValueError):
        return ()
    default = Thresholds.of(bundle.manifest.precision)
    words: list[str] = []
    if found.max_drop != default.max_drop:
        words += ["--max-drop", f"{found.max_drop!r}"]
    if found.min_images != default.min_images:
        words += ["--min-images", f"{found.min_images}"]
    if found.min_agreement not in (None, default.min_agreement):  # None: of a version without a default
        words += ["--min-agreement", f"{found.min_agreement!r}"]
    if found.accept_reference:
        words += ["--accept-reference"]
    return tuple(words)


@dataclass(frozen=True)
class GateOptions:
    """How a build is judged, and what happens if it fails.

    data, split: the labelled images. limit: only the first so many; None for all. thresholds: what the build must
    reach. fallback: whether an INT8 build that fails reverts blocks to FP16, the most harmful first, until it passes.
    max_evaluations: how many plans may be judged, the first one included. pack: the file to write images and reference
    masks into, or None.
    """

    data: str
    split: str
    limit: int | None
    thresholds: Thresholds
    fallback: bool
    max_evaluations: int
    pack: str | None = None

    def open(self) -> Dataset:
        """The images to judge on. Raises as `open_dataset` does, and `DataError` if they have no labels."""
        from twins_trt.data import open_dataset

        dataset = open_dataset(self.data, split=self.split).first(self.limit)
        if not dataset.labelled:
            raise DataError(f"{self.data} has no labels to score against", "use a data set with labels")
        return dataset
