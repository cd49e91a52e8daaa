"""`calibrate`: the ranges of a graph's activations over images: request, defaults, flags and call."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from twins_trt.builders.export.options import DynamicDim, ExportOptions
from twins_trt.builders.plan.levels import INT8_OPSET
from twins_trt.calib.collecting import MEMORY_MIB
from twins_trt.calib.options import CalibrationOptions
from twins_trt.data.preprocessing import ADE20K_TEST, Preprocessing
from twins_trt.errors import DataError, UsageError
from twins_trt.models.source import FoundModel
from twins_trt.models.zoo import is_model
from twins_trt.progress import Progress, silent
from twins_trt.spelling import spelled
from twins_trt.verbs.flags import Flag, FlagTable, settle
from twins_trt.verbs.groups.graph import export_options, graph_flags
from twins_trt.verbs.groups.images import DATA_KINDS, scale_of
from twins_trt.verbs.groups.new_file import OVERWRITE_FLAG, check_new_file
from twins_trt.verbs.groups.ranges import range_flags
from twins_trt.verbs.groups.running import THREADS_FLAG, WORKERS_FLAG
from twins_trt.verbs.groups.weights import WEIGHTS_GROUP, find_requested, nothing_called, weights_flags
from twins_trt.verbs.kinds import TEST_SCALE, WHOLE, Extent

if TYPE_CHECKING:
    from twins_trt.calib import Ranges
    from twins_trt.data import Dataset

_GRAPH, _RANGES = ExportOptions(), CalibrationOptions()

log = logging.getLogger("twins_trt")


@dataclass(frozen=True)
class CalibrateRequest:
    """A calibration.

    what: an FP32 graph's file; a name of the zoo, whose graph is exported first; or a checkpoint, which tells its
    model. data: images, `camvid:PATH`, `ade20k:PATH` or `folder:PATH`; labels are not read. split: which of them.
    images: how many, spread over the split; 0 for all. out: the range file to write; None writes none. overwrite:
    replace an existing one.

    target: `gpu` or `cpu`, what a model's graph is built for. observers, percentile, bins, minimum, fit: as in
    `CalibrationOptions`. test_scale: (long, short) side that an image is fitted into before a graph of dynamic size,
    pixels, or `none`; by default mmsegmentation's for ade20k. device: of ONNX Runtime, `auto`, `cpu` or `cuda`.
    threads: of the CPU. workers: processes that read images ahead. memory: MiB of activations held at once.

    checkpoint, seeded, num_classes, padding, weights, conventions, size, batch, precision, opset, input, outputs,
    upernet_levels: of a model, as in `BuildRequest`; only a build with the same values accepts the ranges.
    Raises `UsageError` for a value of the wrong kind.
    """

    what: str = ""
    data: str = ""
    split: str = "train"
    images: int = 64
    out: str | None = None
    overwrite: bool = False
    target: str = _GRAPH.target
    observers: tuple[str, ...] = _RANGES.observers
    percentile: float = _RANGES.percentile
    bins: int = _RANGES.bins
    minimum: int = _RANGES.minimum
    fit: str = _RANGES.fit
    test_scale: tuple[int, int] | str | None = None
    device: str = "auto"
    threads: int | None = None
    workers: int = 0
    memory: int = MEMORY_MIB
    checkpoint: str | None = None
    seeded: bool = False
    num_classes: int | None = None
    padding: str | None = None
    weights: str | None = None
    conventions: Mapping[str, str] | None = None
    size: tuple[int | DynamicDim, int | DynamicDim] | None = None
    batch: int | DynamicDim = _GRAPH.batch
    precision: str | None = None
    opset: int | None = None
    input: str = _GRAPH.input
    outputs: tuple[str, ...] = _GRAPH.outputs
    upernet_levels: int | None = None

    def __post_init__(self) -> None:
        settle(self, TABLE)


RUNNING = "how it runs"

TABLE: tuple[Flag, ...] = (
    Flag("GRAPH|MODEL", "what", "an FP32 graph, a name that twins-trt models lists, or a checkpoint that tells it"),
    Flag("--data", "data", DATA_KINDS, metavar="KIND:PATH", required=True),
    Flag("--split", "split", "default: {default}"),
    Flag("--images", "images", "how many, spread over the set; default: {default}, 0: all", WHOLE, "N"),
    Flag("--out", "out", "the range file to write", metavar="FILE", required=True),
    OVERWRITE_FLAG,
    Flag("--target", "target", "what a model's graph is built for; default: {default}", metavar="{gpu,cpu}"),
    *range_flags("ranges"),
    Flag(
        "--test-scale",
        "test_scale",
        f"for a graph of dynamic size; default: {TEST_SCALE.show(ADE20K_TEST.test_scale)} for ade20k",
        TEST_SCALE,
        "LONGxSHORT",
    ),
    Flag("--device", "device", "of ONNX Runtime; default: {default}", metavar="{auto,cpu,cuda}", group=RUNNING),
    replace(THREADS_FLAG, group=RUNNING),
    replace(WORKERS_FLAG, group=RUNNING),
    Flag("--memory", "memory", "activations at once; default: {default}", WHOLE, "MIB", group=RUNNING),
    *weights_flags("weights"),
    *graph_flags("graph", precisions=("fp32",)),
)

FLAGS = FlagTable(CalibrateRequest, TABLE, groups=WEIGHTS_GROUP)


def calibrate(
    what: str | PathLike[str],
    data: str,
    *,
    out: str | PathLike[str] | None = None,
    split: str | None = None,
    images: int | None = None,
    observers: str | Sequence[str] | None = None,
    checkpoint: str | PathLike[str] | None = None,
    seeded: bool | None = None,
    size: int | str | tuple[Extent, Extent] | None = None,
    threads: int | None = None,
    overwrite: bool | None = None,
    more: CalibrateRequest | None = None,
    progress: Progress | None = None,
) -> Ranges:
    """Collects the ranges of an FP32 graph's activations over images, for INT8.

        ranges = twins_trt.calibrate("graph.onnx", "camvid:PATH", images=64, out="calibration.json")

    what: a graph's file, a name of the zoo, whose graph is exported first, or a checkpoint, which tells its model.
    data: the images; labels are not read. out: the range file to write; unfinished work is kept in `out`.partial, and
    the same call continues it after a kill. `CalibrateRequest` describes the other parameters. more: further fields
    of that request, such as `CalibrateRequest(percentile=99.9)`; a field may be given only once.
    progress: called at every step, and after every image.
    Returns the ranges: `amax(tensor)`, `observers`, `key`.
    Raises `UsageError` for fields that exclude each other and for a graph that is not FP32; `DataError` for images that
    are none, too few, blank or noise, and where `out` cannot be written; `CheckpointError` for weights that do not fit
    the model; `EngineError` where ONNX Runtime refuses the graph; `MissingDependencyError` without onnx or onnxruntime.
    """
    request = FLAGS.ask(
        more,
        what=what,
        data=data,
        out=out,
        split=split,
        images=images,
        observers=observers,
        checkpoint=checkpoint,
        seeded=seeded,
        size=size,
        threads=threads,
        overwrite=overwrite,
    )
    return collect_ranges(resolve_calibration(request), progress=progress)


@dataclass(frozen=True)
class ModelGraph:
    """A graph that is exported first: of which model, and how."""

    model: FoundModel
    options: ExportOptions


@dataclass(frozen=True)
class CalibrationJob:
    """What a calibration will do, checked as far as possible. graph: its file, or how to export it."""

    request: CalibrateRequest
    graph: Path | ModelGraph
    dataset: Dataset
    options: CalibrationOptions

    @property
    def out(self) -> Path | None:
        return None if self.request.out is None else Path(self.request.out)

    @property
    def state(self) -> Path | None:
        """The file that keeps unfinished work, for a run after a kill."""
        return None if self.out is None else self.out.with_name(f"{self.out.name}.partial")

    @property
    def tensors(self) -> int | None:
        """How many tensors are observed; None before the graph is exported. Raises as reading the graph does."""
        from twins_trt.calib import observed_tensors

        return None if isinstance(self.graph, ModelGraph) else len(observed_tensors(self.graph))


def resolve_calibration(request: CalibrateRequest) -> CalibrationJob:
    """The job of a request. No image is read, nothing is exported or written. Raises as `calibrate` does."""
    from twins_trt.builders.quantize.options import CalibrationImages
    from twins_trt.inference.fitting import fit_mode

    graph = _graph(request)
    told = graph.model.conventions.preprocessing if isinstance(graph, ModelGraph) else Preprocessing()
    scale = scale_of(request.data, request.test_scale)
    options = CalibrationOptions(
        observers=request.observers,
        percentile=request.percentile,
        bins=request.bins,
        minimum=request.minimum,
        fit=fit_mode(request.fit),
        preprocessing=replace(told, test_scale=scale, keep_ratio=True),
    )
    if request.images < 0:
        raise UsageError(f"{spelled('images')} is {request.images}", "give how many, or 0 for all")
    if request.memory < 1:
        raise UsageError(f"{spelled('memory')} is {request.memory}", "give at least 1")
    dataset = CalibrationImages(request.data, request.split, request.images).open()
    job = CalibrationJob(request, graph, dataset, options)
    if job.out is not None:
        check_new_file(job.out, overwrite=request.overwrite, such_as="calibration.json", error=DataError)
    return job


def collect_ranges(job: CalibrationJob, *, progress: Progress | None = None) -> Ranges:
    """Does the job: collects the ranges, and writes them where it names a file. Raises as `calibrate` does."""
    from twins_trt.calib import CollectRun, save_ranges
    from twins_trt.calib.datasets import calibrate_on

    request, progress = job.request, progress or silent
    run = CollectRun(
        state=job.state,
        progress=progress,
        device=request.device,
        threads=request.threads,
        memory_mib=request.memory,
    )
    with tempfile.TemporaryDirectory(prefix="twins-trt-") as folder:
        graph = job.graph
        if isinstance(graph, ModelGraph):
            progress("export", graph.model.name, None)
            graph = _export(request, graph, Path(folder))
        ranges = calibrate_on(job.dataset, graph, job.options, run, workers=request.workers)
    if job.out is not None:
        save_ranges(ranges, job.out)
    if job.state is not None:
        job.state.unlink(missing_ok=True)
    return ranges


def _graph(request: CalibrateRequest) -> Path | ModelGraph:
    """The graph's file, or the model to export, whose weights have been found."""
    from twins_trt.models.telling import CHECKPOINTS

    path = Path(request.what)
    if request.what and path.is_dir():
        raise UsageError(f"{path} is a folder", "name an FP32 graph: twins-trt export MODEL --precision fp32")
    if path.is_file() and (path.suffix not in CHECKPOINTS or path.suffix == ".bin"):  # an ONNX file may be called so
        if request.checkpoint is not None or request.seeded or request.num_classes is not None:
            names = ", ".join(map(spelled, ("checkpoint", "seeded")))
            raise UsageError("a graph has its weights inside", f"leave {names} and {spelled('num_classes')} out")
        return path
    if not path.is_file() and not is_model(request.what) and request.checkpoint is None:
        raise nothing_called(request.what, no="graph", fix="twins-trt models lists the models")
    model = find_requested(request, request.what, request.checkpoint)
    options = export_options(
        request, target=request.target, precision="fp32", crop_size=model.spec.crop_size, opset=INT8_OPSET
    )
    if options.precision != "fp32":
        raise UsageError(
            f"{spelled('precision')} is {options.precision}; ranges are collected on the FP32 graph", "leave it out"
        )
    return ModelGraph(model, options)


def _export(request: CalibrateRequest, graph: ModelGraph, folder: Path) -> Path:
    """The model's FP32 graph, byte for byte what an INT8 build with the same options quantizes."""
    from twins_trt.builders.export import export_graph
    from twins_trt.models.weights import load_found

    model, _ = load_found(graph.model)
    if request.seeded:
        log.warning("random weights: the ranges mean nothing")
    path = folder / "graph.onnx"
    export_graph(model, path, graph.options, to_quantize=True)
    return path
