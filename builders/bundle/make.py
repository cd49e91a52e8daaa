"""Makes the graph of a build; for INT8 also the ranges and the plan that the graph is made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from twins_trt.builders.bundle.job import BuildJob
from twins_trt.builders.bundle.workspace import CALIBRATION_STATE, FP32_GRAPH
from twins_trt.builders.export import GraphInfo, export_graph
from twins_trt.builders.plan.precision_plan import PrecisionPlan
from twins_trt.builders.quantize import Quantization, QuantizedGraphs
from twins_trt.builders.quantize.calibration import find_ranges, first_plan, refine
from twins_trt.builders.quantize.options import Int8Options
from twins_trt.calib import Ranges
from twins_trt.models.weights import ModelFacts, load_found, save_weights
from twins_trt.progress import Clock
from twins_trt.runtime.manifest import GRAPH, WEIGHTS

if TYPE_CHECKING:
    from twins_trt.models.segmentor import Segmentor


@dataclass(frozen=True)
class BuildContext:
    """What the steps of one build share. folder: holds its parts until they are in a bundle. clock: times the steps."""

    job: BuildJob
    model: Segmentor
    facts: ModelFacts
    folder: Path
    clock: Clock


@dataclass(frozen=True)
class Int8Parts:
    """What an INT8 graph was made from. quantization: what runs in INT8."""

    plan: PrecisionPlan
    ranges: Ranges
    quantization: Quantization


@dataclass(frozen=True)
class BuiltGraph:
    """A graph file. int8: for an INT8 graph, what it was made from."""

    path: Path
    info: GraphInfo
    int8: Int8Parts | None = None


def open_context(job: BuildJob, folder: Path, clock: Clock) -> BuildContext:
    """Loads the model. Raises as `load_found` does."""
    clock.begin("seeded" if job.weights is None else str(job.weights))
    model, facts = load_found(job.found)
    if job.with_weights:
        save_weights(model, facts, folder / WEIGHTS)
    return BuildContext(job, model, facts, folder, clock)


def make_graph(context: BuildContext) -> BuiltGraph:
    """The graph of an FP32 or FP16 build."""
    options = context.job.graph
    context.clock.begin(f"{options.precision}, opset {options.opset}")
    path = context.folder / GRAPH
    return BuiltGraph(path, export_graph(context.model, path, options))


def make_int8(context: BuildContext, int8: Int8Options) -> tuple[BuiltGraph, QuantizedGraphs]:
    """The graph of an INT8 build's first plan, and the writer of the graphs of other plans."""
    job, clock = context.job, context.clock
    clock.begin(f"fp32, opset {job.graph.opset}")
    fp32 = context.folder / FP32_GRAPH
    export_graph(context.model, fp32, job.graph, to_quantize=True)
    clock.begin(int8.ranges if isinstance(int8.ranges, str) else f"{int8.ranges.data} ({int8.ranges.split})")
    state = context.folder / CALIBRATION_STATE
    ranges = find_ranges(int8, fp32, state=state, threads=job.threads, progress=clock.progress)
    clock.begin(int8.plan or int8.level)
    graphs = QuantizedGraphs(context.model, job.graph, ranges)
    plan = first_plan(int8, graphs.sites, model=job.model)
    plan = refine(int8, graphs, plan, threads=job.threads, progress=clock.progress)
    return write_int8(graphs, plan, context.folder), graphs


def write_int8(graphs: QuantizedGraphs, plan: PrecisionPlan, folder: Path) -> BuiltGraph:
    """Writes the graph of a plan into the folder; it replaces the graph of an earlier plan."""
    path = folder / GRAPH
    info, quantization = graphs.write(plan, path)
    return BuiltGraph(path, info, Int8Parts(plan, graphs.ranges, quantization))
