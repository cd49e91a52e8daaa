"""The GPU tests of small shapes under NVIDIA's compute-sanitizer: reads and writes beyond a tensor, and races."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.gpu_tests import PYTEST, call, summary
from benchmarks.gpu.jobs import Job
from benchmarks.gpu.store import tests_fingerprint
from benchmarks.gpu.workload import Workload

Row = dict[str, Any]

FILES = tuple(f"tests/kernels/test_on_gpu{of}.py" for of in ("", "_around", "_between"))
TESTS_OF = "1x1 or primes or cells or equal"  # what ends in the middle of a block, or is read to its end
KERNELS = (
    *("lsa_", "gsa_", "resize_", "add_layer_norm_", "ffn_", "fc1_", "patch_", "add_parts_"),
    *("add_position_", "bias_act_"),
)
"""Beginnings of our kernels' names. Others are not checked: it would take most of the time, and say nothing of ours."""
TOOLS = {
    # torch and the driver ask for what a GPU need not have, and each refusal would count as an error; padding lies
    # between tensors whose sizes are multiples of what CUDA aligns to
    "memcheck": ("--report-api-errors", "no", "--padding", "512"),
    "racecheck": ("--racecheck-detect-level", "error"),  # less may be meant so, as within a warp
}
"""Options of each tool. Source: Compute Sanitizer's manual, its tables of options."""
SECONDS = 400.0
FOUND = 9  # exit code of our choice


def jobs(workload: Workload) -> Iterator[Job]:
    """One row for each tool; on a CPU the tests are only collected."""
    for tool in TOOLS:
        run = functools.partial(run_tool, tool, rehearse=workload.device.type != "cuda")
        yield Job(f"compute-sanitizer {tool}", run, covers=("lsa", "gsa", "postprocess", "between"))


def run_tool(tool: str, *, rehearse: bool) -> Row:
    """`passed` where tests ran and the tool finds nothing.

    Raises FileNotFoundError where it is not installed, and TimeoutExpired after SECONDS.
    """
    command = [*PYTEST, "-q", "-x", "-k", TESTS_OF, *FILES]
    if rehearse:
        command.append("--collect-only")
    else:
        program = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin")
        if program is None:
            raise FileNotFoundError("compute-sanitizer is neither on PATH nor in /usr/local/cuda/bin")
        ours = [word for name in KERNELS for word in ("--kernel-name", f"kns={name}")]
        # not in the compilers that Triton starts
        options = ("--error-exitcode", str(FOUND), "--target-processes", "application-only", *TOOLS[tool], *ours)
        command = [program, "--tool", tool, *options, *command]
    # Each tensor in memory of its own: in torch's pools, what lies beyond a tensor is another's and no error.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = call(command, limit_s=SECONDS, environment=environment)
    passed = done.returncode == 0 and (rehearse or " passed" in done.stdout)  # not where all were skipped
    more = {} if passed else {"output": (done.stdout + done.stderr)[-6000:]}
    return {"passed": passed, "said": summary(done.stdout), "tests": tests_fingerprint(), **more}
