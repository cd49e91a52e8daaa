"""The search itself, apart from what it is about: parts ranked worst first, and a verdict on any set of them.

Reverting the worst parts first, the number of them doubles until a set passes; bisection between the last that failed
and the first that passed finds the shortest; then it steps back: parts that were swept along are taken out again, the
dearest first, wherever the rest still passes without. Passing need not be monotone: whatever passed and costs least is
the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Parts = frozenset[str]


@dataclass(frozen=True)
class PlanScore:
    """passed: of the gate. drop: points of mIoU, the upper end of the interval: what the gate holds a plan to."""

    passed: bool
    drop: float


@dataclass(frozen=True)
class Evaluation:
    """One verdict. reverted: the parts at FP16. cost: of reverting them."""

    reverted: Parts
    cost: float
    score: PlanScore


@dataclass(frozen=True)
class Outcome:
    """evaluations: all verdicts, in order. exhausted: the search ended because it had no more evaluations left."""

    evaluations: tuple[Evaluation, ...]
    exhausted: bool

    @property
    def chosen(self) -> Evaluation | None:
        """The cheapest that passed, of equals the one that drops least; None where nothing passed."""
        passed = [each for each in self.evaluations if each.score.passed]
        return min(passed, key=lambda each: (each.cost, each.score.drop), default=None)

    @property
    def best(self) -> Evaluation:
        """What to show: the chosen one, else the one that drops least."""
        return self.chosen or min(self.evaluations, key=lambda each: each.score.drop)


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
    """The outcome of reverting parts, worst first.

    ranked: all parts that may be reverted, the most harmful first. cost: of a set; more parts cost more. evaluate:
    asked once a set at most. max_evaluations: verdicts in all. known: verdicts of an earlier run, which are not asked
    for again but count: the same search takes the same way.
    """
    seen: dict[Parts, Evaluation] = {}
    known = known or {}

    def passes(parts: Parts) -> bool:
        if parts not in seen:
            if len(seen) >= max_evaluations:
                raise _Exhausted
            score = known[parts] if parts in known else evaluate(parts)
            seen[parts] = Evaluation(parts, cost(parts), score)
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
        # Doubled, or faster where the evaluations left would not reach the whole.
        reach = len(ranked) if left() <= 1 else math.ceil(failing * (len(ranked) / failing) ** (1 / left()))
        count = min(len(ranked), max(2 * failing, reach))
    if failing == len(ranked):
        return  # not even without INT8
    while count - failing > 1:
        middle = (failing + count) // 2
        failing, count = (failing, middle) if passes(prefix(middle)) else (middle, count)
    kept = prefix(count)
    # Without the last of them it failed: that one stays.
    for name in sorted(ranked[: count - 1], key=lambda each: -cost(frozenset({each}))):
        if passes(kept - {name}):
            kept -= {name}
