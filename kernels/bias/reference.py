"""Bias and ReLU in plain torch: the definition that the kernel is held against."""

from __future__ import annotations

from torch import Tensor


def bias_act_reference_(x: Tensor, bias: Tensor, *, relu: bool) -> Tensor:
    """Adds a bias to every channel of `x`, then ReLU or nothing, in place.

    x: float [B, C, H, W]. bias: [C], of the same dtype. relu: whether what is negative becomes 0; NaN stays NaN.
    Returns x.
    """
    x.add_(bias[:, None, None])
    return x.relu_() if relu else x
