"""Runs an FP32 graph on ONNX Runtime and counts its observed activations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from twins_trt.calib.collection import Collection
from twins_trt.calib.histogram import Histogram
from twins_trt.calib.images import Fitter
from twins_trt.calib.options import CalibrationOptions
from twins_trt.calib.tensors import (
    channelled_tensors,
    graph_inputs,
    graph_sha256,
    observed_tensors,
    read_graph,
    split_by_size,
    with_outputs,
    with_shapes,
)
from twins_trt.errors import DataError, EngineError, MissingDependencyError, first_line, missing

if TYPE_CHECKING:
    import onnx


class ObservedGraph:
    """An FP32 graph on ONNX Runtime that counts its observed activations.

    It is cut into parts with a session each, so that the activations of a part fit into memory together. fitter: turns
    images into the graph's input.

    graph: an ONNX file. options: what is collected. device: `cpu`, `cuda` or `auto`. threads: of the CPU; None for one
    per core. memory_mib: activations held at once, in MiB. Raises as `collect` does for a graph.
    """

    def __init__(
        self, graph: str | Path, options: CalibrationOptions, *, device: str, threads: int | None, memory_mib: int
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise missing("onnxruntime", extra="cpu", purpose="calibration") from error
        self._options = options
        self._sha256 = graph_sha256(graph)
        model = read_graph(graph)
        self._tensors = observed_tensors(model)
        self._channelled = channelled_tensors(model)
        providers = _providers(device, onnxruntime.get_available_providers())
        self._ran_with = f"onnxruntime {onnxruntime.__version__} {providers[0][0]}"

        def open_session(part: onnx.ModelProto) -> Any:
            session_options = onnxruntime.SessionOptions()
            session_options.intra_op_num_threads = threads or 0
            session_options.log_severity_level = 3
            # Unfused: observing a tensor must not change its value. It costs no time worth mentioning.
            session_options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            session_options.enable_cpu_mem_arena = False  # the arena keeps the largest run's memory, twice over
            try:
                return onnxruntime.InferenceSession(part.SerializeToString(), session_options, providers=providers)
            except Exception as error:  # onnxruntime's own classes have no common base
                raise EngineError(
                    f"ONNX Runtime {onnxruntime.__version__} refuses {graph}: {first_line(error)}",
                    "export the graph again, or upgrade: pip install --upgrade onnxruntime",
                ) from error

        metadata = {prop.key: prop.value for prop in model.metadata_props}
        self.fitter = Fitter(graph_inputs(model), metadata, fit=options.fit, preprocessing=options.preprocessing)
        self._parts: list[tuple[list[str], Any]] = []
        # The sizes come from a run: shape inference gives up on a graph of dynamic size.
        shapes = self._run(open_session(with_shapes(model, self._tensors)), None, self.fitter.largest_input())
        sizes = {name: 4 * math.prod(shape.tolist()) for name, shape in zip(self._tensors, shapes, strict=True)}
        for names in split_by_size(sizes, memory_mib << 20):
            self._parts.append((names, open_session(with_outputs(model, names))))

    def empty(self) -> Collection:
        """A collection of no images."""
        histograms = {name: Histogram.empty(self._options.bins) for name in self._tensors}
        return Collection(self._sha256, self._options, self._ran_with, histograms)

    def count(self, batch: npt.NDArray[Any], collection: Collection, *, name: str) -> None:
        """Runs a batch and adds its activations to `collection`. batch: as the graph takes it.

        Raises DataError where a value is not finite; the collection cannot be used after that. name: what this error
        calls the batch.
        """
        for names, session in self._parts:
            values = self._run(session, names, batch)
            for index, tensor in enumerate(names):
                value = values[index].astype(np.float32, copy=False)
                try:
                    collection.histograms[tensor].add(value)
                except ValueError as error:
                    raise DataError(
                        f"{tensor} is not finite at {name}", "check the checkpoint: the FP32 graph overflows"
                    ) from error
                if tensor in self._channelled:
                    largest = np.abs(value).max(axis=tuple(range(value.ndim - 1)))  # (C,)
                    collection.channels[tensor] = np.maximum(collection.channels.get(tensor, np.float32(0)), largest)
                del value
                values[index] = None  # counted: free it before the next

    def _run(self, session: Any, names: list[str] | None, batch: npt.NDArray[Any]) -> list[Any]:
        try:
            outputs: list[Any] = session.run(names, {self.fitter.name: batch})
        except Exception as error:  # onnxruntime's own classes have no common base
            raise EngineError(f"the graph failed on ONNX Runtime: {first_line(error)}") from error
        return outputs


def _providers(device: str, available: list[str]) -> list[tuple[str, dict[str, Any]]]:
    cpu: list[tuple[str, dict[str, Any]]] = [("CPUExecutionProvider", {})]
    has_cuda = "CUDAExecutionProvider" in available
    if device == "cuda" and not has_cuda:
        raise MissingDependencyError("this onnxruntime has no CUDA provider", "pip install onnxruntime-gpu, or use cpu")
    # TF32 would round the ranges to 10 bits.
    cuda: list[tuple[str, dict[str, Any]]] = [("CUDAExecutionProvider", {"use_tf32": "0"})]
    return cuda + cpu if has_cuda and device != "cpu" else cpu
