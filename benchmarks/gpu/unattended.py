"""Run the commands that `python -m benchmarks.gpu --plan MINUTES` prints, and say what was not measured, and why.

python -m benchmarks.gpu.unattended --minutes 30 --copy-to DIR            run it again to continue
python -m benchmarks.gpu.unattended --minutes 30 --copy-to DIR --smoke    rehearse exactly these commands on a CPU

Where a command may take ten minutes at most, give --minutes 9 again and again. A run that is ended tells its account.
It needs torch, Triton, numpy and pytest alone. DIR gets a copy of the results after each row, what each command said
(`step-1.log`, ..., numbered on from the highest there is) and the account of the end (`unattended.txt`). All that it
knows of earlier runs is in the results file.

Exit codes: 0 all of the plan is done; 1 checks are red; 75 rows of the plan are left, or there was no time to plan any;
76 both; 2 the options are wrong, or a folder cannot be written; 4 there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.gpu import __main__ as program
from benchmarks.gpu import account, costs, files, schedule
from benchmarks.gpu.jobs import Job, list_jobs
from benchmarks.gpu.parent import die_with_parent
from benchmarks.gpu.runner import RED, UNFINISHED, UNFINISHED_AND_RED
from benchmarks.gpu.schedule import MARGIN_SECONDS, Command, Schedule
from benchmarks.gpu.store import ROOT, Key, Store, utc

LEAST_SECONDS = MARGIN_SECONDS + costs.START_SECONDS
"""A command that has less is not begun."""


class Stopped(Exception):
    """The run is to end now."""


@dataclass(frozen=True)
class Run:
    """What is run. end: seconds by time.monotonic. begin: UTC, as rows say when they were written. why: what hindered
    rows that were planned from being begun, but for lack of time."""

    options: argparse.Namespace
    jobs: Sequence[Job]
    end: float
    begin: str
    why: dict[Key, str] = field(default_factory=dict)

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
    options.add_argument("--minutes", type=program.positive, required=True, help="of all commands together")
    options.add_argument("--copy-to", type=Path, required=True, metavar="DIR")
    options.add_argument("--per-command", type=program.positive, default=10.0, metavar="MINUTES")
    options.add_argument("--fresh", action="store_true", help="measure all anew; what there is is set aside")
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
    run = Run(options, list_jobs(full()), end, utc())
    try:
        program.check_folders(options)
        _write(run, "under way")
        if options.fresh:
            run.store().clear()
            options.fresh = False  # what this run measures counts
        return _run(run)
    except Stopped as stopped:  # while nothing was measured, or the account was made
        print(stopped, file=sys.stderr)
        _write(run, str(stopped))
        return UNFINISHED
    except (files.UnwritableError, OSError) as error:
        print(error, file=sys.stderr)
        return program.UNWRITABLE


def _run(run: Run) -> int:
    # all of the time, though some has passed: what --plan prints is what is done, and a command ends when time does
    planned = run.schedule(set(), minutes=run.options.minutes)
    print(schedule.shown(planned, copy_to=run.options.copy_to, smoke=run.options.smoke), flush=True)
    wanted = [job for command in planned.commands for job in command.jobs]
    try:
        _do_all(list(planned.commands), run)
    except Stopped as stopped:
        run.why.update({job.key: run.why.get(job.key, str(stopped)) for job in wanted})
    store = run.store()
    if any(store.get(*job.key) for job in run.jobs):
        store.save()  # so that the copy is whole, or the account says why not
    said, left = account.of(run.jobs, wanted, store, begin=run.begin, seconds=planned.seconds, why=run.why)
    none = not wanted and bool(planned.left)
    if none:
        why = f"a command needs {LEAST_SECONDS:.0f} s at least, and what is left may need more"
        said = f"nothing was planned: {run.options.minutes:g} minutes are too few: {why}\n{said}"
    print(f"\n{said}", flush=True)
    _write(run, f"ended {utc()}\n{said}")
    if store.red():
        return UNFINISHED_AND_RED if left or none else RED
    return UNFINISHED if left or none else 0


def _write(run: Run, said: str) -> None:
    """The account, also of a run that is not at its end; where it cannot be written, the run goes on."""
    path = run.options.copy_to / "unattended.txt"
    try:
        files.write(path, f"begun {run.begin}\n{said}\n".encode())
    except OSError as error:
        files.tell_once(f"warning: cannot write {path}: {error.strerror or error}")


def _do_all(commands: list[Command], run: Run) -> None:
    number = _last_step(run.options.copy_to)
    tried: set[Key] = set()
    while commands and run.left() > LEAST_SECONDS:
        number += 1
        tried |= _do(commands.pop(0), number, run)
        if not commands and not run.options.smoke:  # time is left over, because rows took less than was predicted
            commands = list(run.schedule(tried, minutes=run.left() / 60).commands)


def _last_step(folder: Path) -> int:
    """The highest number of a log in the folder: what earlier runs said is kept."""
    found = (re.fullmatch(r"step-(\d+)\.log", path.name) for path in folder.glob("step-*.log"))
    return max((int(match[1]) for match in found if match), default=0)


def _do(command: Command, number: int, run: Run) -> set[Key]:
    """Runs one command and returns the rows that this run need not try again."""
    limit = min(command.limit_s, run.left())
    words = replace(command, limit_s=limit).words(copy_to=run.options.copy_to, smoke=run.options.smoke)
    print(f"\n== {number}. {command.title}\n{subprocess.list2cmdline(words)}", flush=True)
    log = run.options.copy_to / f"step-{number}.log"
    begin = time.monotonic()
    try:
        code = execute(words, log=log, limit_s=limit)
    except Stopped as stopped:
        tried = _tried(run)
        unbegun = [job for job in command.jobs if job.key not in tried]
        about = f" about at {unbegun[0].section}: {unbegun[0].name}" if unbegun else ""
        raise Stopped(f"{stopped}{about}") from None
    print(f"== exit code {code}", flush=True)
    tried = _tried(run)
    if code not in (UNFINISHED, UNFINISHED_AND_RED):  # 0 and 1 leave no row, unless Python ended by an error
        timed_out = code < 0 and time.monotonic() - begin >= limit
        ended = f"did not end in {limit:.0f} s" if timed_out else f"ended with exit code {code}"
        reason = f"command {number} {ended}: {_last_line(log)}"
        run.why.update({job.key: reason for job in command.jobs if job.key not in tried})
    if not any(job.key in tried for job in command.jobs):  # it does not even begin: not again
        tried |= {job.key for job in command.jobs}
    return tried


def _tried(run: Run) -> set[Key]:
    """The rows that were written since this run began."""
    store = run.store()
    rows = [(job.key, store.get(*job.key)) for job in run.jobs]
    return {key for key, row in rows if row is not None and row.get("at", "") >= run.begin}


def _last_line(log: Path) -> str:
    """What the command said last: its error, where it ended by one."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return (lines or ["it said nothing"])[-1][:300]


