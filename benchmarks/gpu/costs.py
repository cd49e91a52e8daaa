"""How long a row takes: what it took before, or what is predicted for its section and form."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from benchmarks.gpu.jobs import TESTS, Job

START_SECONDS = 20.0
"""Predicted for the start of a command: torch is imported twice, and the GPU's context is made."""

SECONDS: Mapping[tuple[str, str], float] = {
    ("checks", "ours"): 2.0,
    ("runtime", "ours"): 4.0,
    ("ceilings", "ours"): 2.0,
    ("kernels", "ours"): 1.5,
    ("kernels", "strong"): 1.2,
    ("kernels", "plain"): 1.2,
    ("kernels", "compiled"): 25.0,
    ("models", "ours"): 10.0,
    ("models", "strong"): 6.0,
    ("models", "plain"): 6.0,
    ("models", "autotuned"): 150.0,
    ("models", "compiled"): 45.0,
    ("traces", "ours"): 15.0,
    ("traces", "strong"): 15.0,
    ("traces", "plain"): 15.0,
    ("traces", "autotuned"): 150.0,
    ("traces", "compiled"): 90.0,
    ("training", "ours"): 15.0,
    ("training", "strong"): 12.0,
    ("training", "plain"): 12.0,
    ("training", "autotuned"): 180.0,
    ("training", "compiled"): 180.0,
    ("sanitizer", "ours"): 120.0,
}
"""Predicted wall time of a row by section and kind of form: guesses, until a row was measured once."""

TEST_SECONDS = {
    "tests/kernels/test_on_gpu.py": 61.0,
    "tests/kernels/test_on_gpu_around.py": 39.0,
    "tests/kernels/test_on_gpu_between.py": 37.0,
    "tests/runtime/test_engine_on_gpu.py": 14.0,
    "tests/simulators/test_cuda_order.py": 5.0,
}
"""What files of tests took on an H200 with 16 cores."""

OTHER_TEST_SECONDS = 30.0
"""Predicted for a file of tests."""

UNKNOWN_SECONDS = 20.0


def predicted(job: Job) -> float:
    """Seconds that the row is thought to take on a GPU."""
    if job.seconds is not None:
        return job.seconds
    if job.name.startswith(TESTS):
        return TEST_SECONDS.get(job.name.removeprefix(TESTS), OTHER_TEST_SECONDS)
    return SECONDS.get((job.section, job.kind), UNKNOWN_SECONDS)


def seconds_of(took: Mapping[tuple[str, str], float]) -> Callable[[Job], float]:
    """What a row took where that is known, else what is predicted. took: seconds by section and name."""
    return lambda job: took.get(job.key, predicted(job))


def table(jobs: Sequence[Job], took: Mapping[tuple[str, str], float], done: Collection[tuple[str, str]]) -> str:
    """What the rows cost by section, model and form, in the order in which they are measured.

    took: seconds of rows that were measured, by section and name. done: rows that need not be measured any more.
    """
    groups: dict[tuple[str, str, str], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.section, job.model or "", job.form or ""), []).append(job)
    of = seconds_of(took)
    lines: list[tuple[str, ...]] = [
        ("section", "model", "form", "rows", "done", "seconds", "of these measured", "left, seconds")
    ]
    for key, group in groups.items():
        lines.append((*key, *_cells(group, of, took, done)))
    lines.append(("all", "", "", *_cells(jobs, of, took, done)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    said = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    note = (
        "Seconds are predicted, but for rows that a results file holds: of these it has what they took. "
        f"Each command takes about {START_SECONDS:.0f} s more to start."
    )
    return "\n".join([*said, "", note])


def _cells(
    group: Sequence[Job],
    of: Callable[[Job], float],
    took: Mapping[tuple[str, str], float],
    done: Collection[tuple[str, str]],
) -> tuple[str, ...]:
    left = [job for job in group if job.key not in done]
    measured = sum(took.get(job.key, 0.0) for job in group)
    figures = (sum(map(of, group)), measured, sum(map(of, left)))
    return (str(len(group)), str(len(group) - len(left)), *(f"{figure:.0f}" for figure in figures))
