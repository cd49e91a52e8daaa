"""The manifest of a bundle, and the file with the audits of its engines."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import cast

from twins_trt.builders.bundle.job import BuildJob
from twins_trt.builders.engine import BuiltEngine, GraphHeader, TensorInfo, read_header
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
    engines: Mapping[str, BuiltEngine], audits: Mapping[str, Audit], not_int8: Mapping[str, tuple[str, ...]]
) -> bytes:
    """The content of `audit.json`. All arguments are by engine file. not_int8: what `check_int8` found."""
    entries = [
        {
            "file": file,
            "flavour": engine.flavour,
            "version": engine.version,
            "targets": list(engine.targets),
            "audit": audits[file].to_json(),
            "not_int8": list(not_int8.get(file, ())),
        }
        for file, engine in engines.items()
    ]
    return (json.dumps({"engines": entries}, indent=2) + "\n").encode()


def graph_interface(job: BuildJob, header: GraphHeader, facts: ModelFacts) -> GraphInterface:
    """The interface of a build's graph. header: of the graph."""
    return GraphInterface(
        inputs=tuple(_spec(tensor, input_shapes(job.graph)) for tensor in header.inputs),
        outputs=tuple(_spec(tensor, None) for tensor in header.outputs),
        classes=facts.classes,
        palette=facts.palette,
        preprocessing=Preprocessing(test_scale=job.test_scale),
    )


def engine_files(job: BuildJob, engines: Mapping[str, BuiltEngine]) -> tuple[EngineFile, ...]:
    """The manifest's entries for engines. engines: by file."""
    compatibility = {each.file: each.options.hardware_compatibility for each in job.engines}
    return tuple(
        EngineFile(file, engine.flavour, engine.version, engine.targets, compatibility[file])
        for file, engine in engines.items()
    )


def build_manifest(
    job: BuildJob,
    graph: Path,
    info: GraphInfo,
    facts: ModelFacts,
    engines: Mapping[str, BuiltEngine],
) -> Manifest:
    """The manifest of a build that has not been judged. graph: its file. engines: by file."""
    header = read_header(graph)
    return Manifest(
        interface=graph_interface(job, header, facts),
        model=info.model,
        padding="masked" if info.padding == "masked" else "parity",
        precision=job.precision,
        opset=header.opset,
        source=facts.source,
        rebuild=job.rebuild,
        engines=engine_files(job, engines),
        tools=_tools(engines),
    )


def _spec(tensor: TensorInfo, profile: tuple[Shape, Shape, Shape] | None) -> TensorSpec:
    shape = tuple(f"{tensor.name}.{axis}" if extent is None else extent for axis, extent in enumerate(tensor.shape))
    limits = profile if profile and tensor.dynamic else (None, None, None)
    return TensorSpec(tensor.name, cast(DType, tensor.dtype), shape, *limits)


def _tools(engines: Mapping[str, BuiltEngine]) -> dict[str, str]:
    """The versions of everything that took part in making the files, by name."""
    tools = {"twins-trt": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in _TOOLS:
        try:
            tools[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # a vendored or system package without metadata: its version is not known
    return tools | {engine.flavour: engine.version for engine in engines.values()}
