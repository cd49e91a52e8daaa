"""The fallback of one build: rank the parts of its plan, search, and judge the plan that is left."""

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

HARDEST = 4  # images that parts are ranked on, those on which the first gate agreed least


@dataclass(frozen=True)
class Fallback:
    """What came out. plan: the cheapest that passed, else the one that drops least. gate: its result. outcome:
    its costs are shares of the FLOPs that the plan's level would run in INT8. harm: of each part alone, what they were
    ranked by."""

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
                }
                for each in self.outcome.evaluations
            ],
            "harm": dict(sorted(self.harm.items(), key=lambda item: -item[1])),
        }

    def file(self) -> bytes:
        """The content of `fallback.json`."""
        return (json.dumps(self.to_json(), indent=1) + "\n").encode()

    def summary(self) -> str:
        """One line on what was reached."""
        best = self.outcome.best
        names = ", ".join(sorted(best.reverted)[:4]) + (" ..." if len(best.reverted) > 4 else "")
        return (
            f"after {len(self.outcome.evaluations)} plans: {len(best.reverted)} parts in FP16 ({names or 'none'}), "
            f"{100 * best.cost:.1f} % of the FLOPs, the mIoU may drop by {best.score.drop:.3f} points"
        )


def fall_back(
    plan: PrecisionPlan,
    graphs: QuantizedGraphs,
    first: GateResult,
    *,
    judge: Callable[[PrecisionPlan], GateResult],
    hardest: Sequence[Image],
    state: SearchState,
    max_evaluations: int,
    threads: int | None,
    progress: Progress,
) -> Fallback:
    """Searches the parts of `plan`, which failed with the result `first`, for those to revert.

    judge: gates a plan. hardest: images that the parts are ranked on. state: what is known of an earlier run.
    """
    parts = find_parts(plan, graphs.sites)
    ranked = rank_parts(
        plan, parts, graphs, hardest, harm=state.harm, threads=threads, progress=progress, keep=state.save
    )
    results = {frozenset[str](): first}
    state.scores[frozenset()] = _score(first)

    def evaluate(reverted: Parts) -> PlanScore:
        tried = len(state.scores) + 1
        progress("fallback", f"plan {tried} of at most {max_evaluations}: {len(reverted)} parts in FP16", None)
        results[reverted] = judge(plan.reverted(sorted(reverted)))
        state.scores[reverted] = _score(results[reverted])
        state.save()
        return state.scores[reverted]

    def share(reverted: Parts) -> float:
        return graphs.reverted_share(plan.reverted(sorted(reverted)))

    outcome = search(ranked, cost=share, evaluate=evaluate, max_evaluations=max_evaluations, known=dict(state.scores))
    chosen = outcome.best.reverted
    found = plan.reverted(sorted(chosen))
    # Known of an earlier run is no more than passed and drop.
    return Fallback(found, results.get(chosen) or judge(found), outcome, dict(state.harm))


def _score(result: GateResult) -> PlanScore:
    return PlanScore(result.passed, result.drop.high)
