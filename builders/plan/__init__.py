"""The precision plan: which parts of a graph run in INT8. Importing the levels alone does not load onnx."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twins_trt.builders.plan.levels import FIRST_OPSET, INT8_OPSET, LEVELS
from twins_trt.lazy import lazy_names

if TYPE_CHECKING:
    from twins_trt.builders.plan.precision_plan import PrecisionPlan, uniform_plan
    from twins_trt.builders.plan.sites import Site, find_sites

__all__ = ["FIRST_OPSET", "INT8_OPSET", "LEVELS", "PrecisionPlan", "Site", "find_sites", "uniform_plan"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "twins_trt.builders.plan.precision_plan": ["PrecisionPlan", "uniform_plan"],
        "twins_trt.builders.plan.sites": ["Site", "find_sites"],
    },
)
