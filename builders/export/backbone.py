"""The backbone as a graph: tokens are [B, N, C] from block to block, maps are [B, C, H, W].

Rewritings used here, all exact:
- The score's scale is folded into the query projection.
- Softmax does not see a constant added to every key's score, so the key bias is dropped; attention weights sum to 1,
  so the value bias moves behind attention into the output projection. With no bias on keys and values, padding LSA's
  packed qkv map with zeros *after* the projection equals mmseg's padding of its input, in both padding semantics,
  and saves the projection of padded rows.
- LSA projects its output before windows go back to a map, so that reverse, crop and residual are one copy.
- The positional convolution's residual is a 1 added to the centre tap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from twins_trt.builders.export.dims import Dim, ceil_div, known, minimum, pad_to_multiple
from twins_trt.builders.export.writer import GraphWriter, Tensor
from twins_trt.kernels.lsa.reference import MASKED, masks_padding

from twins_trt.models.backbone import LAYER_NORM_EPS
from twins_trt.models.zoo import ModelSpec

Weights = Mapping[str, NDArray]
Size = tuple[Dim, Dim]

QUERY_GROUPS = (4, 2, 8, 3, 5, 7)
MAP_FFN_CHANNELS = 128


@dataclass(frozen=True)
class StageMap:
    """Output of one stage: tokens [B, H·W, C] and the map's size."""

    tokens: Tensor
    size: Size
    channels: int


def to_map(w: GraphWriter, tokens: Tensor, batch: Dim, size: Size, channels: int) -> Tensor:
    """[B, N, C] -> [B, C, H, W]: a view for compilers that keep maps channels-last."""
    return w.transpose(w.reshape(tokens, [batch, *size, channels], "rows"), (0, 3, 1, 2), "map")


def to_tokens(w: GraphWriter, x: Tensor, batch: Dim, size: Size, channels: int) -> Tensor:
    """[B, C, H, W] -> [B, N, C]."""
    return w.transpose(w.reshape(x, [batch, channels, size[0] * size[1]], "flat"), (0, 2, 1), "tokens")


def write_backbone(
    w: GraphWriter, weights: Weights, spec: ModelSpec, image: Tensor, batch: Dim, size: Size, padding: str
) -> list[StageMap]:
    """image: float [B, 3, H, W], normalised. Returns the four stages' maps."""
    stages: list[StageMap] = []
    x = image
    for i, channels in enumerate(spec.embed_dims):
        patch = 4 if i == 0 else 2
        with w.scope(f"stages.{i}.patch_embed"):
            if i > 0:
                x = to_map(w, stages[-1].tokens, batch, size, spec.embed_dims[i - 1])
            # patch-1 of zero padding at the bottom and right makes the output ceil(H / patch), as mmseg's 'corner'
            # padding does, whatever the size; where the size is a known multiple there is nothing to pad
            pads = [0 if known(side) and side % patch == 0 else patch - 1 for side in size]  # type: ignore[operator]
            prefix = f"backbone.patch_embeds.{i}"
            x = w.conv(
                x,
                weights[f"{prefix}.projection.weight"],
                weights[f"{prefix}.projection.bias"],
                "projection",
                stride=patch,
                pads=(0, 0, pads[0], pads[1]),
            )
            size = (ceil_div(size[0], patch), ceil_div(size[1], patch))
            tokens = to_tokens(w, x, batch, size, channels)
            tokens = _norm(w, weights, f"{prefix}.norm", tokens, "norm")
        for j in range(spec.depths[i]):
            tokens = _block(w, weights, spec, i, j, tokens, batch, size, padding)
        if spec.norm_after_stage:
            with w.scope(f"stages.{i}.norm"):
                tokens = _norm(w, weights, f"backbone.norm_list.{i}", tokens, "norm")
        stages.append(StageMap(tokens, size, channels))
    return stages


def _norm(w: GraphWriter, weights: Weights, key: str, x: Tensor, name: str) -> Tensor:
    return w.layer_norm(x, weights[f"{key}.weight"], weights[f"{key}.bias"], LAYER_NORM_EPS, name)


