"""Attention as a graph. These rewritings are exact:

- The score's scale is folded into the query projection.
- The key bias is dropped: it adds one constant to all scores of a query, which softmax ignores.
- The value bias moves behind attention into the output projection, because attention weights sum to 1.
- Without those biases, zeros that pad LSA's packed qkv map *after* the projection equal mmseg's padding of its input,
  whether padded keys are excluded or take part: a padded key's score differs from the others' by the same dropped
  constant, and its value is the value bias, which is added behind attention. Padded rows are then not projected.
- For a GPU, LSA projects its output before windows go back to a map, so that reverse, crop and residual are one copy.
  For a CPU it projects afterwards, when the padded rows are gone.
- The compiler does not fuse attention of a single head over one image. Its queries are split into groups that lie side
  by side as heads do, and the key and value projections are repeated for each: the same products, now fused.
- Nor does it fuse heads whose channels are no multiple of 8. They are widened with zeros, which add nothing to a score,
  and whose outputs the projection multiplies by zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twins_trt.builders.export.dims import Dim, MapShape, ceil_div, ints, known, minimum, pad_to_multiple
from twins_trt.builders.export.tokens import Weights, layer_norm, to_map, to_tokens
from twins_trt.builders.export.writer import GraphWriter, Tensor
from twins_trt.kernels.lsa.reference import MASKED, masks_padding

QUERY_GROUPS = (4, 2, 8, 3, 5, 7)
HEAD_MULTIPLE, NARROWEST_HEAD = 8, 16  # channels of a head in a fused attention


@dataclass(frozen=True)
class Attention:
    """One attention of a model: its weights, whose names begin with `key`, and the map whose tokens it takes.

    eps: of the LayerNorm of sub-sampled keys.
    """

    weights: Weights
    key: str
    heads: int
    shape: MapShape
    eps: float

    @property
    def head_dim(self) -> int:
        """The channels of a head in the model, by which scores are scaled."""
        return self.shape.channels // self.heads

    def written_dim(self, target: str) -> int:
        """The channels of a head in a graph for `target`."""
        if target != "gpu":
            return self.head_dim
        return max(NARROWEST_HEAD, -(-self.head_dim // HEAD_MULTIPLE) * HEAD_MULTIPLE)

    def widened(self, values: NDArray, target: str, *, axis: int = 0) -> NDArray:
        """`values`, with an axis over the channels of all heads once or more, as written: each head with its zeros."""
        spare = self.written_dim(target) - self.head_dim
        if not spare:
            return values
        before, after = values.shape[:axis], values.shape[axis + 1 :]
        by_head = values.reshape(*before, -1, self.head_dim, *after)
        zeros = np.zeros((*by_head.shape[: axis + 1], spare, *after), values.dtype)
        return np.concatenate([by_head, zeros], axis + 1).reshape(*before, -1, *after)


def write_lsa(w: GraphWriter, x: Tensor, attention: Attention, *, window: int, padding: str) -> Tensor:
    """x: [B, N, C], normalized. Returns [B, N, C], projected."""
    weights, key, shape = attention.weights, attention.key, attention.shape
    batch, channels, (height, width) = shape.batch, shape.channels, shape.size
    heads, head_dim, area = attention.heads, attention.written_dim(w.target), window * window
    inner = heads * head_dim  # E: C, save where heads are widened
    weight, bias = weights[f"{key}.qkv.weight"].copy(), np.zeros(3 * channels, np.float32)
    scale = attention.head_dim**-0.5
    weight[:channels] *= scale
    bias[:channels] = weights[f"{key}.qkv.bias"][:channels] * scale
    weight, bias = (attention.widened(each, w.target) for each in (weight, bias))
    packed = w.linear(x, weight, bias, "qkv")  # [B, N, 3E]

    pad_bottom, pad_right = pad_to_multiple(height, window), pad_to_multiple(width, window)
    rows, columns = (height + pad_bottom) // window, (width + pad_right) // window
    packed = w.reshape(packed, [batch, height, width, 3 * inner])  # [B, H, W, 3E]
    if pad_bottom != 0 or pad_right != 0:
        packed = w.pad(packed, (0, 0, 0, 0), (0, pad_bottom, pad_right, 0))  # [B, rows · w, columns · w, 3E]
    # [B, rows, w, columns, w, 3, heads, D] -> [3, B, rows, columns, heads, w, w, D]
    packed = w.reshape(packed, [batch, rows, window, columns, window, 3, heads, head_dim], "windows")
    packed = w.transpose(packed, (5, 0, 1, 3, 6, 2, 4, 7), "partition")
    # Rank 5 with a leading 1: with any other leading size, or as [windows, heads, ..], the compiler adds a copy
    # behind every attention (9 in SVT-S).
    windows = batch * rows * columns
    split: list[Dim] = [1, windows, heads, area, head_dim]
    packed = w.reshape(packed, [3, *split], "packed")
    q, k, v = (w.reshape(part, split, name) for part, name in zip(w.split(packed, [1, 1, 1], 0), "qkv", strict=True))
    scores = w.op("MatMul", [q, w.transpose(k, (0, 1, 2, 4, 3), "k_t")], "scores")
    mask = _key_mask(w, shape, (pad_bottom, pad_right), window, padding)
    if mask is not None:
        scores = w.add(scores, mask, "mask")
    out = w.op("MatMul", [w.op("Softmax", [scores], "softmax", attrs={"axis": -1}), v], "context")
    # out: [1, windows, heads, w · w, D]

    weight, bias = _output_projection(weights, f"{key}.proj", weights[f"{key}.qkv.bias"][2 * channels :])
    weight = attention.widened(weight, w.target, axis=1)
    if w.target == "gpu":
        out = w.transpose(out, (0, 1, 3, 2, 4), "merge")  # [1, windows, w · w, heads, D]
        out = w.reshape(out, [1, windows * area, inner], "merged")  # [1, windows · w · w, E]
        out = w.linear(out, weight, bias, "proj")  # [1, windows · w · w, C]
        out = w.reshape(out, [batch, rows, columns, window, window, channels], "unpartition")
        out = w.transpose(out, (0, 1, 3, 2, 4, 5), "reverse")  # [B, rows, w, columns, w, C]
    else:
        out = w.reshape(out, [batch, rows, columns, heads, window, window, head_dim], "unpartition")
        out = w.transpose(out, (0, 1, 4, 2, 5, 3, 6), "reverse")  # [B, rows, w, columns, w, heads, D]
    out = w.reshape(out, [batch, rows * window, columns * window, channels], "padded")
    if pad_bottom != 0 or pad_right != 0:
        out = w.slice(out, [0, 0], [height, width], [1, 2], "crop")  # [B, H, W, C]
    out = w.reshape(out, [batch, shape.tokens, channels], "out")  # [B, N, C]
    return out if w.target == "gpu" else w.linear(out, weight, bias, "proj")


def _output_projection(weights: Weights, key: str, value_bias: NDArray) -> tuple[NDArray, NDArray]:
    """Weight and bias of the output projection. The value bias, which attention hands on unchanged, is in its bias."""
    weight = weights[f"{key}.weight"]
    return weight, weights[f"{key}.bias"] + weight @ value_bias


def _key_mask(w: GraphWriter, shape: MapShape, pads: tuple[Dim, Dim], window: int, padding: str) -> Tensor | None:
    """Additive mask [B · windows, 1, 1, w · w] over padded keys; None where no key is excluded.

    pads: rows at the bottom and columns at the right.
    """
    if padding == "unmasked":
        return None
    batch, (height, width) = shape.batch, shape.size
    rows, columns = (height + pads[0]) // window, (width + pads[1]) // window
    if known(*pads):
        bottom, right = ints(*pads)
        if not masks_padding(bottom, right, padding=padding):
            return None
        grid = ints(rows, window, columns, window)
        outside = np.ones((grid[0] * window, grid[2] * window), np.float32)
        outside[:height, :width] = 0
        by_window = outside.reshape(grid).swapaxes(1, 2)  # [rows, columns, w, w]
        mask = by_window.reshape(-1, 1, 1, window * window) * MASKED  # [windows, 1, 1, w · w]
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
    mask = w.transpose(w.reshape(mask, [rows, window, columns, window]), (0, 2, 1, 3))  # [rows, columns, w, w]
    mask = w.reshape(mask, [rows * columns, 1, 1, window * window], "mask")
    return mask if batch == 1 else w.op("Tile", [mask, w.size([batch, 1, 1, 1])], "masks")


def write_gsa(w: GraphWriter, x: Tensor, attention: Attention, *, sr_ratio: int) -> Tensor:
    """x: [B, N, C], normalized. Returns [B, N, C], projected."""
    weights, key, shape = attention.weights, attention.key, attention.shape
    batch, channels, tokens = shape.batch, shape.channels, shape.tokens
    heads, head_dim = attention.heads, attention.written_dim(w.target)
    inner = heads * head_dim  # E: C, save where heads are widened
    in_weight, in_bias = weights[f"{key}.attn.in_proj_weight"], weights[f"{key}.attn.in_proj_bias"]
    scale = attention.head_dim**-0.5
    parts = (in_weight[:channels] * scale, in_bias[:channels] * scale, in_weight[channels:])
    q_weight, q_bias, kv_weight = (attention.widened(part, w.target) for part in parts)

    summary, keys = x, tokens
    if sr_ratio > 1:
        reduced = MapShape(batch, channels, (shape.size[0] // sr_ratio, shape.size[1] // sr_ratio))
        keys = reduced.tokens
        sr = to_map(w, x, shape)
        sr = w.conv(sr, weights[f"{key}.sr.weight"], weights[f"{key}.sr.bias"], "sr", stride=sr_ratio)
        summary = layer_norm(w, weights, f"{key}.norm", to_tokens(w, sr, reduced), "sr_norm", eps=attention.eps)
        q = w.linear(x, q_weight, q_bias, "q")
    else:
        # Rank 2, so that the compiler does not merge it with the kv product, which reads the same tokens: merged,
        # three copies take the result apart again.
        inputs = [w.const(q_weight.T, "q.weight"), w.const(q_bias, "q.bias")]
        q = w.op("Gemm", [w.reshape(x, [batch * tokens, channels]), *inputs], "q")  # [B · N, E]
        q = w.reshape(q, [batch, tokens, inner])  # [B, N, E]

    groups = 1  # parts of the queries that share keys and values and lie side by side: heads to the compiler
    if heads == 1:
        groups = _query_groups(tokens)
        spare = pad_to_multiple(tokens, groups)
        if spare != 0:
            q = w.pad(q, (0, 0, 0), (0, spare, 0), name="spare_queries")
        kv_weight = np.concatenate([np.tile(part, (groups, 1)) for part in np.split(kv_weight, 2)])
    width = groups * inner
    rows = ceil_div(tokens, groups)
    k, v = w.split(w.linear(summary, kv_weight, None, "kv"), [width, width], 2)
    lead: list[Dim] = [] if batch == 1 else [batch]  # a single image without its batch axis takes fewer copies
    at = len(lead)
    axes = tuple(range(at))
    # q: [(B,) heads, rows, D]; k: [(B,) heads, D, M]; v: [(B,) heads, M, D], where heads are those of all groups
    q = w.transpose(w.reshape(q, [*lead, rows, heads * groups, head_dim]), (*axes, at + 1, at, at + 2), "q_heads")
    k = w.transpose(w.reshape(k, [*lead, keys, heads * groups, head_dim]), (*axes, at + 1, at + 2, at), "k_t")
    v = w.transpose(w.reshape(v, [*lead, keys, heads * groups, head_dim]), (*axes, at + 1, at, at + 2), "v_heads")
    out = w.op("Softmax", [w.op("MatMul", [q, k], "scores")], "softmax", attrs={"axis": -1})
    out = w.transpose(w.op("MatMul", [out, v], "context"), (*axes, at + 1, at, at + 2), "merge")
    out = w.reshape(out, [batch, rows * groups, inner], "merged")  # [B, N and spare queries, E]
    if rows * groups != tokens:
        out = w.slice(out, [0], [tokens], [1], "drop_spare")
    weight, bias = _output_projection(weights, f"{key}.attn.out_proj", in_bias[2 * channels :])
    return w.linear(out, attention.widened(weight, w.target, axis=1), bias, "proj")


def _query_groups(tokens: Dim) -> int:
    """Into how many groups to split the queries of a single-head attention.

    The first of `QUERY_GROUPS` that divides their number, or the first of all, with which spare queries are added.
    """
    fitting = [groups for groups in QUERY_GROUPS if isinstance(tokens, int) and tokens % groups == 0]
    return fitting[0] if fitting else QUERY_GROUPS[0]
