"""Quantized graphs of one model, a plan each; ranges and export stay the same."""

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
from twins_trt.builders.quantize.rewrite import Quantization, int8_sites, observed_tensors, quantize
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

    options: of the FP32 graph that was calibrated. ranges: of that graph. float_precision: of what
    does not run in INT8, `fp16` or `fp32`.
    """

    def __init__(self, model: Segmentor, options: ExportOptions, ranges: Ranges, *, float_precision: str) -> None:
        self.float_precision = float_precision
        self.ranges = ranges
        self._model = model
        self.options = options
        self.sites = sites_of(model, options)
        self.shifts: dict[str, npt.NDArray[np.float64]] = {}

    def correct_biases(self, plan: PrecisionPlan, images: Iterable[Image], *, threads: int | None = None) -> None:
        """Finds `shifts`, which every later graph of a plan with `bias_correction` takes in (`mean_shifts`).

        plan: of what may run in INT8, with the strength of SmoothQuant. images: uint8 [H, W, 3], RGB, of any size.
        """
        graph = build_graph(self._model, fixed(self.options))[0]
        largest, sites = self._largest(graph, plan), int8_sites(graph, plan, self.float_precision)
        if plan.smooth is not None:
            largest |= smooth_norms(graph, sites, largest, self._channels(), strength=plan.smooth)
        fp16 = self.float_precision == "fp16"
        self.shifts = mean_shifts(graph, sites, largest, images, half=fp16, unsigned=not fp16, threads=threads)

    def build(self, plan: PrecisionPlan, *, in_float32: bool = False) -> tuple[gs.Graph, GraphInfo, Quantization]:
        """The graph in memory, what it is, and what was done. in_float32: as `quantize` takes it.

        Raises `UsageError` for a plan that does not fit the model or the ranges.
        """
        return self._build(plan, self.options, in_float32=in_float32)

    def logits(
        self, plan: PrecisionPlan | None, images: Sequence[Image], *, threads: int | None = None
    ) -> list[Logits]:
        """What a plan's graph computes of images on ONNX Runtime, everything but INT8 in float32; None: the FP32 graph.

        images: uint8 [H, W, 3], RGB, of any size -> float32 [1, classes, h, w] each, at the graph's usual size.
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
        done = quantize(
            graph,
            plan,
            self._largest(graph, plan),
            float_precision=self.float_precision,
            islands=info.islands,
            channel_ranges=self._channels(),
            shifts=self.shifts,
            in_float32=in_float32,
        )
        return graph, info, done

    def write(self, plan: PrecisionPlan, path: Path) -> tuple[GraphInfo, Quantization]:
        """The graph as a file. Raises as `build` and `write_graph` do."""
        graph, info, done = self.build(plan)
        write_graph(graph, path, info, precision="int8")
        return info, done

    def reverted_share(self, plan: PrecisionPlan) -> float:
        """Of the FLOPs that the plan's level would run in INT8, the share that the plan does not."""
        quantizable = plan.quantizable_flops(self.sites)
        return plan.reverted_flops(self.sites) / quantizable if quantizable else 0.0

    def _channels(self) -> dict[str, npt.NDArray[np.float64]]:
        return {name: np.array(each.channels) for name, each in self.ranges.ranges.items() if each.channels}

    def _largest(self, graph: gs.Graph, plan: PrecisionPlan) -> dict[str, float]:
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
    """The places of a model's graph that can run in INT8, with FLOPs: those of its usual size where that is dynamic."""
    return find_sites(build_graph(model, fixed(options))[0])


def fixed(options: ExportOptions) -> ExportOptions:
    """The same with the usual size in place of a dynamic one, for one image at a time."""
    height, width = (side.opt if isinstance(side, DynamicDim) else side for side in (options.height, options.width))
    return replace(options, height=height, width=width, batch=1)


def relative_error(got: Sequence[Logits], wanted: Sequence[Logits]) -> float:
    """The squared error relative to the variance of what is wanted, averaged over images."""
    return float(np.mean([np.mean((a - b) ** 2) / max(b.var(), 1e-12) for a, b in zip(got, wanted, strict=True)]))
