"""What runs in the interpreter's process."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def start() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)


def call_poisoned(target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    with poisoned_allocations():
        return function(*args, **kwargs)


@contextmanager
def poisoned_allocations() -> Iterator[None]:
    """Every floating tensor that is allocated without a value holds NaN, so an element left unwritten shows."""
    places = ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty"))
    before = [getattr(owner, name) for owner, name in places]
    for (owner, name), allocate in zip(places, before, strict=True):
        setattr(owner, name, _poisoned(allocate))
    try:
        yield
    finally:
        for (owner, name), allocate in zip(places, before, strict=True):
            setattr(owner, name, allocate)


def _poisoned(allocate: Any) -> Any:
    def allocate_nan(*args: Any, **kwargs: Any) -> torch.Tensor:
        x = allocate(*args, **kwargs)
        return x.fill_(float("nan")) if x.is_floating_point() else x

    return allocate_nan


def call_with(values: dict[str, Any], target: str, *args: Any, **kwargs: Any) -> Any:
    """The call, with other values for names of the function's module. A function there returns the value instead."""
    module = importlib.import_module(target.partition(":")[0])
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, _returning(value) if callable(before[name]) else value)
    try:
        return call_poisoned(target, args, kwargs)
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def _returning(value: Any) -> Any:
    return lambda *args, **kwargs: value
