"""The whole build as one call: resolve the request, make the graph, judge it, ship the bundle."""

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
    """Builds a bundle. An interrupt or an error leaves no bundle behind; an INT8 build leaves a work folder, from which
    the same request resumes.

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
    """The job of a request, checked as far as that is possible without making anything.

    Raises `UsageError` for values that do not fit together, `DataError` for files that are no images, `CheckpointError`
    for missing weights, `BundleError` for a bundle that exists or cannot be written, `MissingDependencyError` for a
    missing compiler, or a missing GPU that it needs.
    """
    job = resolve(request)
    check(job)
    return job


def make(job: BuildJob, folder: Path, clock: Clock) -> Product:
    """The graph of a build, judged if the job has a gate.

    The model is freed on return: the compilers that run next keep their own copies of its weights.
    """
    context = open_context(job, folder, clock)
    graphs = None
    if job.int8 is None:
        graph = make_graph(context)
    else:
        graph, graphs = make_int8(context, job.int8)
    if job.gate is None:
        return Product(context.facts, graph, None)
    judged = judge(context, graph, job.gate, graphs)
    return Product(context.facts, judged.graph, judged)
