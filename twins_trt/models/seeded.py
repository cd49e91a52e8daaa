"""Random weights made from tensors' names: the same bits on every machine, so that builds with them repeat."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

# Scales of normalizations start at 1. The spread makes channels differ, so that a test sees one taken for another.
_NORM_SPREAD = 0.1
_BIAS_SPREAD = 0.02


def seed_weights(model: nn.Module) -> None:
    """Fills every parameter and buffer of `model` with `seeded_array`, in place. `model.meta` stays."""
    import torch

    values = seeded_state_dict(model.state_dict())
    model.load_state_dict({key: torch.from_numpy(value) for key, value in values.items()})


def seeded_state_dict(like: Mapping[str, Tensor]) -> dict[str, npt.NDArray[Any]]:
    """`seeded_array` for every key and shape of `like`."""
    return {key: seeded_array(key, tuple(value.shape)) for key, value in like.items()}


def seeded_array(key: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """The tensor called `key`: float32, or int64 for a batch counter.

    Products keep the variance of their input, so that activations neither die nor overflow float16. The classifier's
    rows sum to zero: its features are all positive, and one class would otherwise win everywhere.
    """
    leaf = key.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    values = _uniform(key, shape)
    if leaf == "running_var":
        return 1 + np.float32(0.25) * values
    if leaf == "running_mean" or leaf.endswith("bias"):
        return np.float32(_BIAS_SPREAD) * values
    if len(shape) == 1:  # a normalization's scale
        return 1 + np.float32(_NORM_SPREAD) * values
    if key.endswith("conv_seg.weight"):
        # Multiples of 2^-23 add up in float64 without rounding, so that the order of the sum cannot show.
        values = (values - values.astype(np.float64).mean(axis=1, keepdims=True)).astype(np.float32)
    return values * np.float32(math.sqrt(3 / math.prod(shape[1:])))  # a uniform value in -1..1 has the variance 1/3


def _uniform(key: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """float32 in [-1, 1), every bit of it fixed by name and shape.

    Philox's algorithm defines its stream of raw integers; NumPy's distributions may change between versions (NEP 19).
    24 bits become a float in exact steps.
    """
    name = f"{key}:{'x'.join(map(str, shape))}".encode()
    words = np.frombuffer(hashlib.sha256(name).digest()[:16], "<u8").astype(np.uint64)
    count = math.prod(shape)
    raw = np.random.Philox(key=words).random_raw(-(-count // 2))
    halves = np.stack([raw >> np.uint64(40), (raw >> np.uint64(8)) & np.uint64(0xFFFFFF)], axis=1).ravel()[:count]
    return ((halves.astype(np.float32) - np.float32(1 << 23)) / np.float32(1 << 23)).reshape(shape)
