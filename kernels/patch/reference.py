"""A convolution of patches and LayerNorm in plain torch: the definition that the kernels are held against."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def patch_norm_reference(
    x: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor, *, eps: float
) -> Tensor:
    """LayerNorm over the channels of a convolution whose kernel is its stride.

    x: [B, C, H, W]. weight: [D, C, k, k]. bias, norm_weight, norm_bias: [D]. Rows and columns left over are not read.
    Returns tokens [B, N, D] of N = (H // k) · (W // k) patches.
    """
    x = F.conv2d(x, weight, bias, stride=weight.shape[2:])  # [B, D, h, w]
    return F.layer_norm(x.flatten(2).transpose(1, 2), (weight.shape[0],), norm_weight, norm_bias, eps)
