"""What goes into a bundle beside graph and engines: the manifest and the audit."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import cast

from twins_trt.builders.bundle.job import BuildJob
from twins_trt.builders.engine import BuiltEngine, TensorInfo, read_header
from twins_trt.builders.engine.audit import Audit
from twins_trt.builders.export import GraphInfo
from twins_trt.builders.export.shapes import Shape, input_shapes
from twins_trt.data.preprocessing import Preprocessing
from twins_trt.inference.interface import GraphInterface
from twins_trt.inference.tensors import DType, TensorSpec
from twins_trt.models.weights import ModelFacts
from twins_trt.runtime.manifest import EngineFile, Manifest
from twins_trt.version import __version__

_TOOLS = ("torch", "onnx", "onnx-graphsurgeon", "numpy")


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


def graph_interface(job: BuildJob, graph: Path, facts: ModelFacts) -> GraphInterface:
    """What the graph of a build takes and gives. graph: where it lies now."""
    header = read_header(graph)
    return GraphInterface(
        inputs=tuple(_spec(port, input_shapes(job.graph)) for port in header.inputs),
        outputs=tuple(_spec(port, None) for port in header.outputs),
        classes=facts.classes,
        palette=facts.palette,
        preprocessing=Preprocessing(test_scale=job.test_scale),
    )


def engine_files(job: BuildJob, built: Mapping[str, BuiltEngine]) -> tuple[EngineFile, ...]:
    """What a manifest says of the engines built so far, by file."""
    compatibility = {each.file: each.options.hardware_compatibility for each in job.engines}
    return tuple(
        EngineFile(file, engine.flavour, engine.version, engine.targets, compatibility[file])
        for file, engine in built.items()
    )


def manifest(
    job: BuildJob,
    graph: Path,
    info: GraphInfo,
    facts: ModelFacts,
    built: Mapping[str, BuiltEngine],
) -> Manifest:
    """The manifest of a build that nobody has judged. graph: where its graph lies now."""
    return Manifest(
        interface=graph_interface(job, graph, facts),
        model=info.model,
        padding="masked" if info.padding == "masked" else "parity",
        precision=job.precision,
        opset=read_header(graph).opset,
        source=facts.source,
        rebuild=job.rebuild,
        engines=engine_files(job, built),
        tools=_tools(built),
    )


def _spec(port: TensorInfo, profile: tuple[Shape, Shape, Shape] | None) -> TensorSpec:
    shape = tuple(f"{port.name}.{axis}" if extent is None else extent for axis, extent in enumerate(port.shape))
    limits = profile if profile and port.dynamic else (None, None, None)
    return TensorSpec(port.name, cast(DType, port.dtype), shape, *limits)


def _tools(built: Mapping[str, BuiltEngine]) -> dict[str, str]:
    """Name and version of everything that had a hand in the files."""
    tools = {"twins-trt": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in _TOOLS:
        try:
            tools[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # importable without metadata (a vendored or system package): nothing to write down
    return tools | {engine.flavour: engine.version for engine in built.values()}
