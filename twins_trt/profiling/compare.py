"""Compares two profiles of different times, and names what differs beside the speed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from twins_trt.codec import encode
from twins_trt.errors import ProfileError
from twins_trt.profiling.results import Measurement, Profile
from twins_trt.profiling.statistics import ratio_of_unpaired

UNPAIRED = "the two were not measured in turn: what else the machine did then is in the difference"


@dataclass(frozen=True)
class Change:
    """One candidate in both profiles.

    before_ms, after_ms: medians end to end, in milliseconds. value: how many times as fast the second is. low, high:
    its 95 % interval, None for single rounds.
    """

    label: str
    before_ms: float
    after_ms: float
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ProfileComparison:
    """What changed between two profiles.

    comparable: whether machine, versions, options and graphs are the same. differences: those that are not, in words.
    notes: what else a reader should know, warnings of both profiles included.
    """

    changes: tuple[Change, ...]
    comparable: bool
    differences: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        plain: dict[str, Any] = encode(self)
        return plain


def compare(before: Profile, after: Profile) -> ProfileComparison:
    """Compares the candidates that have the same label in both, or the single candidates of both.

    Raises ProfileError where no candidate is in both.
    """
    ours = {m.subject.label: m for m in after.measurements}
    pairs = [(m, ours[m.subject.label]) for m in before.measurements if m.subject.label in ours]
    if len(before.measurements) == len(after.measurements) == 1:
        pairs = [(before.measurements[0], after.measurements[0])]
    if not pairs:
        labels = [", ".join(m.subject.label for m in p.measurements) for p in (before, after)]
        raise ProfileError(
            f"no candidate is in both: {labels[0]}; {labels[1]}", "candidates are called as their bundles and files are"
        )
    differences = (*_differences(before, after), *(d for pair in pairs for d in _of_pair(*pair)))
    notes = [UNPAIRED]
    for name, profile in (("first", before), ("second", after)):
        notes += [f"{name}: {warning}" for warning in profile.warnings]
    return ProfileComparison(tuple(_change(*pair) for pair in pairs), not differences, tuple(differences), tuple(notes))


def _change(before: Measurement, after: Measurement) -> Change:
    value, low, high = ratio_of_unpaired(after.rounds("end_to_end"), before.rounds("end_to_end"))
    label = " then ".join(dict.fromkeys((before.subject.label, after.subject.label)))
    return Change(label, before.end_to_end.p50, after.end_to_end.p50, value, low, high)


def _differences(before: Profile, after: Profile) -> Iterator[str]:
    for field in ("processor", "cores", "memory_gib", "system", "gpu", "board"):
        yield from _describe(field, getattr(before.machine, field), getattr(after.machine, field))
    for name in sorted({*before.versions, *after.versions}):
        yield from _describe(name, before.versions.get(name), after.versions.get(name))
    yield from _describe("power mode", before.before.power_mode, after.before.power_mode)
    yield from _describe("picture", before.settings.picture, after.settings.picture)


def _of_pair(before: Measurement, after: Measurement) -> Iterator[str]:
    for field in ("engine", "precision", "size", "batch", "graph_sha256", "weights_sha256", "threads", "measured_on"):
        label = f"{before.subject.label}: {field.replace('_', ' ')}"
        yield from _describe(label, getattr(before.subject, field), getattr(after.subject, field))


def _describe(what: str, before: Any, after: Any) -> Iterator[str]:
    if before != after:
        yield f"{what}: {_word(before)}, then {_word(after)}"


def _word(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    text = "none" if value is None else str(value)
    return f"{text[:12]}..." if len(text) == 64 else text  # a sha256
