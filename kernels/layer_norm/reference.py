"""LayerNorm behind additions in plain torch: the definition that the kernel is held against."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def add_layer_norm_reference(
    x: Tensor,
    y: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    row: Tensor | None = None,
    keep_sum: bool = True,
) -> tuple[Tensor, Tensor]:
    """The sum `x + row + y`, and LayerNorm over its last axis, by the operations that a model has without the kernel.

    x: [..., C]. y: as x, or None. weight, bias: [C]. row: [C] or None.
    Returns the sum, which is `x` itself where nothing is added and empty without `keep_sum`, and the normalized sum.
    """
    total = x if row is None else x + row
    if y is not None:
        total = total + y
    normalized = F.layer_norm(total, (x.shape[-1],), weight, bias, eps)
    return total if keep_sum else x.new_empty(0), normalized
