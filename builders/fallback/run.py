"""The fallback of one build: ranks the parts of its plan, and searches which of them to revert."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from twins_trt.builders.fallback.parts import Image, find_parts, rank_parts
from twins_trt.builders.fallback.search import Outcome, Parts, PlanScore, search
from twins_trt.builders.fallback.state import SearchState
from twins_trt.builders.gate import GateResult
from twins_trt.builders.plan.precision_plan import PrecisionPlan
from twins_trt.builders.quantize import QuantizedGraphs
from twins_trt.progress import Progress

HARDEST = 4  # images that parts are ranked on: those on which the first plan agreed least with the reference


@dataclass(frozen=True)
class Fallback:
    """What a fallback gave.

    plan: the cheapest that passed, else the one that misses its limits by least. gate: its result. outcome: of the
    search; a cost is the share of the FLOPs of the plan's level that is reverted. harm: of each part alone, by which
    parts were ranked.
    """

    plan: PrecisionPlan
    gate: GateResult
    outcome: Outcome
    harm: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `fallback.json`."""
        best = self.outcome.best
        return {
            "passed": best.score.passed,
            "exhausted": self.outcome.exhausted,
            "reverted": sorted(best.reverted),
            "reverted_share": best.cost,
            "evaluations": [
                {
                    "reverted": sorted(each.reverted),
                    "reverted_share": each.cost,
                    "passed": each.score.passed,
                    "drop": each.score.drop,
                    "agreement": each.score.agreement,
                }
                for each in self.outcome.evaluations
            ],
            "harm": dict(sorted(self.harm.items(), key=lambda item: -item[1])),
        }

    def file(self) -> bytes:
        """The content of `fallback.json`."""
        return (json.dumps(self.to_json(), indent=1) + "\n").encode()

    def summary(self) -> str:
        """The result in one line."""
        best = self.outcome.best
        names = ", ".join(sorted(best.reverted)[:4]) + (" ..." if len(best.reverted) > 4 else "")
        return (
            f"after {len(self.outcome.evaluations)} plans: {len(best.reverted)} parts in FP16 ({names or 'none'}), "
            f"{100 * best.cost:.1f} % of the FLOPs, the mIoU may drop by {best.score.drop:.3f} points and "
            f"{100 * best.score.agreement:.3f} % of the pixels agree"
        )


def fall_back(
    plan: PrecisionPlan,
    graphs: QuantizedGraphs,
    failed: GateResult,
    *,
    judge: Callable[[PrecisionPlan], GateResult],
    hardest: Sequence[Image],
    state: SearchState,
    max_evaluations: int,
    threads: int | None,
    progress: Progress,
) -> Fallback:
    """Searches which parts of a plan to revert so that it passes its gate.

    failed: the result of `plan`. judge: gates another plan. hardest: the images that parts are ranked on. state: the
    results of an earlier run, and the file for those of this one.
    """
    parts = find_parts(plan, graphs.sites)
    ranked = rank_parts(
        plan, parts, graphs, hardest, harm=state.harm, threads=threads, progress=progress, keep=state.save
    )
    results = {frozenset[str](): failed}
    state.scores[frozenset()] = _score(failed)

    def evaluate(reverted: Parts) -> PlanScore:
        number = len(state.scores) + 1
        progress("fallback", f"plan {number} of at most {max_evaluations}: {len(reverted)} parts in FP16", None)
        results[reverted] = judge(plan.reverted(sorted(reverted)))
        state.scores[reverted] = _score(results[reverted])
        state.save()
        return state.scores[reverted]

    def share(reverted: Parts) -> float:
        return graphs.reverted_share(plan.reverted(sorted(reverted)))

    outcome = search(ranked, cost=share, evaluate=evaluate, max_evaluations=max_evaluations, known=dict(state.scores))
    best = outcome.best.reverted
    best_plan = plan.reverted(sorted(best))
    # A plan of an earlier run has only its score in the state, so it is judged again.
    return Fallback(best_plan, results.get(best) or judge(best_plan), outcome, dict(state.harm))


def _score(result: GateResult) -> PlanScore:
    limits = result.thresholds
    above = max(0.0, result.drop.high - limits.max_drop)
    below = max(0.0, (limits.min_agreement or 0.0) - result.agreement)
    return PlanScore(result.passed, result.drop.high, result.agreement, above + 100 * below)
