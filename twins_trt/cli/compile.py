"""`twins-trt compile`: an engine for the GPU of this machine, from a bundle's own graph."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from twins_trt.cli.console import Console, megabytes
from twins_trt.verbs.compile import FLAGS

if TYPE_CHECKING:
    from twins_trt.builders.compile import CompileJob, CompileReport

EXAMPLE = (
    "twins-trt compile x.bundle\n"
    "  twins-trt compile x.tar --workspace 512\n"
    "  twins-trt compile x.bundle --prune\n"
    "  twins-trt compile x.bundle --target sm_86\n\n"
    "Run it on the device that shall run the bundle: it needs numpy and TensorRT's Python bindings. The engine joins\n"
    "the bundle in one step, after its audit. Where an engine fits already, nothing is done. A finished engine is\n"
    "kept in BUNDLE.compile until it is in the bundle: the same command continues after a kill. After an upgrade of\n"
    "TensorRT or the driver it says which engine no longer fits, and compiles anew; --prune removes the old one.\n"
    "With --target TensorRT-RTX compiles for a GPU that is not there."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's flags, and --dry-run."""
    FLAGS.add_to(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything and say what would be compiled, and its memory"
    )


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Compile the engine of one bundle."""
    request = FLAGS.read(arguments)
    from twins_trt.builders.compile import compile_bundle, dry_run

    if arguments.dry_run:
        job = dry_run(request)
        console.result({"dry_run": True, **job.to_json()}, _job_text(job))
        return 0
    report = compile_bundle(request, progress=console.progress)
    console.result(report.to_json(), _report_text(report))
    return 0


def _job_text(job: CompileJob) -> str:
    path = job.bundle.path
    if job.fitting is not None:
        lines = [f"{path}: {job.fitting.file} fits {job.gpu} and {job.compiler.name}: nothing would be compiled"]
    else:
        lines = [
            f"{path}: {job.file} would be compiled for {job.gpu} with {job.compiler.name}",
            f"memory  {job.forecast}",
            f"        ({job.forecast.reason})",
        ]
    lines += _misfits({misfit.engine.file: misfit.why for misfit in job.misfits})
    return "\n".join([*lines, *(f"would be removed: {engine.file}" for engine in job.pruned)])


def _report_text(report: CompileReport) -> str:
    from twins_trt.runtime.advice import compile_command
    from twins_trt.runtime.judged import judge_again

    path, engine, made = report.bundle.path, report.engine, report.engine.compiled
    if not report.compiled or report.audit is None or made is None:
        lines = [f"{path}: {engine.file} fits {report.gpu}: nothing to compile"]
    else:
        size = next(entry.size for entry in report.bundle.manifest.files if entry.path == engine.file)
        lines = [f"{path}: {engine.file} for {report.gpu}", f"  {megabytes(size)}, {engine.flavour} {engine.version}"]
        lines += ["", f"audit of {engine.file}", report.audit.table()]
        if report.not_int8:
            places = ", ".join(report.not_int8[:4])
            lines.append(f"not in INT8       {len(report.not_int8)} places that the graph has so: {places}")
        earlier = "compiled by an earlier call" if report.resumed else "compiled"
        lines += ["", f"{earlier} {made.how}"]
    lines += _misfits(report.misfits)
    lines += [f"removed: {file}" for file in report.pruned]
    if set(report.misfits) - set(report.pruned) - {engine.file}:
        lines.append(f"to remove what no longer fits: {compile_command(path)} --prune")
    if (stale := report.gate_outdated) is not None:
        lines.append(f"the gate's verdict, {report.bundle.manifest.gate}, counts no more: {stale}")
        lines.append(f"to judge the bundle again: {judge_again(report.bundle)}")
    if report.compiled and report.next:
        lines += ["next:", *(f"  {command}" for command in report.next)]
    return "\n".join(lines)


def _misfits(misfits: dict[str, str]) -> list[str]:
    return [f"no longer fits: {why}" for why in misfits.values()]
