"""Does the rows one after another: within a budget, without what rests on a red check, each one kept at once."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.gpu.costs import predicted
from benchmarks.gpu.jobs import Job, Row

if TYPE_CHECKING:
    from benchmarks.gpu.store import Store

RED = 1
UNFINISHED = 75  # sysexits' EX_TEMPFAIL: run it again
UNFINISHED_AND_RED = 76

ROW_SECONDS = 900.0
"""After so long a row is given up where no budget ends it sooner."""

Do = Callable[[Job, float | None], Row]
"""Makes a job's row within so many seconds, or gives it up: see `Worker.do`."""


@dataclass(frozen=True)
class Clock:
    """What is left of a budget. seconds: of the budget, None for no limit. now: seconds, from any start."""

    now: Callable[[], float]
    begin: float
    seconds: float | None

    def left(self) -> float:
        """Seconds that are left."""
        return float("inf") if self.seconds is None else self.begin + self.seconds - self.now()


def run(
    jobs: Sequence[Job],
    store: Store | None,
    *,
    do: Do,
    budget_s: float | None = None,
    now: Callable[[], float] = time.monotonic,
    seconds: Callable[[Job], float] = predicted,
) -> int:
    """Does the jobs that the store does not have, in their order, and returns the exit code.

    A figure that rests on a red check, of now or of the store, is excluded and reported; one that rests on a check that
    was not made, for lack of time or of what it needs, waits for it. What was given up before is tried last.

    store: None keeps nothing. budget_s: seconds, None for no limit: no row is begun that is predicted to take more than
    is left, and one that does take more is given up. seconds: predicts a row.
    """
    clock = Clock(now, now(), budget_s)
    todo = [job for job in jobs if store is None or not store.has(*job.key)]
    todo.sort(key=lambda job: (job.section != "checks", _was_given_up(job, store)))  # stable: else by worth
    red = {} if store is None else store.red()
    unchecked = {job.name: job.covers for job in todo if job.section == "checks"}
    left: list[Job] = []
    repeated: dict[str | None, int] = {}  # errors of a rehearsal: what a CPU does not have is said once
    excluded = measured = failed = 0
    for number, job in enumerate(todo, 1):
        says = f"[{number}/{len(todo)}] {job.section}: {job.name}:"
        reason = _red(job, red)
        if reason is not None:
            excluded += 1
            _put(store, job, {"excluded": reason})
            print(f"{says} EXCLUDED: {reason}", flush=True)
            continue
        if _waits(job, unchecked) or seconds(job) > clock.left() or clock.left() <= 0:
            left.append(job)
            continue
        began = now()
        row = do(job, min(ROW_SECONDS, clock.left()))
        row["took_s"] = round(now() - began, 3)
        if "given_up" in row and clock.left() <= 1:  # by the budget: a check is not red for that, it is to be made
            row.pop("passed", None)
            left.append(job)
        elif "error" in row:
            failed += 1
        else:
            measured += 1
        if "passed" in row:
            _note(job, row, red, unchecked)
        _put(store, job, row)
        error = str(row["error"]) if "error" in row and _is_rehearsal(store) else None
        if error in repeated:
            repeated[error] += 1
            continue
        if error is not None:
            repeated[error] = 0
        print(f"{says} {shown(row)}", flush=True)
    for error, times in repeated.items():
        if times:
            print(f"and {times} rows more: {error}", flush=True)
    waiting = [
        name for name, covers in unchecked.items() if any(part in covers for job in left for part in job.rests_on)
    ]
    if waiting:
        print(f"rows wait for checks that were not made: {', '.join(waiting)}", file=sys.stderr)
    new = f"{measured} new rows"
    return _end(store, red, left, new=f"{new}, {failed} failed" if failed else new, excluded=excluded, seconds=seconds)


def shown(row: Row) -> str:
    """A row, for a line of the terminal."""
    took = f" [{row['took_s']:.1f} s]" if "took_s" in row else ""
    if "passed" in row:
        said = row.get("error") or row.get("said") or row.get("errors", "")
        return f"{'green' if row['passed'] else 'RED'} {said}{took}"
    if "error" in row:
        return f"{row['error']}{took}"
    if "ms" not in row:
        return f"{row.get('said', 'done')}{took}"
    rate = f", {row['rate']:.3g} {row['unit']}" if "rate" in row else ""
    in_row = f", {row['ms_in_row']:.4f} ms in a row" if "ms_in_row" in row else ""
    return f"{row['ms']:.4f} ms ({row.get('timed', '')}){in_row}{rate}{took}"


def _red(job: Job, red: dict[str, tuple[str, ...]]) -> str | None:
    """Why the figure is excluded."""
    for check, covers in red.items():
        parts = [part for part in job.rests_on if part in covers]
        if parts:
            return f"it rests on {parts[0]}, and the check {check!r} is red"
    return None


def _waits(job: Job, unchecked: dict[str, tuple[str, ...]]) -> bool:
    """Whether a check of what the figure rests on was to be made and was not."""
    return any(part in covers for covers in unchecked.values() for part in job.rests_on)


def _note(job: Job, row: Row, red: dict[str, tuple[str, ...]], unchecked: dict[str, tuple[str, ...]]) -> None:
    """A check was made: what is red now. A check may find that less is wrong than it covers."""
    unchecked.pop(job.name, None)
    red.pop(job.name, None)
    if not row["passed"]:
        row.setdefault("covers", list(job.covers))
        red[job.name] = tuple(row["covers"])


def _was_given_up(job: Job, store: Store | None) -> bool:
    row = None if store is None else store.get(*job.key)
    return row is not None and "given_up" in row


def _is_rehearsal(store: Store | None) -> bool:
    return store is None or not store.name.startswith("gpu-")


def _put(store: Store | None, job: Job, row: Row) -> None:
    if store is not None:
        store.put(*job.key, {**({"rests_on": list(job.rests_on)} if job.rests_on else {}), **row})


def _end(
    store: Store | None,
    red: dict[str, tuple[str, ...]],
    left: list[Job],
    *,
    new: str,
    excluded: int,
    seconds: Callable[[Job], float],
) -> int:
    if red:
        said = "; ".join(f"{check} ({', '.join(covers) or 'nothing that is timed'})" for check, covers in red.items())
        print(f"{len(red)} checks are red, and {excluded} rows are excluded for it: {said}", file=sys.stderr)
    if left:
        longest = max(map(seconds, left))
        print(f"the budget is spent: {new}, {len(left)} are left", end="")
        print(f", the longest of predicted {longest:.0f} s; run it again", flush=True)
        return UNFINISHED_AND_RED if red else UNFINISHED
    if store is None:
        print("rehearsed: nothing was kept")
    else:
        then = "; then, in the project's environment: python -m benchmarks.render"
        print(f"{store.name}.json has {new}{'' if _is_rehearsal(store) else then}")
    return RED if red else 0
