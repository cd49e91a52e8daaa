"""Check, then measure, everything that needs a CUDA GPU; write benchmarks/results/gpu-NAME.json.

python -m benchmarks.gpu                     all of it; where it ends with exit code 75, run it again to continue
python -m benchmarks.gpu --budget 540        stop in time for a machine that is lent for ten minutes (exit code 75)
python -m benchmarks.gpu --sections kernels  checks first all the same
python -m benchmarks.gpu --smoke             rehearse every line in miniature on a CPU; nothing is kept
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.checkout import make_importable

make_importable()

if TYPE_CHECKING:
    from benchmarks.gpu.store import Store
    from benchmarks.gpu.workload import Workload

SECTIONS = ("ceilings", "kernels", "models", "training")
UNFINISHED = 75  # sysexits' EX_TEMPFAIL: run it again

Job = tuple[str, str, Callable[[], dict[str, Any]]]
Listing = Callable[["Workload"], Iterable[tuple[str, Callable[[], dict[str, Any]]]]]
"""The jobs of one section, by name."""


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=SECTIONS, metavar="NAME")
    options.add_argument("--budget", type=float, metavar="SECONDS", help="start nothing after this long")
    options.add_argument("--fresh", action="store_true", help="measure everything anew")
    options.add_argument("--no-tests", action="store_true", help="leave pytest out of the checks; the results say so")
    options.add_argument(
        "--smoke", action="store_true", help="in miniature on a CPU, by the reference; nothing is kept"
    )
    return options


def main(
    argv: list[str] | None = None,
    *,
    listings: Mapping[str, Listing] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """The program. listings: by section, `checks` first; by default what this package measures."""
    options = parser().parse_args(argv)
    import torch

    from benchmarks.gpu.workload import full, smoke

    listings = listings or all_listings(tests=not options.no_tests)
    if options.smoke:
        return run(list_jobs(smoke(), options.sections, listings), None, budget_s=options.budget, clock=clock)
    if not torch.cuda.is_available():
        print("there is no CUDA GPU that torch can use; --smoke rehearses on a CPU", file=sys.stderr)
        return 4
    from benchmarks.gpu.store import Store, file_name, fingerprint

    workload = full()
    facts = {
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "size": list(workload.size),
        "dtype": str(workload.dtype).removeprefix("torch."),
        "tests": not options.no_tests,
    }
    name = file_name(torch.cuda.get_device_name())
    store = Store(name, facts, fingerprint=fingerprint(), fresh=options.fresh)
    return run(list_jobs(workload, options.sections, listings), store, budget_s=options.budget, clock=clock)


def all_listings(*, tests: bool) -> dict[str, Listing]:
    """What lists the jobs of the checks and of each section. tests: run the tests marked gpu as well."""
    from benchmarks.gpu import ceilings, checks, kernels, models, training

    figures = zip(SECTIONS, (ceilings, kernels, models, training), strict=True)
    return {
        "checks": functools.partial(checks.jobs, tests=tests),
        **{section: module.jobs for section, module in figures},
    }


def list_jobs(workload: Workload, sections: Sequence[str], listings: Mapping[str, Listing]) -> Iterator[Job]:
    """Every check, then every figure of the sections."""
    for section, jobs in listings.items():
        if section == "checks" or section in sections:
            yield from ((section, *job) for job in jobs(workload))


def run(
    jobs: Iterable[Job],
    store: Store | None,
    *,
    budget_s: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Does the jobs that the store does not have, checks first, and returns the exit code.

    store: None keeps nothing. budget_s: seconds after which no job is begun; None for no limit.
    """
    deadline = None if budget_s is None else clock() + budget_s
    red: list[str] = []
    todo = [job for job in jobs if store is None or not store.has(job[0], job[1])]
    for done, (section, name, measure) in enumerate(todo):
        if section != "checks" and red:
            print(f"{len(red)} checks are red: nothing is timed", file=sys.stderr)
            return 1
        if deadline is not None and clock() > deadline:
            print(f"the budget is spent: {done} rows are new, {len(todo) - done} are left; run it again", flush=True)
            return UNFINISHED
        row = measured(section, measure)
        if section == "checks" and not row["passed"]:
            red.append(name)
        if store is not None:
            store.put(section, name, row)
        print(f"[{done + 1}/{len(todo)}] {section}: {name}: {_shown(row)}", flush=True)
        if row.get("capture_failed"):
            print(f"a failed capture spoils the process: {len(todo) - done - 1} are left; run it again", flush=True)
            return UNFINISHED
    if red:
        print(f"{len(red)} checks are red", file=sys.stderr)
        return 1
    print("rehearsed: nothing was kept" if store is None else f"{store.name}.json; now python -m benchmarks.render")
    return 0


def measured(section: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The row, or one with its error: a form that a GPU or a shape does not have must not end the run."""
    import torch

    from benchmarks.gpu.timing import CaptureError

    on_stream: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if torch.cuda.is_available():
        on_stream = torch.cuda.stream(torch.cuda.Stream())  # the default stream cannot be captured
    try:
        with on_stream:
            return measure()
    except Exception as error:
        lines = str(error).strip().splitlines()
        said = f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
        row: dict[str, Any] = {"error": said}
        if section == "checks":
            row["passed"] = False
        if isinstance(error, CaptureError):
            row["capture_failed"] = True
        return row
    finally:
        torch.compiler.reset()  # so that no form uses what another compiled, or meets the limit of recompiling
        if torch.cuda.is_available():
            with contextlib.suppress(RuntimeError):  # it raises after a failed capture, and the row must be kept
                torch.cuda.empty_cache()


def _shown(row: dict[str, Any]) -> str:
    if "error" in row:
        return str(row["error"])
    if "passed" in row:
        return f"{'green' if row['passed'] else 'RED'} {row.get('said') or row.get('errors', '')}"
    return f"{row['ms']:.4f} ms ({row['timed']})" + (f", {row['rate']:.3g} {row['unit']}" if "rate" in row else "")


if __name__ == "__main__":
    raise SystemExit(main())
