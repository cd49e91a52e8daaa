"""Check, then measure, everything that needs a CUDA GPU; write benchmarks/results/gpu-NAME.json.

python -m benchmarks.gpu --plan 30             the commands for 30 minutes: what each yields, and its predicted cost
python -m benchmarks.gpu.unattended --minutes 30 --copy-to DIR      run these commands, and say what was not measured
python -m benchmarks.gpu                       all of it; where it ends with exit code 75, run it again to continue
python -m benchmarks.gpu --budget 540          stop in time for a machine that is lent for ten minutes
python -m benchmarks.gpu --sections models --models twins_svt-s_fpn --batches 1 --forms ours "eager amp"
python -m benchmarks.gpu --costs               what each group of rows costs; nothing is measured
python -m benchmarks.gpu --smoke               rehearse every line in miniature on a CPU; nothing is kept

Exit codes: 0 all green; 1 checks are red, and what rests on them is excluded; 75 rows are left; 76 both; 2 the options
are wrong, or a folder cannot be written; 4 there is no GPU. What earlier code measured is set aside and never lost.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import results
from benchmarks.gpu import costs, files, schedule
from benchmarks.gpu.jobs import SECTIONS, Job, Selection, choose, list_jobs
from benchmarks.gpu.runner import run
from benchmarks.gpu.store import Store, file_name, fingerprint, seconds_taken, tests_fingerprint
from benchmarks.gpu.worker import Worker

if TYPE_CHECKING:
    from benchmarks.gpu.workload import Workload

UNWRITABLE = 2
NO_GPU = 4
REHEARSAL = "rehearsal-gpu"
"""Name of a rehearsal's results file, which no table reads."""


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--sections", nargs="+", metavar="NAME", help="and the checks that their rows rest on")
    options.add_argument("--models", nargs="+", metavar="NAME")
    options.add_argument("--batches", nargs="+", type=int, metavar="N", help="images at once")
    options.add_argument("--forms", nargs="+", metavar="NAME", help="ways to compute; quote one that has a space")
    options.add_argument("--budget", type=positive, metavar="SECONDS", help="begin nothing that would take longer")
    options.add_argument("--copy-to", type=Path, metavar="DIR", help="copy the results file there after each row")
    options.add_argument("--fresh", action="store_true", help="measure all anew; what there is is set aside")
    options.add_argument("--no-tests", action="store_true", help="leave pytest out; what it found before still counts")
    options.add_argument("--costs", action="store_true", help="print what the chosen rows cost, and measure nothing")
    options.add_argument("--plan", type=positive, metavar="MINUTES", help="print the commands that are worth most")
    options.add_argument(
        "--per-command", type=positive, default=10.0, metavar="MINUTES", help="the most that one command takes (10)"
    )
    options.add_argument(
        "--smoke", action="store_true", help="in miniature on a CPU, by the reference; kept in --copy-to alone"
    )
    return options


