"""Min-max ranges of a graph's tensors, collected in the plainest way; the library's own collection is in calib."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_graphsurgeon as gs
import onnxruntime


def session(graph: gs.Graph) -> onnxruntime.InferenceSession:
    proto = gs.export_onnx(graph)
    proto.ir_version = 9
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def observe(
    graph: gs.Graph, names: Sequence[str], images: Iterable[np.ndarray]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Largest magnitude of each tensor of an FP32 graph, and of each of its last-axis channels."""
    outputs, tensors = graph.outputs, graph.tensors()
    graph.outputs = [tensors[name] for name in names]
    running = session(graph)
    graph.outputs = outputs
    ranges: dict[str, float] = {}
    channels: dict[str, np.ndarray] = {}
    for image in images:
        for name, value in zip(names, running.run(list(names), {"image": image}), strict=True):
            largest = np.abs(value).max(axis=tuple(range(value.ndim - 1)))
            channels[name] = np.maximum(channels.get(name, 0), largest)
            ranges[name] = max(ranges.get(name, 0.0), float(largest.max()))
    return ranges, channels