def _block(
    w: GraphWriter,
    weights: Weights,
    spec: ModelSpec,
    stage: int,
    block: int,
    x: Tensor,
    batch: Dim,
    size: Size,
    padding: str,
) -> Tensor:
    prefix, name = f"backbone.layers.{stage}.{block}", f"stages.{stage}.blocks.{block}"
    channels, heads = spec.embed_dims[stage], spec.num_heads[stage]
    with w.scope(f"{name}.attn"):
        normed = _norm(w, weights, f"{prefix}.norm1", x, "norm1")
        if spec.has_lsa(block):
            out = _lsa(w, weights, f"{prefix}.attn", normed, batch, size, channels, heads, spec.window_size, padding)
        else:
            out = _gsa(w, weights, f"{prefix}.attn", normed, batch, size, channels, heads, spec.sr_ratios[stage])
        x = w.add(x, out, "residual")
    # A block that ends in the positional convolution can run its FFN as 1×1 convolutions in the map's layout. The
    # compiler keeps those as convolutions, and so saves a copy, up to 128 channels and behind LSA only (counted).
    in_map = block == 0 and spec.family == "svt" and channels <= MAP_FFN_CHANNELS
    with w.scope(f"{name}.ffn"):
        normed = _norm(w, weights, f"{prefix}.norm2", x, "norm2")
        x = (
            _ffn_map(w, weights, f"{prefix}.ffn", x, normed, batch, size, channels)
            if in_map
            else _ffn(w, weights, f"{prefix}.ffn", x, normed)
        )
    if block == 0:
        with w.scope(f"stages.{stage}.pos"):
            x = _position(w, weights, f"backbone.position_encodings.{stage}.proj", x, batch, size, channels, in_map)
    return x


def _ffn(w: GraphWriter, weights: Weights, key: str, x: Tensor, normed: Tensor) -> Tensor:
    hidden = w.linear(normed, weights[f"{key}.layers.0.0.weight"], weights[f"{key}.layers.0.0.bias"], "fc1")
    out = w.linear(w.gelu(hidden), weights[f"{key}.layers.1.weight"], weights[f"{key}.layers.1.bias"], "fc2")
    return w.add(x, out, "residual")


def _ffn_map(
    w: GraphWriter, weights: Weights, key: str, x: Tensor, normed: Tensor, batch: Dim, size: Size, channels: int
) -> Tensor:
    """The FFN as 1×1 convolutions. Returns a map [B, C, H, W]."""
    fc1, fc2 = weights[f"{key}.layers.0.0.weight"], weights[f"{key}.layers.1.weight"]
    hidden = w.conv(
        to_map(w, normed, batch, size, channels), fc1[:, :, None, None], weights[f"{key}.layers.0.0.bias"], "fc1"
    )
    out = w.conv(w.gelu(hidden), fc2[:, :, None, None], weights[f"{key}.layers.1.bias"], "fc2")
    return w.add(to_map(w, x, batch, size, channels), out, "residual")


def _position(
    w: GraphWriter, weights: Weights, key: str, x: Tensor, batch: Dim, size: Size, channels: int, in_map: bool
) -> Tensor:
    kernel = weights[f"{key}.weight"].copy()  # [C, 1, 3, 3]
    kernel[:, :, 1, 1] += 1.0
    x = x if in_map else to_map(w, x, batch, size, channels)
    x = w.conv(x, kernel, weights[f"{key}.bias"], "proj", pads=(1, 1, 1, 1), group=channels)
    return to_tokens(w, x, batch, size, channels)