def positive(text: str) -> float:
    """A number of an option. Raises ArgumentTypeError where it is not one, not finite, or not above zero."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number above zero")
    return number


def main(
    argv: list[str] | None = None,
    *,
    sections: Mapping[str, str] = SECTIONS,
    now: Callable[[], float] = time.monotonic,
) -> int:
    """The program. sections: name and module of each, see `list_jobs`. now: seconds, from any start."""
    options = parser().parse_args(argv)
    if options.plan is not None:
        _refuse_beside_plan(options)
    from benchmarks.gpu.workload import full, smoke

    # What can be chosen is said by what a GPU measures, also in a rehearsal: it takes the same commands.
    jobs = list_jobs(full(), sections)
    wanted = selection(options, jobs, sections, rehearsed=smoke().models if options.smoke else ())
    if not choose([*jobs, *(list_jobs(smoke(), sections) if options.smoke else ())], wanted):
        parser().error("no row has this section, model, batch and form at once; --costs lists what there is")
    if options.plan is not None or options.costs:
        print(told(options, jobs, wanted))
        return 0
    workload = smoke(wanted.models, wanted.batches) if options.smoke else full()
    if options.smoke:
        jobs = list_jobs(workload, sections)
    elif gpu_name() is None:
        print("there is no CUDA GPU that torch can use; --smoke rehearses on a CPU", file=sys.stderr)
        return NO_GPU
    try:
        check_folders(options)
        store = open_store(options, workload)
        taken = {} if store is None or options.smoke else store.seconds()
        with Worker(workload, sections) as worker:
            return run(
                choose(jobs, wanted),
                store,
                do=worker.do,
                budget_s=options.budget,
                now=now,
                seconds=costs.seconds_of(taken),
            )
    except files.UnwritableError as error:
        print(error, file=sys.stderr)
        return UNWRITABLE


def check_folders(options: argparse.Namespace) -> None:
    """Raises UnwritableError where the results or their copy cannot be written."""
    for folder in (None if options.smoke else results.RESULTS, options.copy_to):
        if folder is not None:
            files.check_writable(folder)


def _refuse_beside_plan(options: argparse.Namespace) -> None:
    """A plan is of everything: an option that it would not obey is a usage error."""
    names = ("sections", "models", "batches", "forms", "budget", "fresh", "no_tests", "costs")
    given = ", ".join(f"--{name.replace('_', '-')}" for name in names if getattr(options, name))
    if given:
        parser().error(f"--plan chooses the rows by itself; leave out {given}")


def selection(
    options: argparse.Namespace, jobs: Sequence[Job], sections: Mapping[str, str], *, rehearsed: Sequence[str] = ()
) -> Selection:
    """What the options choose. Exits with a usage error that lists the known names where one is unknown.

    rehearsed: models that only a rehearsal has.
    """
    known: dict[str, Sequence[Any]] = {
        "sections": tuple(sections),
        "models": (*dict.fromkeys(job.model for job in jobs if job.model), *rehearsed),
        "batches": tuple(dict.fromkeys(job.batch for job in jobs if job.batch)),
        "forms": tuple(dict.fromkeys(job.form for job in jobs if job.form)),
    }
    for name, names in known.items():
        unknown = [each for each in getattr(options, name) or () if each not in names]
        if unknown:
            listed = ", ".join(repr(each) if " " in str(each) else str(each) for each in names)
            parser().error(f"--{name}: unknown {', '.join(map(repr, unknown))}; known are: {listed}")
    given = {name: tuple(getattr(options, name)) for name in known if getattr(options, name)}
    return Selection(**{"sections": tuple(sections), **given}, tests=not options.no_tests)


def told(options: argparse.Namespace, jobs: Sequence[Job], wanted: Selection) -> str:
    """The answer to --plan or --costs: by this GPU's or the rehearsal's results file, else by those of all GPUs."""
    gpu = gpu_name()
    store = open_store(options, None) if options.smoke or gpu is not None else None
    if store is None:
        taken = seconds_taken(sorted(results.RESULTS.glob("gpu-*.json")))
    elif options.smoke and options.plan is not None:
        taken = {}  # a rehearsal's seconds are not a GPU's
    else:
        taken = {**seconds_taken([path for path in store.places() if path.is_file()]), **store.seconds()}
    done = {job.key for job in jobs if store is not None and store.has(*job.key)}
    if options.costs:
        return costs.table(choose(jobs, wanted), taken, done)
    planned = schedule.make(
        jobs, minutes=options.plan, per_command=options.per_command, seconds=costs.seconds_of(taken), done=done
    )
    return schedule.shown(planned, copy_to=options.copy_to, smoke=options.smoke)


def open_store(options: argparse.Namespace, workload: Workload | None) -> Store | None:
    """The results file of this GPU, or of a rehearsal; None where nothing is kept. workload: by default `full()`."""
    import torch

    from benchmarks.gpu.workload import full

    if options.smoke and options.copy_to is None:
        return None
    workload = workload or full()
    facts = {
        "gpu": gpu_name(),
        "cuda": torch.version.cuda,
        "size": list(workload.size),
        "dtype": str(workload.dtype).removeprefix("torch."),
    }
    name = REHEARSAL if options.smoke else file_name(str(gpu_name()))
    folder = options.copy_to if options.smoke else results.RESULTS
    return Store(
        name,
        facts,
        fingerprint=fingerprint(),
        others=fingerprint(ours=False),
        tests=tests_fingerprint(),
        fresh=options.fresh,
        folder=folder,
        copy_to=options.copy_to,
    )


def gpu_name() -> str | None:
    """The GPU that torch can use."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


if __name__ == "__main__":
    raise SystemExit(main())
