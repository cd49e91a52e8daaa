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
    with w.scope("neck"):
        neck = channels[0]
        maps = {len(stages) - 1: _lateral(w, weights, len(stages) - 1, stages[-1], batch)}
        for i in range(len(stages) - 2, 0, -1):
            doubled = w.resize(maps[i + 1], sizes[i], f"up.{i + 1}", mode="nearest", batch=batch, channels=neck)
            maps[i] = w.add(_lateral(w, weights, i, stages[i], batch), doubled, f"sum.{i}")
        if w.forms == "cpu" and known(*sizes[0]) and sizes[0] == (sizes[1][0] * 2, sizes[1][1] * 2):
            outs = [_finest_from_coarse(w, weights, stages[0], maps[1], batch)]
        else:
            doubled = w.resize(maps[1], sizes[0], "up.1", mode="nearest", batch=batch, channels=neck)
            finest = w.add(_lateral(w, weights, 0, stages[0], batch), doubled, "sum.0")
            outs = [_conv(w, weights, "neck.fpn_convs.0", finest, "conv.0")]
        outs += [_conv(w, weights, f"neck.fpn_convs.{i}", maps[i], f"conv.{i}") for i in range(1, len(stages))]
    with w.scope("head"):
        return _sum_levels(w, weights, outs, sizes, batch, channels=channels[1])


def _finest_from_coarse(w: GraphWriter, weights: Weights, stage: StageMap, coarse: Tensor, batch: Dim) -> Tensor:
    """conv.0(lateral.0(stage) + nearest ×2 of `coarse`) with a third less arithmetic: both terms are linear.

    The lateral 1×1 and the 3×3 after it are one 3×3 from the stage's few channels. On a doubled map a 3×3 sees at most
    two different pixels a side, so each of its four output phases is a 2×2 on the coarse map. The lateral bias goes
    through the coarse term, where the zero padding of the 3×3 cuts it off as it should.
    """
    lateral = weights["neck.lateral_convs.0.conv.weight"][:, :, 0, 0].astype(np.float64)
    kernel = weights["neck.fpn_convs.0.conv.weight"].astype(np.float64)  # [out, in, 3, 3]
    composed = np.einsum("oiyx,ic->ocyx", kernel, lateral).astype(np.float32)
    fine = to_map(w, stage.tokens, batch, stage.size, stage.channels)
    fine = w.conv(fine, composed, weights["neck.fpn_convs.0.conv.bias"], "conv.0.fine", pads=(1, 1, 1, 1))
    coarse = w.add(
        coarse, w.const(weights["neck.lateral_convs.0.conv.bias"].reshape(1, -1, 1, 1), "bias"), "conv.0.bias"
    )
    phases = []
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        taps = np.zeros((*kernel.shape[:2], 2, 2))
        for y, x in np.ndindex(
            3, 3
        ):  # tap y of output row 2i+row reads doubled row 2i+row+y-1, coarse row i+(row+y-1)//2
            taps[:, :, (row + y - 1) // 2 + 1 - row, (column + x - 1) // 2 + 1 - column] += kernel[:, :, y, x]
        pads = (1 - row, 1 - column, row, column)
        phases.append(w.conv(coarse, taps.astype(np.float32), None, f"conv.0.phase.{row}{column}", pads=pads))
    spread = w.op("DepthToSpace", [w.concat(phases, 1, "conv.0.phases")], "conv.0.spread", attrs={"blocksize": 2})
    return w.add(fine, spread, "conv.0.sum")


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
    w: GraphWriter, weights: Weights, maps: Sequence[Tensor], sizes: Sequence[Size], batch: Dim, *, channels: int
) -> Tensor:
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
                x = w.resize(x, size, f"{name}.up", batch=batch, channels=channels)
        if pending and pending[-1][0] == size:
            pending[-1] = (size, w.add(pending[-1][1], x, f"sum.{level}"))
        else:
            pending.append((size, x))
    for i, (size, x) in enumerate(pending):
        doubled = (size[0] * 2, size[1] * 2)
        if w.forms == "gpu" and known(*size) and doubled == sizes[0]:
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
