"""The manifest of a bundle, and the file with the audits of its engines."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, cast

from twins_trt.builders.bundle.job import BuildJob
from twins_trt.builders.engine import BuiltEngine, GraphHeader, TensorInfo, read_header
from twins_trt.builders.engine.audit import Audit, audit_entry
from twins_trt.builders.export import GraphInfo
from twins_trt.builders.export.shapes import Shape, input_shapes
from twins_trt.builders.quantize import Quantization
from twins_trt.inference.interface import GraphInterface
from twins_trt.inference.tensors import DType, TensorSpec
from twins_trt.models.weights import ModelFacts
from twins_trt.runtime.manifest import EngineFile, Manifest
from twins_trt.version import __version__

_TOOLS = ("torch", "onnx", "onnx-graphsurgeon", "numpy")


@dataclass(frozen=True)
class NearestAudit:
    """The audit of an engine that does not ship, in place of engines that await their device.

    target: the nearest architecture, for which TensorRT-RTX compiled it. stands_for: the targets that await (`sm_87`).
    version: of TensorRT-RTX. not_int8: what `check_int8` found.
    """

    target: str
    stands_for: tuple[str, ...]
    version: str
    audit: Audit
    not_int8: tuple[str, ...] = ()


@dataclass(frozen=True)
class Audits:
    """All audits of a build.

    engines: by engine file. not_int8: by engine file, what `check_int8` found. stands_for: by engine file, the targets
    that await their device and whose nearest architecture the engine is compiled for anyway. nearest: of the other
    targets that await. not_audited: target that awaits -> why nothing was audited in its place.
    """

    engines: Mapping[str, Audit]
    not_int8: Mapping[str, tuple[str, ...]]
    stands_for: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    nearest: tuple[NearestAudit, ...] = ()
    not_audited: Mapping[str, str] = field(default_factory=dict)


def audit_file(engines: Mapping[str, BuiltEngine], audits: Audits, quantization: Quantization | None) -> bytes:
    """The content of `audit.json`. engines: by file. quantization: of an INT8 graph, what the device checks its own
    engine against.

    An entry that `stands_for` other targets is of their nearest architecture; without a `file` its engine did not ship.
    """
    entries: list[dict[str, Any]] = []
    for file, engine in engines.items():
        entry = audit_entry(file, engine, audits.engines[file], audits.not_int8.get(file, ()))
        stands_for = audits.stands_for.get(file, ())
        entries.append(entry | ({"stands_for": list(stands_for)} if stands_for else {}))
    entries += [
        {
            "file": None,
            "flavour": "tensorrt_rtx",
            "version": each.version,
            "targets": [each.target],
            "stands_for": list(each.stands_for),
            "audit": each.audit.to_json(),
            "not_int8": list(each.not_int8),
        }
        for each in audits.nearest
    ]
    content: dict[str, Any] = {"engines": entries}
    if audits.not_audited:
        content["not_audited"] = dict(audits.not_audited)
    if quantization is not None:
        content["int8"] = {"nodes": list(quantization.nodes), "attentions": list(quantization.attentions)}
    return (json.dumps(content, indent=2) + "\n").encode()


def graph_interface(job: BuildJob, header: GraphHeader, facts: ModelFacts) -> GraphInterface:
    """The interface of a build's graph. header: of the graph."""
    return GraphInterface(
        inputs=tuple(_spec(tensor, input_shapes(job.graph)) for tensor in header.inputs),
        outputs=tuple(_spec(tensor, None) for tensor in header.outputs),
        classes=facts.classes,
        palette=facts.palette,
        preprocessing=job.preprocessing,
        threshold=job.conventions.threshold,
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
        padding=cast(Literal["parity", "masked", "unmasked"], info.padding),
        precision=job.precision,
        opset=header.opset,
        source=facts.source,
        rebuild=job.rebuild,
        engines=engine_files(job, engines),
        awaits=job.awaits,
        reduce_zero_label=job.conventions.reduce_zero_label,
        ignore_index=job.conventions.ignore_index,
        test_mode=job.conventions.test_mode,
        miou=job.conventions.miou,
        facts=job.conventions.facts,
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