def _lsa(
    w: GraphWriter,
    weights: Weights,
    key: str,
    x: Tensor,
    batch: Dim,
    size: Size,
    channels: int,
    heads: int,
    window: int,
    padding: str,
) -> Tensor:
    """x: [B, N, C], normalised. Returns [B, N, C], projected."""
    height, width = size
    head_dim, area = channels // heads, window * window
    weight, bias = weights[f"{key}.qkv.weight"].copy(), np.zeros(3 * channels, np.float32)
    scale = head_dim**-0.5
    weight[:channels] *= scale
    bias[:channels] = weights[f"{key}.qkv.bias"][:channels] * scale
    packed = w.linear(x, weight, bias, "qkv")

    pad_bottom, pad_right = pad_to_multiple(height, window), pad_to_multiple(width, window)
    rows, columns = (height + pad_bottom) // window, (width + pad_right) // window
    packed = w.reshape(packed, [batch, height, width, 3 * channels])
    if pad_bottom != 0 or pad_right != 0:
        packed = w.pad(packed, (0, 0, 0, 0), (0, pad_bottom, pad_right, 0))
    packed = w.reshape(packed, [batch, rows, window, columns, window, 3, heads, head_dim], "windows")
    packed = w.transpose(packed, (5, 0, 1, 3, 6, 2, 4, 7), "partition")
    # Rank 5 with a leading 1: with any other leading size, or as [windows, heads, ..], the compiler adds a copy
    # behind every attention (9 in SVT-S).
    windows = batch * rows * columns
    shape: list[Dim] = [1, windows, heads, area, head_dim]
    packed = w.reshape(packed, [3, *shape], "packed")
    q, k, v = (w.reshape(part, shape, name) for part, name in zip(w.split(packed, [1, 1, 1], 0), "qkv", strict=True))
    scores = w.op("MatMul", [q, w.transpose(k, (0, 1, 2, 4, 3), "k_t")], "scores")
    mask = _key_mask(w, batch, size, (pad_bottom, pad_right), window, padding)
    if mask is not None:
        scores = w.add(scores, mask, "mask")
    out = w.op("MatMul", [w.op("Softmax", [scores], "softmax", attrs={"axis": -1}), v], "context")

    out = w.reshape(w.transpose(out, (0, 1, 3, 2, 4), "merge"), [1, windows * area, channels], "merged")
    out = w.linear(out, *_output_projection(weights, f"{key}.proj", weights[f"{key}.qkv.bias"][2 * channels :]), "proj")
    out = w.reshape(out, [batch, rows, columns, window, window, channels], "unpartition")
    out = w.reshape(
        w.transpose(out, (0, 1, 3, 2, 4, 5), "reverse"), [batch, rows * window, columns * window, channels], "padded"
    )
    if pad_bottom != 0 or pad_right != 0:
        out = w.slice(out, [0, 0], [height, width], [1, 2], "crop")
    return w.reshape(out, [batch, height * width, channels], "out")


def _output_projection(weights: Weights, key: str, value_bias: NDArray) -> tuple[NDArray, NDArray]:
    """The output projection with the value bias, which attention passes on unchanged, folded into its own."""
    weight = weights[f"{key}.weight"]
    return weight, weights[f"{key}.bias"] + weight @ value_bias


def _key_mask(
    w: GraphWriter, batch: Dim, size: Size, pads: tuple[Dim, Dim], window: int, padding: str
) -> Tensor | None:
    """Additive mask [B·windows, 1, 1, window²] over padded keys; None where none is excluded."""
    height, width = size
    rows, columns = (height + pads[0]) // window, (width + pads[1]) // window
    if known(*pads):
        if not masks_padding(pads[0], pads[1], padding=padding):  # type: ignore[arg-type]
            return None
        outside = np.ones((rows * window, columns * window), np.float32)  # type: ignore[operator]
        outside[:height, :width] = 0
        mask = outside.reshape(rows, window, columns, window).swapaxes(1, 2).reshape(-1, 1, 1, window * window)  # type: ignore[arg-type]
        if known(batch):
            return w.const(np.tile(mask * MASKED, (batch, 1, 1, 1)), "mask")  # type: ignore[arg-type]
        return w.op("Tile", [w.const(mask * MASKED, "mask"), w.size([batch, 1, 1, 1])], "masks")
    excluded: Dim = 1
    if padding == "parity":  # mmseg's mask cancels when exactly one pad is 0: see kernels/lsa/reference.py
        excluded = minimum(pads[0], 1) * minimum(pads[1], 1)
    inside = w.op("Expand", [w.const(np.array(0, np.float32)), w.size([height, width])], "inside")
    value = w.op("Cast", [w.size([excluded])], attrs={"to": 1}, dtype=np.float32)
    value = w.op("Mul", [value, w.const(np.float32(MASKED))])
    value = w.op("Squeeze", [value, w.const(np.array([0], np.int64))], "value")
    mask = w.op("Pad", [inside, w.size([0, 0, pads[0], pads[1]]), value], "mask_map", attrs={"mode": "constant"})
    mask = w.transpose(w.reshape(mask, [rows, window, columns, window]), (0, 2, 1, 3))
    mask = w.reshape(mask, [rows * columns, 1, 1, window * window], "mask")
    return mask if batch == 1 else w.op("Tile", [mask, w.size([batch, 1, 1, 1])], "masks")


