"""Whether the reference can be believed. A gate compares an engine with it, so a wrong reference passes wrong engines.

The reference's own mIoU on the judged images shows it: it lies far below what was recorded of the same weights and
classes, or, where nothing was recorded, it is no better than chance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from twins_trt.builders.gate.chance import Tally, miou_of
from twins_trt.data.ade20k import ADE20K_CLASSES
from twins_trt.models.source import Source
from twins_trt.models.zoo import get_spec, is_model

RECORDED_SHARE = 0.7
"""A reference whose mIoU lies below this share of what was recorded is doubtful."""
CERTAINTY = 0.99
"""The share of shuffles of the labels that the reference has to beat."""

OTHER_LABELS = "the labels are of other images, or of another split"
ZERO_IS_VOID = "0 in the labels means no class and classes count from 1 (reduce_zero_label)"
OTHER_PIXELS = "the images get other preprocessing than in training (mean, std, order of channels)"
OTHER_ORDER = "the labels have the classes in another order than the model"
OTHER_WEIGHTS = "the checkpoint is another one than was meant"
CAUSES = (OTHER_LABELS, ZERO_IS_VOID, OTHER_PIXELS, OTHER_ORDER, OTHER_WEIGHTS)

_ROUNDING = 1e-6  # percent: a constant mask scores what chance does, but for the last digits
_FAR = 10.0  # points of mIoU by which another reading of the labels has to be better, so that it is named first


@dataclass(frozen=True)
class ReferenceCheck:
    """What the reference's score says of it.

    miou: on the judged images, percent, over the classes that their labels show, with its 95 % interval `low` to `high`
    over resampled images. A few images show few classes, and a class that the masks alone have says little of the rest;
    where the labels show every class it is the mIoU of `GateResult.reference`. recorded: the
    mIoU that it is compared with, percent; None if none was recorded. chance: the mIoU of masks that know nothing of
    their images. foreign: the mIoU that its masks reach on labels of other images in at most one of a hundred shuffles,
    and own: theirs on their own labels, both on the pixels that were kept for it. Each is None where it decides
    nothing. outside: the share of the labelled pixels whose label is no class of the model, 0 to 1; highest: the
    largest such label. grounds: what speaks against it, in words; empty if nothing does. causes: what may explain it,
    the likeliest first.
    """

    miou: float
    low: float
    high: float
    recorded: float | None = None
    chance: float | None = None
    own: float | None = None
    foreign: float | None = None
    outside: float = 0.0
    highest: int = 0
    grounds: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()

    @property
    def doubtful(self) -> bool:
        """Whether anything speaks against the reference."""
        return bool(self.grounds)

    @property
    def reason(self) -> str:
        """Why the gate fails for it, in one sentence."""
        return f"reference doubtful: {', and '.join(self.grounds)}"

    def line(self, *, seeded: bool) -> str:
        """What was found, for a table. seeded: whether the weights are random."""
        if self.grounds:
            return f"doubtful: {', and '.join(self.grounds)}"
        if seeded:
            return "of random weights, so that its own score means nothing"
        if self.recorded is not None:
            return f"mIoU {self.miou:.2f}, and {self.recorded:.2f} was recorded of these classes"
        if self.chance is not None:
            return f"mIoU {self.miou:.2f}, above chance ({self.chance:.2f}); no mIoU was recorded of its weights"
        return f"mIoU {self.miou:.2f}; no mIoU was recorded of its weights"


def recorded_miou(told: float | None, *, model: str, source: Source, classes: tuple[str, ...]) -> float | None:
    """The mIoU that was recorded of these weights and classes, percent; None if nothing is known.

    told: as the weights' file has it, which comes first. Of mmsegmentation's published weights, its table of models
    tells the mIoU on ADE20K.
    """
    if told is not None and told > 0:
        return told
    spec = get_spec(model) if is_model(model) else None
    published = spec is not None and spec.weights and (source.sha256 or "").startswith(spec.weights_sha256_prefix)
    return spec.miou if spec is not None and published and classes == ADE20K_CLASSES else None


def check_reference(tally: Tally, *, recorded: float | None, seeded: bool) -> ReferenceCheck:
    """Compares the reference's score with what was recorded, or with chance where nothing was.

    Random weights have nothing to fall behind, and their bundles say so everywhere: only the labels are checked then.
    The score is doubtful if it lies below the recorded share with its whole interval, because a few images may be
    harder than all of them. Where nothing was recorded it is doubtful if it does not lie above chance with its whole
    interval, or if its masks do not fit their own labels better than those of other images in 99 of 100 shuffles.
    """
    grounds, hints = _labels(tally)
    found = ReferenceCheck(0.0, 0.0, 0.0, outside=tally.outside, highest=tally.highest)
    if tally.confusion.any():
        miou, low, high = tally.miou()
        found = replace(found, miou=miou, low=low, high=high)
    if tally.confusion.any() and not seeded:
        found = _behind_record(found, recorded) if recorded is not None else _within_chance(found, tally)
        if recorded is None or found.grounds:
            found = _beside_others(found, tally, decides=recorded is None)
        grounds += found.grounds
    if not grounds:
        return found
    if tally.confusion.any() and not seeded:
        hints += _from_confusion(tally, found.miou)
    hints += found.causes
    fits = found.own is not None and found.foreign is not None and found.own > found.foreign
    ranked = dict.fromkeys((*hints, *(each for each in CAUSES if not (fits and each == OTHER_LABELS)), OTHER_LABELS))
    return replace(found, grounds=tuple(grounds), causes=tuple(ranked))


def _labels(tally: Tally) -> tuple[list[str], list[str]]:
    """What speaks against the labels whatever the masks are, and the likely causes."""
    classes = len(tally.confusion)
    if tally.outside:
        # Labels from 1 to the number of classes are those of a data set whose 0 is void.
        hints = [ZERO_IS_VOID] if tally.highest == classes else []
        wrong = f"{100 * tally.outside:.3g} % of the labelled pixels are of no class of the model"
        return [f"{wrong}: labels reach {tally.highest}, and its classes are 0 to {classes - 1}"], hints
    return ([] if tally.confusion.any() else ["no pixel has a label"]), []


def _behind_record(found: ReferenceCheck, recorded: float) -> ReferenceCheck:
    found = replace(found, recorded=recorded)
    if not found.high < RECORDED_SHARE * recorded:
        return found
    behind = (
        f"its mIoU is {found.miou:.2f}, below {RECORDED_SHARE:g} times the {recorded:.2f} recorded of these classes"
    )
    return replace(found, grounds=(behind,))


def _within_chance(found: ReferenceCheck, tally: Tally) -> ReferenceCheck:
    """Labels of a single class are left alone: a mask of that class is right on them, and knows nothing."""
    if tally.labelled_classes < 2:
        return found
    advantage = tally.advantage()
    found = replace(found, chance=advantage.chance)
    if advantage.low > _ROUNDING:
        return found
    within = f"its mIoU of {advantage.miou:.2f} is not above chance, which gives {advantage.chance:.2f}"
    return replace(found, grounds=(within,))


def _beside_others(found: ReferenceCheck, tally: Tally, *, decides: bool) -> ReferenceCheck:
    """Compares the masks with labels of other images. decides: whether that makes the reference doubtful."""
    scores = tally.foreign_scores()
    if scores is None:
        return found
    own, foreign = scores[0], float(np.quantile(scores[1], CERTAINTY, method="higher"))
    found = replace(found, own=own, foreign=foreign)
    if own > foreign:
        return found
    alike = "its masks fit labels of other images as well as their own"
    return replace(found, grounds=(*found.grounds, *([alike] if decides else [])), causes=(OTHER_LABELS,))


def _from_confusion(tally: Tally, miou: float) -> list[str]:
    """Causes that show in the confusion matrix: another count or order of classes gives a far better score."""
    counts = tally.confusion
    down, up = np.zeros_like(counts), np.zeros_like(counts)
    down[:-1], up[1:] = counts[1:], counts[:-1]
    renamed = counts[:, _best_order(counts)]
    tried = ((ZERO_IS_VOID, down), (ZERO_IS_VOID, up), (OTHER_ORDER, renamed))
    # The first of equals: every other count of the classes is also another order.
    cause, score = max(((cause, round(miou_of(each))) for cause, each in tried if each.any()), key=lambda each: each[1])
    return [cause] if score > max(2 * miou, miou + _FAR) else []


def _best_order(counts: npt.NDArray[np.int64]) -> list[int]:
    """For each class of the labels the class of the masks that stands for it, the largest overlap first."""
    order = dict.fromkeys(range(len(counts)), -1)
    left = counts.copy()
    for _ in order:
        label, mask = np.unravel_index(int(left.argmax()), left.shape)
        order[int(label)] = int(mask)
        left[label], left[:, mask] = -1, -1
    return list(order.values())
