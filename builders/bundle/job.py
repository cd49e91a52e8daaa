"""A build that is decided: what `resolve` makes of a request, with nothing left to choose."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from twins_trt.builders.engine.options import EngineOptions
from twins_trt.builders.export import ExportOptions
from twins_trt.builders.gate.options import GateOptions
from twins_trt.builders.quantize.options import Int8Options
from twins_trt.codec import encode
from twins_trt.files import sha256_of
from twins_trt.runtime.manifest import GRAPH, MANIFEST, WEIGHTS
from twins_trt.verbs.build import FLAGS, BuildRequest
from twins_trt.version import __version__

AUDIT, PLAN, CALIBRATION, GATE, FALLBACK = "audit.json", "plan.json", "calibration.json", "gate.json", "fallback.json"


@dataclass(frozen=True)
class EngineJob:
    """An engine to build. file: below the bundle. compiler: its name and version."""

    file: str
    options: EngineOptions
    compiler: str


@dataclass(frozen=True)
class BuildJob:
    """A build, every default of it decided.

    request: what was asked, with what was decided of model, size, precision and targets said in it.
    weights: their file, None for seeded ones. published: they are the zoo's own, which are checked. num_classes: None
    takes the checkpoint's. graph: of an INT8 build the FP32 graph that is calibrated. engines: none for a graph that
    ONNX Runtime runs. int8, gate: None for neither.
    """

    request: BuildRequest
    out: Path
    overwrite: bool
    model: str
    weights: Path | None
    published: bool
    num_classes: int | None
    padding: str
    graph: ExportOptions
    test_scale: tuple[int, int] | None
    engines: tuple[EngineJob, ...]
    allow_unfused: bool
    with_weights: bool
    int8: Int8Options | None
    gate: GateOptions | None
    threads: int | None

    @property
    def precision(self) -> str:
        """`fp32`, `fp16` or `int8`: what a manifest calls the build."""
        return self.graph.precision if self.int8 is None else "int8"

    @property
    def float_precision(self) -> str:
        """What an INT8 graph computes in where it is not INT8: ONNX Runtime has no FP16 kernels on x86."""
        return "fp16" if self.engines else "fp32"

    @property
    def rebuild(self) -> str:
        """The shell command that makes the bundle again."""
        return shlex.join(["twins-trt", "build", *FLAGS.words(replace(self.request, overwrite=None))])

    @property
    def files(self) -> tuple[str, ...]:
        """What the bundle will hold."""
        int8 = (PLAN, CALIBRATION) if self.int8 else ()
        audit = (AUDIT,) if self.engines else ()
        gate = (GATE,) if self.gate else ()
        weights = (WEIGHTS,) if self.with_weights else ()
        return (GRAPH, *(engine.file for engine in self.engines), *int8, *audit, *gate, *weights, MANIFEST)

    @property
    def steps(self) -> tuple[str, ...]:
        """The names of the steps, in order."""
        engines = (f"engine {each.options.flavour} {'+'.join(each.options.targets)}" for each in self.engines)
        int8 = ("calibration", "plan") if self.int8 else ()
        gate = ("gate",) if self.gate else ()
        return ("weights", "graph", *int8, *gate, *engines, "bundle")

    @property
    def work(self) -> Path | None:
        """Where an INT8 build keeps what it has done so far: the same command goes on from there after a kill."""
        return self.out.with_name(f"{self.out.name}.work") if self.int8 else None

    @property
    def key(self) -> str:
        """sha256 of the weights and of all that ranges depend on: what a build has collected serves others of its key.
        Plans and verdicts have keys of their own (`fallback.search_key`)."""
        parts = {
            "version": __version__,
            "weights": None if self.weights is None else sha256_of(self.weights),
            "model": [self.model, self.num_classes, self.padding],
            "graph": encode(self.graph),
            "ranges": None if self.int8 is None else encode([self.int8.ranges, self.int8.calibration]),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        return {
            "out": str(self.out),
            "weights": None if self.weights is None else str(self.weights),
            "precision": self.precision,
            "steps": list(self.steps),
            "files": list(self.files),
            "compilers": [engine.compiler for engine in self.engines],
            "rebuild": self.rebuild,
            "request": self.request.to_json(),
            "job": self._decided(),
        }

    def _decided(self) -> dict[str, Any]:
        aside = ("request", "out", "overwrite", "weights")
        return {each.name: encode(getattr(self, each.name)) for each in fields(self) if each.name not in aside}
