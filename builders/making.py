"""The middle of a build: the graph, its ranges and plan, its verdict, its engines."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from twins_trt.builders.assembly import manifest
from twins_trt.builders.calibration import collect_ranges, first_plan, refine
from twins_trt.builders.engine import BuiltEngine, EngineOptions, build_apart, current_device
from twins_trt.builders.export import GraphInfo, export_graph
from twins_trt.builders.fallback import HARDEST, Fallback, SearchState, fall_back, search_key
from twins_trt.builders.gate import GateResult, gate_file
from twins_trt.builders.judge import Judge
from twins_trt.builders.plan import Plan
from twins_trt.builders.preflight import CALIBRATION, FALLBACK, GATE, PLAN, BuildPlan
from twins_trt.builders.progress import Clock
from twins_trt.builders.quantize import Quantization, QuantizedGraphs
from twins_trt.builders.weights import ModelFacts
from twins_trt.calib import Ranges, save_ranges
from twins_trt.errors import GateError
from twins_trt.runtime.manifest import GRAPH
from twins_trt.version import __version__

if TYPE_CHECKING:
    from twins_trt.models.segmentor import Segmentor

REACHED = "reached.json"  # beside a plan that was given, what the fallback made of it

log = logging.getLogger("twins_trt")


@dataclass(frozen=True)
class Made:
    """A graph and what it is; for INT8 what it was made of; engines that the gate needed; the verdict."""

    graph: Path
    info: GraphInfo
    plan: Plan | None = None
    ranges: Ranges | None = None
    done: Quantization | None = None
    engines: dict[str, BuiltEngine] = field(default_factory=dict)
    gate: GateResult | None = None
    fallback: Fallback | None = None


class Maker:
    """Makes the parts of one bundle, in `folder`.

    plan: of the build. model, facts: its weights. clock: told where the build is.
    """

    def __init__(self, plan: BuildPlan, model: Segmentor, facts: ModelFacts, folder: Path, clock: Clock) -> None:
        self._plan = plan
        self._options = plan.options
        self._model = model
        self._facts = facts
        self._folder = folder
        self._clock = clock

    def make(self) -> Made:
        """The graph, judged where the build is to be; once. Raises `GateError` where nothing passes."""
        graphs = None
        if self._options.int8 is None:
            graph = self._options.graph
            self._clock.begin(f"{graph.precision}, opset {graph.opset}")
            made = Made(self._folder / GRAPH, export_graph(self._model, self._folder / GRAPH, graph))
        else:
            graphs, plan = self._quantiser()
            made = self._quantised(graphs, plan)
        if self._options.gate is not None:
            made = self._judged(made, graphs)
        del self._model
        return made

    def engines(self, made: Made) -> dict[str, BuiltEngine]:
        """The engines of what was made: those that the gate needed, else built now."""
        built = {}
        for file, engine, compiler in self._planned_engines():
            self._clock.begin(compiler)
            built[file] = made.engines.get(file) or build_apart(made.graph, engine, self._clock.inside)
        return built

    def _planned_engines(self) -> Iterator[tuple[str, EngineOptions, str]]:
        """File, options and compiler of each engine."""
        return zip(self._plan.engine_files, self._options.engines, self._plan.compilers, strict=True)

    def _quantiser(self) -> tuple[QuantizedGraphs, Plan]:
        """Ranges and the plan to set out from."""
        options, int8 = self._options, self._options.int8
        assert int8 is not None  # the caller's branch
        self._clock.begin(f"fp32, opset {options.graph.opset}")
        float32 = self._folder / "fp32.onnx"
        export_graph(self._model, float32, options.graph, to_quantise=True)
        self._clock.begin(int8.calibration or f"{int8.data} ({int8.split})")
        ranges = collect_ranges(int8, float32, state=self._folder / "calibration.partial", report=self._clock.inside)
        self._clock.begin(int8.plan or int8.level)
        graphs = QuantizedGraphs(self._model, options.graph, ranges, rest=options.rest)
        plan = first_plan(int8, graphs.sites, model=options.model)
        return graphs, refine(int8, graphs, plan, report=self._clock.inside)

    def _quantised(self, graphs: QuantizedGraphs, plan: Plan) -> Made:
        info, done = graphs.write(plan, self._folder / GRAPH)
        return Made(self._folder / GRAPH, info, plan, graphs.ranges, done)

    def _judged(self, made: Made, graphs: QuantizedGraphs | None) -> Made:
        gate = self._options.gate
        assert gate is not None  # the caller's branch
        self._clock.begin(f"{gate.data} ({gate.split})")
        judge = Judge(self._model, gate, self._folder)
        made = self._with_verdict(made, judge)
        verdict = made.gate
        assert verdict is not None  # just given
        hopeful = gate.fallback and verdict.images >= verdict.thresholds.min_images
        if not verdict.passed and graphs is not None and hopeful:
            made = self._fallen_back(made, graphs, judge)
        if made.gate is None or not made.gate.passed:
            raise self._refusal(made)
        return made

    def _with_verdict(self, made: Made, judge: Judge) -> Made:
        engines: dict[str, BuiltEngine] = {}
        if current_device() is not None:  # then it is the engines that are judged, not a stand-in
            for file, engine, _ in self._planned_engines():
                engines[file] = build_apart(made.graph, engine, self._clock.inside)
        unjudged = manifest(self._options, self._plan.out, made.graph, made.info, self._facts, engines)
        ships = bool(self._options.engines)
        gate = judge(made.graph, unjudged, engines, ships=ships, report=self._clock.inside)
        return replace(made, engines=engines, gate=gate)

    def _fallen_back(self, made: Made, graphs: QuantizedGraphs, judge: Judge) -> Made:
        """The cheapest plan that passes, else the best; its graph takes the place of the first."""
        gate, first, plan = self._options.gate, made.gate, made.plan
        assert gate is not None and first is not None and plan is not None  # an INT8 build that was judged
        latest = made

        def verdict(tried: Plan) -> GateResult:
            nonlocal latest
            latest = self._with_verdict(self._quantised(graphs, tried), judge)
            assert latest.gate is not None
            return latest.gate

        versions = [__version__, *self._plan.compilers]
        settings = {
            "thresholds": first.thresholds,
            "engine": first.engine,
            "device": first.measured_on,
            "versions": versions,
        }
        key = search_key(ranges=graphs.ranges.key, plan=plan, images=judge.key(), settings=settings)
        log.warning("the plan fails its gate: %s; looking for the blocks to revert", "; ".join(first.reasons))
        found = fall_back(
            plan,
            graphs,
            first,
            judge=verdict,
            hardest=judge.images([each.name for each in first.worst[:HARDEST]]),
            state=SearchState.open(self._folder / "search.json", key),
            max_evaluations=gate.max_evaluations,
            threads=gate.threads,
            report=self._clock.inside,
        )
        log.warning("fallback %s", found.summary())
        if latest.plan != found.plan:
            latest = self._quantised(graphs, found.plan)
            # Engines compiled anew are not those that were judged: timing may have chosen other kernels.
            rebuilt = current_device() is not None
            latest = self._with_verdict(latest, judge) if rebuilt else replace(latest, gate=found.gate)
        return replace(latest, fallback=found)

    def _refusal(self, made: Made) -> GateError:
        """The error for a build that does not pass; what an INT8 build has reached stays in its folder."""
        gate, work = made.gate, self._plan.work
        assert gate is not None  # only what was judged can fail
        log.warning("verdict on the build that is refused:\n%s", gate.table())  # no bundle will hold it
        cause = f"{self._plan.out} fails its gate: {'; '.join(gate.reasons)}"
        if work is None or made.plan is None or made.ranges is None:
            return GateError(cause, "allow more: --max-drop POINTS")
        # A plan that was given stays as it was written.
        int8 = self._options.int8
        given = None if int8 is None or int8.plan is None else Path(int8.plan).resolve()
        reached = work / (REACHED if given == (work / PLAN).resolve() else PLAN)
        reached.write_text(made.plan.to_json(), encoding="utf-8")
        (work / GATE).write_bytes(gate_file(gate))
        save_ranges(made.ranges, work / CALIBRATION)
        (work / FALLBACK).unlink(missing_ok=True)  # of an earlier run
        if made.fallback is not None:
            (work / FALLBACK).write_bytes(made.fallback.file())
            cause += f" ({made.fallback.summary()})"
        few = gate.images < gate.thresholds.min_images
        allow = "give more images, or --min-images N" if few else "allow more (--max-drop)"
        more = "try more plans (--max-evaluations), " if made.fallback and made.fallback.outcome.exhausted else ""
        return GateError(
            f"{cause}; plan, ranges and verdict are in {work}",
            f"{more}{allow}, or edit the plan and build it: --plan {reached}",
        )
