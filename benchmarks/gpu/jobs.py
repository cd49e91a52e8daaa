"""What can be measured, as a list: what each row rests on, what it is worth, and which rows are chosen."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.gpu.workload import Workload

Row = dict[str, Any]
LIMIT: ContextVar[float] = ContextVar("LIMIT", default=float("inf"))
"""Seconds after which the row that is being made will be given up."""

Measure = Callable[[], Row]

SECTIONS: Mapping[str, str] = {
    "checks": "benchmarks.gpu.checks",
    "runtime": "benchmarks.gpu.runtime",
    "ceilings": "benchmarks.gpu.ceilings",
    "kernels": "benchmarks.gpu.kernels",
    "models": "benchmarks.gpu.models",
    "training": "benchmarks.gpu.training",
    "traces": "benchmarks.gpu.traces",
    "sanitizer": "benchmarks.gpu.sanitizer",
}
"""The module that lists the rows of each section, by `jobs(workload)`."""

TESTS = "tests "
"""What the names of checks that run pytest begin with."""

WORTH = (
    ("checks", "ours"),
    ("models", "ours"),
    ("runtime", "ours"),
    ("ceilings", "ours"),
    ("kernels", "ours"),
    ("models", "strong"),
    ("kernels", "strong"),
    ("traces", "ours", "strong", "plain"),
    ("sanitizer", "ours"),
    ("training", "ours"),
    ("training", "strong", "plain"),
    ("models", "plain"),
    ("kernels", "plain"),
    ("models", "autotuned"),
    ("models", "compiled"),
    ("kernels", "compiled"),
    ("traces", "autotuned", "compiled"),
    ("training", "autotuned", "compiled"),
)
"""Sections and kinds of forms, in the order in which they are measured."""

STRONG = ("eager amp", "sdpa")  # beginnings of the names of the strongest that Inductor does not compile
COMPILED = ("compiled", "flex")  # parts of the names of what Inductor compiles without trying all it knows


def kind_of(form: str) -> str:
    """`autotuned` or `compiled` by Inductor, whose ever it is; else `ours`, or the others' `strong` or `plain`."""
    if "autotune" in form:
        return "autotuned"
    if any(part in form for part in COMPILED):
        return "compiled"
    if form.startswith("ours"):
        return "ours"
    return "strong" if form.startswith(STRONG) else "plain"


@dataclass(frozen=True)
class Job:
    """One row of the results: a check, whose row has `passed`, or a figure.

    measure: makes the row; it may take minutes. form, model, batch: what a figure is chosen by; None fits every choice.
    covers: what is not to be trusted where this check is red. rests_on: what a figure is worthless without.
    seconds: wall time that is predicted for it; None for what its section and form usually take.
    """

    name: str
    measure: Measure = field(compare=False)
    form: str | None = None
    model: str | None = None
    batch: int | None = None
    covers: tuple[str, ...] = ()
    rests_on: tuple[str, ...] = ()
    seconds: float | None = None
    section: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.section, self.name

    @property
    def kind(self) -> str:
        """See `kind_of`."""
        return kind_of(self.form or "ours")


@dataclass(frozen=True)
class Selection:
    """Which rows are wanted; None for all. tests: run pytest as well, where what it covers is needed."""

    sections: tuple[str, ...] = tuple(SECTIONS)
    models: tuple[str, ...] | None = None
    batches: tuple[int, ...] | None = None
    forms: tuple[str, ...] | None = None
    tests: bool = True

    def fits(self, job: Job) -> bool:
        """Whether model, batch and form are wanted; not its section."""
        pairs = ((self.models, job.model), (self.batches, job.batch), (self.forms, job.form))
        return all(wanted is None or value is None or value in wanted for wanted, value in pairs)


def list_jobs(workload: Workload, sections: Mapping[str, str] = SECTIONS) -> list[Job]:
    """Every row of every section. sections: name and module of each."""
    jobs: list[Job] = []
    for section, module in sections.items():
        listed: Iterable[Job | tuple[str, Measure]] = importlib.import_module(module).jobs(workload)
        jobs += [replace(job if isinstance(job, Job) else Job(*job), section=section) for job in listed]
    return jobs


def choose(jobs: Sequence[Job], wanted: Selection) -> list[Job]:
    """The checks that the wanted figures rest on, then these figures by worth.

    Where `checks` is a wanted section, all tests, and the checks of every figure of the wanted models and batches.
    """
    figures = [job for job in jobs if job.section != "checks" and job.section in wanted.sections and wanted.fits(job)]
    needed = {part for job in figures for part in job.rests_on}
    if "checks" in wanted.sections:
        every_form = replace(wanted, forms=None)
        needed |= {part for job in jobs if every_form.fits(job) for part in job.rests_on}
    checks = [job for job in jobs if job.section == "checks" and _is_needed(job, needed, wanted)]
    return checks + sorted(figures, key=worth)


def worth(job: Job) -> int:
    """Its place in the order of what is worth most; equal for many."""
    for place, (section, *kinds) in enumerate(WORTH):
        if job.section == section and job.kind in kinds:
            return place
    return len(WORTH)


def _is_needed(check: Job, needed: set[str], wanted: Selection) -> bool:
    if check.name.startswith(TESTS):
        return wanted.tests and ("checks" in wanted.sections or not needed.isdisjoint(check.covers))
    return not needed.isdisjoint(check.covers)
