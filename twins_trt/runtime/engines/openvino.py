"""The graph itself on OpenVINO's CPU plugin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from twins_trt.errors import EngineError, missing
from twins_trt.inference.tensors import TensorSpec
from twins_trt.runtime.advice import for_cpus
from twins_trt.runtime.engines.checks import check_buffer, check_input, take_interface, wanted_outputs, why_no_graph
from twins_trt.runtime.engines.protocol import EngineSource, LayerTime, OnStage, RuntimeOptions
from twins_trt.spelling import spelled

if TYPE_CHECKING:
    from twins_trt.runtime.engines.protocol import Array

NAME = "openvino"

_DTYPES = {"u8": "uint8", "i32": "int32", "i64": "int64", "f16": "float16", "f32": "float32"}


def why_not(source: EngineSource) -> str | None:
    """Why this kind cannot run `source` here, or None if it can."""
    if find_spec("openvino") is None:
        return 'openvino is not installed: pip install "twins-trt[openvino]"'
    if source.precision == "fp16" or (source.precision == "int8" and not for_cpus(source.rebuild)):
        return "OpenVINO computes FP16 in float32 on a CPU, so this would not be the graph's own accuracy"
    return why_no_graph(source)


def open_engine(source: EngineSource, options: RuntimeOptions) -> OpenVinoEngine:
    """The source's graph.

    Raises BundleError if there is no graph, or if graph and interface disagree about inputs or outputs, EngineError for
    a graph in FP16.
    """
    graph = source.graph  # which may not be there
    if find_spec("openvino") and (reason := why_not(source)):
        fix = f"take {spelled('engine', 'onnxruntime')}, or build with {spelled('targets', 'cpu')}"
        raise EngineError(f"{source.path}: {reason}", fix)
    engine = OpenVinoEngine(graph, options=options, owner=str(source.path))
    take_interface(engine, source, file=graph.name)
    return engine


class OpenVinoEngine:
    """A graph compiled by OpenVINO for the CPU.

    graph: an ONNX file or its bytes. owner: the name in errors. Every call computes all outputs. `observe` is told
    nothing: a call is one stage, which its caller can time.
    Raises MissingDependencyError without openvino, EngineError if it refuses the graph.
    """

    name = NAME
    concurrent = False  # one request holds one set of activations

    def __init__(
        self, graph: str | Path | bytes, *, options: RuntimeOptions | None = None, owner: str | None = None
    ) -> None:
        self._graph = graph
        self._options = options or RuntimeOptions()
        self.observe: OnStage | None = self._options.observe
        self._owner = owner or ("the graph" if isinstance(graph, bytes) else str(graph))
        compiled = _compiled(graph, self._options, self._owner)
        self.inputs = tuple(_spec(tensor, self._owner) for tensor in compiled.inputs)
        self.outputs = tuple(_spec(tensor, self._owner) for tensor in compiled.outputs)
        if len(self.inputs) != 1:
            raise EngineError(f"{self._owner} has {len(self.inputs)} inputs, not one image")
        self._graph_outputs = self.outputs  # in the order of the graph
        self._request: Any = compiled.create_infer_request()

    def __call__(
        self, image: Array, *, outputs: Sequence[str] | None = None, out: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """See `Engine.__call__`."""
        if self._request is None:
            raise EngineError(f"{self._owner} is closed")
        check_input(self.inputs[0], image, owner=self._owner)
        names = wanted_outputs(self.outputs, outputs, owner=self._owner)
        at = {spec.name: i for i, spec in enumerate(self._graph_outputs)}
        buffers = {name: array for name, array in (out or {}).items() if name in names}
        for name, array in buffers.items():
            check_buffer(next(spec for spec in self.outputs if spec.name == name), array)
        _infer(self._request, image, self._owner)
        results: dict[str, Array] = {}
        for name in names:
            # A copy: the next call writes into the same tensor.
            value = self._request.get_output_tensor(at[name]).data
            if name in buffers and buffers[name].shape != value.shape:
                raise EngineError(f"the buffer for {name} is {buffers[name].shape}, the output is {value.shape}")
            results[name] = buffers.get(name, np.empty_like(value))
            np.copyto(results[name], value)
        return results

    def profile_layers(self, image: Array, *, runs: int = 10) -> tuple[LayerTime, ...]:
        """See `ProfilesLayers.profile_layers`. Timing is an option of compiling, so the graph is compiled again and
        held twice meanwhile."""
        check_input(self.inputs[0], image, owner=self._owner)
        request = _compiled(self._graph, self._options, self._owner, timed=True).create_infer_request()
        _infer(request, image, self._owner)  # sets memory aside
        total: dict[tuple[str, str], float] = {}
        for _ in range(runs):
            _infer(request, image, self._owner)
            for layer in request.get_profiling_info():
                if layer.status == type(layer).Status.EXECUTED:
                    key = (layer.node_name, layer.node_type)
                    total[key] = total.get(key, 0.0) + layer.real_time.total_seconds()
        return tuple(LayerTime(name, 1e3 * spent / runs, operator) for (name, operator), spent in total.items())

    def close(self) -> None:
        """Free the compiled graph."""
        self._request = None


def _compiled(graph: str | Path | bytes, options: RuntimeOptions, owner: str, *, timed: bool = False) -> Any:
    try:
        import openvino
        from openvino.frontend import FrontEndManager
    except ImportError as error:
        raise missing("openvino", extra="openvino", purpose="running a graph with OpenVINO") from error

    properties = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # left alone, it takes bfloat16 where the CPU has it
        "PERF_COUNT": timed,
    }
    if options.threads is not None:
        properties["INFERENCE_NUM_THREADS"] = options.threads
    try:
        # Left to guess the format, OpenVINO offers a broken file to all of its parsers, and some write to stderr.
        reader = FrontEndManager().load_by_framework("onnx")
        model = reader.convert(reader.load(BytesIO(graph) if isinstance(graph, bytes) else str(graph)))
        return openvino.Core().compile_model(model, "CPU", properties)
    except Exception as error:  # openvino's own classes, RuntimeError among them
        raise EngineError(
            f"OpenVINO {openvino.__version__.split('-')[0]} refuses {owner}: {_reason(error)}",
            "export the graph again, or upgrade: pip install --upgrade openvino",
        ) from error


def _infer(request: Any, image: Array, owner: str) -> None:
    try:
        request.infer([np.ascontiguousarray(image)], share_inputs=True)
    except Exception as error:  # openvino raises RuntimeError
        raise EngineError(f"{owner} failed on OpenVINO: {_reason(error)}") from error


def _spec(tensor: Any, owner: str) -> TensorSpec:
    # An output may have the names of several tensors. Its node is called after the name in the graph.
    own = tensor.node.friendly_name.removesuffix("/sink_port_0")
    name, dtype = own if own in tensor.names else tensor.any_name, tensor.element_type.get_type_name()
    if dtype not in _DTYPES:
        raise EngineError(f"{owner}: {name} is a {dtype}, not one of {', '.join(_DTYPES)}")
    dims = enumerate(tensor.partial_shape)
    shape = tuple(dim.get_length() if dim.is_static else f"{name}.{i}" for i, dim in dims)
    return TensorSpec(name, _DTYPES[dtype], shape)  # type: ignore[arg-type]


def _reason(error: Exception) -> str:
    """The line with the reason: OpenVINO's errors begin with places in its source code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    places = ("Exception from", "Check '", "FrontEnd API failed")
    return next((line for line in lines if not line.startswith(places)), type(error).__name__)
