"""Compiles many kernels for many GPUs, in several processes."""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

from twins_trt.kernels.case import Case
from twins_trt.kernels.crosscompile.compiler import Resources, capability, compile_case

SOURCES = tuple(
    f"twins_trt.kernels.{op}.launch"
    for op in ("lsa", "gsa", "layer_norm", "ffn", "patch", "position", "bias", "resize", "preprocess", "postprocess")
)
"""Modules with a function `cases(capability)` that yields every kernel they launch there."""


def all_cases(target: str) -> list[Case]:
    """Every kernel that this package launches on `target`."""
    sm = capability(target)
    return [case for source in SOURCES for case in importlib.import_module(source).cases(sm)]


def sweep(work: Iterable[tuple[Case, str]], *, workers: int = 1) -> Iterator[tuple[Case, str, Resources]]:
    """Compiles each (case, target) and yields it with its resources, in order.

    workers: how many processes compile; 1 is this process.
    """
    pairs = list(work)
    if workers == 1:
        yield from map(_measure, pairs)
        return
    # not forked: Triton and torch keep threads
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_measure, pairs, chunksize=4)


def select(
    targets: Sequence[str], *, kernels: Sequence[str] = (), dtypes: Sequence[str] = (), head_dims: Sequence[int] = ()
) -> list[tuple[Case, str]]:
    """(case, target) for every target; an empty selection takes everything.

    targets: as in `sm_87`. kernels: names as in `lsa_forward`. Kernels without a head dim are always selected.
    Raises UsageError for a target that kernels are not made for.
    """
    return [
        (case, target)
        for target in (f"sm_{capability(name)}" for name in targets)
        for case in all_cases(target)
        if (not kernels or case.name.split()[0] in kernels)
        and (not dtypes or case.dtype in dtypes)
        and (not head_dims or case.head_dim in (0, *head_dims))
    ]


def _measure(pair: tuple[Case, str]) -> tuple[Case, str, Resources]:
    case, target = pair
    return case, target, compile_case(case, target).resources
