"""Attention as a graph. Rewritings used here, all exact:

- The score's scale is folded into the query projection.
- Softmax does not see a constant added to every key's score, so the key bias is dropped; attention weights sum to 1,
  so the value bias moves behind attention into the output projection. With no bias on keys and values, padding LSA's
  packed qkv map with zeros *after* the projection equals mmseg's padding of its input, in both padding semantics,
  and saves the projection of padded rows.
- For a GPU, LSA projects its output before windows go back to a map, so that reverse, crop and residual are one copy.
  For a CPU it does so after, when the padded rows are gone.
- A single head over one image is not fused by the compiler. Its queries are split into groups that sit side by side
  like heads do, and the key and value projections are repeated for each: the same products, now fused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twins_trt.builders.export.dims import Dim, ceil_div, ints, known, minimum, pad_to_multiple
from twins_trt.builders.export.tokens import Size, Weights, layer_norm, to_map, to_tokens
from twins_trt.builders.export.writer import GraphWriter, Tensor
from twins_trt.kernels.lsa.reference import MASKED, masks_padding

QUERY_GROUPS = (4, 2, 8, 3, 5, 7)


@dataclass(frozen=True)
class Attention:
    """One attention of a model: its weights, whose names begin with `key`, and the map of tokens that it works on."""

    weights: Weights
    key: str
    batch: Dim
    size: Size
    channels: int
    heads: int


def write_lsa(w: GraphWriter, x: Tensor, attention: Attention, *, window: int, padding: str) -> Tensor:
    """x: [B, N, C], normalized. Returns [B, N, C], projected."""
    weights, key, batch, size = attention.weights, attention.key, attention.batch, attention.size
    channels, heads, (height, width) = attention.channels, attention.heads, size
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

    projection = _output_projection(weights, f"{key}.proj", weights[f"{key}.qkv.bias"][2 * channels :])
    if w.target == "gpu":
        out = w.reshape(w.transpose(out, (0, 1, 3, 2, 4), "merge"), [1, windows * area, channels], "merged")
        out = w.linear(out, *projection, "proj")
        out = w.reshape(out, [batch, rows, columns, window, window, channels], "unpartition")
        out = w.transpose(out, (0, 1, 3, 2, 4, 5), "reverse")
    else:
        out = w.reshape(out, [batch, rows, columns, heads, window, window, head_dim], "unpartition")
        out = w.transpose(out, (0, 1, 4, 2, 5, 3, 6), "reverse")
    out = w.reshape(out, [batch, rows * window, columns * window, channels], "padded")
    if pad_bottom != 0 or pad_right != 0:
        out = w.slice(out, [0, 0], [height, width], [1, 2], "crop")
    out = w.reshape(out, [batch, height * width, channels], "out")
    return out if w.target == "gpu" else w.linear(out, *projection, "proj")


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
        bottom, right = ints(*pads)
        if not masks_padding(bottom, right, padding=padding):
            return None
        grid = ints(rows, window, columns, window)
        outside = np.ones((grid[0] * window, grid[2] * window), np.float32)
        outside[:height, :width] = 0
        mask = outside.reshape(grid).swapaxes(1, 2).reshape(-1, 1, 1, window * window) * MASKED
        if known(batch):
            return w.const(np.tile(mask, (*ints(batch), 1, 1, 1)), "mask")
        return w.op("Tile", [w.const(mask, "mask"), w.size([batch, 1, 1, 1])], "masks")
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


def write_gsa(w: GraphWriter, x: Tensor, attention: Attention, *, sr_ratio: int) -> Tensor:
    """x: [B, N, C], normalized. Returns [B, N, C], projected."""
    weights, key, batch, size = attention.weights, attention.key, attention.batch, attention.size
    channels, heads = attention.channels, attention.heads
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
        summary = layer_norm(w, weights, f"{key}.norm", to_tokens(w, sr, batch, reduced, channels), "sr_norm")
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
    at = len(lead)
    axes = tuple(range(at))
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
    fitting = [groups for groups in QUERY_GROUPS if isinstance(tokens, int) and tokens % groups == 0]
    return fitting[0] if fitting else QUERY_GROUPS[0]
