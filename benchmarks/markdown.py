"""Tables and the line below them, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.results import describe_run


def table(head: Sequence[str], rows: Sequence[Sequence[object]], *, align: str | None = None) -> str:
    """A Markdown table. `align`: one of l, r, c for each column; by default the first is left, the others right."""
    align = align or "l" + "r" * (len(head) - 1)
    rule = {"l": ":--", "r": "--:", "c": ":-:"}
    lines = [head, [rule[each] for each in align], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def how(results: Mapping[str, Any]) -> str:
    """One small line: the command, machine, versions and date."""
    return f"<sub>`{results['command']}` on {describe_run(results)}.</sub>"


def fused(row: Mapping[str, Any]) -> str:
    """Fused attentions out of all, as in 18/18."""
    return f"{row['attentions']}/{row['expected_attentions']}"


def megabytes(row: Mapping[str, Any]) -> str:
    """What the kernels read and write in all, in MB."""
    return f"{row['bytes_moved'] / 1e6:.0f}"
