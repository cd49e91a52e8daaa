"""The graph itself on ONNX Runtime's CPU provider: an engine that needs no GPU and no compiler."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from twins_trt.errors import EngineError, first_line, missing
from twins_trt.inference.tensors import TensorSpec
from twins_trt.runtime.engines.checks import check_buffer, check_input, take_interface, wanted_outputs, why_no_graph
from twins_trt.runtime.engines.protocol import EngineSource, LayerTime, OnStage, RuntimeOptions

if TYPE_CHECKING:
    from twins_trt.runtime.engines.protocol import Array

NAME = "onnxruntime"

_DTYPES = {
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
}


def why_not(source: EngineSource) -> str | None:
    """Why this kind cannot run `source` here, or None if it can."""
    if find_spec("onnxruntime") is None:
        return 'onnxruntime is not installed: pip install "twins-trt[cpu]"'
    return why_no_graph(source)


def open_engine(source: EngineSource, options: RuntimeOptions) -> OnnxRuntimeEngine:
    """The source's graph. Raises BundleError if graph and interface disagree about inputs or outputs."""
    engine = OnnxRuntimeEngine(source.graph, options=options, owner=str(source.path))
    take_interface(engine, source, file=source.graph.name)
    return engine


class OnnxRuntimeEngine:
    """A graph in an ONNX Runtime session on the CPU.

    graph: an ONNX file or its bytes. owner: the name in errors. Several threads may call one engine at once.
    `observe` is told nothing: a call copies nothing, and is one stage, which its caller can time.
    Raises MissingDependencyError without onnxruntime, EngineError if it refuses the graph.
    """

    name = NAME
    concurrent = True

    def __init__(
        self, graph: str | Path | bytes, *, options: RuntimeOptions | None = None, owner: str | None = None
    ) -> None:
        self._graph = graph
        self._options = options or RuntimeOptions()
        self.observe: OnStage | None = self._options.observe
        self._owner = owner or ("the graph" if isinstance(graph, bytes) else str(graph))
        self._session: Any = _session(graph, self._options, self._owner)
        self.inputs = tuple(_spec(node, self._owner) for node in self._session.get_inputs())
        self.outputs = tuple(_spec(node, self._owner) for node in self._session.get_outputs())
        if len(self.inputs) != 1:
            raise EngineError(f"{self._owner} has {len(self.inputs)} inputs, not one image")

    def __call__(
        self, image: Array, *, outputs: Sequence[str] | None = None, out: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """See `Engine.__call__`."""
        if self._session is None:
            raise EngineError(f"{self._owner} is closed")
        spec = self.inputs[0]
        check_input(spec, image, owner=self._owner)
        names = wanted_outputs(self.outputs, outputs, owner=self._owner)
        feed = np.ascontiguousarray(image)
        try:
            if not out:
                return dict(zip(names, self._session.run(names, {spec.name: feed}), strict=True))
            return self._run_into(feed, names, out)
        except EngineError:
            raise
        except Exception as error:  # onnxruntime's own classes have no common base
            raise EngineError(f"{self._owner} failed on ONNX Runtime: {first_line(error)}") from error

    def profile_layers(self, image: Array, *, runs: int = 10) -> tuple[LayerTime, ...]:
        """See `ProfilesLayers.profile_layers`. Timing has to be chosen when a session is made, so another session runs,
        and the graph is optimized and held twice meanwhile."""
        spec = self.inputs[0]
        check_input(spec, image, owner=self._owner)
        with tempfile.TemporaryDirectory(prefix="twins-trt-") as folder:
            session = _session(self._graph, self._options, self._owner, trace=Path(folder, "trace"))
            feed = {spec.name: np.ascontiguousarray(image)}
            try:
                for _ in range(runs + 1):  # the first sets memory aside
                    session.run(None, feed)
            except Exception as error:  # onnxruntime's own classes have no common base
                raise EngineError(f"{self._owner} failed on ONNX Runtime: {first_line(error)}") from error
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return _layer_times(events, runs)

    def close(self) -> None:
        """Free the session."""
        self._session = None

    def _run_into(self, feed: Array, names: list[str], out: Mapping[str, Array]) -> dict[str, Array]:
        binding = self._session.io_binding()
        binding.bind_cpu_input(self.inputs[0].name, feed)
        specs = {spec.name: spec for spec in self.outputs}
        for name in names:
            array = out.get(name)
            if array is None:
                binding.bind_output(name, "cpu")
                continue
            check_buffer(specs[name], array)
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(binding)
        return {
            name: out[name] if name in out else value.numpy()
            for name, value in zip(names, binding.get_outputs(), strict=True)
        }


def _session(graph: str | Path | bytes, options: RuntimeOptions, owner: str, *, trace: Path | None = None) -> Any:
    """A session for the graph. trace: the beginning of a file name, to which it writes the time of every operation."""
    try:
        import onnxruntime
    except ImportError as error:
        raise missing("onnxruntime", extra="cpu", purpose="running a graph on the CPU") from error

    session = onnxruntime.SessionOptions()
    session.intra_op_num_threads = options.threads or 0  # 0: one per core
    session.use_deterministic_compute = options.deterministic
    session.log_severity_level = 3  # its warnings are about its own fusions
    if trace is not None:
        session.enable_profiling, session.profile_file_prefix = True, str(trace)
    source = graph if isinstance(graph, bytes) else str(graph)
    try:
        return onnxruntime.InferenceSession(source, session, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes have no common base
        raise EngineError(
            f"ONNX Runtime {onnxruntime.__version__} refuses {owner}: {first_line(error)}",
            "export the graph again, or upgrade: pip install --upgrade onnxruntime",
        ) from error


def _layer_times(events: Sequence[Mapping[str, Any]], runs: int) -> tuple[LayerTime, ...]:
    """Means over the last `runs` runs of a trace, in microseconds there."""
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    total: dict[tuple[str, str], float] = {}
    for event in events:
        name = event["name"].removesuffix("_kernel_time")
        if name != event["name"] and event["ts"] >= starts[-runs]:
            key = (name, event["args"]["op_name"])
            total[key] = total.get(key, 0.0) + event["dur"]
    return tuple(LayerTime(name, spent / 1e3 / runs, operator) for (name, operator), spent in total.items())


def _spec(node: Any, owner: str) -> TensorSpec:
    if node.type not in _DTYPES:
        raise EngineError(f"{owner}: {node.name} is a {node.type}, not one of {', '.join(_DTYPES)}")
    # An unnamed dynamic dimension comes as None.
    shape = tuple(dim if isinstance(dim, int) else dim or f"{node.name}.{i}" for i, dim in enumerate(node.shape))
    return TensorSpec(node.name, _DTYPES[node.type], shape)  # type: ignore[arg-type]
