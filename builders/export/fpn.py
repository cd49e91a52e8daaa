"""The FPN neck and head as a graph, BatchNorm folded into the convolutions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from twins_trt.builders.export.composed import Convolution, Level, computes_less, write_composed
from twins_trt.builders.export.dims import MapShape, Size, known
from twins_trt.builders.export.interpolation import upsample_phases
from twins_trt.builders.export.tokens import StageMap, Weights, to_map
from twins_trt.builders.export.writer import GraphWriter, Tensor

BATCH_NORM_EPS = 1e-5  # torch's default, which mmseg keeps


def folded(weights: Weights, key: str) -> tuple[NDArray, NDArray]:
    """Weight [out, in, k, k] and bias [out] of a ConvModule with its BatchNorm folded in (computed in float64)."""
    scale = weights[f"{key}.bn.weight"].astype(np.float64)
    scale /= np.sqrt(weights[f"{key}.bn.running_var"].astype(np.float64) + BATCH_NORM_EPS)
    weight = weights[f"{key}.conv.weight"] * scale[:, None, None, None]
    bias = weights[f"{key}.bn.bias"] - weights[f"{key}.bn.running_mean"] * scale
    return weight.astype(np.float32), bias.astype(np.float32)


def conv_bn_relu(w: GraphWriter, weights: Weights, key: str, x: Tensor, name: str) -> Tensor:
    """The ConvModule whose weights begin with `key`, at its own size. x: [B, in, H, W] -> [B, out, H, W]."""
    weight, bias = folded(weights, key)
    pad = weight.shape[-1] // 2
    return w.op("Relu", [w.conv(x, weight, bias, name, pads=(pad, pad, pad, pad))], f"{name}.relu")


def write_fpn(
    w: GraphWriter, weights: Weights, stages: Sequence[StageMap], *, channels: tuple[int, int]
) -> tuple[Tensor, MapShape]:
    """Neck and head up to the classifier's input, [B, channels[1], H/4, W/4], and its shape.

    channels: of the neck and of the head.
    """
    shapes = [stage.shape for stage in stages]
    composed = _composed_levels(w, weights, shapes)
    neck, head = channels
    with w.scope("neck"):
        maps = {len(stages) - 1: _lateral(w, weights, len(stages) - 1, stages[-1])}
        for i in range(len(stages) - 2, 0 if composed else -1, -1):
            doubled = w.resize(maps[i + 1], shapes[i].of(neck), f"up.{i + 1}", mode="nearest")
            maps[i] = w.add(_lateral(w, weights, i, stages[i]), doubled, f"sum.{i}")
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
                fine = to_map(w, stage.tokens, stage.shape)
                with w.scope(f"scale.{i}.0"):
                    x = write_composed(w, fine, maps[i + 1], composed[i], stage.shape)
            firsts.append(w.op("Relu", [x], f"scale.{i}.0.relu"))
        return _sum_levels(w, weights, firsts, [shape.of(head) for shape in shapes]), shapes[0].of(head)


def _composed_levels(w: GraphWriter, weights: Weights, shapes: Sequence[MapShape]) -> list[Level]:
    """The finest levels: those that are written as one convolution each."""
    levels: list[Level] = []
    for i, (fine, coarse) in enumerate(itertools.pairwise(shapes)):
        if w.target != "cpu" or not known(fine.batch, *fine.size) or fine.size != _double(coarse.size):
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


def _double(size: Size) -> Size:
    return size[0] * 2, size[1] * 2


def _lateral(w: GraphWriter, weights: Weights, level: int, stage: StageMap) -> Tensor:
    """The 1×1 convolution to the neck's width.

    The last one is followed by no sum that a convolution could absorb, and the compiler makes a matrix product of it:
    written as one, it reads the tokens without a copy.
    """
    key = f"neck.lateral_convs.{level}"
    if level < 3:
        return _conv(w, weights, key, to_map(w, stage.tokens, stage.shape), f"lateral.{level}")
    weight = weights[f"{key}.conv.weight"][:, :, 0, 0]
    out = w.linear(stage.tokens, weight, weights[f"{key}.conv.bias"], f"lateral.{level}")
    return to_map(w, out, stage.shape.of(len(weight)))


def _conv(w: GraphWriter, weights: Weights, key: str, x: Tensor, name: str) -> Tensor:
    weight = weights[f"{key}.conv.weight"]
    pad = weight.shape[-1] // 2
    return w.conv(x, weight, weights[f"{key}.conv.bias"], name, pads=(pad, pad, pad, pad))


def _sum_levels(w: GraphWriter, weights: Weights, firsts: Sequence[Tensor], shapes: Sequence[MapShape]) -> Tensor:
    """Each level's (3×3, ×2) steps after its first 3×3, and their sum at stride 4.

    Every coarse level ends in a ×2 resize. Levels whose last step runs at the same size are summed before it, because
    a resize is linear. With sizes that are no multiples of 32 a doubled level can be larger than its neighbour; mmseg
    then resizes once more, and so does this.
    """
    out, finest = firsts[0], shapes[0]
    pending: list[tuple[MapShape, Tensor]] = []  # levels before their last ×2, by shape
    for level in range(1, len(firsts)):
        x, shape = firsts[level], shapes[level]
        for step in range(1, level):
            shape = replace(shape, size=_double(shape.size))
            x = w.resize(x, shape, f"scale.{level}.{step - 1}.up")
            x = conv_bn_relu(w, weights, f"decode_head.scale_heads.{level}.{2 * step}", x, f"scale.{level}.{step}")
        if pending and pending[-1][0] == shape:
            pending[-1] = (shape, w.add(pending[-1][1], x, f"sum.{level}"))
        else:
            pending.append((shape, x))
    for i, (shape, x) in enumerate(pending):
        doubled = replace(shape, size=_double(shape.size))
        if w.target == "gpu" and known(*shape.size) and doubled == finest:
            x = _double_in_one_kernel(w, x, shape, doubled)
        else:
            x = w.resize(x, doubled, f"up.{i}")
        if doubled != finest:
            x = w.resize(x, finest, f"fit.{i}")
        out = w.add(out, x, f"total.{i}")
    return out


def _double_in_one_kernel(w: GraphWriter, x: Tensor, shape: MapShape, doubled: MapShape) -> Tensor:
    """A bilinear ×2 that, unlike a Resize node, fuses with the sums before and after it."""
    x = w.transpose(x, (0, 2, 3, 1), "channels_last")  # [B, h, w, C]
    x = upsample_phases(w, x, 2, shape)  # [B, h, 2, w, 2, C]
    x = w.reshape(x, [doubled.batch, *doubled.size, doubled.channels], "doubled")  # [B, 2h, 2w, C]
    return w.transpose(x, (0, 3, 1, 2), "channels_first")  # [B, C, 2h, 2w]
