"""UPerNet's head as a graph, BatchNorm folded into the convolutions.

Two rewritings, both exact up to rounding:
- Pyramid pooling is one matrix product per direction: `P[50, H·W]` pools all four scales (1 + 4 + 9 + 36 bins), the
  four 1×1 convolutions run side by side on the 50 rows with a mask that keeps each bin's own scale, and
  `U[H·W, 50]` brings them back. Exporters write adaptive pooling as dozens of slices (mmsegmentation#1840).
- The last 3×3 convolution reads bilinearly upsampled maps with nothing non-linear between. A coarse level can be
  multiplied with the kernel's nine taps at its own resolution and interpolated afterwards; `levels` of them are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from twins_trt.builders.export.dims import MapShape, ints, known
from twins_trt.builders.export.fpn import conv_bn_relu, folded
from twins_trt.builders.export.interpolation import pyramid_matrices, shifted_upsampling, upsample_phases
from twins_trt.builders.export.tokens import StageMap, Weights, to_map, to_tokens
from twins_trt.builders.export.writer import GraphWriter, Tensor
from twins_trt.models.heads import POOL_SCALES


def write_upernet(
    w: GraphWriter, weights: Weights, stages: Sequence[StageMap], *, channels: int, levels: int
) -> tuple[Tensor, MapShape]:
    """The head up to the classifier's input, [B, channels, H/4, W/4], and its shape.

    channels: of the head, 512 in the published models. levels: how many of the coarse levels are convolved at their
    own size.
    """
    with w.scope("head"):
        shapes = [stage.shape.of(channels) for stage in stages]
        maps = []
        for i, stage in enumerate(stages[:-1]):
            x = to_map(w, stage.tokens, stage.shape)
            maps.append(conv_bn_relu(w, weights, f"decode_head.lateral_convs.{i}", x, f"lateral.{i}"))
        x = _pyramid(w, weights, stages[-1], channels)
        maps.append(conv_bn_relu(w, weights, "decode_head.bottleneck", x, "bottleneck"))
        for i in range(len(maps) - 1, 0, -1):
            up = w.resize(maps[i], shapes[i - 1], f"up.{i}")
            maps[i - 1] = w.add(maps[i - 1], up, f"sum.{i - 1}")
        outs = [conv_bn_relu(w, weights, f"decode_head.fpn_convs.{i}", x, f"conv.{i}") for i, x in enumerate(maps[:-1])]
        return _fuse(w, weights, [*outs, maps[-1]], shapes, levels), shapes[0]


def _pyramid(w: GraphWriter, weights: Weights, stage: StageMap, channels: int) -> Tensor:
    """[B, C + 4·channels, H, W]: the stage's map and its four pooled and upsampled summaries."""
    with w.scope("psp"):
        pool, unpool = pyramid_matrices(w, stage.shape.size, POOL_SCALES)
        parts = [folded(weights, f"decode_head.psp_modules.{i}.1") for i in range(len(POOL_SCALES))]
        weight = np.concatenate([part[0][:, :, 0, 0] for part in parts])  # [4·channels, C]
        bias = np.concatenate([part[1] for part in parts])
        owner = np.repeat(np.arange(len(POOL_SCALES)), [s * s for s in POOL_SCALES])  # the scale of each of the 50 rows
        keep = (owner[:, None] == np.repeat(np.arange(len(POOL_SCALES)), channels)).astype(
            np.float32
        )  # [50, 4·channels]
        pooled = w.op("MatMul", [pool, stage.tokens], "pooled")  # [B, 50, C]
        pooled = w.op("Relu", [w.linear(pooled, weight, bias, "scales")], "relu")
        pooled = w.op("Mul", [pooled, w.const(keep, "own_scale")], "own")
        spread = w.op("MatMul", [unpool, pooled], "spread")  # [B, H·W, 4·channels]
        joined = w.concat([stage.tokens, spread], 2)  # [B, H·W, C + 4·channels]
        return to_map(w, joined, stage.shape.of(stage.shape.channels + len(POOL_SCALES) * channels))