def _gsa(
    w: GraphWriter,
    weights: Weights,
    key: str,
    x: Tensor,
    batch: Dim,
    size: Size,
    channels: int,
    heads: int,
    sr_ratio: int,
) -> Tensor:
    """x: [B, N, C], normalised. Returns [B, N, C], projected."""
    head_dim, tokens = channels // heads, size[0] * size[1]
    in_weight, in_bias = weights[f"{key}.attn.in_proj_weight"], weights[f"{key}.attn.in_proj_bias"]
    scale = head_dim**-0.5
    q_weight, q_bias, kv_weight = in_weight[:channels] * scale, in_bias[:channels] * scale, in_weight[channels:]

    summary, keys = x, tokens
    if sr_ratio > 1:
        reduced = (size[0] // sr_ratio, size[1] // sr_ratio)
        keys = reduced[0] * reduced[1]
        summary_map = to_map(w, x, batch, size, channels)
        sr = w.conv(summary_map, weights[f"{key}.sr.weight"], weights[f"{key}.sr.bias"], "sr", stride=sr_ratio)
        summary = _norm(w, weights, f"{key}.norm", to_tokens(w, sr, batch, reduced, channels), "sr_norm")
        q = w.linear(x, q_weight, q_bias, "q")
    else:
        # Rank 2, so that the compiler does not merge it with the kv product, which reads the same tokens: merged,
        # three copies take the result apart again.
        inputs = [w.const(q_weight.T, "q.weight"), w.const(q_bias, "q.bias")]
        q = w.op("Gemm", [w.reshape(x, [batch * tokens, channels]), *inputs], "q")
        q = w.reshape(q, [batch, tokens, channels])

    groups = 1  # queries side by side in one row that share keys and values: heads to the compiler
    if heads == 1:
        groups = _query_groups(tokens)
        spare = pad_to_multiple(tokens, groups)
        if spare != 0:
            q = w.pad(q, (0, 0, 0), (0, spare, 0), name="spare_queries")
        kv_weight = np.concatenate([np.tile(part, (groups, 1)) for part in np.split(kv_weight, 2)])
    width = groups * channels
    rows = ceil_div(tokens, groups)
    k, v = w.split(w.linear(summary, kv_weight, None, "kv"), [width, width], 2)
    lead: list[Dim] = [] if batch == 1 else [batch]  # no batch axis where there is one image: fewer copies
    axes = {1: (0,), 0: ()}[len(lead)]
    at = len(lead)
    q = w.transpose(w.reshape(q, [*lead, rows, heads * groups, head_dim]), (*axes, at + 1, at, at + 2), "q_heads")
    k = w.transpose(w.reshape(k, [*lead, keys, heads * groups, head_dim]), (*axes, at + 1, at + 2, at), "k_t")
    v = w.transpose(w.reshape(v, [*lead, keys, heads * groups, head_dim]), (*axes, at + 1, at, at + 2), "v_heads")
    out = w.op("Softmax", [w.op("MatMul", [q, k], "scores")], "softmax", attrs={"axis": -1})
    out = w.transpose(w.op("MatMul", [out, v], "context"), (*axes, at + 1, at, at + 2), "merge")
    out = w.reshape(out, [batch, rows * groups, channels], "merged")
    if rows * groups != tokens:
        out = w.slice(out, [0], [tokens], [1], "drop_spare")
    return w.linear(out, *_output_projection(weights, f"{key}.attn.out_proj", in_bias[2 * channels :]), "proj")


def _query_groups(tokens: Dim) -> int:
    """Into how many heads to split the queries of a single-head attention, which alone is not fused.

    One that divides their number, or the first choice (spare queries are added then).
    """
    fitting = [groups for groups in QUERY_GROUPS if known(tokens) and tokens % groups == 0]  # type: ignore[operator]
    return fitting[0] if fitting else QUERY_GROUPS[0]
