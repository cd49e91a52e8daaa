"""The fallback: reverts parts of an INT8 plan to FP16, as cheaply as possible, until the plan passes its gate."""

from twins_trt.builders.fallback.parts import Part, find_parts, rank_parts
from twins_trt.builders.fallback.run import HARDEST, Fallback, fall_back
from twins_trt.builders.fallback.search import Outcome, PlanScore, TriedPlan, search
from twins_trt.builders.fallback.state import SearchState, search_key

__all__ = [
    "HARDEST",
    "Fallback",
    "Outcome",
    "Part",
    "PlanScore",
    "SearchState",
    "TriedPlan",
    "fall_back",
    "find_parts",
    "rank_parts",
    "search",
    "search_key",
]
