"""The whole build as one call: weights, graph, ranges, plan, gate, engines, audit, bundle; all of it or nothing."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from twins_trt.builders.assembly import audit_file, manifest, peak_host_mib
from twins_trt.builders.audit import Audit, audit_layers, check_fused
from twins_trt.builders.build_options import BuildOptions
from twins_trt.builders.engine import BuiltEngine
from twins_trt.builders.export import GraphInfo
from twins_trt.builders.fallback import Fallback
from twins_trt.builders.gate import GateResult, gate_file, verdict
from twins_trt.builders.making import Made, Maker
from twins_trt.builders.plan import Plan
from twins_trt.builders.preflight import AUDIT, CALIBRATION, FALLBACK, GATE, PLAN, BuildPlan, plan_build
from twins_trt.builders.progress import Clock, Progress, Step
from twins_trt.builders.quantize import check_int8
from twins_trt.builders.weights import load_weights, save_weights
from twins_trt.calib import save_ranges
from twins_trt.errors import BundleError, UnfusedAttentionError
from twins_trt.runtime.bundle import Bundle, write_bundle
from twins_trt.runtime.codec import encode
from twins_trt.runtime.manifest import GRAPH, WEIGHTS

log = logging.getLogger("twins_trt")

__all__ = ["BuildPlan", "BuildReport", "Progress", "Step", "build_bundle", "plan_build"]


@dataclass(frozen=True)
class BuildReport:
    """What came out. audits: by engine file. seconds: wall time by step. peak_host_mib: most resident memory, MiB.

    gate: None where nobody judged. plan: None but for INT8. fallback: None where the first plan passed. not_int8: by
    engine file, what was planned to run in INT8 and does not.
    """

    bundle: Bundle
    audits: Mapping[str, Audit]
    seconds: Mapping[str, float]
    peak_host_mib: float | None
    gate: GateResult | None = None
    plan: Plan | None = None
    fallback: Fallback | None = None
    not_int8: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        return {
            "bundle": str(self.bundle.path),
            "manifest": self.bundle.manifest.to_json(),
            "audits": {name: audit.to_json() for name, audit in self.audits.items()},
            "seconds": {step: round(value, 3) for step, value in self.seconds.items()},
            "peak_host_mib": self.peak_host_mib,
            "gate": None if self.gate is None else self.gate.to_json(),
            "plan": None if self.plan is None else encode(self.plan),
            "fallback": None if self.fallback is None else self.fallback.to_json(),
            "not_int8": {file: list(nodes) for file, nodes in self.not_int8.items()},
        }


def build_bundle(
    options: BuildOptions, out: str | Path, *, overwrite: bool = False, progress: Progress | None = None
) -> BuildReport:
    """Builds a bundle in the new folder `out`. An interrupt or an error leaves no bundle behind; an INT8 build leaves
    `out`.work, with which the same call goes on.

    overwrite: replace a bundle that is there. progress: called at every step, and while an engine builds.
    Raises `UsageError` for options that do not fit together, `CheckpointError` for weights that do not fit the model,
    `ExportError` and `BuildError` where graph or engine cannot be made, `UnfusedAttentionError` where an FP16 or INT8
    engine leaves an attention unfused and `allow_unfused` is off, `GateError` where the build fails its gate,
    `DataError` for images that are none, `BundleError` where `out` exists or cannot be written,
    `MissingDependencyError` where a compiler, or the GPU it needs, is not there.
    """
    plan = plan_build(options, out, overwrite=overwrite)
    options = plan.options
    clock = Clock(plan.steps, progress)
    clock.begin("seeded" if plan.weights is None else str(plan.weights))
    model, facts = load_weights(
        options.model,
        checkpoint=options.checkpoint,
        seeded=options.seeded,
        num_classes=options.num_classes,
        padding=options.padding,
    )
    with _workplace(plan) as folder:
        if options.with_weights:
            save_weights(model, facts, folder / WEIGHTS)
        maker = Maker(plan, model, facts, folder, clock)
        del model  # the maker drops it too, before the compiler makes its own copies of a large model's weights
        made = maker.make()
        built = maker.engines(made)
        audits = {
            file: _audited(engine, made.info, precision=options.precision, allow_unfused=options.allow_unfused)
            for file, engine in built.items()
        }
        not_int8 = {file: _checked_int8(file, engine, made) for file, engine in built.items()}
        clock.begin(str(plan.out))
        final = manifest(options, plan.out, made.graph, made.info, facts, built)
        files: dict[str, bytes | Path] = {GRAPH: made.graph, **{file: engine.plan for file, engine in built.items()}}
        if built:
            files[AUDIT] = audit_file(built, audits, not_int8)
        if made.plan is not None and made.ranges is not None:
            files |= {PLAN: made.plan.to_json().encode(), CALIBRATION: save_ranges(made.ranges, folder / CALIBRATION)}
        if options.with_weights:
            files[WEIGHTS] = folder / WEIGHTS
        if made.fallback is not None:
            files[FALLBACK] = made.fallback.file()
        if made.gate is not None:
            files[GATE] = gate_file(made.gate)
            final = replace(final, gate=verdict(made.gate))
        bundle = write_bundle(plan.out, final, files, overwrite=overwrite)
    if plan.work is not None:
        shutil.rmtree(plan.work, ignore_errors=True)
    clock.end()
    return BuildReport(bundle, audits, clock.seconds, peak_host_mib(), made.gate, made.plan, made.fallback, not_int8)


@contextlib.contextmanager
def _workplace(plan: BuildPlan) -> Iterator[Path]:
    """A folder for the time of a build; an INT8 build finds there what one like it has left."""
    if plan.work is None:
        with tempfile.TemporaryDirectory(prefix="twins-trt-") as folder:
            yield Path(folder)
        return
    try:
        plan.work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(f"{plan.work} cannot be made: {error.strerror}", "choose another place") from error
    yield plan.work


def _checked_int8(file: str, engine: BuiltEngine, made: Made) -> tuple[str, ...]:
    missing = () if made.done is None else check_int8(engine.layers, made.done)
    if missing:
        log.warning("%s: %d places that the plan has in INT8 are not: %s", file, len(missing), ", ".join(missing[:4]))
    return missing


def _audited(engine: BuiltEngine, info: GraphInfo, *, precision: str, allow_unfused: bool) -> Audit:
    audit = audit_layers(engine.layers, expected_attentions=info.attentions)
    if precision == "fp32":
        return audit  # no compiler fuses float32 attention, so there is nothing to hold it to
    try:
        check_fused(audit)
    except UnfusedAttentionError as error:
        if not allow_unfused:
            log.warning("audit of the engine that is refused:\n%s", audit.table())  # no bundle will hold it
            raise
        log.warning("%s (allowed)", error.cause)
    return audit
