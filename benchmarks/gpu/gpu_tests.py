"""The tests marked gpu as checks: each file in a process of its own, and what a failed test casts doubt on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from benchmarks.gpu.jobs import LIMIT
from benchmarks.gpu.parent import die_with_parent
from benchmarks.gpu.store import ROOT, tests_fingerprint

Row = dict[str, Any]

PYTEST = (sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider")

TEST_SECONDS = 840.0  # less than a row has without a budget, so that what was found is kept
TO_TELL_SECONDS = 5.0
TIMED_OUT = 124
PROCESSES = 12  # where pytest-xdist is installed; each holds a CUDA context

EVERYTHING = ("between", "gsa", "lsa", "postprocess", "preprocess", "runtime", "torch engine")

ATTENTIONS = {"lsa", "gsa"}
APART = ("float32", "bfloat16")
"""Data types whose tests cast no doubt on float16, which is what most rows run in."""

COVERS: dict[str, tuple[str, ...]] = {
    "tests/kernels/test_on_gpu.py": ("lsa", "gsa"),
    "tests/kernels/test_on_gpu.py::test_tf32_on_request": ("lsa tf32", "gsa tf32"),
    "tests/kernels/test_on_gpu.py::test_compiled_by_inductor": ("lsa compiled", "gsa compiled"),
    "tests/kernels/test_on_gpu_between.py": ("between",),
    "tests/kernels/test_on_gpu_around.py": ("torch engine",),
    "tests/kernels/test_on_gpu_around.py::test_masks": ("postprocess",),
    "tests/kernels/test_on_gpu_around.py::test_cells": ("postprocess",),
    "tests/kernels/test_on_gpu_around.py::test_the_first_of_equal": ("postprocess",),
    "tests/kernels/test_on_gpu_around.py::test_inputs": ("preprocess",),
    "tests/kernels/test_on_gpu_around.py::test_a_graph_replays_the_reference_of_an_input": ("preprocess",),
    "tests/runtime": ("runtime",),
    "tests/simulators": ("simulators",),
}
"""What the tests whose names begin so cover; the longest beginning counts. Another test covers everything."""

NOTHING_COLLECTED = 5  # pytest's exit code

RUINED = re.compile(r"CUDA error|illegal memory access|unspecified launch failure|device-side assert|cudaError")
"""What tests say when one of them has ruined the process for those after it."""


def covered_by_file(file: str) -> tuple[str, ...]:
    """The most that the tests of a file cover, in every data type."""
    inside = {part for name, parts in COVERS.items() if name.startswith(f"{file}::") for part in parts}
    parts = inside | set(_covered(file))
    return tuple(sorted(parts | {f"{part} {dtype}" for part in parts & ATTENTIONS for dtype in APART}))


def covered_by_test(test: str) -> tuple[str, ...]:
    """What one test covers, by its id. Its parameters narrow it: to an attention, and to a data type.

    `lsa` is what float16 rests on; `lsa float32` and `lsa bfloat16` are apart.
    """
    name, _, parameters = test.partition("[")
    words = re.split(r"[-\]]", parameters)
    parts = _covered(name)
    named = tuple(part for part in parts if part.split()[0] in words) or parts
    dtype = next((dtype for dtype in APART if f"torch.{dtype}" in words), "")
    return tuple(f"{part} {dtype}".rstrip() if part in ATTENTIONS else part for part in named)


def run_file(file: str, *, limit_s: float = TEST_SECONDS, collect_only: bool = False) -> Row:
    """Runs the tests marked gpu of one file. `covers` of a red row is what the failed tests cast doubt on.

    Where all are skipped, or where time runs out before one fails, the row has `error` and is neither green nor red:
    what rests on it waits.

    limit_s: seconds after which it is ended. collect_only: run none, but see that they are found.
    """
    if find_spec("pytest") is None:
        return _row(False, "pytest is missing: install it, or give --no-tests", file)
    limit_s = min(limit_s, max(1.0, LIMIT.get() - TO_TELL_SECONDS))
    end = time.monotonic() + limit_s
    if collect_only:
        code, out = pytest("--collect-only", "-q", file, limit_s=limit_s)
        found = len(re.findall(r"^tests/\S+::", out, re.MULTILINE))
        if found == 0 and skipped(out):
            return _not_run(file, out)
        return _row(code == 0 and found > 0, f"{found} tests were collected, and none was run", file, output=out)
    parallel = ("-n", str(min(PROCESSES, os.cpu_count() or 1))) if find_spec("xdist") else ()
    code, out = pytest("-v", "--tb=short", "-rfEs", *parallel, file, limit_s=limit_s)
    said = summary(out)
    red = failed_tests(out)
    if code == TIMED_OUT and not red:
        green = len(re.findall(r"^.*\bPASSED\b", out, re.MULTILINE))
        said = f"{green} tests of {file} passed, then {said}"
        return {"error": said, "timed_out": True, "tests": tests_fingerprint()}
    if skipped(out) and not red and "passed" not in said and code in (0, NOTHING_COLLECTED):
        return _not_run(file, out)
    if red and RUINED.search(out):
        # One of them may have ruined the process of the others: each alone says which.
        again = {test.partition("[")[0] for test in red}
        red = []
        for test in sorted(again):
            alone, more = pytest("-q", "--tb=short", "-rfEs", test, limit_s=max(1.0, end - time.monotonic()))
            red += failed_tests(more) or ([test] if alone != 0 else [])
            out += more
        said += f"; alone, {len(red)} of them fail"
        code = 1 if red else 0
    passed = code == 0 and "passed" in said
    said = "; ".join((said, *skipped(out)))
    row = _row(passed, said, file, output=out)
    if code == TIMED_OUT:
        row["timed_out"] = True
    if not passed and red and code in (1, TIMED_OUT):  # another code of pytest's says that it fell over itself
        row["covers"] = sorted({part for test in red for part in covered_by_test(test)})
        row["failed"] = red
    return row


def failed_tests(output: str) -> list[str]:
    """Ids of the tests that failed, by pytest's short summary, or by its progress where it did not come to that."""
    found = re.findall(r"^(?:FAILED|ERROR) (tests/\S+?\.py::.+?)(?: - .*)?$", output, re.MULTILINE)
    found = found or re.findall(r"^(tests/\S+?\.py::.+?) (?:FAILED|ERROR) +\[ *\d+%\]$", output, re.MULTILINE)
    found = found or re.findall(
        r"^\[gw\d+\] \[ *\d+%\] (?:FAILED|ERROR) (tests/\S+?\.py::.+?) *$", output, re.MULTILINE
    )
    return list(dict.fromkeys(found))


