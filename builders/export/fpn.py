"""The FPN neck and head as a graph, BatchNorm folded into the convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twins_trt.builders.export.composed import Convolution, Level, computes_less, write_composed
from twins_trt.builders.export.dims import Dim, ints, known
from twins_trt.builders.export.interpolation import upsample_phases
from twins_trt.builders.export.tokens import Size, StageMap, Weights, to_map
from twins_trt.builders.export.writer import GraphWriter, Tensor

BATCH_NORM_EPS = 1e-5  # torch's default, which mmseg keeps


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


def write_fpn(
    w: GraphWriter, weights: Weights, stages: Sequence[StageMap], batch: Dim, *, channels: tuple[int, int]
) -> Tensor:
    """Neck and head up to the classifier's input, [B, channels[1], H/4, W/4]. channels: of the neck and of the head."""
    sizes = [stage.size for stage in stages]
    composed = _composed_levels(w, weights, sizes, batch)
    neck, head = channels
    with w.scope("neck"):
        maps = {len(stages) - 1: _lateral(w, weights, len(stages) - 1, stages[-1], batch)}
        for i in range(len(stages) - 2, 0 if composed else -1, -1):
            doubled = w.resize(maps[i + 1], sizes[i], f"up.{i + 1}", mode="nearest", batch=batch, channels=neck)
            maps[i] = w.add(_lateral(w, weights, i, stages[i], batch), doubled, f"sum.{i}")
        outs = {
            i: _conv(w, weights, f"neck.fpn_convs.{i}", maps[i], f"conv.{i}") for i in range(len(composed), len(stages))
        }
    with w.scope("head"):
        firsts = []
        for i, stage in enumerate(stages):
            if i in outs:
                weight, bias = folded(weights, f"decode_head.scale_heads.{i}.0")
                x = w.conv(outs[i], weight, bias, f"scale.{i}.0", pads=(1, 1, 1, 1))
            else:
                fine = to_map(w, stage.tokens, batch, stage.size, stage.channels)
                with w.scope(f"scale.{i}.0"):
                    x = write_composed(w, fine, maps[i + 1], composed[i], batch=ints(batch)[0], size=stage.size)
            firsts.append(w.op("Relu", [x], f"scale.{i}.0.relu"))
        return _sum_levels(w, weights, firsts, sizes, batch, channels=head)


def _composed_levels(w: GraphWriter, weights: Weights, sizes: Sequence[Size], batch: Dim) -> list[Level]:
    """The finest levels, as many of them as are to be written as one convolution each."""
    levels: list[Level] = []
    for i in range(len(sizes) - 1):
        if w.target != "cpu" or not known(batch, *sizes[i]) or sizes[i] != (sizes[i + 1][0] * 2, sizes[i + 1][1] * 2):
            break
        lateral, first = (
            Convolution(weights[f"neck.{kind}_convs.{i}.conv.weight"], weights[f"neck.{kind}_convs.{i}.conv.bias"])
            for kind in ("lateral", "fpn")
        )
        level = Level(lateral, first, Convolution(*folded(weights, f"decode_head.scale_heads.{i}.0")))
        if not computes_less(level):
            break
        levels.append(level)
    return levels


def _lateral(w: GraphWriter, weights: Weights, level: int, stage: StageMap, batch: Dim) -> Tensor:
    """The 1×1 convolution to the neck's width. The last one has no sum behind it that a convolution could take in,
    and the compiler makes a matrix product of it: written as one, it reads the tokens without a copy."""
    key = f"neck.lateral_convs.{level}"
    if level < 3:
        return _conv(w, weights, key, to_map(w, stage.tokens, batch, stage.size, stage.channels), f"lateral.{level}")
    weight = weights[f"{key}.conv.weight"][:, :, 0, 0]
    out = w.linear(stage.tokens, weight, weights[f"{key}.conv.bias"], f"lateral.{level}")
    return to_map(w, out, batch, stage.size, len(weight))


def _conv(w: GraphWriter, weights: Weights, key: str, x: Tensor, name: str) -> Tensor:
    weight = weights[f"{key}.conv.weight"]
    pad = weight.shape[-1] // 2
    return w.conv(x, weight, weights[f"{key}.conv.bias"], name, pads=(pad, pad, pad, pad))


def _sum_levels(
    w: GraphWriter, weights: Weights, firsts: Sequence[Tensor], sizes: Sequence[Size], batch: Dim, *, channels: int
) -> Tensor:
    """Each level's (3×3, ×2) steps after its first 3×3, and their sum at stride 4.

    Every coarse level ends in a ×2 resize. Those whose last step runs at the same size are summed before it: a
    resize is linear, so one serves all. With sizes that are no multiples of 32 a doubled level can be larger than
    its neighbour; mmseg then resizes once more, and so does this.
    """
    out = firsts[0]
    pending: list[tuple[Size, Tensor]] = []  # levels before their last ×2, by size
    for level in range(1, len(firsts)):
        x, size = firsts[level], sizes[level]
        for step in range(1, level):
            size = (size[0] * 2, size[1] * 2)
            x = w.resize(x, size, f"scale.{level}.{step - 1}.up", batch=batch, channels=channels)
            x = conv_bn_relu(w, weights, f"decode_head.scale_heads.{level}.{2 * step}", x, f"scale.{level}.{step}")
        if pending and pending[-1][0] == size:
            pending[-1] = (size, w.add(pending[-1][1], x, f"sum.{level}"))
        else:
            pending.append((size, x))
    for i, (size, x) in enumerate(pending):
        doubled = (size[0] * 2, size[1] * 2)
        if w.target == "gpu" and known(*size) and doubled == sizes[0]:
            x = _double_in_one_kernel(w, x, batch, size, channels)
        else:
            x = w.resize(x, doubled, f"up.{i}", batch=batch, channels=channels)
        if doubled != sizes[0]:
            x = w.resize(x, sizes[0], f"fit.{i}", batch=batch, channels=channels)
        out = w.add(out, x, f"total.{i}")
    return out


def _double_in_one_kernel(w: GraphWriter, x: Tensor, batch: Dim, size: Size, channels: int) -> Tensor:
    """A bilinear ×2 that, unlike a Resize node, fuses with the sums before and after it."""
    x = w.transpose(x, (0, 2, 3, 1), "channels_last")
    x = upsample_phases(w, x, 2, batch=batch, size=size, channels=channels)
    x = w.reshape(x, [batch, size[0] * 2, size[1] * 2, channels], "doubled")
    return w.transpose(x, (0, 3, 1, 2), "channels_first")
