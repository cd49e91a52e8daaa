"""Custom operators under torch.autocast."""

from __future__ import annotations

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("twins_trt", "FRAGMENT")


def register_autocast(name: str) -> None:
    """Makes `twins_trt::name` cast its floating tensors to the dtype of the surrounding torch.autocast.

    `torch.library.register_autocast` would fix the dtype when it is called, but autocast's may be float16 or bfloat16.
    float64 stays float64, as in torch's own rules.
    """
    operator = getattr(torch.ops.twins_trt, name).default
    for device_type, key in (("cuda", "AutocastCUDA"), ("cpu", "AutocastCPU")):

        def run(*args: object, device_type: str = device_type) -> object:
            dtype = torch.get_autocast_dtype(device_type)
            cast = [_cast(arg, dtype) if isinstance(arg, Tensor) else arg for arg in args]
            with torch.autocast(device_type, enabled=False):
                return operator(*cast)

        _LIBRARY.impl(name, run, key)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x
