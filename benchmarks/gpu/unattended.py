"""Run the commands that `python -m benchmarks.gpu --plan MINUTES` prints, and say what was not measured, and why.

python -m benchmarks.gpu.unattended --minutes 30 --copy-to DIR            run it again to continue
python -m benchmarks.gpu.unattended --minutes 30 --copy-to DIR --smoke    rehearse exactly these commands on a CPU

Where a command may take ten minutes at most, give --minutes 9 again and again. A run that is ended tells its account.
It needs torch, Triton, numpy and pytest alone. DIR gets a copy of the results after each row, what each command said
(`step-1.log`, ...) and the account of the end (`unattended.txt`). All that it knows of earlier runs is in the results
file. Exit codes are those of `python -m benchmarks.gpu`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.gpu import __main__ as program
from benchmarks.gpu import account, costs, schedule
from benchmarks.gpu.jobs import Job, list_jobs
from benchmarks.gpu.parent import die_with_parent
from benchmarks.gpu.runner import RED, UNFINISHED, UNFINISHED_AND_RED
from benchmarks.gpu.schedule import MARGIN_SECONDS, Command, Schedule
from benchmarks.gpu.store import ROOT, Key, Store

LEAST_SECONDS = MARGIN_SECONDS + costs.START_SECONDS
"""A command that has less is not begun."""


class Stopped(Exception):
    """The run is to end now."""


@dataclass(frozen=True)
class Run:
    """What is run. end: seconds by time.monotonic. begin: UTC, as rows say when they were written."""

    options: argparse.Namespace
    jobs: Sequence[Job]
    end: float
    begin: str

    def left(self) -> float:
        """Seconds that are left."""
        return self.end - time.monotonic()

    def store(self) -> Store:
        """The results file as it is now."""
        store = program.open_store(self.options, None)
        assert store is not None  # a rehearsal is kept in --copy-to
        return store

    def schedule(self, tried: set[Key], *, minutes: float) -> Schedule:
        """What to do in so many minutes. tried: rows that this run need not try again."""
        store = self.store()
        return schedule.make(
            self.jobs,
            minutes=minutes,
            per_command=self.options.per_command,
            seconds=costs.seconds_of({} if self.options.smoke else store.seconds()),
            done=tried | {job.key for job in self.jobs if store.has(*job.key)},
        )


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.unattended",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--minutes", type=float, required=True, help="of all commands together")
    options.add_argument("--copy-to", type=Path, required=True, metavar="DIR")
    options.add_argument("--per-command", type=float, default=10.0, metavar="MINUTES")
    options.add_argument("--fresh", action="store_true", help="forget what was measured before")
    options.add_argument("--smoke", action="store_true")
    return options


def main(argv: list[str] | None = None) -> int:
    """The program."""
    options = parser().parse_args(argv)
    end = time.monotonic() + 60 * options.minutes
    from benchmarks.gpu.workload import full

    if not options.smoke and program.gpu_name() is None:
        print("there is no CUDA GPU that torch can use; --smoke rehearses on a CPU", file=sys.stderr)
        return program.NO_GPU
    options.copy_to.mkdir(parents=True, exist_ok=True)
    run = Run(options, list_jobs(full()), end, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    if options.fresh:
        for place in run.store().places():
            place.unlink(missing_ok=True)
    # all of the time, though some has passed: what --plan prints is what is done, and a command ends when time does
    planned = run.schedule(set(), minutes=options.minutes)
    print(schedule.shown(planned, copy_to=options.copy_to, smoke=options.smoke), flush=True)
    wanted = [job for command in planned.commands for job in command.jobs]
    with contextlib.suppress(Stopped):
        _do_all(list(planned.commands), run)
    said, left = account.of(run.jobs, wanted, run.store(), begin=run.begin, seconds=planned.seconds)
    print(f"\n{said}", flush=True)
    (options.copy_to / "unattended.txt").write_text(f"{said}\n", encoding="utf-8")
    if run.store().red():
        return UNFINISHED_AND_RED if left else RED
    return UNFINISHED if left else 0


def _do_all(commands: list[Command], run: Run) -> None:
    number = 0
    tried: set[Key] = set()
    while commands and run.left() > LEAST_SECONDS:
        number += 1
        tried |= _do(commands.pop(0), number, run)
        if not commands and not run.options.smoke:  # time is left over, because rows took less than was predicted
            commands = list(run.schedule(tried, minutes=run.left() / 60).commands)


def _do(command: Command, number: int, run: Run) -> set[Key]:
    """Runs one command and returns the rows that this run need not try again."""
    limit = min(command.limit_s, run.left())
    words = replace(command, limit_s=limit).words(copy_to=run.options.copy_to, smoke=run.options.smoke)
    print(f"\n== {number}. {command.title}\n{subprocess.list2cmdline(words)}", flush=True)
    log = run.options.copy_to / f"step-{number}.log"
    code = execute(words, log=log, limit_s=limit)
    print(f"== exit code {code}", flush=True)
    store = run.store()
    rows = [(job.key, store.get(*job.key)) for job in run.jobs]
    tried = {key for key, row in rows if row is not None and row["at"] >= run.begin}
    if not any(job.key in tried for job in command.jobs):  # it does not even begin: not again
        tried |= {job.key for job in command.jobs}
    return tried


def execute(words: Sequence[str], *, log: Path, limit_s: float) -> int:
    """Runs a command, shows what it says and keeps that in `log`. limit_s: seconds after which it is ended.

    Returns its exit code, negative where a signal ended it.
    """
    end = time.monotonic() + limit_s
    with log.open("wb") as out, log.open("rb") as shown:
        process = subprocess.Popen(
            words, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=die_with_parent
        )
        try:
            while process.poll() is None and time.monotonic() < end:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
                _tell(shown.read())
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            _tell(shown.read())
    return code


def _tell(said: bytes) -> None:
    print(said.decode(errors="replace"), end="", flush=True)


def _stop(number: int, frame: object) -> None:
    raise Stopped


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)  # `timeout` ends it so: what was measured is told all the same
    raise SystemExit(main())
