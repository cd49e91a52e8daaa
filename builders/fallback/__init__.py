"""The fallback: which parts of an INT8 plan go back to FP16 so that it passes its gate, at the least cost."""

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
