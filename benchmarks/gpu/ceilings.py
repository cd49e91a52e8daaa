"""What the machine can do at most, measured in the same run: copying, multiplying, exponentials."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.gpu.settings import Settings
from benchmarks.gpu.timing import time_call

Row = dict[str, Any]


def jobs(settings: Settings) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Each ceiling's name and how to measure it."""
    yield "copy", lambda: _row("copy", "B/s", *_copy(settings), settings)
    yield "matmul", lambda: _row("matmul", "FLOP/s", *_matmul(settings), settings)
    yield "exp2", lambda: _row("exp2", "1/s", *_exp2(settings), settings)


def _row(name: str, unit: str, call: Callable[[], object], amount: int, settings: Settings) -> Row:
    times = time_call(call, device=settings.device, graph=True, seconds=settings.seconds, least=settings.least)
    return {"unit": unit, "rate": amount / (1e-3 * times.median), **times.to_json()}


def _copy(settings: Settings) -> tuple[Callable[[], object], int]:
    size = 1 << (16 if settings.smoke else 30)
    source = torch.zeros(size, dtype=torch.int8, device=settings.device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * size  # read and written


def _matmul(settings: Settings) -> tuple[Callable[[], object], int]:
    n = 64 if settings.smoke else 8192
    a, b = (torch.randn(n, n, dtype=settings.dtype, device=settings.device) for _ in range(2))
    return lambda: a @ b, 2 * n**3


def _exp2(settings: Settings) -> tuple[Callable[[], object], int]:
    if settings.device.type != "cuda":
        x = torch.zeros(1 << 10)
        return lambda: torch.exp2(x), x.numel()
    from benchmarks.gpu.exp2_kernel import BLOCK, REPEATS, exp2_kernel

    programs = 64 * torch.cuda.get_device_properties(settings.device).multi_processor_count
    out = torch.empty(programs, BLOCK, device=settings.device)
    return lambda: exp2_kernel[(programs,)](out, BLOCK=BLOCK, REPEATS=REPEATS), programs * BLOCK * REPEATS
