"""`twins-trt build`: a model as a bundle of graph, engines and audit."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from twins_trt.cli.console import Console, megabytes
from twins_trt.cli.parsing import (
    add_graph_options,
    add_weights_options,
    graph_options,
    parse_test_scale,
    split_list,
)
from twins_trt.models.zoo import get_spec

if TYPE_CHECKING:
    from twins_trt.builders.build_options import BuildOptions
    from twins_trt.builders.pipeline import BuildPlan, BuildReport, Step

EXAMPLE = (
    "twins-trt build twins_svt-s_fpn --checkpoint F.pth --size 360x480 --precision fp16 "
    "--target sm_86,sm_89,sm_120 --out x.bundle"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """MODEL, --out, --target and the compiler's options, those of weights and graph, --overwrite, --dry-run."""
    parser.add_argument("model", metavar="MODEL", help="a name that twins-trt models lists")
    parser.add_argument("--out", required=True, metavar="BUNDLE", help="the folder to write, such as x.bundle")
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")
    parser.add_argument("--dry-run", action="store_true", help="check everything and say what would be built")
    add_weights_options(parser)
    add_graph_options(parser)
    group = parser.add_argument_group("engines")
    group.add_argument(
        "--target",
        default="",
        metavar="SM,...",
        help="GPUs to build for: sm_86,sm_89,sm_120, in one engine; default: the GPU of this machine. "
        "cpu: the graph alone, for ONNX Runtime",
    )
    group.add_argument(
        "--flavour",
        default="auto",
        metavar="{tensorrt_rtx,tensorrt}",
        help="tensorrt_rtx needs no GPU, tensorrt builds for the GPU it runs on; both with a comma; "
        "default: tensorrt_rtx if it is installed",
    )
    group.add_argument("--workspace", type=int, metavar="MIB", help="most scratch memory of a layer; default: no limit")
    group.add_argument("--optimization-level", type=int, metavar="{0..5}", help="how long to search; default: 3")
    group.add_argument("--timing-cache", metavar="FILE", help="keeps measurements between builds (tensorrt only)")
    group.add_argument(
        "--hardware-compatibility",
        default="none",
        metavar="{none,same_compute_capability,ampere_plus}",
        help="other GPUs that the engine shall run on (tensorrt only)",
    )
    group.add_argument(
        "--allow-unfused", action="store_true", help="take an FP16 engine even if an attention in it is not fused"
    )
    parser.add_argument(
        "--test-scale", metavar="LONGxSHORT", help="fit images into this before a graph of dynamic size, as 2048x512"
    )


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Build one bundle."""
    get_spec(arguments.model)  # before anything heavy is imported
    from twins_trt.builders.pipeline import build_bundle, plan_build

    options = read_options(arguments)
    if arguments.dry_run:
        plan = plan_build(options, arguments.out, overwrite=arguments.overwrite)
        console.result({"dry_run": True, **plan.to_json()}, _plan_text(plan))
        return 0

    def progress(step: Step) -> None:
        console.progress(f"[{step.number}/{step.count}] {step.name}", step.detail, step.share)

    report = build_bundle(options, arguments.out, overwrite=arguments.overwrite, progress=progress)
    console.result(report.to_json(), _report_text(report))
    return 0


def read_options(arguments: argparse.Namespace) -> BuildOptions:
    """The build that a parsed command line describes. Raises `UsageError`."""
    from twins_trt.builders.build_options import BuildOptions, engines_for

    engines = engines_for(
        split_list(arguments.target),
        flavours=split_list(arguments.flavour),
        workspace_mib=arguments.workspace,
        optimization_level=arguments.optimization_level,
        timing_cache=arguments.timing_cache,
        hardware_compatibility=arguments.hardware_compatibility,
    )
    forms, precision = ("gpu", "fp16") if engines else ("cpu", "fp32")
    crop_size = get_spec(arguments.model).crop_size
    return BuildOptions(
        model=arguments.model,
        graph=graph_options(arguments, forms=forms, precision=precision, crop_size=crop_size),
        engines=engines,
        checkpoint=arguments.checkpoint,
        seeded=arguments.seeded,
        num_classes=arguments.num_classes,
        padding=arguments.padding,
        test_scale=parse_test_scale(arguments.test_scale),
        allow_unfused=arguments.allow_unfused,
    )


def _plan_text(plan: BuildPlan) -> str:
    origin = "seeded weights" if plan.weights is None else f"the weights of {plan.weights}"
    compilers = f", with {' and '.join(dict.fromkeys(plan.compilers))}" if plan.compilers else ""
    lines = [f"{plan.out} would be built from {plan.options.model} with {origin}{compilers}:"]
    return "\n".join([*lines, *(f"  {file}" for file in plan.files)])


def _report_text(report: BuildReport) -> str:
    manifest = report.bundle.manifest
    seeded = ", random weights" if manifest.source.seeded else ""
    lines = [f"{report.bundle.path}: {manifest.model}, {manifest.num_classes} classes, {manifest.precision}{seeded}"]
    lines += [f"  {entry.path}  {megabytes(entry.size)}" for entry in manifest.files]
    for file, audit in report.audits.items():
        lines += ["", f"audit of {file}", audit.table()]
    peak = "" if report.peak_host_mib is None else f", {report.peak_host_mib:.0f} MiB at most"
    return "\n".join([*lines, "", f"built in {sum(report.seconds.values()):.1f} s{peak}"])
