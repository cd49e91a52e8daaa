"""`twins-trt build`: a model as a bundle of graph, engines and audit."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from twins_trt.cli.console import Console, megabytes
from twins_trt.verbs.build import FLAGS

if TYPE_CHECKING:
    from twins_trt.builders.bundle.job import BuildJob
    from twins_trt.builders.bundle.run import BuildReport

EXAMPLE = (
    "twins-trt build F.pth --size 360x480 --target sm_86,sm_89,sm_120 --out x.bundle\n"
    "  twins-trt build F.pth --size 360x480 --target jetson-orin --out x.bundle\n"
    "  twins-trt build twins_svt-s_fpn --checkpoint F.pth --size 360x480 --precision int8 \\\n"
    "    --calib-data camvid:PATH --gate-data camvid:PATH --target sm_86,sm_89 --out x.bundle\n"
    "\n"
    "An INT8 build calibrates, plans which blocks run in INT8, and judges the result by its mIoU on --gate-data.\n"
    "Where it fails, blocks go back to FP16, the worst first, until it passes; where nothing passes, no bundle is\n"
    "written (exit code 3). Unfinished work is kept in BUNDLE.work: the same command continues it after a kill.\n"
    "For a device that this machine cannot compile for, the bundle holds the graph that the device's TensorRT reads,\n"
    "and twins-trt compile makes the engine there. The build ends with the commands to type next."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's flags, and --dry-run."""
    FLAGS.add_to(parser)
    parser.add_argument("--dry-run", action="store_true", help="check everything and say what would be built")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Build one bundle."""
    request = FLAGS.read(arguments)
    from twins_trt.builders.bundle.run import build_bundle, resolve_build

    if arguments.dry_run:
        job = resolve_build(request)
        console.result({"dry_run": True, **job.to_json()}, _job_text(job))
        return 0

    report = build_bundle(request, progress=console.progress)
    console.result(report.to_json(), _report_text(report))
    return 0


def _job_text(job: BuildJob) -> str:
    origin = "seeded weights" if job.weights is None else f"the weights of {job.weights}"
    names = dict.fromkeys(engine.compiler for engine in job.engines)
    compilers = f", with {' and '.join(names)}" if names else ""
    lines = [f"{job.out} would be built from {job.model} with {origin}{compilers}:"]
    lines += [f"  {file}" for file in job.files]
    lines += [f"pack: {job.gate.pack}"] if job.gate is not None and job.gate.pack is not None else []
    lines += [f"engine: {awaited.where}" for awaited in job.awaits]
    lines += [
        f"audited in place of {', '.join(each.stands_for)}: {each.target}, the nearest architecture"
        for each in job.nearest
    ]
    return "\n".join(lines)


def _report_text(report: BuildReport) -> str:
    from twins_trt.builders.engine.devices import also_nearest_title, nearest_title

    manifest = report.bundle.manifest
    seeded = ", random weights" if manifest.source.seeded else ""
    ungated = ", UNGATED" if manifest.precision == "int8" and manifest.gate == "ungated" else ""
    what = f"{manifest.interface.num_classes} classes, {manifest.precision}{seeded}{ungated}"
    lines = [f"{report.bundle.path}: {manifest.model}, {what}"]
    lines += [f"  {entry.path}  {megabytes(entry.size)}" for entry in manifest.files]
    if report.gate is not None:
        lines += ["", report.gate.table()]
    if report.pack is not None:
        lines.append(f"pack          {report.pack}")
    if report.fallback is not None:
        lines.append(f"fallback      {report.fallback.summary()}")
    for file, audit in report.audits.items():
        stands_for = report.stands_for.get(file)
        title = also_nearest_title(file, stands_for) if stands_for else file
        lines += ["", f"audit of {title}", audit.table()]
        if missing := report.not_int8.get(file):
            lines.append(f"not in INT8       {len(missing)} places that the plan has so: {', '.join(missing[:4])}")
    for nearest in report.nearest:
        title = f"audit of {nearest_title(nearest.target, nearest.stands_for)}; this engine does not ship"
        lines += ["", title, nearest.audit.table()]
        if nearest.not_int8:
            lines.append(f"not in INT8       {len(nearest.not_int8)} places: {', '.join(nearest.not_int8[:4])}")
    lines += [f"nothing audited   in place of {target}: {why}" for target, why in report.not_audited.items()]
    if manifest.awaits:
        lines += ["", *(f"engine: {awaited.where}" for awaited in manifest.awaits)]
    peak = "" if report.peak_host_mib is None else f", {report.peak_host_mib:.0f} MiB at most"
    lines += ["", f"built in {sum(report.seconds.values()):.1f} s{peak}"]
    return "\n".join([*lines, report.next.text()])
