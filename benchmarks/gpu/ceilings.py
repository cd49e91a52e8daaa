"""The most that the machine does, measured in the same run: copying, multiplying, exponentials; and an empty kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks.gpu.jobs import Job, Row
from benchmarks.gpu.timing import time_call
from benchmarks.gpu.workload import Workload


def jobs(workload: Workload) -> Iterator[Job]:
    """Each ceiling, and the function that measures it."""
    yield Job("copy", lambda: _row("B/s", *_copy(workload), workload))
    yield Job("matmul", lambda: _row("FLOP/s", *_matmul(workload), workload))
    yield Job("exp2", lambda: _row("1/s", *_exp2(workload), workload))
    yield Job("empty kernel", lambda: time_call(_empty(workload), workload.pace(), graph=True, in_row=True).to_json())


def _row(unit: str, call: Callable[[], object], amount: int, workload: Workload) -> Row:
    times = time_call(call, workload.pace(), graph=True)
    return {"unit": unit, "rate": amount / (1e-3 * times.median), **times.to_json()}


def _copy(workload: Workload) -> tuple[Callable[[], object], int]:
    """A kernel that writes twice what it reads. In a graph, a copy as such is much slower on an H200 from 1 GiB on."""
    source = torch.randn(1 << (16 if workload.smoke else 29), dtype=torch.float16, device=workload.device)
    target = torch.empty_like(source)
    return lambda: torch.mul(source, 2.0, out=target), 2 * source.numel() * source.element_size()  # read and written


def _matmul(workload: Workload) -> tuple[Callable[[], object], int]:
    n = 64 if workload.smoke else 8192
    a, b = (torch.randn(n, n, dtype=workload.dtype, device=workload.device) for _ in range(2))
    return lambda: a @ b, 2 * n**3


def _exp2(workload: Workload) -> tuple[Callable[[], object], int]:
    if workload.device.type != "cuda":
        x = torch.zeros(1 << 10)
        return lambda: torch.exp2(x), x.numel()
    from benchmarks.gpu.exp2_kernel import BLOCK, REPEATS, exp2_kernel

    programs = 64 * torch.cuda.get_device_properties(workload.device).multi_processor_count
    out = torch.empty(programs, BLOCK, device=workload.device)
    return lambda: exp2_kernel[(programs,)](out, BLOCK=BLOCK, REPEATS=REPEATS), programs * BLOCK * REPEATS


def _empty(workload: Workload) -> Callable[[], object]:
    if workload.device.type != "cuda":
        return lambda: None
    from benchmarks.gpu.empty_kernel import empty_kernel

    out = torch.empty(1, device=workload.device)
    return lambda: empty_kernel[(1,)](out)
