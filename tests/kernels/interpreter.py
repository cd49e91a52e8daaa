"""What runs in the interpreter's process."""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch


def start() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        setattr(owner, name, _poisoned(getattr(owner, name)))


def _poisoned(allocate: Any) -> Any:
    def allocate_nan(*args: Any, **kwargs: Any) -> torch.Tensor:
        x = allocate(*args, **kwargs)
        return x.fill_(float("nan")) if x.is_floating_point() else x

    return allocate_nan


def call_poisoned(target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)(*args, **kwargs)


def with_max_blocks(limit: int, target: str, *args: Any, **kwargs: Any) -> Any:
    """The call, on a GPU whose grids are `limit` blocks high at most."""
    module = importlib.import_module(target.partition(":")[0])
    before = module.MAX_BLOCKS
    module.MAX_BLOCKS = limit
    try:
        return call_poisoned(target, args, kwargs)
    finally:
        module.MAX_BLOCKS = before
