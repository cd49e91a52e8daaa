"""Triton kernels without a GPU: a process of its own in which Triton's interpreter runs them on CPU tensors.

A process of its own, because the interpreter is chosen when kernels are decorated and other tests compile the same
kernels for real GPUs.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
from interpreter import call_poisoned, start


@pytest.fixture(scope="session")
def interpreted() -> Iterator[Callable[..., Any]]:
    """`interpreted("module:function", *args, **kwargs)`: what the function returns where kernels are interpreted.

    Every tensor it allocates without a value is NaN to begin with, so an element left unwritten shows.
    """
    pytest.importorskip("triton", reason="Triton is not installed")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=start) as pool:
        yield lambda target, *args, **kwargs: pool.submit(call_poisoned, target, args, kwargs).result()
