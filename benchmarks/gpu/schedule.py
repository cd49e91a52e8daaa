"""The commands that are worth most within a time: what each yields, and what it is predicted to cost."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.costs import START_SECONDS
from benchmarks.gpu.jobs import Job, Selection, choose, worth

SMALL = ("twins_svt-s_fpn", "twins_pcpvt-s_fpn")
PLAIN = ("ours", "strong", "plain")
COMPILED = ("autotuned", "compiled")

MARGIN_SECONDS = 40.0
"""Between a command's budget and the end of its time: to start, and to end what does not end by itself."""


@dataclass(frozen=True)
class Step:
    """What to measure together. models, batches: None for all. kinds: of forms, see `Job.kind`. tests: run pytest."""

    title: str
    sections: tuple[str, ...]
    models: tuple[str, ...] | None = None
    kinds: tuple[str, ...] = PLAIN
    batches: tuple[int, ...] | None = None
    tests: bool = False


STEPS = (
    Step("the checks, our models, our runtime", ("checks", "models", "runtime"), SMALL, ("ours",), tests=True),
    Step("ours and the competitors that nothing compiles", ("ceilings", "models", "kernels"), SMALL),
    Step("the strongest competitors, autotuned", ("models",), SMALL[:1], ("autotuned",), batches=(1,)),
    Step("kernels of one replay; compute-sanitizer", ("traces", "sanitizer"), SMALL[:1]),
    Step("training steps", ("training",), SMALL[:1]),
    Step("compiled competitors of the first model", ("models",), SMALL[:1], COMPILED),
    Step("training steps, compiled", ("training",), SMALL[:1], COMPILED),
    Step("compiled competitors of the second", ("models",), SMALL[1:], COMPILED),
    Step("ours and plain competitors of every model", ("models", "kernels"), None),
    Step("training steps and kernels of a replay of every model", ("training", "traces"), None),
    Step("compiled competitors of every model", ("models", "training"), None, COMPILED),
    Step("attentions, compiled", ("kernels",), None, COMPILED),
)
"""In the order of what is worth most."""


@dataclass(frozen=True)
class Command:
    """One call of the program. jobs: the rows that it adds. seconds: predicted. limit_s: of the whole command."""

    title: str
    wanted: Selection
    jobs: tuple[Job, ...]
    seconds: float
    limit_s: float

    @property
    def budget_s(self) -> int:
        return int(self.limit_s - MARGIN_SECONDS)

    def words(self, *, copy_to: Path | None, smoke: bool) -> list[str]:
        """The command line, by this interpreter."""
        wanted = self.wanted
        words = [sys.executable, "-m", "benchmarks.gpu", "--sections", *wanted.sections]
        for option, names in (("models", wanted.models), ("batches", wanted.batches), ("forms", wanted.forms)):
            words += [f"--{option}", *map(str, names)] if names else []
        words += [] if wanted.tests else ["--no-tests"]
        words += ["--budget", str(self.budget_s)]
        words += [] if copy_to is None else ["--copy-to", str(copy_to)]
        return [*words, "--smoke"] if smoke else words


@dataclass(frozen=True)
class Schedule:
    """The commands in their order, and the rows for which there is no time."""

    minutes: float
    commands: tuple[Command, ...]
    left: tuple[Job, ...]
    seconds: Callable[[Job], float]


def make(
    jobs: Sequence[Job],
    *,
    minutes: float,
    per_command: float,
    seconds: Callable[[Job], float],
    done: Collection[tuple[str, str]] = (),
) -> Schedule:
    """Takes the steps in the order of their worth, each cut into commands that fit; what does not fit is left.

    minutes: of all commands. per_command: minutes that one may take. seconds: predicts a row. done: section and name of
    rows that need not be measured any more.
    """
    taken: set[tuple[str, str]] = set(done)
    commands: list[Command] = []
    limit = 60 * per_command
    for step in STEPS:
        wanted = _selection(step, jobs)
        pieces = [] if wanted is None else [wanted]
        while pieces:
            piece = pieces.pop(0)
            new = tuple(job for job in choose(jobs, piece) if job.key not in taken)
            if not any(job.section in piece.sections for job in new):
                continue
            cost = START_SECONDS + sum(map(seconds, new))
            most = min(limit, 60 * minutes - sum(command.seconds for command in commands))
            room = math.floor(most - MARGIN_SECONDS)  # as a command's budget is
            halves = list(_halves(piece, new)) if cost > room else []
            if halves:
                pieces = [*halves, *pieces]
                continue
            if cost > room:  # what fits of it
                new = _fitting(new, room - START_SECONDS, seconds)
                cost = START_SECONDS + sum(map(seconds, new))
                if not any(job.section in piece.sections for job in new):
                    continue
            commands.append(Command(step.title, piece, new, cost, most))
            taken.update(job.key for job in new)
    left = tuple(job for job in jobs if job.key not in taken)
    return Schedule(minutes, tuple(commands), left, seconds)


