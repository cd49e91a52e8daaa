"""What goes into a bundle beside graph and engines: the manifest and the audit."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import cast

from twins_trt.builders.audit import Audit
from twins_trt.builders.engine import BuiltEngine, Port, read_header
from twins_trt.builders.export import GraphInfo
from twins_trt.builders.job import BuildJob
from twins_trt.builders.shapes import Shape, input_shapes
from twins_trt.builders.weights import ModelFacts
from twins_trt.data.preprocessing import Preprocessing
from twins_trt.runtime.manifest import EngineFile, Manifest
from twins_trt.runtime.tensors import DType, TensorSpec
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


def manifest(
    job: BuildJob,
    graph: Path,
    info: GraphInfo,
    facts: ModelFacts,
    built: Mapping[str, BuiltEngine],
) -> Manifest:
    """The manifest of a build that nobody has judged yet. graph: where its graph lies now."""
    header = read_header(graph)
    return Manifest(
        model=info.model,
        num_classes=info.num_classes,
        classes=facts.classes,
        palette=facts.palette,
        inputs=tuple(_spec(port, input_shapes(job.graph)) for port in header.inputs),
        outputs=tuple(_spec(port, None) for port in header.outputs),
        padding="masked" if info.padding == "masked" else "parity",
        precision=job.precision,
        opset=header.opset,
        source=facts.source,
        rebuild=job.rebuild,
        preprocessing=Preprocessing(test_scale=job.test_scale),
        engines=tuple(
            EngineFile(file, engine.flavour, engine.version, engine.targets, asked.options.hardware_compatibility)
            for (file, engine), asked in zip(built.items(), job.engines, strict=bool(built))  # or none built yet
        ),
        tools=_tools(built),
    )


def _spec(port: Port, profile: tuple[Shape, Shape, Shape] | None) -> TensorSpec:
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


def peak_host_mib() -> float | None:
    """The most memory that this process has held, MiB; None where the system does not say."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)
