"""The search for the parts to revert, given their ranking and a score for any set of them.

It reverts the worst parts first, and doubles their number until a set passes. Bisection between the last set that
failed and the first that passed finds the shortest. Then each part of that set, the most expensive first, is taken out
again if the set still passes without it. A larger set may fail where a smaller one passes: the result is the cheapest
set that passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Parts = frozenset[str]


@dataclass(frozen=True)
class PlanScore:
    """What the search knows of a plan.

    passed: its gate. drop: points of mIoU, the upper end of the gate's interval. agreement: the share of pixels that
    equal the reference's, 0 to 1. missing: percentage points by which drop and agreement miss their limits, added up.
    """

    passed: bool
    drop: float
    agreement: float = 1.0
    missing: float = 0.0


@dataclass(frozen=True)
class TriedPlan:
    """One plan that was judged. reverted: its parts at FP16. cost: of reverting them."""

    reverted: Parts
    cost: float
    score: PlanScore


@dataclass(frozen=True)
class Outcome:
    """What a search found. evaluations: in order. exhausted: whether it ended because no evaluations were left."""

    evaluations: tuple[TriedPlan, ...]
    exhausted: bool

    @property
    def chosen(self) -> TriedPlan | None:
        """The cheapest evaluation that passed, among equals the one with the smallest drop; None if none passed."""
        passed = [each for each in self.evaluations if each.score.passed]
        return min(passed, key=lambda each: (each.cost, each.score.drop), default=None)

    @property
    def best(self) -> TriedPlan:
        """The chosen evaluation, else the plan that misses its limits by least."""
        return self.chosen or min(self.evaluations, key=lambda each: (each.score.missing, each.score.drop))


class _Exhausted(Exception):
    """No evaluation is left."""


def search(
    ranked: Sequence[str],
    *,
    cost: Callable[[Parts], float],
    evaluate: Callable[[Parts], PlanScore],
    max_evaluations: int,
    known: Mapping[Parts, PlanScore] | None = None,
) -> Outcome:
    """Searches the cheapest set of parts that passes when it is reverted.

    ranked: all parts that may be reverted, the most harmful first. cost: of reverting a set; it must grow with the set.
    evaluate: scores a set; called at most once for each. max_evaluations: how many sets may be scored. known: scores of
    an earlier run. They are used instead of calling `evaluate`, and they count, so that the search repeats itself.
    """
    seen: dict[Parts, TriedPlan] = {}
    known = known or {}

    def passes(parts: Parts) -> bool:
        if parts not in seen:
            if len(seen) >= max_evaluations:
                raise _Exhausted
            score = known[parts] if parts in known else evaluate(parts)
            seen[parts] = TriedPlan(parts, cost(parts), score)
        return seen[parts].score.passed

    def left() -> int:
        return max_evaluations - len(seen)

    exhausted = False
    try:
        if not passes(frozenset()):
            _narrow(ranked, cost, passes, left)
    except _Exhausted:
        exhausted = True
    return Outcome(tuple(seen.values()), exhausted)


def _narrow(
    ranked: Sequence[str],
    cost: Callable[[Parts], float],
    passes: Callable[[Parts], bool],
    left: Callable[[], int],
) -> None:
    def prefix(count: int) -> Parts:
        return frozenset(ranked[:count])

    failing, count = 0, 1
    while failing < len(ranked) and not passes(prefix(count)):
        failing = count
        # Doubled, or more if doubling would not reach all parts with the evaluations that are left.
        reach = len(ranked) if left() <= 1 else math.ceil(failing * (len(ranked) / failing) ** (1 / left()))
        count = min(len(ranked), max(2 * failing, reach))
    if failing == len(ranked):
        return  # fails even with nothing in INT8
    while count - failing > 1:
        middle = (failing + count) // 2
        failing, count = (failing, middle) if passes(prefix(middle)) else (middle, count)
    kept = prefix(count)
    # The last part stays: the set failed without it.
    for name in sorted(ranked[: count - 1], key=lambda each: -cost(frozenset({each}))):
        if passes(kept - {name}):
            kept -= {name}