def shown(schedule: Schedule, *, copy_to: Path | None = None, smoke: bool = False) -> str:
    """The commands, to be copied into a shell, with comments between them."""
    total = sum(command.seconds for command in schedule.commands)
    predicted = f"predicted: {len(schedule.commands)} commands, {total / 60:.1f} minutes"
    lines = [f"# {round(schedule.minutes, 1):g} minutes; {predicted}"]
    for number, command in enumerate(schedule.commands, 1):
        yields = counted(command.jobs)
        lines += ["", f"# {number}. {command.title}: predicted {command.seconds:.0f} s; yields {yields}"]
        lines.append(shlex.join(command.words(copy_to=copy_to, smoke=smoke)))
    if schedule.left:
        cost = sum(map(schedule.seconds, schedule.left))
        left = counted(schedule.left)
        lines += ["", f"# no time for: {left}; predicted {cost / 60:.0f} minutes more"]
    return "\n".join(lines)


def _selection(step: Step, jobs: Sequence[Job]) -> Selection | None:
    """The step with its names spelled out, so that it can be cut; None where nothing of it exists."""
    wanted = Selection(step.sections, step.models, step.batches, tests=step.tests)
    fitting = (job for job in jobs if job.section in step.sections and wanted.fits(job) and job.kind in step.kinds)
    rows = sorted(fitting, key=worth)
    if not rows:
        return None
    sections = tuple(section for section in step.sections if any(job.section == section for job in rows))
    models = tuple(dict.fromkeys(job.model for job in rows if job.model))
    batches = tuple(dict.fromkeys(job.batch for job in rows if job.batch))
    forms = tuple(dict.fromkeys(job.form for job in rows if job.form))
    if step.tests:  # the checks of every figure of these models, which themselves name none
        models = step.models or ()
    return Selection(sections, models or None, batches or None, forms or None, step.tests)


def _halves(wanted: Selection, new: Sequence[Job]) -> Iterator[Selection]:
    """The selection as two that are smaller, the worthier first: by models, batches, forms or sections."""
    if wanted.tests:
        rest = tuple(section for section in wanted.sections if section != "checks")
        if rest:
            yield replace(wanted, sections=("checks",))
            yield replace(wanted, sections=rest, tests=False)
        elif wanted.models is not None and len(wanted.models) > 1:  # the tests are run with the first model
            yield replace(wanted, models=wanted.models[:1])
            yield replace(wanted, models=wanted.models[1:], tests=False)
        return
    for field, (names, of) in _axes(wanted).items():
        needed = {of(job) for job in new}
        used = tuple(name for name in names or () if name in needed)
        if len(used) > 1:
            middle = (len(used) + 1) // 2
            for half in (used[:middle], used[middle:]):
                changed: dict[str, Any] = {field: half}
                yield replace(wanted, **changed)
            return


def _axes(wanted: Selection) -> dict[str, tuple[tuple[Any, ...] | None, Callable[[Job], Any]]]:
    """What a selection can be cut along: its field, the names in it, and a row's own."""
    return {
        "models": (wanted.models, lambda job: job.model),
        "batches": (wanted.batches, lambda job: job.batch),
        "forms": (wanted.forms, lambda job: job.form),
        "sections": (wanted.sections, lambda job: job.section),
    }


def _fitting(jobs: Sequence[Job], room: float, seconds: Callable[[Job], float]) -> tuple[Job, ...]:
    """As many of the rows, from the first on, as this many seconds suffice for."""
    fitting: list[Job] = []
    for job in jobs:
        if sum(map(seconds, fitting)) + seconds(job) <= room:
            fitting.append(job)
    return tuple(fitting)


def counted(jobs: Sequence[Job]) -> str:
    """How many rows there are of each section."""
    counts: dict[str, int] = {}
    for job in jobs:
        counts[job.section] = counts.get(job.section, 0) + 1
    return ", ".join(f"{count} {section}" for section, count in counts.items())
