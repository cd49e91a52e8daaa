"""Wide 3×3 convolutions by Winograd's F(2×2, 3×3): 16 multiplications for four outputs where the plain form takes 36.

Source: Shmuel Winograd, Arithmetic Complexity of Computations (1980); for convolutional networks Lavin and Gray, arXiv
1509.09308. It is exact except for rounding errors, which are small: the transforms sum up to four values.
The operators are those that ONNX Runtime runs without leaving its blocked layout: a tile's transform is sixteen
depthwise convolutions of four taps, the products are sixteen 1×1 convolutions. The transforms cost memory traffic, so
this pays only with many channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from twins_trt.builders.export.shape_inference import tensor_shapes
from twins_trt.builders.export.writer import GraphWriter, Tensor

MIN_PRODUCT = 256 * 512
"""Input times output channels from which ONNX Runtime gains on a CPU; at 256 × 256 both forms are equally fast."""

# Along one axis, tile i covers inputs 2i-1 .. 2i+2 and outputs 2i, 2i+1. It has four transformed values of two taps
# each. Here are the taps, their distance, and how far they reach into the zero padding (before, after).
_TAPS = ((1, -1), (1, 1), (-1, 1), (1, -1))
_DISTANCES = (2, 1, 1, 2)
_PADS = ((1, 0), (0, 0), (0, 0), (0, 1))
# Makes four values of the kernel's three taps. The last row is negated, so that outputs are m0 + m1 + m2 and
# m1 - m2 + m3.
_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, -1]])


def use_winograd(graph: gs.Graph, *, min_product: int = MIN_PRODUCT) -> None:
    """Rewrites every convolution of an FP32 graph that gains by it, in place. Their outputs keep their names.

    min_product: how many input times output channels a convolution needs to gain.
    """
    shapes = tensor_shapes(graph)
    w = GraphWriter(graph.opset, target="cpu", graph=graph)
    for node in [node for node in graph.nodes if _gains(node, shapes, min_product)]:
        bias = node.inputs[2].values if len(node.inputs) > 2 else None
        with w.scope(node.name):
            out = _write(w, node.inputs[0], node.inputs[1].values, bias)
        (written,) = node.outputs
        node.outputs = []
        out.inputs[0].outputs = [written]
    graph.cleanup().toposort()


def _gains(node: gs.Node, shapes: Mapping[str, tuple[int, ...]], min_product: int) -> bool:
    if node.op != "Conv" or not isinstance(node.inputs[1], gs.Constant):
        return False
    outputs, inputs, *kernel = node.inputs[1].shape
    plain = {"strides": [1, 1], "dilations": [1, 1], "pads": [1, 1, 1, 1], "group": 1}
    attrs = {"dilations": [1, 1], **node.attrs}
    if kernel != [3, 3] or any(attrs.get(key) != value for key, value in plain.items()):
        return False
    height, width = shapes[node.inputs[0].name][2:]
    known = height > 0 and width > 0
    return known and height % 2 == 0 and width % 2 == 0 and inputs * outputs >= min_product


def _write(w: GraphWriter, x: Tensor, weight: NDArray, bias: NDArray | None) -> Tensor:
    """x: [B, C, H, W], H and W even; weight: [out, C, 3, 3]. Returns [B, out, H, W]."""
    products = np.einsum("iy,jx,ocyx->ijoc", _KERNEL, _KERNEL, weight.astype(np.float64))

    def product(i: int, j: int) -> Tensor:
        # Each output takes in exactly one of the four corners with a positive sign, and with it the bias.
        own = bias if i in (0, 3) and j in (0, 3) else None
        return w.conv(_transform(w, x, i, j, weight.shape[1]), products[i, j, :, :, None, None], own, f"product.{i}{j}")

    columns = [_outputs(w, [product(i, j) for i in range(4)]) for j in range(4)]  # of all tiles, by row in the tile
    phases = [each for row in range(2) for each in _outputs(w, [column[row] for column in columns])]
    return w.op("DepthToSpace", [w.concat(phases, 1, "phases")], "tiles", attrs={"blocksize": 2})


def _transform(w: GraphWriter, x: Tensor, i: int, j: int, channels: int) -> Tensor:
    """Value (i, j) of every tile: [B, C, H/2, W/2]."""
    taps = np.tile(np.outer(_TAPS[i], _TAPS[j])[None, None], (channels, 1, 1, 1)).astype(np.float32)
    (top, bottom), (left, right) = _PADS[i], _PADS[j]
    attrs = {
        "kernel_shape": [2, 2],
        "strides": [2, 2],
        "dilations": [_DISTANCES[i], _DISTANCES[j]],
        "pads": [top, left, bottom, right],
        "group": channels,
    }
    return w.op("Conv", [x, w.const(taps, f"taps.{i}{j}")], f"tile.{i}{j}", attrs=attrs)


def _outputs(w: GraphWriter, m: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The two outputs along one axis of a tile, from its four products."""
    even = w.add(m[0], w.add(m[1], m[2], "both"), "even")
    return even, w.add(m[3], w.op("Sub", [m[1], m[2]], "difference"), "odd")
