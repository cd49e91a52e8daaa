"""The last steps of a build: engines, their audit, and the bundle."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from twins_trt.builders.bundle.job import CALIBRATION, FALLBACK, PLAN, BuildJob, NearestJob
from twins_trt.builders.bundle.judge import Judged
from twins_trt.builders.bundle.make import BuiltGraph
from twins_trt.builders.bundle.manifest import Audits, NearestAudit, audit_file, build_manifest
from twins_trt.builders.engine import BuiltEngine, build_in_thread
from twins_trt.builders.engine.audit import Audit, audit_engine
from twins_trt.builders.fallback import Fallback
from twins_trt.builders.gate import GateResult, gate_file, gate_status
from twins_trt.builders.gate.options import limit_words
from twins_trt.builders.plan.precision_plan import PrecisionPlan
from twins_trt.builders.quantize import check_int8
from twins_trt.calib import save_ranges
from twins_trt.codec import encode
from twins_trt.errors import BuildError, MissingDependencyError, UnfusedAttentionError
from twins_trt.host_memory import peak_host_mib
from twins_trt.models.weights import ModelFacts
from twins_trt.progress import Clock
from twins_trt.runtime.bundle import Bundle, write_bundle
from twins_trt.runtime.manifest import AUDIT, GATE, GRAPH, WEIGHTS
from twins_trt.runtime.next_steps import NextSteps, after_build

NOT_THERE = "TensorRT-RTX, which compiles for the nearest architecture, is not installed or does not load"

log = logging.getLogger("twins_trt")


@dataclass(frozen=True)
class Product:
    """What a build ships. judged: None for a build without a gate."""

    facts: ModelFacts
    graph: BuiltGraph
    judged: Judged | None


@dataclass(frozen=True)
class BuildReport:
    """What a build gave.

    audits: by engine file. seconds: wall time by step. peak_host_mib: most resident memory, MiB. gate: None for a build
    without one. plan: None except for INT8. fallback: None if the first plan passed. not_int8: by engine file, the
    places that the plan has in INT8 and that do not run in INT8. nearest: audits in place of engines that await their
    device. stands_for: by engine file, the targets in whose place its own audit serves. not_audited: target that
    awaits -> why nothing was audited in its place. pack: the file that `twins-trt gate` reads on the device, if one was
    written.
    """

    bundle: Bundle
    audits: Mapping[str, Audit]
    seconds: Mapping[str, float]
    peak_host_mib: float | None
    gate: GateResult | None = None
    plan: PrecisionPlan | None = None
    fallback: Fallback | None = None
    not_int8: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    nearest: tuple[NearestAudit, ...] = ()
    stands_for: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    not_audited: Mapping[str, str] = field(default_factory=dict)
    pack: Path | None = None

    @property
    def next(self) -> NextSteps:
        """The commands to type next, here and on the device."""
        return after_build(
            self.bundle.path,
            awaits=bool(self.bundle.manifest.awaits),
            pack=self.pack,
            limits=limit_words(self.bundle),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        return {
            "bundle": str(self.bundle.path),
            "manifest": self.bundle.manifest.to_json(),
            "audits": {name: audit.to_json() for name, audit in self.audits.items()},
            "seconds": {step: round(value, 3) for step, value in self.seconds.items()},
            "peak_host_mib": self.peak_host_mib,
            "gate": None if self.gate is None else self.gate.to_json(),
            "pack": None if self.pack is None else str(self.pack),
            "plan": None if self.plan is None else encode(self.plan),
            "fallback": None if self.fallback is None else self.fallback.to_json(),
            "not_int8": {file: list(nodes) for file, nodes in self.not_int8.items()},
            "nearest": [encode(each) | {"audit": each.audit.to_json()} for each in self.nearest],
            "stands_for": {file: list(targets) for file, targets in self.stands_for.items()},
            "not_audited": dict(self.not_audited),
            "next": self.next.to_json(),
        }


def ship(job: BuildJob, product: Product, folder: Path, clock: Clock) -> BuildReport:
    """Compiles the engines that the gate has not compiled, audits all of them, and writes the bundle.

    In place of an engine that awaits its device, one of the nearest architecture is audited, which does not ship.

    folder: of the build. Raises `UnfusedAttentionError` for an engine that leaves an attention unfused unless the job
    allows it, and as `build_in_thread` and `write_bundle` do.
    """
    graph, judged = product.graph, product.judged
    engines = _engines(job, graph, {} if judged is None else judged.engines, clock)
    audits = _audits(job, graph, engines, clock)
    clock.begin(str(job.out))
    files: dict[str, bytes | Path] = {GRAPH: graph.path}
    files |= {file: engine.serialized for file, engine in engines.items()}
    if job.for_gpu:
        files[AUDIT] = audit_file(engines, audits, None if graph.int8 is None else graph.int8.quantization)
    if graph.int8 is not None:
        files[PLAN] = graph.int8.plan.to_json().encode()
        files[CALIBRATION] = save_ranges(graph.int8.ranges, folder / CALIBRATION)
    if job.with_weights:
        files[WEIGHTS] = folder / WEIGHTS
    manifest = build_manifest(job, graph.path, graph.info, product.facts, engines)
    if judged is not None:
        files[GATE] = gate_file(judged.gate)
        manifest = replace(manifest, gate=gate_status(judged.gate))
        if judged.fallback is not None:
            files[FALLBACK] = judged.fallback.file()
    bundle = write_bundle(job.out, manifest, files, overwrite=job.overwrite)
    clock.end()
    return BuildReport(
        bundle,
        audits.engines,
        clock.seconds,
        peak_host_mib(),
        gate=None if judged is None else judged.gate,
        plan=None if graph.int8 is None else graph.int8.plan,
        fallback=None if judged is None else judged.fallback,
        not_int8=audits.not_int8,
        nearest=audits.nearest,
        stands_for=audits.stands_for,
        not_audited=audits.not_audited,
        pack=None if job.gate is None or job.gate.pack is None else Path(job.gate.pack),
    )


def _engines(
    job: BuildJob, graph: BuiltGraph, judged: Mapping[str, BuiltEngine], clock: Clock
) -> dict[str, BuiltEngine]:
    """The engines by file: those that were judged, and the others, which are built now."""
    engines = {}
    for each in job.engines:
        clock.begin(each.compiler)
        engines[each.file] = judged.get(each.file) or build_in_thread(graph.path, each.options, clock.progress)
    return engines


def _audits(job: BuildJob, graph: BuiltGraph, engines: Mapping[str, BuiltEngine], clock: Clock) -> Audits:
    """The audits of the engines, and of the nearest architecture of every target that awaits its device."""
    audited = {file: _audited(job, graph, engine) for file, engine in engines.items()}
    not_int8 = {file: _not_int8(graph, file, engine) for file, engine in engines.items()}
    nearest = []
    reasons = {} if job.nearest else dict.fromkeys((each.target for each in job.awaits), NOT_THERE)
    for each in job.nearest:
        if each.file is not None:
            continue
        try:
            nearest.append(_audit_nearest(job, graph, each, clock))
        except UnfusedAttentionError:
            raise
        except (
            BuildError,
            MissingDependencyError,
        ) as error:  # of a compiler that is not the device's, so it condemns nothing
            log.warning("nothing is audited in place of %s: %s", ", ".join(each.stands_for), error.cause)
            reasons |= dict.fromkeys(each.stands_for, error.cause)
    stands_for = {each.file: each.stands_for for each in job.nearest if each.file is not None}
    return Audits(audited, not_int8, stands_for, tuple(nearest), reasons)


def _audit_nearest(job: BuildJob, graph: BuiltGraph, nearest: NearestJob, clock: Clock) -> NearestAudit:
    clock.begin(f"{nearest.compiler}, the nearest to {', '.join(nearest.stands_for)}")
    engine = build_in_thread(graph.path, nearest.options, clock.progress)
    missing = _not_int8(graph, f"nearest architecture {nearest.target}", engine)
    return NearestAudit(nearest.target, nearest.stands_for, engine.version, _audited(job, graph, engine), missing)


def _audited(job: BuildJob, graph: BuiltGraph, engine: BuiltEngine) -> Audit:
    return audit_engine(
        engine, precision=job.precision, attentions=graph.info.attentions, allow_unfused=job.allow_unfused
    )


def _not_int8(graph: BuiltGraph, file: str, engine: BuiltEngine) -> tuple[str, ...]:
    missing = () if graph.int8 is None else check_int8(engine.layers, graph.int8.quantization)
    if missing:
        log.warning("%s: %d places that the plan has in INT8 are not: %s", file, len(missing), ", ".join(missing[:4]))
    return missing
