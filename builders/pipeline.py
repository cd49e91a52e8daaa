"""The whole build as one call: weights, graph, ranges, plan, gate, engines, audit, bundle; all of it or nothing."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twins_trt.builders.assembly import audit_file, manifest, peak_host_mib, profile
from twins_trt.builders.audit import Audit, audit_layers, check_fused
from twins_trt.builders.build_options import BuildOptions
from twins_trt.builders.calibration import calibration_images, collect_ranges, first_plan, read_plan
from twins_trt.builders.engine import BuiltEngine, build_apart, current_device, describe, load
from twins_trt.builders.engine.versions import settle_targets
from twins_trt.builders.export import GraphInfo, export_graph
from twins_trt.builders.gate import GateResult, gate_file, verdict
from twins_trt.builders.judge import Judge, gate_images
from twins_trt.builders.plan import Plan
from twins_trt.builders.progress import Clock, Progress, Step
from twins_trt.builders.quantize import Quantization, QuantizedGraphs, check_int8
from twins_trt.builders.weights import ModelFacts, find_weights, load_weights
from twins_trt.calib import Ranges, save_ranges
from twins_trt.errors import BundleError, GateError, UnfusedAttentionError, UsageError
from twins_trt.runtime.bundle import Bundle, write_bundle
from twins_trt.runtime.codec import encode
from twins_trt.runtime.manifest import GRAPH, MANIFEST, WEIGHTS

if TYPE_CHECKING:
    from twins_trt.models.segmentor import Segmentor

log = logging.getLogger("twins_trt")

AUDIT, PLAN, CALIBRATION, GATE = "audit.json", "plan.json", "calibration.json", "gate.json"

__all__ = ["BuildPlan", "BuildReport", "Progress", "Step", "build_bundle", "plan_build"]


@dataclass(frozen=True)
class BuildPlan:
    """What a build will do, all of it checked that can be checked beforehand.

    options: with the targets settled. weights: the file, None for seeded ones. compilers: name and version by engine.
    """

    options: BuildOptions
    out: Path
    weights: Path | None
    engine_files: tuple[str, ...]
    compilers: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """What the bundle will hold."""
        int8 = (PLAN, CALIBRATION) if self.options.int8 else ()
        audit = (AUDIT,) if self.engine_files else ()
        gate = (GATE,) if self.options.gate else ()
        weights = (WEIGHTS,) if self.options.with_weights else ()
        return (GRAPH, *self.engine_files, *int8, *audit, *gate, *weights, MANIFEST)

    @property
    def steps(self) -> tuple[str, ...]:
        engines = (f"engine {engine.flavour} {'+'.join(engine.targets)}" for engine in self.options.engines)
        int8 = ("calibration", "plan") if self.options.int8 else ()
        gate = ("gate",) if self.options.gate else ()
        return ("weights", "graph", *int8, *gate, *engines, "bundle")

    @property
    def work(self) -> Path | None:
        """Where an INT8 build keeps what it has done so far: the same command goes on from there after a kill."""
        return self.out.with_name(f"{self.out.name}.work") if self.options.int8 else None

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        return {
            "out": str(self.out),
            "weights": None if self.weights is None else str(self.weights),
            "steps": list(self.steps),
            "files": list(self.files),
            "compilers": list(self.compilers),
            "options": self.options.to_json(),
        }


@dataclass(frozen=True)
class BuildReport:
    """What came out. audits: by engine file. seconds: wall time by step. peak_host_mib: most resident memory, MiB.

    gate: None where nobody judged. plan: None but for INT8. not_int8: by engine file, what was planned to run in INT8
    and does not.
    """

    bundle: Bundle
    audits: Mapping[str, Audit]
    seconds: Mapping[str, float]
    peak_host_mib: float | None
    gate: GateResult | None = None
    plan: Plan | None = None
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
            "not_int8": {file: list(nodes) for file, nodes in self.not_int8.items()},
        }


def plan_build(options: BuildOptions, out: str | Path, *, overwrite: bool = False) -> BuildPlan:
    """Checks a build and settles its targets, without reading weights or compiling anything.

    Raises as `build_bundle` does for everything that shows beforehand.
    """
    out = Path(out)
    weights = find_weights(options.model, checkpoint=options.checkpoint, seeded=options.seeded)
    _check_out(out, overwrite=overwrite)
    _check_data(options)
    engines, compilers = [], []
    device = current_device()
    for engine in options.engines:
        offer = describe(load(engine.flavour), engine.flavour)
        try:
            targets = settle_targets(offer, engine, device)
        except UsageError as error:
            fix = error.fix if engine.targets else f"{error.fix} (--target sm_86,sm_89), or cpu"
            raise UsageError(error.cause, fix) from error
        engines.append(replace(engine, targets=targets, profile=profile(options.graph)))
        compilers.append(offer.name)
    files = tuple(f"engines/{'-'.join((engine.flavour, *engine.targets))}.engine" for engine in engines)
    if len(set(files)) < len(files):
        raise UsageError("two engines are of one flavour and for the same targets", "name each of them once")
    return BuildPlan(replace(options, engines=tuple(engines)), out, weights, files, tuple(compilers))


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
        made = _quantised(plan, model, folder, clock) if options.int8 else _exported(plan, model, folder, clock)
        early: dict[str, BuiltEngine] = {}
        gate = None
        if options.gate is not None:
            clock.begin(f"{options.gate.data} ({options.gate.split})")
            judge = Judge(model, options.gate, folder)
            if current_device() is not None:  # then it is the engines that are judged, not a stand-in
                early = _compiled(plan, made.graph, clock)
            unjudged = manifest(options, plan.out, made.graph, made.info, facts, early)
            gate = judge(made.graph, unjudged, early, ships=bool(options.engines), report=clock.inside)
            if not gate.passed:
                _keep_attempt(plan, made, gate)
                raise _gate_error(plan, gate)
        weights = _save_weights(model, facts, folder) if options.with_weights else None
        del model  # a large model's weights are better gone before the compiler makes its own copies
        built = _compiled(plan, made.graph, clock, early=early)
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
        if weights is not None:
            files[WEIGHTS] = weights
        if gate is not None:
            files[GATE] = gate_file(gate)
            final = replace(final, gate=verdict(gate))
        bundle = write_bundle(plan.out, final, files, overwrite=overwrite)
    if plan.work is not None:
        shutil.rmtree(plan.work, ignore_errors=True)
    clock.end()
    return BuildReport(bundle, audits, clock.seconds, peak_host_mib(), gate, made.plan, not_int8)


@dataclass(frozen=True)
class _Made:
    """A graph, what it is, and for INT8 what it was made of."""

    graph: Path
    info: GraphInfo
    plan: Plan | None = None
    ranges: Ranges | None = None
    done: Quantization | None = None


def _exported(plan: BuildPlan, model: Segmentor, folder: Path, clock: Clock) -> _Made:
    options = plan.options.graph
    clock.begin(f"{options.precision}, opset {options.opset}")
    return _Made(folder / GRAPH, export_graph(model, folder / GRAPH, options))


def _quantised(plan: BuildPlan, model: Segmentor, folder: Path, clock: Clock) -> _Made:
    options, int8 = plan.options, plan.options.int8
    assert int8 is not None  # the caller's branch
    clock.begin(f"fp32, opset {options.graph.opset}")
    float32 = folder / "fp32.onnx"
    export_graph(model, float32, options.graph)
    clock.begin(int8.calibration or f"{int8.data} ({int8.split})")
    ranges = collect_ranges(int8, float32, state=folder / "calibration.partial", report=clock.inside)
    clock.begin(int8.plan or int8.level)
    graphs = QuantizedGraphs(model, options.graph, ranges, rest=options.rest)
    precisions = first_plan(int8, graphs.sites, model=options.model)
    info, done = graphs.write(precisions, folder / GRAPH)
    return _Made(folder / GRAPH, info, precisions, ranges, done)


def _compiled(
    plan: BuildPlan, graph: Path, clock: Clock, *, early: Mapping[str, BuiltEngine] | None = None
) -> dict[str, BuiltEngine]:
    """The engines of a graph. early: those that were built for the gate; None while building these."""
    built = {}
    for file, engine, compiler in zip(plan.engine_files, plan.options.engines, plan.compilers, strict=True):
        if early is not None:
            clock.begin(compiler)
        built[file] = (early or {}).get(file) or build_apart(graph, engine, clock.inside)
    return built


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


def _keep_attempt(plan: BuildPlan, made: _Made, gate: GateResult) -> None:
    """Leaves what an INT8 build has reached where the next can go on from it."""
    if plan.work is None or made.plan is None or made.ranges is None:
        return
    (plan.work / PLAN).write_text(made.plan.to_json(), encoding="utf-8")
    (plan.work / GATE).write_bytes(gate_file(gate))
    save_ranges(made.ranges, plan.work / CALIBRATION)


def _gate_error(plan: BuildPlan, gate: GateResult) -> GateError:
    log.warning("verdict on the build that is refused:\n%s", gate.table())  # no bundle will hold it
    kept = "" if plan.work is None else f"; plan, ranges and verdict are in {plan.work}"
    return GateError(
        f"{plan.out} fails its gate: {'; '.join(gate.reasons)}{kept}",
        "allow more (--max-drop), "
        + ("use FP16" if plan.work is None else f"or edit the plan and build it: --plan {plan.work / PLAN}"),
    )


def _checked_int8(file: str, engine: BuiltEngine, made: _Made) -> tuple[str, ...]:
    missing = () if made.done is None else check_int8(engine.layers, made.done)
    if missing:
        log.warning("%s: %d places that the plan has in INT8 are not: %s", file, len(missing), ", ".join(missing[:4]))
    return missing


def _check_data(options: BuildOptions) -> None:
    """What data and files would be refused after minutes of work."""
    if options.gate is not None:
        gate_images(options.gate)
    if options.int8 is not None:
        calibration_images(options.int8)
        if options.int8.plan is not None:
            read_plan(options.int8.plan)
        if options.int8.calibration is not None and not Path(options.int8.calibration).is_file():
            raise UsageError(f"there is no range file {options.int8.calibration}", "twins-trt calibrate writes one")


def _check_out(out: Path, *, overwrite: bool) -> None:
    """What `write_bundle` would refuse after minutes of work."""
    if out.exists() or out.is_symlink():
        if not (out / MANIFEST).is_file():
            raise BundleError(f"{out} exists and is not a bundle, so it is not replaced", "choose another name")
        if not overwrite:
            raise BundleError(f"{out} exists", "choose another name, or replace it: --overwrite")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise BundleError(f"{out} cannot be written: {parent} is no folder to write in", "choose another place")


def _save_weights(model: Segmentor, facts: ModelFacts, folder: Path) -> Path:
    """A checkpoint in mmsegmentation's format: weights, and names and colours of the classes."""
    import torch

    path = folder / WEIGHTS
    meta = {"CLASSES": list(facts.classes), "PALETTE": [list(colour) for colour in facts.palette]}
    torch.save({"state_dict": model.state_dict(), "meta": meta}, path)
    return path


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
