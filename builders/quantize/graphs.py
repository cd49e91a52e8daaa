"""Quantised graphs of one model, a plan each; ranges and export stay the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from twins_trt.builders.export import ExportOptions, GraphInfo, Range
from twins_trt.builders.export.export import build_graph, write_graph
from twins_trt.builders.plan import Plan
from twins_trt.builders.quantize.rewrite import Quantization, observed_tensors, quantize
from twins_trt.builders.sites import Site, find_sites
from twins_trt.calib import Ranges

if TYPE_CHECKING:
    from twins_trt.models.segmentor import Segmentor


class QuantizedGraphs:
    """Writes the graph of any plan of a model.

    options: of the FP32 graph that was calibrated. ranges: of that graph. rest: what runs beside INT8, `fp16` or
    `fp32`.
    """

    def __init__(self, model: Segmentor, options: ExportOptions, ranges: Ranges, *, rest: str) -> None:
        self.rest = rest
        self.ranges = ranges
        self._model = model
        self._options = options
        self.sites = sites_of(model, options)

    def build(self, plan: Plan, *, outputs: tuple[str, ...] | None = None) -> tuple[gs.Graph, GraphInfo, Quantization]:
        """The graph in memory, what it is, and what was done. outputs: others than the options say.

        Raises `UsageError` for a plan that does not fit the model or the ranges.
        """
        options = replace(self._options, outputs=outputs or self._options.outputs)
        graph, info = build_graph(self._model, options)
        done = quantize(
            graph,
            plan,
            self._largest(graph, plan),
            rest=self.rest,
            islands=info.islands,
            channel_ranges={
                name: np.array(each.channels) for name, each in self.ranges.ranges.items() if each.channels
            },
        )
        return graph, info, done

    def write(self, plan: Plan, path: Path) -> tuple[GraphInfo, Quantization]:
        """The graph as a file. Raises as `build` and `write_graph` do."""
        graph, info, done = self.build(plan)
        write_graph(graph, path, info, precision="int8")
        return info, done

    def reverted_share(self, plan: Plan) -> float:
        """Of the FLOPs that the plan's level would run in INT8, the share that the plan does not."""
        quantisable = plan.quantisable_flops(self.sites)
        return plan.reverted_flops(self.sites) / quantisable if quantisable else 0.0

    def _largest(self, graph: gs.Graph, plan: Plan) -> dict[str, float]:
        names = observed_tensors(graph, plan, rest=self.rest)
        return {name: plan.ranges.get(name, self.ranges.amax(name, plan.observer)) for name in names}


def sites_of(model: Segmentor, options: ExportOptions) -> tuple[Site, ...]:
    """The places of a model's graph that can run in INT8, with FLOPs: those of its usual size where that is dynamic."""
    height, width = (side.opt if isinstance(side, Range) else side for side in (options.height, options.width))
    return find_sites(build_graph(model, replace(options, height=height, width=width))[0])
