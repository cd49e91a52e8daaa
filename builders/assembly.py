"""What goes into a bundle beside graph and engines: the manifest and the audit."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import cast

from twins_trt.builders.audit import Audit
from twins_trt.builders.build_options import BuildOptions
from twins_trt.builders.engine import BuiltEngine, Port, read_header
from twins_trt.builders.export import ExportOptions, GraphInfo, Range
from twins_trt.builders.rebuild import rebuild_command
from twins_trt.builders.weights import ModelFacts
from twins_trt.data.preprocessing import Preprocessing
from twins_trt.runtime.manifest import EngineFile, Manifest
from twins_trt.runtime.tensors import DType, TensorSpec
from twins_trt.version import __version__

_TOOLS = ("torch", "onnx", "onnx-graphsurgeon", "numpy")

Shape = tuple[int, ...]


def audit_file(
    built: Mapping[str, BuiltEngine], audits: Mapping[str, Audit], not_int8: Mapping[str, tuple[str, ...]]
) -> bytes:
    """The content of `audit.json`. not_int8: by engine file, what `check_int8` found; empty for other precisions."""
    engines = [
        {
            "file": file,
            "flavour": engine.flavour,
            "version": engine.version,
            "targets": list(engine.targets),
            "audit": audits[file].to_json(),
            "not_int8": list(not_int8.get(file, ())),
        }
        for file, engine in built.items()
    ]
    return (json.dumps({"engines": engines}, indent=2) + "\n").encode()


def manifest(
    options: BuildOptions,
    out: Path,
    graph: Path,
    info: GraphInfo,
    facts: ModelFacts,
    built: Mapping[str, BuiltEngine],
) -> Manifest:
    """The manifest of a build that nobody has judged yet. out: the bundle's place; graph: where its graph lies now."""
    header = read_header(graph)
    return Manifest(
        model=info.model,
        num_classes=info.num_classes,
        classes=facts.classes,
        palette=facts.palette,
        inputs=tuple(_spec(port, _shapes(options.graph)) for port in header.inputs),
        outputs=tuple(_spec(port, None) for port in header.outputs),
        padding="masked" if info.padding == "masked" else "parity",
        precision=options.precision,
        opset=header.opset,
        source=facts.source,
        rebuild=rebuild_command(options, out),
        preprocessing=Preprocessing(test_scale=options.test_scale),
        engines=tuple(
            EngineFile(file, engine.flavour, engine.version, engine.targets, asked.hardware_compatibility)
            for (file, engine), asked in zip(built.items(), options.engines, strict=bool(built))  # or none built yet
        ),
        tools=_tools(built),
    )


def _spec(port: Port, profile: tuple[Shape, Shape, Shape] | None) -> TensorSpec:
    shape = tuple(f"{port.name}.{axis}" if extent is None else extent for axis, extent in enumerate(port.shape))
    limits = profile if profile and port.dynamic else (None, None, None)
    return TensorSpec(port.name, cast(DType, port.dtype), shape, *limits)


def _shapes(graph: ExportOptions) -> tuple[Shape, Shape, Shape]:
    """The smallest, the usual and the largest shape of the input `image`."""
    kinds = ("min", "opt", "max")
    sides = {
        name: [getattr(value, kind) if isinstance(value, Range) else value for kind in kinds]
        for name, value in (("n", graph.batch), ("h", graph.height), ("w", graph.width))
    }
    order = "nhwc" if graph.input == "uint8" else "nchw"
    least, usual, most = (tuple(3 if axis == "c" else sides[axis][i] for axis in order) for i in range(3))
    return least, usual, most


def profile(graph: ExportOptions) -> dict[str, tuple[Shape, Shape, Shape]] | None:
    """The shapes that an engine of a dynamic graph is made for; None for a graph of fixed size and batch."""
    dynamic = any(isinstance(side, Range) for side in (graph.batch, graph.height, graph.width))
    return {"image": _shapes(graph)} if dynamic else None


def _tools(built: Mapping[str, BuiltEngine]) -> dict[str, str]:
    """Name and version of everything that had a hand in the files."""
    tools = {"twins-trt": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in _TOOLS:
        try:
            tools[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # importable without metadata (a vendored or system package): nothing to write down
    return tools | {engine.flavour: engine.version for engine in built.values()}


def peak_host_mib() -> float | None:
    """The most memory that this process has held, MiB; None where the system does not say."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)