def execute(words: Sequence[str], *, log: Path, limit_s: float) -> int:
    """Runs a command, shows what it says and keeps that in `log`. limit_s: seconds after which it is ended.

    Returns its exit code, negative where a signal ended it.
    """
    end = time.monotonic() + limit_s
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        stdout=subprocess.PIPE,  # not the log: where its disk is full, the command must not end for it
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    assert process.stdout is not None
    with process.stdout as out:
        os.set_blocking(out.fileno(), False)
        try:
            _keep(b"", log, "wb")
            while process.poll() is None and time.monotonic() < end:
                if select.select([out], [], [], 0.2)[0] and not _show(out.fileno(), log):
                    time.sleep(0.05)  # it closed its output and goes on
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            while _show(out.fileno(), log):
                pass
    return code


def _show(output: int, log: Path) -> bool:
    """Shows and keeps what the command said since; False where that is nothing."""
    try:
        said = os.read(output, 1 << 16)
    except BlockingIOError:
        return False
    _keep(said, log, "ab")
    _tell(said)
    return bool(said)


def _keep(said: bytes, log: Path, mode: str) -> None:
    try:
        with log.open(mode) as file:
            file.write(said)
    except OSError as error:
        files.tell_once(f"warning: cannot write {log}: {error.strerror or error}")


def _tell(said: bytes) -> None:
    print(said.decode(errors="replace"), end="", flush=True)


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _stop(number: int, frame: object) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # another must not end the account
    raise Stopped(f"interrupted by {signal.Signals(number).name}")


if __name__ == "__main__":
    for number in SIGNALS:
        signal.signal(number, _stop)  # `timeout` ends it so: what was measured is told all the same
    raise SystemExit(main())
