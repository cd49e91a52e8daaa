"""Looks at a machine: what is installed, which commands can run, and what is broken, with the command that mends it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twins_trt.lazy import lazy_names

if TYPE_CHECKING:
    from twins_trt.diagnosis.causes import Finding, diagnose
    from twins_trt.diagnosis.facts import Facts, gather
    from twins_trt.diagnosis.needs import commands, lacking

__all__ = ["Facts", "Finding", "commands", "diagnose", "gather", "lacking"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "twins_trt.diagnosis.causes": ["Finding", "diagnose"],
        "twins_trt.diagnosis.facts": ["Facts", "gather"],
        "twins_trt.diagnosis.needs": ["commands", "lacking"],
    },
)
