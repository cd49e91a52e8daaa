"""What a build makes: the graph, and for INT8 the ranges and the plan it comes of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from twins_trt.builders.bundle.job import BuildJob
from twins_trt.builders.export import GraphInfo, export_graph
from twins_trt.builders.plan.precision_plan import PrecisionPlan
from twins_trt.builders.quantize import Quantization, QuantizedGraphs
from twins_trt.builders.quantize.calibration import collect_ranges, first_plan, refine
from twins_trt.builders.quantize.options import Int8Options
from twins_trt.calib import Ranges
from twins_trt.models.weights import ModelFacts, load_weights, save_weights
from twins_trt.progress import Clock
from twins_trt.runtime.manifest import GRAPH, WEIGHTS

if TYPE_CHECKING:
    from twins_trt.models.segmentor import Segmentor


@dataclass(frozen=True)
class BuildContext:
    """What every step of one build works with. folder: where its parts lie. clock: told where the build is."""

    job: BuildJob
    model: Segmentor
    facts: ModelFacts
    folder: Path
    clock: Clock


@dataclass(frozen=True)
class Int8Parts:
    """What an INT8 graph was made of. done: what was quantized."""

    plan: PrecisionPlan
    ranges: Ranges
    done: Quantization


@dataclass(frozen=True)
class BuiltGraph:
    """A graph and what it is. int8: None but for INT8."""

    graph: Path
    info: GraphInfo
    int8: Int8Parts | None = None


def open_context(job: BuildJob, folder: Path, clock: Clock) -> BuildContext:
    """The context with the model on it. Raises as `load_weights` does."""
    clock.begin("seeded" if job.weights is None else str(job.weights))
    model, facts = load_weights(
        job.model,
        checkpoint=None if job.published else job.weights,
        seeded=job.weights is None,
        num_classes=job.num_classes,
        padding=job.padding,
    )
    if job.with_weights:
        save_weights(model, facts, folder / WEIGHTS)
    return BuildContext(job, model, facts, folder, clock)


def make_graph(context: BuildContext) -> BuiltGraph:
    """The graph of an FP32 or FP16 build."""
    graph = context.job.graph
    context.clock.begin(f"{graph.precision}, opset {graph.opset}")
    path = context.folder / GRAPH
    return BuiltGraph(path, export_graph(context.model, path, graph))


def make_int8(context: BuildContext, int8: Int8Options) -> tuple[BuiltGraph, QuantizedGraphs]:
    """The graph of the plan that an INT8 build sets out from, and what writes the graphs of other plans."""
    job, clock = context.job, context.clock
    clock.begin(f"fp32, opset {job.graph.opset}")
    float32 = context.folder / "fp32.onnx"
    export_graph(context.model, float32, job.graph, to_quantize=True)
    clock.begin(int8.ranges if isinstance(int8.ranges, str) else f"{int8.ranges.data} ({int8.ranges.split})")
    state = context.folder / "calibration.partial"
    ranges = collect_ranges(int8, float32, state=state, threads=job.threads, progress=clock.progress)
    clock.begin(int8.plan or int8.level)
    graphs = QuantizedGraphs(context.model, job.graph, ranges, float_precision=job.float_precision)
    plan = refine(
        int8, graphs, first_plan(int8, graphs.sites, model=job.model), threads=job.threads, progress=clock.progress
    )
    return quantized(graphs, plan, context.folder), graphs


def quantized(graphs: QuantizedGraphs, plan: PrecisionPlan, folder: Path) -> BuiltGraph:
    """The graph of one plan, in the place of the one before it."""
    info, done = graphs.write(plan, folder / GRAPH)
    return BuiltGraph(folder / GRAPH, info, Int8Parts(plan, graphs.ranges, done))
