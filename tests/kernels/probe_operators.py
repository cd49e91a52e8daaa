"""Launches of the FFN kernels, with what a test decides or looks at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from twins_trt.kernels.ffn import launch

MARGIN = 2**18
UNTOUCHED = 7.0


@contextmanager
def forced(chosen: str) -> Iterator[None]:
    """All launches take this way, whatever the sizes; those of a dtype without kernels take torch's products."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "way", lambda *_, dtype, **__: chosen if dtype in launch.DTYPES else "plain")
        yield


def by_way(chosen: str, *tensors: Tensor, eps: float) -> Tensor:
    with forced(chosen):
        return launch.add_norm_ffn_forward(*tensors, eps=eps)


class Margins:
    """What launches allocate, each with a margin around it that they must not touch."""

    def __init__(self) -> None:
        self.whole: list[Tensor] = []

    def touched(self) -> int:
        """How many values were written beside what was allocated."""
        return sum(int((end != UNTOUCHED).sum()) for x in self.whole for end in (x[:MARGIN], x[-MARGIN:]))


@contextmanager
def margins() -> Iterator[Margins]:
    """Where kernels are interpreted: what is allocated inside has margins, and NaN between them."""
    made = Margins()
    allocate = torch.Tensor.new_empty

    def new_empty(x: Tensor, shape: Any, **options: Any) -> Tensor:
        if isinstance(shape, int):  # the interpreter's own
            return allocate(x, shape, **options)
        size = torch.Size(shape)
        whole = torch.full((size.numel() + 2 * MARGIN,), UNTOUCHED, dtype=options.get("dtype", x.dtype))
        made.whole.append(whole)
        return whole[MARGIN : MARGIN + size.numel()].view(size).fill_(float("nan"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "new_empty", new_empty)
        yield made


def between_margins(chosen: str, *tensors: Tensor, eps: float) -> tuple[Tensor, int]:
    """`by_way`, and how many values were written beside what the launches allocate."""
    with margins() as made:
        out = by_way(chosen, *tensors, eps=eps)
    assert made.whole
    return out.clone(), made.touched()
