"""How the ranges of activations are chosen."""

from __future__ import annotations

from twins_trt.verbs.flags import Flag
from twins_trt.verbs.kinds import NAMES, NUMBER, WHOLE


def range_flags(group: str) -> tuple[Flag, ...]:
    """Observers and their numbers, and how images meet the graph."""
    return (
        Flag(
            "--observer",
            "observers",
            "the ones to store, of which the first is used; default: {default}",
            NAMES,
            "A,B",
            group=group,
        ),
        Flag("--percentile", "percentile", "default: {default}", NUMBER, "P", group=group),
        Flag("--bins", "bins", "of each histogram; default: {default}", WHOLE, "N", group=group),
        Flag("--minimum", "minimum", "refuse fewer different images; default: {default}", WHOLE, "N", group=group),
        Flag(
            "--fit",
            "fit",
            "into a graph of fixed size; default: {default}",
            metavar="{stretch,letterbox}",
            group=group,
        ),
    )
