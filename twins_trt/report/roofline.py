"""How fast a device could be at best: its peak rates, and the work that each block of a graph needs at least."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

OTHER = "other"  # what a profile calls layers that belong to no block


@dataclass(frozen=True)
class Ceilings:
    """The peak rates of a device.

    float16, int8: dense tensor-core peaks in 10^12 operations a second; float16 with float32 sums where the device has
    a rate of its own for them. gb_s: memory bandwidth in GB/s. source: the document that says so.
    """

    name: str
    float16: float
    int8: float
    gb_s: float
    source: str


# By the driver's name of the device; the first match holds. Figures given with sparsity are halved.
DEVICES: tuple[tuple[str, Ceilings], ...] = (
    (r"\bH200(?! NVL)", Ceilings("H200 SXM", 989, 1979, 4800, "NVIDIA H200 data sheet")),
    (r"H100.*(HBM3|SXM)", Ceilings("H100 SXM", 989, 1979, 3350, "NVIDIA H100 data sheet")),
    (r"A100.*80GB(?!.*PCIe)", Ceilings("A100 80 GB SXM", 312, 624, 2039, "NVIDIA A100 data sheet")),
    (r"\bL4\b", Ceilings("L4", 121, 242, 300, "NVIDIA L4 data sheet")),
    (r"Tesla T4|\bT4\b", Ceilings("T4", 65, 130, 320, "NVIDIA T4 data sheet")),
    (r"RTX 4090(?! Laptop| D)", Ceilings("RTX 4090", 165.2, 660.6, 1008, "NVIDIA Ada GPU architecture, appendix A")),
    (r"RTX 3090(?! Ti)", Ceilings("RTX 3090", 71, 284, 936, "NVIDIA Ampere GA102 architecture, appendix A")),
)


@dataclass(frozen=True)
class BlockWork:
    """The work of a block.

    flops: of matrix products and convolutions; a multiply-add counts as two. nbytes: the least that the block moves
    through memory: its inputs, outputs and weights, each once.
    """

    flops: float
    nbytes: float


def find_ceilings(device: str | None) -> Ceilings | None:
    """The ceilings of a device; None where the table does not have it, or where it is a slice of one (MIG).

    device: its name as the driver says it.
    """
    if not device or "MIG" in device:
        return None
    return next((ceilings for pattern, ceilings in DEVICES if re.search(pattern, device)), None)


def block_work(graph: Path) -> dict[str, BlockWork] | None:
    """The work of each block of an exported graph in one call, by name; None for a graph of dynamic size.

    Raises ImportError without onnx.
    """
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(str(graph)), data_prop=True)
    sizes, shapes = _tensors(model.graph)
    flops: dict[str, float] = defaultdict(float)
    writers: dict[str, str] = {}
    readers: dict[str, set[str]] = defaultdict(set)
    for node in model.graph.node:
        block = node.name.split("/", 1)[0] if "/" in node.name else OTHER
        if (work := _flops(node, shapes)) is None:
            return None
        flops[block] += work
        writers.update(dict.fromkeys(node.output, block))
        for name in node.input:
            readers[name].add(block)
    moved: dict[str, float] = defaultdict(float)
    outputs = {value.name for value in model.graph.output}
    for name, nbytes in sizes.items():
        writer = writers.get(name)
        others = readers[name] - {writer}
        for block in others:
            moved[block] += nbytes
        if writer is not None and (others or name in outputs):
            moved[writer] += nbytes
    return {block: BlockWork(flops[block], moved[block]) for block in flops}


def _tensors(graph: Any) -> tuple[dict[str, float], dict[str, tuple[int, ...]]]:
    """Bytes and shape of every tensor whose shape is known."""
    from onnx import helper

    sizes: dict[str, float] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if all(axis.HasField("dim_value") for axis in kind.shape.dim):
            shapes[value.name] = tuple(axis.dim_value for axis in kind.shape.dim)
            sizes[value.name] = prod(shapes[value.name]) * helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    for tensor in graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
        sizes[tensor.name] = prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return sizes, shapes


def _flops(node: Any, shapes: dict[str, tuple[int, ...]]) -> float | None:
    """The FLOPs of a node; None where a shape is not known."""
    if node.op_type not in ("MatMul", "Gemm", "Conv"):
        return 0.0
    conv = node.op_type == "Conv"
    out, summed = shapes.get(node.output[0]), shapes.get(node.input[1 if conv else 0])
    if out is None or summed is None:
        return None
    depth = prod(summed[1:]) if conv else summed[-1]  # a weight is (C_out, C_in, h, w), an activation (..., C_in)
    return 2.0 * prod(out) * depth
