"""`export`: a model as an ONNX graph: request, defaults, flags, and the function that does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from twins_trt.builders.export.options import DynamicDim, ExportOptions
from twins_trt.errors import ExportError
from twins_trt.models.source import FoundModel
from twins_trt.progress import Progress, silent
from twins_trt.verbs.flags import Flag, FlagTable, settle
from twins_trt.verbs.groups.graph import export_options, graph_flags
from twins_trt.verbs.groups.new_file import OVERWRITE_FLAG, check_new_file
from twins_trt.verbs.groups.weights import WEIGHTS_GROUP, find_requested, weights_flags

if TYPE_CHECKING:
    from twins_trt.builders.export import GraphInfo
    from twins_trt.runtime import Source

_GRAPH = ExportOptions()


@dataclass(frozen=True)
class ExportRequest:
    """An export.

    model: a name of the zoo, or a checkpoint, which tells its model. out: the graph's file. overwrite: replace an
    existing one. target: what the exact rewritings are for, `gpu` or `cpu`. precision: by default fp16 for GPUs and
    fp32 for the CPU. `BuildRequest` describes the other fields. Raises `UsageError` for a value of the wrong kind.
    """

    model: str = ""
    out: str = ""
    overwrite: bool = False
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
    target: str = _GRAPH.target

    def __post_init__(self) -> None:
        settle(self, TABLE)


TABLE: tuple[Flag, ...] = (
    Flag("MODEL", "model", "a name that twins-trt models lists, or a checkpoint that tells it"),
    Flag("--out", "out", "the graph to write", metavar="FILE", required=True),
    OVERWRITE_FLAG,
    *weights_flags("weights"),
    *graph_flags("graph"),
    Flag(
        "--target",
        "target",
        "exact rewritings for the fewest kernels (gpu) or the fewest operations (cpu); default: {default}",
        metavar="{gpu,cpu}",
    ),
)

FLAGS = FlagTable(ExportRequest, TABLE, groups=WEIGHTS_GROUP)


@dataclass(frozen=True)
class ExportJob:
    """What an export will do, checked as far as possible."""

    request: ExportRequest
    model: FoundModel
    options: ExportOptions

    @property
    def out(self) -> Path:
        return Path(self.request.out)


def resolve_export(request: ExportRequest) -> ExportJob:
    """The job of a request.

    Raises `UsageError` for fields that exclude each other, `CheckpointError` where there are no weights, `ExportError`
    where `out` cannot be written.
    """
    model = find_requested(request, request.model, request.checkpoint)
    options = export_options(
        request,
        target=request.target,
        precision="fp32" if request.target == "cpu" else "fp16",
        crop_size=model.spec.crop_size,
    )
    options.check_model(model.spec, threshold=model.conventions.threshold)
    job = ExportJob(request, model, options)
    check_new_file(job.out, overwrite=request.overwrite, such_as="graph.onnx", error=ExportError)
    return job


def export(job: ExportJob, *, progress: Progress | None = None) -> tuple[GraphInfo, Source]:
    """Writes the graph, whole or not at all. Returns facts of the graph and the origin of its weights.

    Raises `CheckpointError` for weights that do not fit the model, `UsageError` for options that do not, `ExportError`
    where a weight does not fit the precision or the file cannot be written, `MissingDependencyError` without torch or
    onnx.
    """
    from twins_trt.builders.export import export_graph
    from twins_trt.models.weights import load_found

    progress = progress or silent
    progress("[1/2] weights", "seeded" if job.model.weights is None else str(job.model.weights), None)
    model, facts = load_found(job.model)
    progress("[2/2] graph", job.request.out, None)
    return export_graph(model, job.out, job.options), facts.source
