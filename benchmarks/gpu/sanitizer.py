"""The GPU tests of small shapes under NVIDIA's compute-sanitizer: reads and writes beyond a tensor, and races."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.gpu_tests import summary
from benchmarks.gpu.jobs import Job
from benchmarks.gpu.parent import die_with_parent
from benchmarks.gpu.store import ROOT, tests_fingerprint
from benchmarks.gpu.workload import Workload

Row = dict[str, Any]

FILE = "tests/kernels/test_on_gpu.py"
TESTS_OF = "1x1 or primes"  # shapes that end in the middle of a block
TOOLS = ("memcheck", "racecheck")
SECONDS = 400.0
FOUND = 9  # exit code of our choice


def jobs(workload: Workload) -> Iterator[Job]:
    """One row for each tool; on a CPU the tests are only collected."""
    for tool in TOOLS:
        run = functools.partial(run_tool, tool, rehearse=workload.device.type != "cuda")
        yield Job(f"compute-sanitizer {tool}", run, covers=("lsa", "gsa"))


def run_tool(tool: str, *, rehearse: bool) -> Row:
    """`passed` where the tool finds nothing.

    Raises FileNotFoundError where it is not installed, and TimeoutExpired after SECONDS.
    """
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-x", "-p", "no:cacheprovider", "-k", TESTS_OF, FILE]
    if rehearse:
        command.append("--collect-only")
    else:
        program = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin")
        if program is None:
            raise FileNotFoundError("compute-sanitizer is neither on PATH nor in /usr/local/cuda/bin")
        command = [program, "--tool", tool, "--error-exitcode", str(FOUND), "--target-processes", "all", *command]
    # Each tensor in memory of its own: in torch's pools, what lies beyond a tensor is another's and no error.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        preexec_fn=die_with_parent,
    )
    passed = done.returncode == 0
    more = {} if passed else {"output": (done.stdout + done.stderr)[-6000:]}
    return {"passed": passed, "said": summary(done.stdout), "tests": tests_fingerprint(), **more}
