"""The result of a gate: passed or failed, with everything that this follows from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from twins_trt.builders.gate.doubt import ReferenceCheck
from twins_trt.builders.gate.options import Thresholds
from twins_trt.builders.gate.statistics import Drop
from twins_trt.evaluation import Scores


@dataclass(frozen=True)
class ImageResult:
    """One image. agreement: the share of pixels on which both agree, 0 to 1. drop: of its own mIoU, points."""

    name: str
    agreement: float
    drop: float


@dataclass(frozen=True)
class Simulation:
    """What a simulation found of the same graph before a device judged its engine. Fields as in `GateResult`."""

    passed: bool
    reasons: tuple[str, ...]
    engine: str
    measured_on: str
    dataset: str
    split: str
    images: int
    thresholds: Thresholds
    drop: Drop
    agreement: float
    created: str


@dataclass(frozen=True)
class GateResult:
    """The verdict on an engine, with everything that it follows from.

    model, graph_sha256: what was judged. reasons: why it failed; empty if it passed. engine: the engine that ran.
    simulated: ONNX Runtime ran in place of the engine that ships. class_drops: points of IoU by class, NaN for a class
    that does not occur. agreement: the share of equal pixels, 0 to 1. repeats: a second run gave the same masks.
    batch_agrees: masks of a batch equal those of single images; None if the graph takes one image at a time. seconds:
    wall time of the engine over all images, and of the model if it computed all masks; no benchmark on a shared
    machine. created: ISO 8601 with a zone. pack: sha256 of the pack that images and reference masks came from; None if
    they came from a data set and the model. simulation: what a simulation had found, if a device has judged since.
    file, file_sha256: the serialized engine that ran; None where the graph itself ran. reference_check: whether the
    reference itself can be believed; None in what earlier versions found.
    """

    model: str
    graph_sha256: str
    passed: bool
    reasons: tuple[str, ...]
    engine: str
    simulated: bool
    precision: str
    dataset: str
    split: str
    images: int
    thresholds: Thresholds
    drop: Drop
    reference: Scores
    scores: Scores
    classes: tuple[str, ...]
    class_drops: tuple[float, ...]
    agreement: float
    worst: tuple[ImageResult, ...]
    repeats: bool
    batch_agrees: bool | None
    seconds: dict[str, float]
    measured_on: str
    seeded: bool
    created: str
    pack: str | None = None
    simulation: Simulation | None = None
    file: str | None = None
    file_sha256: str | None = None
    reference_check: ReferenceCheck | None = None

    @property
    def refused_reference(self) -> ReferenceCheck | None:
        """What was found of the reference, if it is doubtful and was not accepted."""
        return None if self.thresholds.accept_reference else self._doubtful

    @property
    def accepted_reference(self) -> ReferenceCheck | None:
        """What was found of the reference, if it is doubtful and was accepted."""
        return self._doubtful if self.thresholds.accept_reference else None

    @property
    def _doubtful(self) -> ReferenceCheck | None:
        check = self.reference_check
        return check if check is not None and check.doubtful else None

    @property
    def contradiction(self) -> str | None:
        """How a device's finding differs from the simulation's, in one sentence; None if both agree."""
        before = self.simulation
        if before is None or before.passed == self.passed:
            return None
        then, now = ("passed", "fails") if before.passed else ("failed", "passes")
        limits, others = self.thresholds, before.thresholds
        differ = f"; then {_limits(others)} were asked for, and now {_limits(limits)}"
        return (
            f"it {then} in simulation with a drop of {before.drop.mean:+.3f} points and {now} on {self.measured_on} "
            f"with {self.drop.mean:+.3f}{differ if limits != others else ''}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for `gate.json`; NaN becomes None."""
        plain = dataclasses.asdict(dataclasses.replace(self, reference=None, scores=None))  # type: ignore[arg-type]
        plain["reference"], plain["scores"] = self.reference.to_json(), self.scores.to_json()
        plain["class_drops"] = [None if np.isnan(each) else each for each in self.class_drops]
        return plain

    def table(self) -> str:
        """The result in a few lines for a terminal."""
        floor = self.thresholds.floor_text(self.precision)
        what = f"{self.engine}{' standing in for the engine' if self.simulated else ''}, {self.precision}"
        lines = [
            f"gate          {'passed' if self.passed else 'FAILED'}: {what}",
            f"data          {self.dataset} ({self.split}), {self.images} images{', from a pack' if self.pack else ''}",
            f"mIoU          {self.scores.miou:.3f} against {self.reference.miou:.3f}",
            f"drop          {self.drop}, at most {self.thresholds.max_drop:g} allowed",
            f"pixels equal  {100 * self.agreement:.3f} %{floor and f', {floor}'}",
            f"repeatable    {'yes' if self.repeats else 'NO'}",
        ]
        if (check := self.reference_check) is not None:
            accepted = ", accepted" if self.accepted_reference is not None else ""
            lines.append(f"reference     {check.line(seeded=self.seeded)}{accepted}")
            lines += [f"likely cause  {cause}" for cause in check.causes]
        if self.batch_agrees is not None:
            lines.append(f"batch = one   {'yes' if self.batch_agrees else 'NO'}")
        if self.simulation is not None:
            lines.append(f"simulation    {simulation_line(self.simulation)}")
        if self.contradiction is not None:
            lines.append(f"differs       {self.contradiction}")
        ranked = sorted(zip(self.class_drops, self.classes, strict=True), key=lambda each: -np.nan_to_num(each[0]))
        lines.append("worst classes " + ", ".join(f"{name} {value:+.2f}" for value, name in ranked[:3]))
        lines.append(
            "worst images  " + ", ".join(f"{each.name} {100 * each.agreement:.2f} %" for each in self.worst[:3])
        )
        return "\n".join([*lines, *(f"reason        {reason}" for reason in self.reasons)])


def _limits(thresholds: Thresholds) -> str:
    equal = 100 * (thresholds.min_agreement or 0)
    return f"{thresholds.max_drop:g} points at most, {equal:g} % of pixels and {thresholds.min_images} images at least"


def simulation_line(before: Simulation) -> str:
    """What a simulation found, in one line."""
    return (
        f"{'passed' if before.passed else 'failed'}: {before.engine} on {before.measured_on}, {before.images} images, "
        f"drop {before.drop}, {100 * before.agreement:.3f} % of pixels equal ({before.created})"
    )
