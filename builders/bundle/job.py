"""The job of a build: what `resolve` makes from a request, with every default decided."""

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
from twins_trt.data.preprocessing import Preprocessing
from twins_trt.models.conventions import Conventions
from twins_trt.models.source import FoundModel
from twins_trt.runtime.manifest import AUDIT, GATE, GRAPH, MANIFEST, WEIGHTS, AwaitedEngine
from twins_trt.verbs.build import FLAGS, BuildRequest
from twins_trt.version import __version__

PLAN, CALIBRATION, FALLBACK = "plan.json", "calibration.json", "fallback.json"


@dataclass(frozen=True)
class EngineJob:
    """An engine to build. file: its path inside the bundle. compiler: its name and version."""

    file: str
    options: EngineOptions
    compiler: str


@dataclass(frozen=True)
class NearestJob:
    """An engine that is audited in place of some that await their device, and that does not ship.

    options: its one target is the nearest architecture. stands_for: the targets that await (`sm_87`). file: the engine
    of the bundle that is compiled for the same architecture anyway, and serves; None if one has to be compiled.
    """

    options: EngineOptions
    compiler: str
    stands_for: tuple[str, ...]
    file: str | None = None

    @property
    def target(self) -> str:
        """The architecture."""
        return self.options.targets[0]


@dataclass(frozen=True)
class BuildJob:
    """A build with every default decided.

    request: the request, with the decisions on model, size, precision and targets filled in.
    found: the model and its weights, which are not read again, and what they tell with the request's values in place of
    theirs. preprocessing: of images; a graph of dynamic size follows its test scale. graph: for an INT8 build, how the
    FP32 graph is written that is calibrated.
    engines: those that are compiled here. awaits: those that the device compiles itself. nearest: what is audited in
    their place. Without engines and awaits the bundle's graph is for ONNX Runtime. int8: None for FP32 and FP16.
    gate: None for a build that is not judged.
    """

    request: BuildRequest
    out: Path
    overwrite: bool
    found: FoundModel
    graph: ExportOptions
    preprocessing: Preprocessing
    engines: tuple[EngineJob, ...]
    awaits: tuple[AwaitedEngine, ...]
    nearest: tuple[NearestJob, ...]
    allow_unfused: bool
    with_weights: bool
    int8: Int8Options | None
    gate: GateOptions | None
    threads: int | None

    @property
    def model(self) -> str:
        """The model's name."""
        return self.found.name

    @property
    def weights(self) -> Path | None:
        """The weights' file; None for seeded weights."""
        return self.found.weights

    @property
    def weights_sha256(self) -> str | None:
        """Of their file, as it was read."""
        return None if self.found.examined is None else self.found.examined.source.sha256

    @property
    def num_classes(self) -> int:
        """How many values a mask has."""
        return self.found.num_classes

    @property
    def conventions(self) -> Conventions:
        """How images, labels and logits are to be treated."""
        return self.found.conventions

    @property
    def padding(self) -> str:
        """How LSA treats padded keys."""
        return self.conventions.padding

    @property
    def precision(self) -> str:
        """The build's precision as its manifest names it: `fp32`, `fp16` or `int8`."""
        return self.graph.precision if self.int8 is None else "int8"

    @property
    def for_gpu(self) -> bool:
        """Whether an engine runs the bundle, of here or of its device, so that its graph on a CPU is a simulation."""
        return bool(self.engines or self.awaits)

    @property
    def rebuild(self) -> str:
        """The shell command that builds the bundle again."""
        return shlex.join(["twins-trt", "build", *FLAGS.words(replace(self.request, overwrite=None))])

    @property
    def files(self) -> tuple[str, ...]:
        """The files of the bundle."""
        int8 = (PLAN, CALIBRATION) if self.int8 else ()
        audit = (AUDIT,) if self.for_gpu else ()
        gate = (GATE,) if self.gate else ()
        weights = (WEIGHTS,) if self.with_weights else ()
        return (GRAPH, *(engine.file for engine in self.engines), *int8, *audit, *gate, *weights, MANIFEST)

    @property
    def steps(self) -> tuple[str, ...]:
        """The names of the steps, in order."""
        engines = (f"engine {each.options.flavour} {'+'.join(each.options.targets)}" for each in self.engines)
        int8 = ("calibration", "plan") if self.int8 else ()
        gate = ("gate",) if self.gate else ()
        nearest = (f"audit {each.target}" for each in self.nearest if each.file is None)
        return ("weights", "graph", *int8, *gate, *engines, *nearest, "bundle")

    @property
    def work(self) -> Path | None:
        """The work folder of an INT8 build, from which the same command resumes after a kill; None for other builds."""
        return self.out.with_name(f"{self.out.name}.work") if self.int8 else None

    @property
    def key(self) -> str:
        """sha256 of the weights and everything else that ranges depend on. Builds of one key share collected ranges.

        The search for a plan has a key of its own (`fallback.search_key`).
        """
        parts = {
            "version": __version__,
            "weights": self.weights_sha256,
            "model": [self.model, self.num_classes, encode(self.conventions)],
            "graph": self.graph.to_json(),
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
            "job": self._decisions(),
        }

    def _decisions(self) -> dict[str, Any]:
        left_out = ("request", "out", "overwrite", "found")
        plain = {
            "model": self.model,
            "published": self.weights is not None and self.found.checkpoint is None,
            "num_classes": self.num_classes,
            "conventions": encode(self.conventions),
        }
        return plain | {
            each.name: encode(getattr(self, each.name)) for each in fields(self) if each.name not in left_out
        }
