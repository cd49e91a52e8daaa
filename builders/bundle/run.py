"""The whole build as one call: what is asked, decided, made, judged and shipped; all of it or nothing."""

from __future__ import annotations

from pathlib import Path

from twins_trt.builders.bundle.job import BuildJob
from twins_trt.builders.bundle.judge import judge
from twins_trt.builders.bundle.make import make_graph, make_int8, open_context
from twins_trt.builders.bundle.preflight import check
from twins_trt.builders.bundle.resolve import resolve
from twins_trt.builders.bundle.ship import BuildReport, Product, ship
from twins_trt.builders.bundle.workspace import temporary, workspace
from twins_trt.progress import Clock, Progress
from twins_trt.verbs.build import BuildRequest

__all__ = ["BuildReport", "build_bundle", "resolve_build"]


def build_bundle(request: BuildRequest, *, progress: Progress | None = None) -> BuildReport:
    """Builds the bundle that is asked for. An interrupt or an error leaves none behind; an INT8 build leaves a work
    folder, with which the same request goes on.

    progress: called at every step, and while an engine builds.
    Raises as `resolve_build` does, `CheckpointError` for weights that do not fit the model, `ExportError` and
    `BuildError` where graph or engine cannot be made, `UnfusedAttentionError` where an FP16 or INT8 engine leaves an
    attention unfused and that is not allowed, `GateError` where the build fails its gate, `BundleError` where the
    bundle cannot be written or another build is at work on it.
    """
    job = resolve_build(request)
    clock = Clock(job.steps, progress)
    with temporary() if job.work is None else workspace(job.work, job.key) as folder:
        return ship(job, make(job, folder, clock), folder, clock)


def resolve_build(request: BuildRequest) -> BuildJob:
    """What a build will do, all of it checked that can be checked beforehand, without compiling anything.

    Raises `UsageError` for what does not fit together, `DataError` for images that are none, `CheckpointError` where
    there are no weights, `BundleError` where the bundle's place is taken or cannot be written,
    `MissingDependencyError` where a compiler, or the GPU it needs, is not there.
    """
    job = resolve(request)
    check(job)
    return job


def make(job: BuildJob, folder: Path, clock: Clock) -> Product:
    """The graph or the INT8 graph, judged where that is asked for. The model lives no longer than this: a compiler
    makes its own copies of a large one's weights."""
    context = open_context(job, folder, clock)
    if job.int8 is None:
        made, graphs = make_graph(context), None
    else:
        made, graphs = make_int8(context, job.int8)
    if job.gate is None:
        return Product(context.facts, made, None)
    judged = judge(context, made, job.gate, graphs)
    return Product(context.facts, judged.made, judged)