def skipped(output: str) -> list[str]:
    """Why tests were skipped, by pytest's short summary."""
    found = re.findall(r"^SKIPPED \[\d+\] \S+?: (.*)$", output, re.MULTILINE)
    return list(dict.fromkeys(found))


def summary(output: str) -> str:
    """pytest's last line, such as `3 failed, 20 passed in 12.3s`."""
    return (output.strip().splitlines() or ["it said nothing"])[-1].strip("= ")[:300]


def pytest(*words: str, limit_s: float) -> tuple[int, str]:
    """Exit code and output of pytest in a process of its own, because a kernel that crashes ruins its process.

    It needs no plugin. limit_s: seconds after which it is ended, without what it started; its code is then TIMED_OUT.
    """
    try:
        done = call([*PYTEST, *words], limit_s=limit_s)
    except subprocess.TimeoutExpired as error:
        out = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        return TIMED_OUT, f"{out}\nit took more than {limit_s:.0f} s"
    return done.returncode, done.stdout if done.stdout.strip() else done.stderr[-3000:]


def call(
    command: Sequence[str], *, limit_s: float, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command that must not outlive this process. Raises TimeoutExpired. environment: by default its own."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=limit_s,
        preexec_fn=die_with_parent,
    )


def _covered(name: str) -> tuple[str, ...]:
    fitting = [beginning for beginning in COVERS if name.startswith(beginning)]
    return COVERS[max(fitting, key=len)] if fitting else EVERYTHING


def _not_run(file: str, output: str) -> Row:
    return {"error": f"no test of {file} was run: {'; '.join(skipped(output))}", "tests": tests_fingerprint()}


def _row(passed: bool, said: str, file: str, *, output: str = "") -> Row:
    """Tests change without changing a figure, so the row says which they were."""
    more = {"output": output[-6000:]} if not passed and output else {}
    return {"passed": passed, "said": said, "covers": list(covered_by_file(file)), "tests": tests_fingerprint(), **more}
