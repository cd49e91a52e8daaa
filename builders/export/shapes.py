"""The shapes that a graph takes, as engines and manifests state them."""

from __future__ import annotations

from twins_trt.builders.export import DynamicDim, ExportOptions

Shape = tuple[int, ...]


def input_shapes(graph: ExportOptions) -> tuple[Shape, Shape, Shape]:
    """The smallest, the usual and the largest shape of the input `image`."""
    kinds = ("min", "opt", "max")
    sides = {
        name: [getattr(value, kind) if isinstance(value, DynamicDim) else value for kind in kinds]
        for name, value in (("n", graph.batch), ("h", graph.height), ("w", graph.width))
    }
    order = "nhwc" if graph.input == "uint8" else "nchw"
    least, usual, most = (tuple(3 if axis == "c" else sides[axis][i] for axis in order) for i in range(3))
    return least, usual, most


def profile(graph: ExportOptions) -> dict[str, tuple[Shape, Shape, Shape]] | None:
    """The shapes that an engine of a dynamic graph is made for; None for a graph of fixed size and batch."""
    dynamic = any(isinstance(side, DynamicDim) for side in (graph.batch, graph.height, graph.width))
    return {"image": input_shapes(graph)} if dynamic else None
