"""Judging what a build has made before it is a bundle, and going back to FP16 where it fails."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from twins_trt.builders.bundle.job import CALIBRATION, FALLBACK, GATE, PLAN, BuildJob
from twins_trt.builders.bundle.make import BuildContext, BuiltGraph, Int8Parts, quantized
from twins_trt.builders.bundle.manifest import engine_files, graph_interface
from twins_trt.builders.bundle.workspace import REFERENCE
from twins_trt.builders.engine import BuiltEngine, build_in_thread, current_device
from twins_trt.builders.fallback import HARDEST, Fallback, SearchState, fall_back, search_key
from twins_trt.builders.gate.judge import Candidate, Judge
from twins_trt.builders.gate.options import GateOptions
from twins_trt.builders.gate.record import gate_file
from twins_trt.builders.gate.result import GateResult
from twins_trt.builders.plan.precision_plan import PrecisionPlan
from twins_trt.builders.quantize import QuantizedGraphs
from twins_trt.calib import save_ranges
from twins_trt.errors import GateError
from twins_trt.files import whole_file
from twins_trt.spelling import spelled
from twins_trt.version import __version__

REACHED = "reached.json"  # beside a plan that was given, what the fallback made of it

log = logging.getLogger("twins_trt")


@dataclass(frozen=True)
class Judged:
    """What was judged, and how. engines: those that the verdict is on, by file; empty where the graph stood in.
    fallback: None where the first plan passed."""

    made: BuiltGraph
    gate: GateResult
    engines: Mapping[str, BuiltEngine]
    fallback: Fallback | None = None


def judge(context: BuildContext, made: BuiltGraph, gate: GateOptions, graphs: QuantizedGraphs | None) -> Judged:
    """The verdict on what was made; of an INT8 build that fails, on what the fallback makes of it.

    graphs: of an INT8 build, what writes other plans. Raises `GateError` where nothing passes.
    """
    context.clock.begin(f"{gate.data} ({gate.split})")
    judging = Judge(context.model, gate, threads=context.job.threads, folder=context.folder / REFERENCE)
    judged = _judged(context, made, judging)
    enough = judged.gate.images >= gate.thresholds.min_images  # else no plan would pass
    if not judged.gate.passed and gate.fallback and enough and graphs is not None and made.int8 is not None:
        judged = _fall_back(context, judged, made.int8.plan, graphs, judging, max_evaluations=gate.max_evaluations)
    if not judged.gate.passed:
        raise _refusal(context.job, judged, context.folder)
    return judged


def _judged(context: BuildContext, made: BuiltGraph, judging: Judge) -> Judged:
    job, built = context.job, {}
    if current_device() is not None:  # then it is the engines that are judged, not a stand-in
        built = {each.file: build_in_thread(made.graph, each.options, context.clock.progress) for each in job.engines}
    candidate = Candidate(
        path=job.out,
        graph=made.graph,
        interface=graph_interface(job, made.graph, context.facts),
        precision=job.precision,
        rebuild=job.rebuild,
        ships=bool(job.engines),
        seeded=context.facts.source.seeded,
        engines=engine_files(job, built),
        serialized={file: engine.serialized for file, engine in built.items()},
    )
    return Judged(made, judging(candidate, progress=context.clock.progress), built)


def _fall_back(
    context: BuildContext,
    first: Judged,
    plan: PrecisionPlan,
    graphs: QuantizedGraphs,
    judging: Judge,
    *,
    max_evaluations: int,
) -> Judged:
    """The cheapest plan that passes, else the best; its graph takes the place of the first."""
    job, latest, written = context.job, first, plan

    def judge_plan(tried: PrecisionPlan) -> GateResult:
        nonlocal latest, written
        latest, written = _judged(context, quantized(graphs, tried, context.folder), judging), tried
        return latest.gate

    settings = {
        "thresholds": first.gate.thresholds,
        "engine": first.gate.engine,
        "device": first.gate.measured_on,
        "versions": [__version__, *(engine.compiler for engine in job.engines)],
    }
    key = search_key(ranges=graphs.ranges.key, plan=plan, images=judging.key(), settings=settings)
    log.warning("the plan fails its gate: %s; looking for the blocks to revert", "; ".join(first.gate.reasons))
    found = fall_back(
        plan,
        graphs,
        first.gate,
        judge=judge_plan,
        hardest=judging.images([each.name for each in first.gate.worst[:HARDEST]]),
        state=SearchState.open(context.folder / "search.json", key),
        max_evaluations=max_evaluations,
        threads=job.threads,
        progress=context.clock.progress,
    )
    log.warning("fallback %s", found.summary())
    if written != found.plan:
        made = quantized(graphs, found.plan, context.folder)
        # Engines compiled anew are not those that were judged: timing may have chosen other kernels.
        rebuilt = current_device() is not None
        latest = _judged(context, made, judging) if rebuilt else Judged(made, found.gate, {})
    return replace(latest, fallback=found)


def _refusal(job: BuildJob, judged: Judged, folder: Path) -> GateError:
    """The error for a build that does not pass; what an INT8 build has reached stays in its work folder."""
    gate, int8 = judged.gate, judged.made.int8
    log.warning("verdict on the build that is refused:\n%s", gate.table())  # no bundle will hold it
    cause = f"{job.out} fails its gate: {'; '.join(gate.reasons)}"
    few = gate.images < gate.thresholds.min_images
    allow = f"give more images, or lower {spelled('min_images')}" if few else f"allow more ({spelled('max_drop')})"
    if int8 is None:
        return GateError(cause, allow)
    reached = _keep_reached(job, judged, int8, folder)
    more = ""
    if judged.fallback is not None:
        cause += f" ({judged.fallback.summary()})"
        more = f"try more plans ({spelled('max_evaluations')}), " if judged.fallback.outcome.exhausted else ""
    return GateError(
        f"{cause}; plan, ranges and verdict are in {folder}",
        f"{more}{allow}, or edit the plan and build it: {spelled('plan', str(reached))}",
    )


def _keep_reached(job: BuildJob, judged: Judged, int8: Int8Parts, folder: Path) -> Path:
    """Writes plan, ranges, verdict and fallback for whoever wants to go on from them; returns the plan's file."""
    # A plan that was given stays as it was written.
    given = None if job.int8 is None or job.int8.plan is None else Path(job.int8.plan).resolve()
    reached = folder / (REACHED if given == (folder / PLAN).resolve() else PLAN)
    _write(reached, int8.plan.to_json().encode())
    _write(folder / GATE, gate_file(judged.gate))
    save_ranges(int8.ranges, folder / CALIBRATION)
    (folder / FALLBACK).unlink(missing_ok=True)  # of an earlier run
    if judged.fallback is not None:
        _write(folder / FALLBACK, judged.fallback.file())
    return reached


def _write(path: Path, content: bytes) -> None:
    with whole_file(path) as file:
        file.write(content)
