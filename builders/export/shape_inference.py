"""The shapes inside of a graph."""

from __future__ import annotations

from math import prod

import onnx
import onnx_graphsurgeon as gs

from twins_trt.errors import ExportError

LARGE = 64  # values; constants of shape arithmetic are smaller


def tensor_shapes(graph: gs.Graph) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, -1 where it is not known. A dynamic batch is taken as 1.

    Raises `ExportError` where shapes cannot be inferred.
    """
    proto = gs.export_onnx(graph)
    # Weights are most of the bytes, and only their shapes matter: as inputs they cost the inference nothing.
    weights = [each for each in proto.graph.initializer if prod(each.dims) > LARGE]
    proto.graph.input.extend(onnx.helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in weights)
    small = [each for each in proto.graph.initializer if prod(each.dims) <= LARGE]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(small)
    for value in proto.graph.input:
        batch = value.type.tensor_type.shape.dim[:1]
        for dim in batch:
            dim.dim_value = dim.dim_value or 1
    for output in proto.graph.output:
        for dim in output.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.Clear()
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    except Exception as error:  # onnx raises its own, and ValueError above 2 GB
        raise ExportError(f"the graph's shapes cannot be inferred ({error})") from error
    shapes = {}
    for value in (*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(dim.dim_value if dim.dim_value > 0 else -1 for dim in dims)
    return shapes