def _fuse(w: GraphWriter, weights: Weights, maps: Sequence[Tensor], shapes: Sequence[MapShape], levels: int) -> Tensor:
    """The 3×3 convolution over all levels at stride 4. The last `levels` of them are convolved at their own size."""
    weight, bias = folded(weights, "decode_head.fpn_bottleneck")
    fine, channels = len(maps) - levels, shapes[0].channels
    parts = [maps[0]]
    for i in range(1, fine):
        parts.append(_upsample(w, maps[i], shapes[i], shapes[0], f"fuse.up.{i}"))
    x = parts[0] if len(parts) == 1 else w.concat(parts, 1, "fuse.concat")
    out = w.conv(x, weight[:, : fine * channels], bias, "fuse", pads=(1, 1, 1, 1))
    coarse: Tensor | None = None  # summed channels-last, so that only one map changes its layout
    for i in range(fine, len(maps)):
        taps = weight[:, i * channels : (i + 1) * channels]
        with w.scope(f"fuse.coarse.{i}"):
            part = _convolve_coarse(w, taps, maps[i], shapes[i], shapes[0])
        coarse = part if coarse is None else w.add(coarse, part, f"fuse.sum.{i}")
    if coarse is not None:
        out = w.add(out, w.transpose(coarse, (0, 3, 1, 2), "fuse.coarse"), "fuse.sum")
    return w.op("Relu", [out], "fuse.relu")


def _upsample(w: GraphWriter, x: Tensor, shape: MapShape, to: MapShape, name: str) -> Tensor:
    """Bilinear. By a whole factor and for a GPU, in the form that fuses with the concatenation behind it."""
    factor = ints(*to.size)[0] // ints(*shape.size)[0] if known(*shape.size, *to.size) else 0
    if w.target != "gpu" or to.size != (shape.size[0] * factor, shape.size[1] * factor):
        return w.resize(x, to, name)
    with w.scope(name):
        x = w.transpose(x, (0, 2, 3, 1), "channels_last")  # [B, h, w, C]
        x = upsample_phases(w, x, factor, shape)  # [B, h, factor, w, factor, C]
        x = w.reshape(x, [to.batch, *to.size, to.channels], "rows")  # [B, H, W, C]
        return w.transpose(x, (0, 3, 1, 2), "channels_first")  # [B, C, H, W]


def _convolve_coarse(w: GraphWriter, taps: np.ndarray, x: Tensor, shape: MapShape, to: MapShape) -> Tensor:
    """conv3×3(upsample(x)) with the taps applied before the upsampling, channels last: [B, H, W, C].

    taps: [C, C, 3, 3] (out, in, dy, dx). x: [B, C, h, w]. Both sizes must be known.
    """
    batch, channels = shape.batch, shape.channels
    height, width, to_height, to_width = ints(*shape.size, *to.size)
    kernel = taps.transpose(2, 1, 3, 0).reshape(3, channels, 3 * channels)  # [dy, in, dx·out]
    shifted = shifted_upsampling(width, to_width).transpose(0, 2, 1)  # [W, w, dx]
    columns = w.const(shifted.reshape(to_width, width * 3), "columns")  # [W, w·dx]
    tokens = to_tokens(w, x, shape)  # [B, h·w, in]
    if w.target == "cpu":  # ONNX Runtime packs constant matrices ahead, but not stacks of them: those are half as fast
        parts = []
        for dy in range(3):
            part = w.op("MatMul", [tokens, w.const(kernel[dy], "taps")], "taps")  # [B, h·w, dx·out]
            part = w.reshape(part, [batch, height, width * 3, channels])  # [B, h, w·dx, out]
            parts.append(w.op("MatMul", [columns, part], "columns"))  # [B, h, W, out]
        product = w.concat(parts, 1)  # [B, dy·h, W, out]
    else:
        tokens = w.reshape(tokens, [batch, 1, height * width, channels])  # [B, 1, h·w, in]
        product = w.op("MatMul", [tokens, w.const(kernel, "taps")], "taps")  # [B, dy, h·w, dx·out]
        product = w.reshape(product, [batch, 3 * height, width * 3, channels])  # [B, dy·h, w·dx, out]
        product = w.op("MatMul", [columns, product], "columns")  # [B, dy·h, W, out]
    product = w.reshape(product, [batch, 3 * height, to_width * channels])  # [B, dy·h, W·out]
    rows = shifted_upsampling(height, to_height).reshape(to_height, 3 * height)  # [H, dy·h]
    product = w.op("MatMul", [w.const(rows, "rows"), product], "rows")  # [B, H, W·out]
    return w.reshape(product, [batch, to_height, to_width, channels])  # [B, H, W, out]
