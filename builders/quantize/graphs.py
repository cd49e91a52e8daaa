"""The INT8 graphs of one model: one graph for each plan, with the same export options and ranges."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from twins_trt.builders.export import DynamicDim, ExportOptions, GraphInfo
from twins_trt.builders.export.export import build_graph, graph_proto, write_graph
from twins_trt.builders.plan.precision_plan import PrecisionPlan
from twins_trt.builders.plan.sites import Site, find_sites
from twins_trt.builders.quantize.bias import mean_shifts
from twins_trt.builders.quantize.rewrite import (
    FLOAT_PRECISIONS,
    Quantization,
    observed_tensors,
    quantize,
    quantized_sites,
)
from twins_trt.builders.quantize.smooth import smooth_norms
from twins_trt.calib import Ranges
from twins_trt.calib.images import Fitter
from twins_trt.calib.tensors import graph_inputs
from twins_trt.errors import UsageError
from twins_trt.runtime.engines import RuntimeOptions
from twins_trt.runtime.engines.onnxruntime import OnnxRuntimeEngine

if TYPE_CHECKING:
    from twins_trt.models.segmentor import Segmentor

Image = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]


class QuantizedGraphs:
    """Writes the graph of any plan of a model.

    options: of the FP32 graph that was calibrated. ranges: of that graph. float_precision: of what does not run in
    INT8, by the options' target. sites: the places of the graph that can run in INT8. shifts: of biases, by product.
    """

    def __init__(self, model: Segmentor, options: ExportOptions, ranges: Ranges) -> None:
        self.float_precision = FLOAT_PRECISIONS[options.target]
        self.ranges = ranges
        self._model = model
        self.options = options
        self.sites = sites_of(model, options)
        self.shifts: dict[str, npt.NDArray[np.float64]] = {}

    def correct_biases(self, plan: PrecisionPlan, images: Iterable[Image], *, threads: int | None = None) -> None:
        """Computes `shifts` (`mean_shifts`), which the later graphs of plans with `bias_correction` include.

        plan: what runs in INT8, and SmoothQuant's strength. images: uint8 [H, W, 3], RGB, of any size.
        """
        graph = build_graph(self._model, fixed(self.options))[0]
        sites = quantized_sites(graph, plan, float_precision=self.float_precision)
        ranges = self._ranges_of(plan, graph)
        if plan.smooth is not None:
            ranges |= smooth_norms(graph, sites, ranges, self._channel_ranges(), strength=plan.smooth)
        self.shifts = mean_shifts(graph, sites, ranges, images, float_precision=self.float_precision, threads=threads)

    def build(self, plan: PrecisionPlan, *, in_float32: bool = False) -> tuple[gs.Graph, GraphInfo, Quantization]:
        """The graph of a plan in memory, its description, and what of it runs in INT8. in_float32: see `quantize`.

        Raises `UsageError` for a plan that does not fit the model or the ranges.
        """
        return self._build(plan, self.options, in_float32=in_float32)

    def logits(
        self, plan: PrecisionPlan | None, images: Sequence[Image], *, threads: int | None = None
    ) -> list[Logits]:
        """The logits of a plan's graph on ONNX Runtime, with everything that is not INT8 in float32.

        plan: None for the FP32 graph. images: uint8 [H, W, 3], RGB, of any size. Returns float32 [1, classes, h, w] for
        each image, at the `opt` size of a dynamic graph.
        """
        options = replace(fixed(self.options), outputs=("logits",))
        proto = graph_proto(
            build_graph(self._model, options)[0] if plan is None else self._build(plan, options, in_float32=True)[0]
        )
        fit = Fitter(graph_inputs(proto), {})
        engine = OnnxRuntimeEngine(proto.SerializeToString(), options=RuntimeOptions(threads=threads))
        try:
            return [engine(fit(image)[None])["logits"].astype(np.float32, copy=False) for image in images]
        finally:
            engine.close()

    def _build(
        self, plan: PrecisionPlan, options: ExportOptions, *, in_float32: bool
    ) -> tuple[gs.Graph, GraphInfo, Quantization]:
        graph, info = build_graph(self._model, options)
        quantization = quantize(
            graph,
            plan,
            self._ranges_of(plan, graph),
            float_precision=self.float_precision,
            islands=info.islands,
            channel_ranges=self._channel_ranges(),
            shifts=self.shifts,
            in_float32=in_float32,
        )
        return graph, info, quantization

    def write(self, plan: PrecisionPlan, path: Path) -> tuple[GraphInfo, Quantization]:
        """Writes the graph of a plan into a file. Raises as `build` and `write_graph` do."""
        graph, info, quantization = self.build(plan)
        write_graph(graph, path, info, precision="int8")
        return info, quantization

    def reverted_share(self, plan: PrecisionPlan) -> float:
        """The share, 0 to 1, of the FLOPs that the plan's level would run in INT8 and the plan does not."""
        level = plan.level_flops(self.sites)
        return plan.reverted_flops(self.sites) / level if level else 0.0

    def _channel_ranges(self) -> dict[str, npt.NDArray[np.float64]]:
        return {name: np.array(each.channels) for name, each in self.ranges.ranges.items() if each.channels}

    def _ranges_of(self, plan: PrecisionPlan, graph: gs.Graph) -> dict[str, float]:
        """The ranges that the plan's graph needs: the plan's own, else those of its observer."""
        for name in plan.ranges:
            if name not in self.ranges.ranges:
                near = difflib.get_close_matches(name, self.ranges.ranges, n=3)
                raise UsageError(
                    f"the plan has a range for {name!r}, which no calibration observed",
                    f"nearest: {', '.join(near)}" if near else "calibration.json holds the names",
                )
        names = observed_tensors(graph, plan, float_precision=self.float_precision)
        return {
            name: plan.ranges[name] if name in plan.ranges else self.ranges.amax(name, plan.observer) for name in names
        }


def sites_of(model: Segmentor, options: ExportOptions) -> tuple[Site, ...]:
    """The places of a model's graph that can run in INT8. A graph of dynamic size has the FLOPs of its `opt` size."""
    return find_sites(build_graph(model, fixed(options))[0])


def fixed(options: ExportOptions) -> ExportOptions:
    """The same options for one image at a time, at the `opt` size of a dynamic graph."""
    height, width = (side.opt if isinstance(side, DynamicDim) else side for side in (options.height, options.width))
    return replace(options, height=height, width=width, batch=1)


def relative_error(got: Sequence[Logits], wanted: Sequence[Logits]) -> float:
    """The mean squared error relative to the variance of the wanted logits, averaged over images."""
    return float(np.mean([np.mean((a - b) ** 2) / max(b.var(), 1e-12) for a, b in zip(got, wanted, strict=True)]))
