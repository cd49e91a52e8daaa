"""`build`: a bundle: request, defaults, flags and call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

from twins_trt.builders.engine.options import EngineOptions
from twins_trt.builders.export.options import ExportOptions
from twins_trt.builders.gate.options import SPLIT
from twins_trt.builders.plan.levels import LEVELS
from twins_trt.calib.options import CalibrationOptions
from twins_trt.errors import UsageError
from twins_trt.progress import Progress
from twins_trt.verbs.calibrate import CalibrateRequest
from twins_trt.verbs.flags import Flag, FlagTable, settle
from twins_trt.verbs.gate import GateRequest, threshold_flags
from twins_trt.verbs.groups.graph import graph_flags
from twins_trt.verbs.groups.images import TEST_SCALE_FLAG
from twins_trt.verbs.groups.ranges import range_flags
from twins_trt.verbs.groups.weights import WEIGHTS_GROUP, weights_flags
from twins_trt.verbs.kinds import NAMES, SWITCH, WHOLE, Extent, Kind
from twins_trt.verbs.request import Request

if TYPE_CHECKING:
    from twins_trt.builders.bundle.run import BuildReport

SEARCH = "search"  # the strength of SmoothQuant that searches for one


@dataclass(frozen=True)
class BuildRequest(Request):
    """A build. Every field may be None; then `DEFAULTS` applies.

    model: a name of the zoo, or a checkpoint, which tells its model; None takes the model of `checkpoint`.
    out: the bundle, a new folder. overwrite: replace an existing bundle.
    checkpoint: an mmsegmentation checkpoint; by default the published one, if it was fetched. seeded: random weights.
    num_classes: by default the checkpoint's. padding, weights: as in `build_model`; by default as in the project that
    wrote the checkpoint. conventions: values by name in place of what it says of images and labels, such as
    {"mean": "0,0,0", "channels": "bgr"}.

    size: (height, width) in pixels, each a number or a `DynamicDim`; by default the size that the model was
    trained at. batch: images at once, likewise. precision: `fp32`, `fp16` or `int8`; fp16 for GPUs, fp32 for the CPU.
    opset: of ONNX, 17 to 20; 17, for INT8 20. input, outputs, upernet_levels: as in `ExportOptions`. test_scale: (long,
    short) side that an image is fitted into before a graph of dynamic size, pixels.

    targets: devices and compute capabilities, mixed (`jetson-orin`, `sm_86`), by default the GPU of this machine; or
    `cpu` alone, for no engine. What this machine cannot compile for, the device compiles from the bundle. jetpack: of
    the Jetsons among them, such as `6.0`.
    flavour: `tensorrt_rtx`, `tensorrt`, both, or `auto`. workspace: limit of a layer's scratch memory, MiB.
    optimization_level, timing_cache, hardware_compatibility: as in `EngineOptions`. allow_unfused: take engines with
    unfused attentions. with_weights: add `weights.pth`, which the torch engine runs.

    level: what runs in INT8, of `builders.plan.levels.LEVELS`. plan: a plan file to build instead. calibrate_on:
    images, `camvid:PATH`, `ade20k:PATH` or `folder:PATH`, with calib_split and calib_images (0: all). calibration: a
    range file instead. smooth: SmoothQuant's strength 0 to 1, `search` or `none`. bias_correction: put the mean shift
    of every quantized product into its bias. observers, percentile, bins, minimum, fit: as in `CalibrationOptions`.

    gate_on: labelled images to judge the build on, with gate_split and gate_limit. pack: a file that takes them and the
    reference's masks, for `gate` on a device without torch. max_drop: points of mIoU.
    min_images: fewer fail. min_agreement: share of equal pixels, 0 for none. accept_reference: judge by a doubtful
    reference too. no_gate: do not judge INT8; the bundle is marked
    `ungated`. fallback: revert blocks that fail to FP16; max_evaluations: how many plans it may judge at most. threads:
    of the CPU.

    Sizes, batches and lists may be given as their text on a command line (`size="360x480"`, `targets="sm_86,sm_89"`).
    Raises `UsageError` for a value of the wrong kind.
    """

    model: str | None = None
    out: str | None = None
    overwrite: bool | None = None
    checkpoint: str | None = None
    seeded: bool | None = None
    num_classes: int | None = None
    padding: str | None = None
    weights: str | None = None
    conventions: Mapping[str, str] | None = None
    size: tuple[Extent, Extent] | None = None
    batch: Extent | None = None
    precision: str | None = None
    opset: int | None = None
    input: str | None = None
    outputs: tuple[str, ...] | None = None
    upernet_levels: int | None = None
    test_scale: tuple[int, int] | Literal["none"] | None = None
    targets: tuple[str, ...] | None = None
    jetpack: str | None = None
    flavour: tuple[str, ...] | None = None
    workspace: int | None = None
    optimization_level: int | None = None
    timing_cache: str | None = None
    hardware_compatibility: str | None = None
    allow_unfused: bool | None = None
    with_weights: bool | None = None
    level: str | None = None
    plan: str | None = None
    calibrate_on: str | None = None
    calib_split: str | None = None
    calib_images: int | None = None
    calibration: str | None = None
    smooth: float | str | None = None
    bias_correction: bool | None = None
    observers: tuple[str, ...] | None = None
    percentile: float | None = None
    bins: int | None = None
    minimum: int | None = None
    fit: str | None = None
    gate_on: str | None = None
    gate_split: str | None = None
    gate_limit: int | None = None
    pack: str | None = None
    max_drop: float | None = None
    min_images: int | None = None
    min_agreement: float | None = None
    accept_reference: bool | None = None
    no_gate: bool | None = None
    fallback: bool | None = None
    max_evaluations: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        settle(self, TABLE)


def _strength(value: Any) -> float | str:
    """`none`, `search`, or a number."""
    if isinstance(value, str) and value in ("none", SEARCH):
        return value
    if isinstance(value, bool):
        raise UsageError(f"a SmoothQuant strength of {value}", "give none, search, or 0 to 1")
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"a SmoothQuant strength of {value}", "give none, search, or 0 to 1") from error


WEIGHTS, GRAPH, ENGINES = "weights", "graph", "engines"
INT8, RANGES, GATE = "INT8 (--precision int8)", "ranges", "gate"

TABLE: tuple[Flag, ...] = (
    Flag("MODEL", "model", "a name that twins-trt models lists, or a checkpoint that tells it", nargs="?"),
    Flag("--out", "out", "the folder to write, such as x.bundle", metavar="BUNDLE"),
    Flag("--overwrite", "overwrite", "replace a bundle that is there", SWITCH, sets=True),
    *weights_flags(WEIGHTS),
    *graph_flags(GRAPH, precisions=("fp32", "fp16", "int8")),
    Flag(
        "--target",
        "targets",
        "GPUs to build for, by name or compute capability: rtx-4090,sm_86,jetson-orin (twins-trt targets lists them); "
        "default: the GPU of this machine. cpu: the graph alone, for ONNX Runtime",
        NAMES,
        "NAME,...",
        group=ENGINES,
    ),
    Flag(
        "--jetpack",
        "jetpack",
        "of the Jetson; default: 6.1 or later for Orin, 7.0 or later for Thor",
        metavar="VERSION",
        group=ENGINES,
    ),
    Flag(
        "--flavour",
        "flavour",
        "tensorrt_rtx needs no GPU, tensorrt builds for the GPU it runs on; both with a comma; "
        "default: {default}, tensorrt_rtx if it is installed",
        NAMES,
        "{tensorrt_rtx,tensorrt}",
        group=ENGINES,
    ),
    Flag("--workspace", "workspace", "most scratch memory of a layer; default: no limit", WHOLE, "MIB", group=ENGINES),
    Flag(
        "--optimization-level",
        "optimization_level",
        "how long to search; default: 3",
        WHOLE,
        "{0..5}",
        group=ENGINES,
    ),
    Flag(
        "--timing-cache",
        "timing_cache",
        "keeps measurements between builds (tensorrt only)",
        metavar="FILE",
        group=ENGINES,
    ),
    Flag(
        "--hardware-compatibility",
        "hardware_compatibility",
        "other GPUs that the engine shall run on (tensorrt only)",
        metavar="{none,same_compute_capability,ampere_plus}",
        group=ENGINES,
    ),
    Flag(
        "--allow-unfused",
        "allow_unfused",
        "take an FP16 engine even if an attention in it is not fused",
        SWITCH,
        sets=True,
        group=ENGINES,
    ),
    Flag(
        "--with-weights",
        "with_weights",
        "add weights.pth, which predict --engine torch runs on a GPU",
        SWITCH,
        sets=True,
        group=ENGINES,
    ),
    Flag(
        "--level",
        "level",
        "what runs in INT8; default: {default}",
        metavar=f"{{{','.join(name for name in LEVELS if name != 'fp16')}}}",
        group=INT8,
    ),
    Flag(
        "--plan",
        "plan",
        "build this plan (a bundle's plan.json, perhaps edited), whatever --level, --smooth and --observer say",
        metavar="FILE",
        group=INT8,
    ),
    Flag(
        "--calib-data",
        "calibrate_on",
        "images to calibrate on; labels are not read",
        metavar="KIND:PATH",
        group=INT8,
    ),
    Flag("--calib-split", "calib_split", "default: {default}", metavar="SPLIT", group=INT8),
    Flag(
        "--calib-images",
        "calib_images",
        "how many, spread over the set; default: {default}, 0: all",
        WHOLE,
        "N",
        group=INT8,
    ),
    Flag(
        "--calibration",
        "calibration",
        "take the ranges that twins-trt calibrate wrote instead",
        metavar="FILE",
        group=INT8,
    ),
    Flag(
        "--smooth",
        "smooth",
        "SmoothQuant's strength; default: {default}",
        Kind(_strength),
        "{none,search,0..1}",
        group=INT8,
    ),
    Flag(
        "--bias-correction",
        "bias_correction",
        "put the mean shift of every quantized product into its bias",
        SWITCH,
        sets=True,
        group=INT8,
    ),
    *range_flags(RANGES),
    Flag("--gate-data", "gate_on", "labelled images to judge the build on", metavar="KIND:PATH", group=GATE),
    Flag("--gate-split", "gate_split", "default: {default}", metavar="SPLIT", group=GATE),
    Flag("--gate-limit", "gate_limit", "only the first N images", WHOLE, "N", group=GATE),
    Flag("--pack", "pack", "write what twins-trt gate needs on a device without torch", metavar="FILE", group=GATE),
    *threshold_flags(GATE),
    Flag(
        "--no-gate",
        "no_gate",
        "do not judge INT8; the bundle is marked ungated",
        SWITCH,
        sets=True,
        group=GATE,
    ),
    Flag(
        "--no-fallback",
        "fallback",
        "fail at once instead of reverting blocks to FP16",
        SWITCH,
        sets=False,
        group=GATE,
    ),
    Flag(
        "--max-evaluations",
        "max_evaluations",
        "plans that the fallback may judge; default: {default}",
        WHOLE,
        "N",
        group=GATE,
    ),
    Flag("--threads", "threads", "CPU threads; default: every core", WHOLE, "N"),
    TEST_SCALE_FLAG,
)

_GRAPH, _RANGES = ExportOptions(), CalibrationOptions()


@dataclass(frozen=True)
class BuildDefaults:
    """The defaults of a request. `builders.bundle.resolve` decides those that depend on other fields: model, size,
    precision, opset, targets."""

    overwrite: bool = False
    seeded: bool = False
    batch: Extent = _GRAPH.batch
    input: str = _GRAPH.input
    outputs: tuple[str, ...] = _GRAPH.outputs
    flavour: tuple[str, ...] = ("auto",)
    hardware_compatibility: str = EngineOptions.hardware_compatibility
    allow_unfused: bool = False
    with_weights: bool = False
    level: str = "int8-linear+conv"
    calib_split: str = CalibrateRequest.split
    calib_images: int = CalibrateRequest.images
    smooth: float | str = "none"
    bias_correction: bool = False
    observers: tuple[str, ...] = _RANGES.observers
    percentile: float = _RANGES.percentile
    bins: int = _RANGES.bins
    minimum: int = _RANGES.minimum
    fit: str = _RANGES.fit
    gate_split: str = SPLIT
    min_images: int = GateRequest.min_images
    accept_reference: bool = GateRequest.accept_reference
    no_gate: bool = False
    fallback: bool = True
    max_evaluations: int = 16


DEFAULTS = BuildDefaults()

FLAGS = FlagTable(
    BuildRequest,
    TABLE,
    defaults=DEFAULTS,
    groups={GATE: "INT8 needs one, other precisions may have one"} | WEIGHTS_GROUP,
)


def build(
    model: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
    *,
    checkpoint: str | PathLike[str] | None = None,
    seeded: bool | None = None,
    num_classes: int | None = None,
    size: int | str | tuple[Extent, Extent] | None = None,
    batch: Extent | str | None = None,
    outputs: str | Sequence[str] | None = None,
    precision: str | None = None,
    targets: str | Sequence[str] | None = None,
    calibrate_on: str | None = None,
    gate_on: str | None = None,
    accept_reference: bool | None = None,
    threads: int | None = None,
    overwrite: bool | None = None,
    more: BuildRequest | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Builds a bundle: graph, INT8 if wanted, engines, audit and verdict; the bundle is written whole or not at all.

        report = twins_trt.build("twins_svt-s_fpn", "x.bundle", checkpoint="F.pth", size=(360, 480), targets=["sm_86"])

    `BuildRequest` describes the parameters. more: further fields of that request, such as
    `BuildRequest(level="int8-linear")`; a field may be given only once. progress: called with step, detail and share at
    every step, and while one lasts.
    Returns the report: `bundle`, `audits`, `gate`, `plan`, `fallback`, `seconds`; for engines that await their device
    also `nearest`, the audits in their place, and `next`, the commands to type.
    Raises `UsageError` for fields that exclude each other, `CheckpointError` for weights that do not fit the model,
    `DataError` for files that are not images, `ExportError` and `BuildError` where graph or engine cannot be made,
    `UnfusedAttentionError` where an engine leaves an attention unfused, `GateError` where the build fails its gate,
    `BundleError` where `out` exists or cannot be written, `MissingDependencyError` for a compiler that is not
    installed.
    """
    from twins_trt.builders.bundle.run import build_bundle

    request = FLAGS.ask(
        more,
        model=model,
        out=out,
        checkpoint=checkpoint,
        seeded=seeded,
        num_classes=num_classes,
        size=size,
        batch=batch,
        outputs=outputs,
        precision=precision,
        targets=targets,
        calibrate_on=calibrate_on,
        gate_on=gate_on,
        accept_reference=accept_reference,
        threads=threads,
        overwrite=overwrite,
    )
    return build_bundle(request, progress=progress)
