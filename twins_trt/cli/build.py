"""`twins-trt build`: a model as a bundle of graph, engines and audit."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from twins_trt.cli.console import Console, megabytes
from twins_trt.cli.parsing import (
    add_calibration_options,
    add_graph_options,
    add_weights_options,
    calibration_settings,
    graph_options,
    parse_test_scale,
    split_list,
)
from twins_trt.errors import UsageError
from twins_trt.models.zoo import get_spec

if TYPE_CHECKING:
    from twins_trt.builders.build_options import BuildOptions
    from twins_trt.builders.int8_options import GateOptions, Int8Options
    from twins_trt.builders.pipeline import BuildPlan, BuildReport, Step

EXAMPLE = (
    "twins-trt build twins_svt-s_fpn --checkpoint F.pth --size 360x480 --target sm_86,sm_89,sm_120 --out x.bundle\n"
    "  twins-trt build twins_svt-s_fpn --checkpoint F.pth --size 360x480 --precision int8 \\\n"
    "    --calib-data camvid:PATH --gate-data camvid:PATH --target sm_86,sm_89 --out x.bundle\n"
    "\n"
    "An INT8 build calibrates, plans which blocks run in INT8, and judges the result by its mIoU on --gate-data.\n"
    "Where it fails, blocks go back to FP16, the worst first, until it passes; where nothing passes, no bundle is\n"
    "written (exit code 3). What was done so far is kept in BUNDLE.work: the same command goes on after a kill."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """MODEL, --out, --target and the compiler's options, those of weights and graph, --overwrite, --dry-run."""
    parser.add_argument("model", metavar="MODEL", help="a name that twins-trt models lists")
    parser.add_argument("--out", required=True, metavar="BUNDLE", help="the folder to write, such as x.bundle")
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")
    parser.add_argument("--dry-run", action="store_true", help="check everything and say what would be built")
    add_weights_options(parser)
    add_graph_options(parser, precisions=("fp32", "fp16", "int8"))
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
    group.add_argument(
        "--with-weights", action="store_true", help="add weights.pth, which predict --engine torch runs on a GPU"
    )
    _add_int8_options(parser)
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
    from twins_trt.builders.build_options import BuildOptions, default_opset, engines_for

    _refuse_idle_options(arguments)
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
    quantised = arguments.precision == "int8"
    if quantised:
        arguments = argparse.Namespace(**{**vars(arguments), "precision": "fp32"})  # of the graph that is calibrated
    opset = default_opset("int8" if quantised else precision)
    test_scale = parse_test_scale(arguments.test_scale)
    return BuildOptions(
        model=arguments.model,
        graph=graph_options(arguments, forms=forms, precision=precision, crop_size=crop_size, opset=opset),
        engines=engines,
        checkpoint=arguments.checkpoint,
        seeded=arguments.seeded,
        num_classes=arguments.num_classes,
        padding=arguments.padding,
        test_scale=test_scale,
        allow_unfused=arguments.allow_unfused,
        int8=_int8_options(arguments, test_scale=test_scale) if quantised else None,
        gate=_gate_options(arguments),
        no_gate=arguments.no_gate,
        with_weights=arguments.with_weights,
    )


def _add_int8_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("INT8 (--precision int8)")
    group.add_argument(
        "--level",
        default="int8-linear+conv",
        metavar="{int8-linear,int8-linear+conv,int8-attention}",
        help="what runs in INT8; default: int8-linear+conv",
    )
    group.add_argument(
        "--plan",
        metavar="FILE",
        help="build this plan (a bundle's plan.json, perhaps edited), whatever --level, --smooth and --observer say",
    )
    group.add_argument("--calib-data", metavar="KIND:PATH", help="images to calibrate on; labels are not read")
    group.add_argument("--calib-split", default="train", metavar="SPLIT", help="default: train")
    group.add_argument(
        "--calib-images",
        type=int,
        default=64,
        metavar="N",
        help="how many, spread over the set; default: 64, 0: all",
    )
    group.add_argument("--calibration", metavar="FILE", help="take the ranges that twins-trt calibrate wrote instead")
    group.add_argument(
        "--smooth", default="none", metavar="{none,search,0..1}", help="SmoothQuant's strength; default: none"
    )
    group.add_argument(
        "--bias-correction", action="store_true", help="put the mean shift of every quantised product into its bias"
    )
    add_calibration_options(parser)
    group = parser.add_argument_group("gate", "INT8 needs one, other precisions may have one")
    group.add_argument("--gate-data", metavar="KIND:PATH", help="labelled images to judge the build on")
    group.add_argument("--gate-split", default="val", metavar="SPLIT", help="default: val")
    group.add_argument("--gate-limit", type=int, metavar="N", help="only the first N images")
    group.add_argument(
        "--max-drop", type=float, metavar="POINTS", help="of mIoU; default: 0.1 for fp32 and fp16, 0.5 for int8"
    )
    group.add_argument("--min-images", type=int, default=30, metavar="N", help="fewer fail; default: 30")
    group.add_argument("--min-agreement", type=float, metavar="SHARE", help="of pixels that must equal the reference's")
    group.add_argument("--no-gate", action="store_true", help="do not judge INT8: the bundle says so wherever shown")
    group.add_argument("--no-fallback", action="store_true", help="fail at once instead of reverting blocks to FP16")
    group.add_argument(
        "--max-evaluations", type=int, default=16, metavar="N", help="plans that the fallback may judge; default: 16"
    )
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads of ONNX Runtime; default: every core")


