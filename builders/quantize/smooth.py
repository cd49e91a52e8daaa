"""SmoothQuant: moves outliers of activations into weights, through the LayerNorm before the weights.

Channel j of a LayerNorm's output is divided by s_j, and row j of every weight that reads it is multiplied by s_j, with
s_j = max|x_j|^a / max|w_j|^(1-a) (Xiao et al. 2023, arXiv 2211.10438, eq. 4; a is the strength). The LayerNorm's own
scale and shift are divided, so no node is added and the result is the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from twins_trt.builders.plan.sites import Site, block_of, input_axis, is_product, weight_of
from twins_trt.calib.tensors import LAYOUT
from twins_trt.errors import UsageError

_LARGEST_RATIO = 64.0  # of a scale to the geometric mean of all; a channel that is hardly active has an extreme scale


def smoothed_tensors(graph: gs.Graph, sites: Iterable[Site]) -> tuple[str, ...]:
    """The outputs of the LayerNorms that scales can be folded into: those before qkv, q, kv and fc1.

    sites: what runs in INT8 (`PrecisionPlan.int8_sites`).
    """
    return tuple(norm.outputs[0].name for norm, _ in _norms(graph, sites))


def smooth_norms(
    graph: gs.Graph,
    sites: Iterable[Site],
    ranges: Mapping[str, float],
    channel_ranges: Mapping[str, NDArray],
    *,
    strength: float,
) -> dict[str, float]:
    """Folds SmoothQuant's scales into `graph`, in place. Returns the new ranges of the tensors that it changed.

    sites: what runs in INT8. ranges: by tensor. channel_ranges: float [C], by tensor. strength: 0 to 1.
    Raises `UsageError` if the ranges of a tensor's channels are missing, or are not one for each channel.
    """
    changed = {}
    for norm, readers in _norms(graph, sites):
        name = norm.outputs[0].name
        gain, shift = norm.inputs[1].values, norm.inputs[2].values
        if name not in channel_ranges or np.shape(channel_ranges[name]) != gain.shape:
            raise UsageError(
                f"SmoothQuant needs the range of each of the {gain.size} channels of {name}",
                "calibrate per channel, or build without SmoothQuant",
            )
        # Calibration may clip the tensor: then it clips each channel too.
        active = np.minimum(np.asarray(channel_ranges[name], np.float64), ranges[name])
        largest = np.max([_largest_by_input(reader) for reader in readers], axis=0)
        scale = smoothing_scales(active, largest, strength)
        norm.inputs[1] = gs.Constant(f"{norm.name}.weight.smooth", (gain / scale).astype(np.float32))
        norm.inputs[2] = gs.Constant(f"{norm.name}.bias.smooth", (shift / scale).astype(np.float32))
        for reader in readers:
            weight = weight_of(reader)
            shape = [1] * weight.values.ndim
            shape[input_axis(reader)] = -1
            values = (weight.values * scale.reshape(shape)).astype(np.float32)
            reader.inputs[1] = gs.Constant(f"{reader.name}.weight.smooth", values)
        changed[name] = float((active / scale).max())
    return changed


def smoothing_scales(active: NDArray, weight: NDArray, strength: float) -> NDArray[np.float64]:
    """One scale per channel, float64 [C], with a geometric mean of 1; 1 for a channel whose x_j or w_j are all 0.

    active: max|x_j|, weight: max|w_j|, both [C].
    """
    alive = (active > 0) & (weight > 0)
    scale = np.ones(active.shape, np.float64)
    scale[alive] = active[alive] ** strength / weight[alive] ** (1 - strength)
    if alive.any():
        scale[alive] /= np.exp(np.log(scale[alive]).mean())
    return np.clip(scale, 1 / _LARGEST_RATIO, _LARGEST_RATIO)


def _norms(graph: gs.Graph, sites: Iterable[Site]) -> list[tuple[gs.Node, list[gs.Node]]]:
    """The LayerNorms of attentions and FFNs that only products read, one of them in INT8, and those products."""
    quantized = {site.node for site in sites}
    norms = []
    for node in graph.nodes:
        if node.op == "LayerNormalization" and block_of(node.name).endswith((".attn", ".ffn")):
            readers = _readers(node.outputs[0])
            if all(map(is_product, readers)) and any(reader.name in quantized for reader in readers):
                norms.append((node, readers))
    return norms


def _readers(tensor: gs.Variable) -> list[gs.Node]:
    """The nodes that read a tensor, directly or through layout operations."""
    readers: list[gs.Node] = []
    for node in tensor.outputs:
        readers += _readers(node.outputs[0]) if node.op in LAYOUT else [node]
    return readers


def _largest_by_input(node: gs.Node) -> NDArray:
    """The largest magnitude of a product's weight for each of its inputs."""
    values = np.abs(weight_of(node).values)
    return values.max(axis=tuple(i for i in range(values.ndim) if i != input_axis(node)))
