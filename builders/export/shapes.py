"""The input shapes of a graph, as engines and manifests state them."""

from __future__ import annotations

from twins_trt.builders.export import DynamicDim, ExportOptions

Shape = tuple[int, ...]


def input_shapes(graph: ExportOptions) -> tuple[Shape, Shape, Shape]:
    """The min, opt and max shape of the input `image`; all three are the same where everything is fixed."""

    def shape(kind: str) -> Shape:
        batch, height, width = (
            getattr(side, kind) if isinstance(side, DynamicDim) else side
            for side in (graph.batch, graph.height, graph.width)
        )
        return (batch, height, width, 3) if graph.input == "uint8" else (batch, 3, height, width)

    return shape("min"), shape("opt"), shape("max")


def profile(graph: ExportOptions) -> dict[str, tuple[Shape, Shape, Shape]] | None:
    """The optimization profile of a dynamic graph: min, opt and max shape by input. None for a graph of fixed shape."""
    dynamic = any(isinstance(side, DynamicDim) for side in (graph.batch, graph.height, graph.width))
    return {"image": input_shapes(graph)} if dynamic else None
