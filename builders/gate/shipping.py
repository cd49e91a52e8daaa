"""Which of two bundles to ship, now that it is known which is faster."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence

from twins_trt.builders.gate.options import limit_words
from twins_trt.profiling.results import Ratio
from twins_trt.profiling.speed import times_as_fast
from twins_trt.runtime import Bundle
from twins_trt.runtime.judged import gate_outdated, grounds_of, judge_again
from twins_trt.runtime.manifest import GATE, PACK

ACCURACY = ("fp32", "fp16", "int8")
"""Precisions, the most accurate first."""

Named = tuple[str, Bundle]
"""A bundle, behind the name that the verdict has for it."""


def advise(ours: Named, theirs: Named, *, passed: bool, ratio: Ratio) -> tuple[str | None, str]:
    """The name of the bundle to ship, None while neither has passed its accuracy gate, and the advice in words.

    passed: `ours` is as much faster as was asked for. ratio: how many times as fast it is; with an interval.
    The faster bundle is preferred. `ours` counts as faster only where it passed: a smaller gain than what was asked for
    is no reason to give up accuracy. Where neither is faster the more accurate one is preferred, in doubt `theirs`.
    A bundle ships only if it has passed its accuracy gate. Where only a simulation has judged it, or
    its verdict is of another engine, the advice says so.
    """
    if passed:
        order, why = [ours, theirs], f"it is {times_as_fast(ratio)} times as fast"
    elif ratio.high is not None and ratio.high < 1:
        order, why = [theirs, ours], f"it is faster than {ours[0]}"
    else:
        order = sorted((theirs, ours), key=lambda each: _inaccuracy(each[1]))
        alike = _inaccuracy(ours[1]) == _inaccuracy(theirs[1])
        why = f"{ours[0]} is not shown to gain enough" + ("" if alike else ", and this is the more accurate one")
    (first, bundle), (second, other) = order
    if bundle.manifest.gate == "passed":
        return first, f"ship {first}: {why}{_unless_measured(bundle)}"
    lacks = f"has {_failed(bundle) if bundle.manifest.gate == 'failed' else 'not passed'} its accuracy gate"
    judge = f"judge it: {gate_command(bundle)}"
    if other.manifest.gate == "passed":
        hint = "" if bundle.manifest.gate == "failed" else f"; {judge}"
        preferred = f"{first} would be preferred ({why}), but it {lacks}{hint}"
        return second, f"ship {second}: {preferred}{_unless_measured(other)}"
    if bundle.manifest.gate == "failed" and other.manifest.gate != "failed":
        return None, f"ship {second} once it has passed its accuracy gate: {gate_command(other)}; {first} {lacks}"
    if bundle.manifest.gate == "failed":
        return None, "ship neither: both have failed their accuracy gates"
    return None, f"ship {first} once it has passed its accuracy gate ({why}); {judge}"


def _unless_measured(bundle: Bundle) -> str:
    """What is left to do for a bundle that has passed in simulation alone, or with another engine."""
    if (outdated := gate_outdated(bundle)) is not None:
        return f"; its accuracy verdict counts no more ({outdated}), judge it here: {judge_again(bundle)}"
    gate = bundle.read_json(GATE)
    if not (isinstance(gate, dict) and gate.get("simulated") is True):
        return ""
    return f"; only a simulation has judged its accuracy so far, judge it here: {gate_command(bundle)}"


def gate_command(bundle: Bundle) -> str:
    """The command that judges a bundle's accuracy on a device, by the limits of its last verdict."""
    pack: Sequence[str] = () if PACK in bundle.files else ("--pack", "FILE")
    return shlex.join(["twins-trt", "gate", str(bundle.path), *pack, *limit_words(bundle)])


def _failed(bundle: Bundle) -> str:
    """The word for a failure. A doubtful reference that was not accepted says nothing of the engine."""
    gate = bundle.read_json(GATE)
    limits = gate.get("thresholds") if isinstance(gate, dict) else None
    accepted = isinstance(limits, dict) and limits.get("accept_reference") is True
    return "not passed, for a doubtful reference," if grounds_of(gate) and not accepted else "failed"


def _inaccuracy(bundle: Bundle) -> tuple[int, float]:
    """Sorts bundles, the most accurate first: by precision, then by the drop that their gates measured."""
    precision = bundle.manifest.precision
    rank = ACCURACY.index(precision) if precision in ACCURACY else len(ACCURACY)
    gate = bundle.read_json(GATE)
    drop = gate["drop"].get("mean") if isinstance(gate, dict) and isinstance(gate.get("drop"), dict) else None
    return rank, float(drop) if isinstance(drop, (int, float)) else math.inf
