"""The FPN neck and head as a graph, BatchNorm folded into the convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twins_trt.builders.export.dims import Dim, known
from twins_trt.builders.export.interpolation import upsample_phases
from twins_trt.builders.export.tokens import Size, StageMap, Weights, to_map
from twins_trt.builders.export.writer import GraphWriter, Tensor

BATCH_NORM_EPS = 1e-5  # torch's default, which mmseg keeps
NECK_CHANNELS = 256
HEAD_CHANNELS = 128


def folded(weights: Weights, key: str) -> tuple[NDArray, NDArray]:
    """Weight and bias of a ConvModule with its BatchNorm folded in (computed in float64)."""
    scale = weights[f"{key}.bn.weight"].astype(np.float64)
    scale /= np.sqrt(weights[f"{key}.bn.running_var"].astype(np.float64) + BATCH_NORM_EPS)
    weight = weights[f"{key}.conv.weight"] * scale[:, None, None, None]
    bias = weights[f"{key}.bn.bias"] - weights[f"{key}.bn.running_mean"] * scale
    return weight.astype(np.float32), bias.astype(np.float32)


def conv_bn_relu(w: GraphWriter, weights: Weights, key: str, x: Tensor, name: str) -> Tensor:
    weight, bias = folded(weights, key)
    pad = weight.shape[-1] // 2
    return w.op("Relu", [w.conv(x, weight, bias, name, pads=(pad, pad, pad, pad))], f"{name}.relu")


def write_fpn(w: GraphWriter, weights: Weights, stages: Sequence[StageMap], batch: Dim) -> Tensor:
    """Neck and head up to the classifier's input, [B, 128, H/4, W/4]."""
    with w.scope("neck"):
        maps = [_lateral(w, weights, i, stage, batch) for i, stage in enumerate(stages)]
        for i in range(len(maps) - 1, 0, -1):
            up = w.resize(maps[i], stages[i - 1].size, f"up.{i}", mode="nearest", batch=batch, channels=NECK_CHANNELS)
            maps[i - 1] = w.add(maps[i - 1], up, f"sum.{i - 1}")
        maps = [_conv(w, weights, f"neck.fpn_convs.{i}", x, f"conv.{i}") for i, x in enumerate(maps)]
    with w.scope("head"):
        return _sum_levels(w, weights, maps, [stage.size for stage in stages], batch)


def _lateral(w: GraphWriter, weights: Weights, level: int, stage: StageMap, batch: Dim) -> Tensor:
    """The 1×1 convolution to the neck's width. The last one has no sum behind it that a convolution could take in,
    and the compiler makes a matrix product of it: written as one, it reads the tokens without a copy."""
    key = f"neck.lateral_convs.{level}"
    if level < 3:
        return _conv(w, weights, key, to_map(w, stage.tokens, batch, stage.size, stage.channels), f"lateral.{level}")
    out = w.linear(
        stage.tokens, weights[f"{key}.conv.weight"][:, :, 0, 0], weights[f"{key}.conv.bias"], f"lateral.{level}"
    )
    return to_map(w, out, batch, stage.size, NECK_CHANNELS)


def _conv(w: GraphWriter, weights: Weights, key: str, x: Tensor, name: str) -> Tensor:
    weight = weights[f"{key}.conv.weight"]
    pad = weight.shape[-1] // 2
    return w.conv(x, weight, weights[f"{key}.conv.bias"], name, pads=(pad, pad, pad, pad))


def _sum_levels(w: GraphWriter, weights: Weights, maps: Sequence[Tensor], sizes: Sequence[Size], batch: Dim) -> Tensor:
    """Each level's (3×3, ×2) steps, and their sum at stride 4.

    Every coarse level ends in a ×2 resize. Those whose last step runs at the same size are summed before it: a
    resize is linear, so one serves all. With sizes that are no multiples of 32 a doubled level can be larger than
    its neighbour; mmseg then resizes once more, and so does this.
    """
    out = conv_bn_relu(w, weights, "decode_head.scale_heads.0.0", maps[0], "scale.0.0")
    pending: list[tuple[Size, Tensor]] = []  # levels before their last ×2, by size
    for level in range(1, len(maps)):
        x, size = maps[level], sizes[level]
        for step in range(level):
            name = f"scale.{level}.{step}"
            x = conv_bn_relu(w, weights, f"decode_head.scale_heads.{level}.{2 * step}", x, name)
            if step < level - 1:
                size = (size[0] * 2, size[1] * 2)
                x = w.resize(x, size, f"{name}.up", batch=batch, channels=HEAD_CHANNELS)
        if pending and pending[-1][0] == size:
            pending[-1] = (size, w.add(pending[-1][1], x, f"sum.{level}"))
        else:
            pending.append((size, x))
    for i, (size, x) in enumerate(pending):
        doubled = (size[0] * 2, size[1] * 2)
        if w.forms == "gpu" and known(*size) and doubled == sizes[0]:
            x = _double_in_one_kernel(w, x, batch, size)
        else:
            x = w.resize(x, doubled, f"up.{i}", batch=batch, channels=HEAD_CHANNELS)
        if doubled != sizes[0]:
            x = w.resize(x, sizes[0], f"fit.{i}", batch=batch, channels=HEAD_CHANNELS)
        out = w.add(out, x, f"total.{i}")
    return out


def _double_in_one_kernel(w: GraphWriter, x: Tensor, batch: Dim, size: Size) -> Tensor:
    """A bilinear ×2 that, unlike a Resize node, fuses with the sums before and after it."""
    x = upsample_phases(
        w, w.transpose(x, (0, 2, 3, 1), "channels_last"), 2, batch=batch, size=size, channels=HEAD_CHANNELS
    )
    x = w.reshape(x, [batch, size[0] * 2, size[1] * 2, HEAD_CHANNELS], "doubled")
    return w.transpose(x, (0, 3, 1, 2), "channels_first")
