"""Layouts of tokens [B, N, C] in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def rows_apart(x: Tensor) -> Tensor:
    """Rows with NaN between them, as a slice of wider rows has them."""
    wide = torch.full((*x.shape[:-1], x.shape[-1] + 32), float("nan"), dtype=x.dtype)
    return wide[..., 16 : x.shape[-1] + 16].copy_(x)


def planes(x: Tensor) -> Tensor:
    """[B, N, C] of a [B, C, N] in memory: channels far apart."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def every_other(x: Tensor) -> Tensor:
    """Batches further apart than their rows, so that rows are not equally spaced."""
    wide = torch.full((x.shape[0], 2 * x.shape[1], x.shape[2]), float("nan"), dtype=x.dtype)
    return wide[:, : x.shape[1]].copy_(x)
