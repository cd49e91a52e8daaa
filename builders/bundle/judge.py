"""Judges a build before it is a bundle; an INT8 build that fails falls back to FP16 in parts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from twins_trt.builders.bundle.job import CALIBRATION, FALLBACK, PLAN, BuildJob
from twins_trt.builders.bundle.make import BuildContext, BuiltGraph, Int8Parts, write_int8
from twins_trt.builders.bundle.manifest import engine_files, graph_interface
from twins_trt.builders.bundle.workspace import REACHED_PLAN, REFERENCE, SEARCH_STATE
from twins_trt.builders.engine import BuiltEngine, build_in_thread, current_device, read_header
from twins_trt.builders.fallback import HARDEST, Fallback, SearchState, fall_back, search_key
from twins_trt.builders.gate.doubt import recorded_miou
from twins_trt.builders.gate.judge import GateCandidate, Judge
from twins_trt.builders.gate.options import GateOptions
from twins_trt.builders.gate.pack_key import PackKey
from twins_trt.builders.gate.pack_writing import check_new_pack
from twins_trt.builders.gate.record import gate_file
from twins_trt.builders.gate.result import GateResult
from twins_trt.builders.plan.precision_plan import PrecisionPlan
from twins_trt.builders.quantize import QuantizedGraphs
from twins_trt.calib import save_ranges
from twins_trt.errors import GateError
from twins_trt.files import whole_file
from twins_trt.models.source import warn_of_random_weights
from twins_trt.models.weights import ModelFacts
from twins_trt.runtime.manifest import GATE
from twins_trt.spelling import spelled
from twins_trt.version import __version__

log = logging.getLogger("twins_trt")


@dataclass(frozen=True)
class Judged:
    """A graph and the result of its gate.

    engines: those that were judged, by file; empty if the graph on ONNX Runtime was judged in their place. fallback:
    None if the first plan passed.
    """

    graph: BuiltGraph
    gate: GateResult
    engines: Mapping[str, BuiltEngine]
    fallback: Fallback | None = None


def judge(context: BuildContext, graph: BuiltGraph, gate: GateOptions, graphs: QuantizedGraphs | None) -> Judged:
    """Judges a graph; if an INT8 graph fails, searches a plan that passes.

    graphs: for an INT8 build, the writer of the graphs of other plans. Raises `GateError` if nothing passes.
    """
    if context.facts.source.seeded:
        warn_of_random_weights(context.job.out)
    context.clock.begin(f"{gate.data} ({gate.split})")
    job, facts = context.job, context.facts
    told = job.conventions
    miou = recorded_miou(told.miou, model=job.model, source=facts.source, classes=facts.classes)
    judge_candidate = Judge(context.model, gate, miou=miou, threads=job.threads, folder=context.folder / REFERENCE)
    interface = graph_interface(job, read_header(graph.path), facts)
    key = PackKey.of(
        interface,
        model=job.model,
        source=facts.source,
        padding=job.padding,
        reduce_zero_label=told.reduce_zero_label,
        ignore_index=told.ignore_index,
    )
    if gate.pack is not None:  # before the work, now that the classes are known
        check_new_pack(Path(gate.pack), key, overwrite=job.overwrite, outside=job.out)
    judged = _judge_graph(context, graph, judge_candidate)
    # With too few images, or a reference that nobody believes, no plan would pass.
    hopeful = judged.gate.images >= gate.thresholds.min_images and judged.gate.refused_reference is None
    if not judged.gate.passed and gate.fallback and hopeful and graphs is not None and graph.int8 is not None:
        judged = _fall_back(
            context, judged, graph.int8.plan, graphs, judge_candidate, max_evaluations=gate.max_evaluations
        )
    if not judged.gate.passed:
        raise _refusal(job, judged, context.folder)
    if (accepted := judged.gate.accepted_reference) is not None:
        log.warning("%s: %s, accepted", job.out, accepted.reason)
    if gate.pack is not None:
        judge_candidate.write_pack(Path(gate.pack), key, interface, limit=gate.limit, overwrite=job.overwrite)
    return judged


def gate_candidate(
    job: BuildJob, graph: Path, facts: ModelFacts, *, ships: bool, engines: Mapping[str, BuiltEngine]
) -> GateCandidate:
    """What the gate judges of a build. graph: its file. ships: as in `GateCandidate`. engines: by file."""
    return GateCandidate(
        path=job.out,
        graph=graph,
        interface=graph_interface(job, read_header(graph), facts),
        precision=job.precision,
        rebuild=job.rebuild,
        ships=ships,
        seeded=facts.source.seeded,
        engines=engine_files(job, engines),
        serialized={file: engine.serialized for file, engine in engines.items()},
    )


def _judge_graph(context: BuildContext, graph: BuiltGraph, judge_candidate: Judge) -> Judged:
    """Judges the engines of a graph if there is a GPU, else the graph."""
    job, clock = context.job, context.clock
    engines: dict[str, BuiltEngine] = {}
    if current_device() is not None:
        engines = {each.file: build_in_thread(graph.path, each.options, clock.progress) for each in job.engines}
    candidate = gate_candidate(job, graph.path, context.facts, ships=job.for_gpu, engines=engines)
    return Judged(graph, judge_candidate(candidate, progress=clock.progress), engines)


def _fall_back(
    context: BuildContext,
    failed: Judged,
    plan: PrecisionPlan,
    graphs: QuantizedGraphs,
    judge_candidate: Judge,
    *,
    max_evaluations: int,
) -> Judged:
    """The cheapest plan that passes, else the one that misses its limits by least. Its graph replaces the one that
    failed."""
    job, latest, written = context.job, failed, plan

    def judge_plan(tried: PrecisionPlan) -> GateResult:
        nonlocal latest, written
        latest = _judge_graph(context, write_int8(graphs, tried, context.folder), judge_candidate)
        written = tried
        return latest.gate

    options = {
        "thresholds": failed.gate.thresholds,
        "engine": failed.gate.engine,
        "device": failed.gate.measured_on,
        "versions": [__version__, *(engine.compiler for engine in job.engines)],
    }
    key = search_key(ranges=graphs.ranges.key, plan=plan, images=judge_candidate.key(), options=options)
    log.warning("the plan fails its gate: %s; looking for the blocks to revert", "; ".join(failed.gate.reasons))
    fallback = fall_back(
        plan,
        graphs,
        failed.gate,
        judge=judge_plan,
        hardest=judge_candidate.images([each.name for each in failed.gate.worst[:HARDEST]]),
        state=SearchState.open(context.folder / SEARCH_STATE, key),
        max_evaluations=max_evaluations,
        threads=job.threads,
        progress=context.clock.progress,
    )
    log.warning("fallback %s", fallback.summary())
    if written != fallback.plan:
        graph = write_int8(graphs, fallback.plan, context.folder)
        if current_device() is None:
            latest = Judged(graph, fallback.gate, {})
        else:  # the compiler may choose other kernels this time, so its new engines are judged too
            latest = _judge_graph(context, graph, judge_candidate)
    return replace(latest, fallback=fallback)


def _refusal(job: BuildJob, judged: Judged, folder: Path) -> GateError:
    """The error for a build that fails. An INT8 build leaves its plan, ranges and verdict in its work folder."""
    gate, int8 = judged.gate, judged.graph.int8
    log.warning("verdict on the build that is refused:\n%s", gate.table())  # no bundle will hold it
    cause = f"{job.out} fails its gate: {'; '.join(gate.reasons)}"
    allow = _allow(gate)
    if int8 is None:
        return GateError(cause, allow)
    plan = _keep(job, judged, int8, folder)
    more = ""
    if judged.fallback is not None:
        cause += f" ({judged.fallback.summary()})"
        more = f"try more plans ({spelled('max_evaluations')}), " if judged.fallback.outcome.exhausted else ""
    return GateError(
        f"{cause}; plan, ranges and verdict are in {folder}",
        f"{more}{allow}, or edit the plan and build it: {spelled('plan', str(plan))}",
    )


def _allow(gate: GateResult) -> str:
    """What lets the build pass: what its reference may suffer from, else the limits that it missed."""
    limits, check = gate.thresholds, gate.refused_reference
    if check is not None:
        causes = "; ".join(check.causes)
        return f"check what may be wrong ({causes}), or accept the reference: {spelled('accept_reference', True)}"
    if gate.images < limits.min_images:
        return f"give more images, or lower {spelled('min_images')}"
    missed = [] if gate.drop.high <= limits.max_drop else [spelled("max_drop")]
    missed += [spelled("min_agreement")] if gate.agreement < (limits.min_agreement or 0) else []
    return f"allow more ({' and '.join(missed or [spelled('max_drop')])})"


def _keep(job: BuildJob, judged: Judged, int8: Int8Parts, folder: Path) -> Path:
    """Writes plan, ranges, verdict and fallback into the work folder. Returns the plan's file."""
    given = None if job.int8 is None or job.int8.plan is None else Path(job.int8.plan).resolve()
    # A plan that the user gave stays as it is; the one that was reached lies beside it.
    plan = folder / (REACHED_PLAN if given == (folder / PLAN).resolve() else PLAN)
    _write(plan, int8.plan.to_json().encode())
    _write(folder / GATE, gate_file(judged.gate))
    save_ranges(int8.ranges, folder / CALIBRATION)
    (folder / FALLBACK).unlink(missing_ok=True)  # of an earlier run
    if judged.fallback is not None:
        _write(folder / FALLBACK, judged.fallback.file())
    return plan


def _write(path: Path, content: bytes) -> None:
    with whole_file(path) as file:
        file.write(content)
