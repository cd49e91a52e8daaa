"""The second half of a block in plain torch: the definition that the kernels are held against."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def add_norm_ffn_reference(
    x: Tensor,
    y: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    eps: float,
) -> Tensor:
    """`s + fc2(GELU(fc1(LayerNorm(s))))` of s = x + y, by the operations that a model has without the kernels.

    x, y: [..., C]. norm_weight, norm_bias, bias2: [C]. weight1: [H, C]. bias1: [H]. weight2: [C, H]. GELU is that of
    the error function. Returns [..., C].
    """
    total = x + y
    normalized = F.layer_norm(total, total.shape[-1:], norm_weight, norm_bias, eps)
    hidden = F.gelu(F.linear(normalized, weight1, bias1))  # [..., H]
    return total + F.linear(hidden, weight2, bias2)
