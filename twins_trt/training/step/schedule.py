"""The learning rate of every iteration, and the parameters that decay."""

from __future__ import annotations

from typing import Any

from torch import nn

WARM_UP_START = 1e-6  # of the rate, mmseg's start_factor


def learning_rate(iteration: int, *, lr: float, iterations: int, warmup: int, power: float, min_lr: float) -> float:
    """The rate of one iteration, 0 to `iterations` - 1: linear warm-up, then a polynomial down to `min_lr`.

    As mmengine's LinearLR (start_factor 1e-6) followed by PolyLR: the last iteration of each has its end value.
    """
    if iteration < warmup:
        return lr * (WARM_UP_START + (1 - WARM_UP_START) * iteration / max(1, warmup - 1))
    share = (iteration - warmup) / max(1, iterations - warmup - 1)
    return min_lr + (lr - min_lr) * float(1 - share) ** power


def parameter_groups(model: nn.Module, *, weight_decay: float, decay: str, norms_decay: bool) -> list[dict[str, Any]]:
    """AdamW's two groups: parameters that decay and parameters that do not.

    decay: `weights`: neither norms (LayerNorm, BatchNorm) nor biases nor position encodings decay, as the Twins paper's
    recipe has it. `mmseg`: what mmseg's configurations do, biases and position encodings included: with norms_decay
    (FPN) everything decays, else (UPerNet) all but what has `norm` in its name. They mean to spare the position
    encodings too, but call them `pos_block`, which is the official repository's name for them.
    """
    kept: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if decay == "mmseg":
            spare = "norm" in name and not norms_decay
        else:
            spare = parameter.ndim == 1 or ".position_encodings." in f".{name}"
        (spared if spare else kept).append(parameter)
    return [{"params": kept, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
