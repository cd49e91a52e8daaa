"""`export`: a model as an ONNX graph; what is asked of it, its defaults and flags, and how it is done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from twins_trt.builders.export.options import DynamicDim, ExportOptions
from twins_trt.errors import ExportError
from twins_trt.models.zoo import get_spec
from twins_trt.progress import Progress, silent
from twins_trt.verbs.flags import Flag, FlagTable, settle
from twins_trt.verbs.groups import WEIGHTS_GROUP, graph_flags, weights_flags
from twins_trt.verbs.kinds import SWITCH
from twins_trt.verbs.meanings import check_new_file, export_options, load_asked

if TYPE_CHECKING:
    from twins_trt.builders.export import GraphInfo
    from twins_trt.runtime import Source

_GRAPH = ExportOptions()


@dataclass(frozen=True)
class ExportRequest:
    """What is asked of an export.

    model: a name of the zoo, or a checkpoint that tells it. out: the graph's file. overwrite: replace what is there.
    target: which exact rewritings, `gpu` or `cpu`. precision: by default fp16 for GPUs and fp32 for the CPU. Other
    fields are as in `BuildRequest`. Raises `UsageError` for a value that is none of its field's kind.
    """

    model: str = ""
    out: str = ""
    overwrite: bool = False
    checkpoint: str | None = None
    seeded: bool = False
    num_classes: int | None = None
    padding: str = "parity"
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
    Flag("--overwrite", "overwrite", "replace FILE if it is there", SWITCH, sets=True),
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
    """What an export will do, all of it checked that can be checked beforehand.

    model: a name of the zoo. checkpoint: as `find_weights` takes it. weights: the file, None for seeded ones.
    """

    request: ExportRequest
    model: str
    checkpoint: str | None
    weights: Path | None
    options: ExportOptions

    @property
    def out(self) -> Path:
        return Path(self.request.out)


def resolve_export(request: ExportRequest) -> ExportJob:
    """The plan of a request.

    Raises `UsageError` for what does not fit together, `CheckpointError` where there are no weights, `ExportError`
    where `out` cannot be written.
    """
    from twins_trt.models.telling import tell_model

    model, checkpoint = tell_model(request.model, request.checkpoint)
    options = export_options(
        request,
        target=request.target,
        precision="fp32" if request.target == "cpu" else "fp16",
        crop_size=get_spec(model).crop_size,
    )
    from twins_trt.models.weights import find_weights

    weights = find_weights(model, checkpoint=checkpoint, seeded=request.seeded)
    plan = ExportJob(request, model, checkpoint, weights, options)
    check_new_file(plan.out, overwrite=request.overwrite, such_as="graph.onnx", error=ExportError)
    return plan


def export(plan: ExportJob, *, progress: Progress | None = None) -> tuple[GraphInfo, Source]:
    """Writes the graph, whole or not at all: what it is, and where its weights came from.

    Raises `CheckpointError` for weights that do not fit the model, `UsageError` for options that do not, `ExportError`
    where a weight does not fit the precision or the file cannot be written, `MissingDependencyError` without torch or
    onnx.
    """
    from twins_trt.builders.export import export_graph

    request = plan.request
    say = progress or silent
    say("[1/2] weights", "seeded" if plan.weights is None else str(plan.weights), None)
    model, facts = load_asked(request, plan.model, plan.checkpoint)
    say("[2/2] graph", request.out, None)
    return export_graph(model, plan.out, plan.options), facts.source