def _refuse_idle_options(arguments: argparse.Namespace) -> None:
    """What would do nothing is refused: a build without the gate that was meant is no build that was meant."""
    int8 = {
        "--calib-data": arguments.calib_data,
        "--calibration": arguments.calibration,
        "--plan": arguments.plan,
        "--smooth": arguments.smooth != "none",
        "--bias-correction": arguments.bias_correction,
        "--no-gate": arguments.no_gate,
    }
    gate = {
        "--gate-limit": arguments.gate_limit,
        "--max-drop": arguments.max_drop is not None,
        "--min-agreement": arguments.min_agreement is not None,
    }
    if arguments.precision != "int8" and (idle := [name for name, given in int8.items() if given]):
        raise UsageError(f"{idle[0]} is of INT8 builds alone", "add --precision int8, or leave it out")
    if arguments.gate_data is None and (idle := [name for name, given in gate.items() if given]):
        raise UsageError(f"{idle[0]} needs images to judge on", "name some: --gate-data KIND:PATH")


def _int8_options(arguments: argparse.Namespace, *, test_scale: tuple[int, int] | None) -> Int8Options:
    from twins_trt.builders.int8_options import SEARCH, Int8Options

    smooth: float | str | None = None
    if arguments.smooth != "none":
        try:
            smooth = SEARCH if arguments.smooth == SEARCH else float(arguments.smooth)
        except ValueError as error:
            raise UsageError(f"--smooth is {arguments.smooth}", "give none, search, or 0 to 1") from error
    return Int8Options(
        level=arguments.level,
        plan=arguments.plan,
        data=arguments.calib_data,
        split=arguments.calib_split,
        images=arguments.calib_images,
        calibration=arguments.calibration,
        settings=calibration_settings(arguments, test_scale=test_scale),
        smooth=smooth,
        bias_correction=arguments.bias_correction,
    )


def _gate_options(arguments: argparse.Namespace) -> GateOptions | None:
    from twins_trt.builders.int8_options import GateOptions

    if arguments.gate_data is None:
        return None
    return GateOptions(
        arguments.gate_data,
        split=arguments.gate_split,
        limit=arguments.gate_limit,
        max_drop=arguments.max_drop,
        min_images=arguments.min_images,
        min_agreement=arguments.min_agreement,
        fallback=not arguments.no_fallback,
        max_evaluations=arguments.max_evaluations,
        threads=arguments.threads,
    )


def _plan_text(plan: BuildPlan) -> str:
    origin = "seeded weights" if plan.weights is None else f"the weights of {plan.weights}"
    compilers = f", with {' and '.join(dict.fromkeys(plan.compilers))}" if plan.compilers else ""
    lines = [f"{plan.out} would be built from {plan.options.model} with {origin}{compilers}:"]
    return "\n".join([*lines, *(f"  {file}" for file in plan.files)])


def _report_text(report: BuildReport) -> str:
    manifest = report.bundle.manifest
    seeded = ", random weights" if manifest.source.seeded else ""
    ungated = ", UNGATED" if manifest.precision == "int8" and manifest.gate == "ungated" else ""
    what = f"{manifest.num_classes} classes, {manifest.precision}{seeded}{ungated}"
    lines = [f"{report.bundle.path}: {manifest.model}, {what}"]
    lines += [f"  {entry.path}  {megabytes(entry.size)}" for entry in manifest.files]
    if report.gate is not None:
        lines += ["", report.gate.table()]
    if report.fallback is not None:
        lines.append(f"fallback      {report.fallback.summary()}")
    for file, audit in report.audits.items():
        lines += ["", f"audit of {file}", audit.table()]
        if missing := report.not_int8.get(file):
            lines.append(f"not in INT8       {len(missing)} places that the plan has so: {', '.join(missing[:4])}")
    peak = "" if report.peak_host_mib is None else f", {report.peak_host_mib:.0f} MiB at most"
    return "\n".join([*lines, "", f"built in {sum(report.seconds.values()):.1f} s{peak}"])
