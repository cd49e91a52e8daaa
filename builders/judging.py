"""Judging what a build has made before it is a bundle, and going back to FP16 where it fails."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from twins_trt.builders.assembly import manifest
from twins_trt.builders.engine import BuiltEngine, build_apart, current_device
from twins_trt.builders.fallback import HARDEST, Fallback, SearchState, fall_back, search_key
from twins_trt.builders.gate import GateResult, gate_bundle, gate_file
from twins_trt.builders.job import CALIBRATION, FALLBACK, GATE, PLAN, BuildJob, GateJob
from twins_trt.builders.making import Bench, Int8Parts, Made, quantised
from twins_trt.builders.plan import Plan
from twins_trt.builders.quantize import QuantizedGraphs
from twins_trt.calib import save_ranges
from twins_trt.calib.images import digest
from twins_trt.errors import GateError
from twins_trt.evaluation.evaluate import warn_of_other_classes
from twins_trt.files import whole_file
from twins_trt.runtime import write_bundle
from twins_trt.runtime.engines import EngineSettings
from twins_trt.runtime.manifest import GRAPH, Manifest
from twins_trt.spelling import spelled
from twins_trt.version import __version__

if TYPE_CHECKING:
    from twins_trt.models.segmentor import Segmentor

REACHED = "reached.json"  # beside a plan that was given, what the fallback made of it

Report = Callable[[str, float | None], None]

log = logging.getLogger("twins_trt")


@dataclass(frozen=True)
class Judged:
    """What was judged, and how. engines: those that the verdict is on, by file; empty where the graph stood in.
    fallback: None where the first plan passed."""

    made: Made
    gate: GateResult
    engines: Mapping[str, BuiltEngine]
    fallback: Fallback | None = None


class Judge:
    """Gates graphs of one model, the reference's masks computed once.

    model: the float32 reference. threads: of the CPU, where a graph runs there. folder: where candidates and masks lie
    meanwhile.
    """

    def __init__(self, model: Segmentor, gate: GateJob, *, threads: int | None, folder: Path) -> None:
        self.dataset = gate.open()
        warn_of_other_classes(tuple(model.meta.classes or ()) if model.meta else (), self.dataset)
        self.thresholds = gate.thresholds
        self._model = model
        self._threads = threads
        self._folder = folder

    def images(self, names: Sequence[str]) -> list[npt.NDArray[np.uint8]]:
        """The images of these names, uint8 [H, W, 3], in the data set's order."""
        return [self.dataset.read(item).image for item in self.dataset.items if item.name in names]

    def key(self) -> str:
        """sha256 of all images and labels: one changed pixel gives another."""
        digests = []
        for sample in self.dataset.load():
            digests += [digest(sample.image), b"" if sample.label is None else digest(sample.label)]
        return hashlib.sha256(b"".join(digests)).hexdigest()

    def __call__(
        self, graph: Path, manifest: Manifest, built: Mapping[str, BuiltEngine], *, ships: bool, report: Report
    ) -> GateResult:
        """The verdict on a graph and the engines made of it so far.

        ships: whether an engine will ship, so that ONNX Runtime, where it runs the graph, only stands in for it.
        """
        files: dict[str, bytes | Path] = {GRAPH: graph, **{file: engine.plan for file, engine in built.items()}}
        bundle = write_bundle(self._folder / "candidate.bundle", manifest, files, overwrite=True)
        result = gate_bundle(
            bundle,
            self._model,
            self.dataset,
            thresholds=self.thresholds,
            settings=EngineSettings(threads=self._threads),
            cache=self._folder / "reference",
            progress=lambda done, total, drop: report(f"{done} of {total} images, drop {drop:+.3f}", done / total),
        )
        return replace(result, simulated=result.simulated or (ships and not built))


def judge(bench: Bench, made: Made, gate: GateJob, graphs: QuantizedGraphs | None) -> Judged:
    """The verdict on what was made; of an INT8 build that fails, on what the fallback makes of it.

    graphs: of an INT8 build, what writes other plans. Raises `GateError` where nothing passes.
    """
    bench.clock.begin(f"{gate.data} ({gate.split})")
    judging = Judge(bench.model, gate, threads=bench.job.threads, folder=bench.folder)
    judged = _verdict(bench, made, judging)
    enough = judged.gate.images >= gate.thresholds.min_images  # else no plan would pass
    if not judged.gate.passed and gate.fallback and enough and graphs is not None and made.int8 is not None:
        judged = _fall_back(bench, judged, made.int8.plan, graphs, judging, max_evaluations=gate.max_evaluations)
    if not judged.gate.passed:
        raise _refusal(bench.job, judged, bench.folder)
    return judged


