"""What was measured and what was not, and why: the end of an unattended run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.gpu.files import kept_aside
from benchmarks.gpu.jobs import Job
from benchmarks.gpu.schedule import counted
from benchmarks.gpu.store import Key, Store

SHOWN = 12  # names of a reason; a count stands for the others


def of(
    jobs: Sequence[Job],
    wanted: Sequence[Job],
    store: Store,
    *,
    begin: str,
    seconds: Callable[[Job], float],
    why: Mapping[Key, str] | None = None,
) -> tuple[str, list[Job]]:
    """The account, and the wanted rows of which nothing was tried since `begin`.

    jobs: every row there is. wanted: those that the run meant to measure. begin: UTC, as rows say when they were
    written. seconds: predicts a row. why: what hindered a wanted row from being begun, by section and name; for lack of
    time where it is silent.
    """
    meant = {job.key for job in wanted}
    reasons: dict[str, list[Job]] = {}
    measured: list[Job] = []
    left = []
    unbegun = set()
    for job in jobs:
        row = store.get(*job.key)
        reason = why_not(row)
        untried = row is None or row.get("at", "") < begin
        if job.key in meant and untried and not store.has(*job.key):
            reason = (why or {}).get(job.key, reason)
        elif row is None:
            reason = NOT_PLANNED
        if reason is None:
            measured.append(job)
            continue
        if row is None:
            unbegun.add(reason)
        reasons.setdefault(reason, []).append(job)
        if job.key in meant and (untried or "given_up" in (row or {})):
            left.append(job)
    lines = [f"measured or green: {counted(measured) or 'nothing'}"]
    for reason, group in reasons.items():
        predicted = f", predicted {sum(map(seconds, group)) / 60:.0f} minutes" if reason in unbegun else ""
        lines.append(f"not measured: {len(group)} rows{predicted}: {reason}")
        lines += [f"  {job.section}: {job.name}" for job in group[:SHOWN]]
        lines += [f"  and {len(group) - SHOWN} more"] if len(group) > SHOWN else []
    lines += kept_aside(store.folders(), store.name)
    lines += [store.copy_error] if store.copy_error else []
    return "\n".join(lines), left


NOT_BEGUN = "there was no time to begin them"
NOT_PLANNED = "not planned: predicted to need more than was left"


def why_not(row: Mapping[str, Any] | None) -> str | None:
    """Why the row holds no figure; None where it does, or is a green check."""
    if row is None:
        return NOT_BEGUN
    if "excluded" in row:
        return str(row["excluded"])
    if "error" in row:
        return str(row["error"])
    return None if row.get("passed", True) else f"red: {row.get('said') or row.get('errors')}"
