"""The fallback: reverts parts of an INT8 plan to FP16, as cheaply as possible, until the plan passes its gate."""

from twins_trt.builders.fallback.parts import Part, find_parts, rank_parts
from twins_trt.builders.fallback.run import HARDEST, Fallback, fall_back
from twins_trt.builders.fallback.search import Evaluation, Outcome, PlanScore, search
from twins_trt.builders.fallback.state import SearchState, search_key

__all__ = [
    "HARDEST",
    "Evaluation",
    "Fallback",
    "Outcome",
    "Part",
    "PlanScore",
    "SearchState",
    "fall_back",
    "find_parts",
    "rank_parts",
    "search",
    "search_key",
]
