"""Makes a float32 graph precision-complete in float16: every cast is a node, nothing is left to builder flags.

Nodes named as islands keep float32; everything else that is float runs in float16. Shape arithmetic is integer and
stays so.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from twins_trt.errors import ExportError
from twins_trt.spelling import spelled

FLOAT16_MAX = float(np.finfo(np.float16).max)
_KEEPS_FLOAT32_INPUTS = {"Resize": (1, 2)}  # roi and scales are float32 by the operator's definition


def to_fp16(graph: gs.Graph, islands: Mapping[str, str]) -> None:
    """Rewrites `graph` in place. Raises `ExportError` where a weight does not fit float16."""
    graph.toposort()
    casts: dict[tuple[int, str], gs.Variable] = {}
    constants: dict[tuple[int, str], gs.Constant] = {}
    inserted: list[gs.Node] = []
    for node in list(graph.nodes):
        wanted = np.dtype(np.float32 if node.name in islands else np.float16)
        fixed = _KEEPS_FLOAT32_INPUTS.get(node.op, ())
        if node.op == "Cast":
            if node.attrs["to"] == onnx.TensorProto.FLOAT and wanted == np.float16:
                node.attrs["to"] = onnx.TensorProto.FLOAT16
        else:
            for i, tensor in enumerate(node.inputs):
                if (
                    tensor.is_empty()
                    or i in fixed
                    or tensor.dtype not in (np.float32, np.float16)
                    or tensor.dtype == wanted
                ):
                    continue
                key = (id(tensor), wanted.name)
                if isinstance(tensor, gs.Constant):
                    if key not in constants:
                        constants[key] = _constant(tensor, wanted)
                    node.inputs[i] = constants[key]
                else:
                    if key not in casts:
                        casts[key] = _cast(tensor, wanted, inserted)
                    node.inputs[i] = casts[key]
        for tensor in node.outputs:
            if tensor.dtype == np.float32:
                tensor.dtype = wanted
    graph.nodes.extend(inserted)
    graph.cleanup().toposort()


def _constant(tensor: gs.Constant, wanted: np.dtype) -> gs.Constant:
    # NaN is no smaller than anything, so that it is refused as well.
    if wanted == np.float16 and not float(np.abs(tensor.values).max(initial=0.0)) <= FLOAT16_MAX:
        raise ExportError(
            f"{tensor.name} holds values beyond float16's range", f"export it with {spelled('precision', 'fp32')}"
        )
    return gs.Constant(f"{tensor.name}.{wanted.name}", tensor.values.astype(wanted))


def _cast(tensor: gs.Variable, wanted: np.dtype, inserted: list[gs.Node]) -> gs.Variable:
    out = gs.Variable(f"{tensor.name}.{wanted.name}", dtype=wanted)
    to = onnx.TensorProto.FLOAT if wanted == np.float32 else onnx.TensorProto.FLOAT16
    inserted.append(gs.Node("Cast", name=out.name, attrs={"to": to}, inputs=[tensor], outputs=[out]))
    return out