def _verdict(bench: Bench, made: Made, judging: Judge) -> Judged:
    job, engines = bench.job, {}
    if current_device() is not None:  # then it is the engines that are judged, not a stand-in
        engines = {each.file: build_apart(made.graph, each.options, bench.clock.inside) for each in job.engines}
    unjudged = manifest(job, made.graph, made.info, bench.facts, engines)
    gate = judging(made.graph, unjudged, engines, ships=bool(job.engines), report=bench.clock.inside)
    return Judged(made, gate, engines)


def _fall_back(
    bench: Bench, first: Judged, plan: Plan, graphs: QuantizedGraphs, judging: Judge, *, max_evaluations: int
) -> Judged:
    """The cheapest plan that passes, else the best; its graph takes the place of the first."""
    job, latest, written = bench.job, first, plan

    def verdict(tried: Plan) -> GateResult:
        nonlocal latest, written
        latest, written = _verdict(bench, quantised(graphs, tried, bench.folder), judging), tried
        return latest.gate

    settings = {
        "thresholds": first.gate.thresholds,
        "engine": first.gate.engine,
        "device": first.gate.measured_on,
        "versions": [__version__, *(engine.compiler for engine in job.engines)],
    }
    key = search_key(ranges=graphs.ranges.key, plan=plan, images=judging.key(), settings=settings)
    log.warning("the plan fails its gate: %s; looking for the blocks to revert", "; ".join(first.gate.reasons))
    found = fall_back(
        plan,
        graphs,
        first.gate,
        judge=verdict,
        hardest=judging.images([each.name for each in first.gate.worst[:HARDEST]]),
        state=SearchState.open(bench.folder / "search.json", key),
        max_evaluations=max_evaluations,
        threads=job.threads,
        report=bench.clock.inside,
    )
    log.warning("fallback %s", found.summary())
    if written != found.plan:
        made = quantised(graphs, found.plan, bench.folder)
        # Engines compiled anew are not those that were judged: timing may have chosen other kernels.
        rebuilt = current_device() is not None
        latest = _verdict(bench, made, judging) if rebuilt else Judged(made, found.gate, {})
    return replace(latest, fallback=found)


def _refusal(job: BuildJob, judged: Judged, folder: Path) -> GateError:
    """The error for a build that does not pass; what an INT8 build has reached stays in its work folder."""
    gate, int8 = judged.gate, judged.made.int8
    log.warning("verdict on the build that is refused:\n%s", gate.table())  # no bundle will hold it
    cause = f"{job.out} fails its gate: {'; '.join(gate.reasons)}"
    few = gate.images < gate.thresholds.min_images
    allow = f"give more images, or lower {spelled('min_images')}" if few else f"allow more ({spelled('max_drop')})"
    if int8 is None:
        return GateError(cause, allow)
    reached = _keep_reached(job, judged, int8, folder)
    more = ""
    if judged.fallback is not None:
        cause += f" ({judged.fallback.summary()})"
        more = f"try more plans ({spelled('max_evaluations')}), " if judged.fallback.outcome.exhausted else ""
    return GateError(
        f"{cause}; plan, ranges and verdict are in {folder}",
        f"{more}{allow}, or edit the plan and build it: {spelled('plan', str(reached))}",
    )


def _keep_reached(job: BuildJob, judged: Judged, int8: Int8Parts, folder: Path) -> Path:
    """Writes plan, ranges, verdict and fallback for whoever wants to go on from them; returns the plan's file."""
    # A plan that was given stays as it was written.
    given = None if job.int8 is None or job.int8.plan is None else Path(job.int8.plan).resolve()
    reached = folder / (REACHED if given == (folder / PLAN).resolve() else PLAN)
    _write(reached, int8.plan.to_json().encode())
    _write(folder / GATE, gate_file(judged.gate))
    save_ranges(int8.ranges, folder / CALIBRATION)
    (folder / FALLBACK).unlink(missing_ok=True)  # of an earlier run
    if judged.fallback is not None:
        _write(folder / FALLBACK, judged.fallback.file())
    return reached


def _write(path: Path, content: bytes) -> None:
    with whole_file(path) as file:
        file.write(content)
