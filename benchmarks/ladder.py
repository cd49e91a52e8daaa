"""The precision ladder of a trained model: what each level, observer and correction costs in mIoU, and what it gains.

    python -m benchmarks.ladder --model twins_svt-s_fpn --checkpoint F.pth --data camvid:PATH --size 360x480

writes results/ladder.json. Ranges come from `train`, mIoU and its drop from `val`, judged as `twins-trt gate` judges.
Graphs run on ONNX Runtime. The INT8 graphs are those for TensorRT, but with float32 in place of FP16: ONNX Runtime runs
them in half the time, with the same INT8 and without FP16's rounding. The row `as built` is the graph as it ships, and
shows the difference. An engine is built for every level, and its kernels are counted. With --work DIR finished rows
stay in DIR, and a run that was killed resumes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.results import write_results
from twins_trt.builders.bundle.judge import gate_candidate
from twins_trt.builders.bundle.resolve import resolve
from twins_trt.builders.engine import EngineOptions, build_in_thread
from twins_trt.builders.engine.audit import audit_layers
from twins_trt.builders.export import ExportOptions, GraphInfo, export_graph
from twins_trt.builders.export.export import write_graph
from twins_trt.builders.gate import GateResult, Thresholds
from twins_trt.builders.gate.judge import Judge
from twins_trt.builders.plan.precision_plan import PrecisionPlan, uniform_plan
from twins_trt.builders.quantize import Quantization, QuantizedGraphs, check_int8, sites_of
from twins_trt.builders.quantize.calibration import find_ranges, refine
from twins_trt.builders.quantize.options import Int8Options
from twins_trt.calib import OBSERVERS, Ranges, load_ranges, save_ranges
from twins_trt.calib.datasets import pixels
from twins_trt.data import open_dataset
from twins_trt.models.weights import load_weights
from twins_trt.progress import silent
from twins_trt.runtime.engines import RuntimeOptions
from twins_trt.runtime.engines.onnxruntime import OnnxRuntimeEngine
from twins_trt.verbs.build import SEARCH, BuildRequest

TARGETS = ("sm_86", "sm_89", "sm_120")
FULL = "int8-linear+conv"
LEVELS = ("int8-linear", FULL, "int8-attention")
ROUNDS = 5


@dataclass(frozen=True)
class Rung:
    """One row.

    plan: of an INT8 graph; None for a graph of `precision`. as_built: whether FP16 stays FP16, as the graph ships.
    engine: whether an engine is built. cpu: whether the graph is written for the CPU, where it is timed.
    """

    name: str
    precision: str
    plan: PrecisionPlan | None = None
    as_built: bool = True
    engine: bool = False
    cpu: bool = False


class Ladder:
    """The rungs of one model, climbed one by one."""

    def __init__(self, arguments: argparse.Namespace, work: Path) -> None:
        self.arguments = arguments
        self.work = work
        self.model, self.facts = load_weights(arguments.model, checkpoint=arguments.checkpoint)
        request = BuildRequest(
            arguments.model,
            str(work / "x.bundle"),
            checkpoint=str(arguments.checkpoint),
            size=arguments.size,
            precision="int8",
            targets=("cpu",),
            calibrate_on=arguments.data,
            calib_images=arguments.images,
            smooth=SEARCH,
            gate_on=arguments.data,
            gate_limit=arguments.limit,
            threads=arguments.threads,
        )
        self.job = job = resolve(request)
        assert job.int8 is not None and job.gate is not None  # as requested
        self.exports: dict[str, ExportOptions] = {
            target: replace(job.graph, target=target) for target in ("gpu", "cpu")
        }
        self.int8: Int8Options = job.int8
        miou = self.model.conventions.miou
        self.judge = Judge(self.model, job.gate, miou=miou, threads=arguments.threads, folder=work)
        self._quantizers: dict[str, QuantizedGraphs] = {}
        self.searched: float | None = None  # SmoothQuant's strength, once `rungs` has searched it

    def quantizer(self, target: str) -> QuantizedGraphs:
        """The writer of INT8 graphs for a target, `gpu` or `cpu`. The first call calibrates."""
        if target not in self._quantizers:
            self._quantizers[target] = QuantizedGraphs(self.model, self.exports[target], self._ranges(target))
        return self._quantizers[target]

    def _ranges(self, target: str) -> Ranges:
        graph = self.work / f"{target}.onnx"
        export_graph(self.model, graph, self.exports[target], to_quantize=True)
        file = self.work / f"{target}.calibration.json"
        if not file.is_file():
            state = self.work / f"{target}.calibration.partial"
            ranges = find_ranges(self.int8, graph, state=state, threads=self.arguments.threads, progress=progress)
            save_ranges(ranges, file)
        return load_ranges(file, graph=graph)

    def rungs(self) -> list[Rung]:
        """All rows, in the table's order."""
        graphs = self.quantizer("gpu")
        plans = {level: uniform_plan(graphs.sites, level, model=self.arguments.model) for level in LEVELS}
        full = plans[FULL]
        searched = kept(
            self.work,
            f"strength {graphs.ranges.key}",
            lambda: {
                "strength": refine(self.int8, graphs, full, threads=self.arguments.threads, progress=progress).smooth
            },
        )["strength"]
        self.searched = searched
        smoothed = replace(full, smooth=searched or 0.5)  # a row even if the search prefers no SmoothQuant
        on_cpu = uniform_plan(sites_of(self.model, self.exports["cpu"]), FULL, model=self.arguments.model)
        corrected = replace(full, bias_correction=True)
        return [
            Rung("fp32", "fp32", engine=True),
            Rung("fp16", "fp16", engine=True),
            *(Rung(level, "int8", plans[level], as_built=False, engine=True) for level in LEVELS),
            Rung(f"{FULL}, as built", "int8", full),
            *(Rung(f"{FULL}, {name}", "int8", replace(full, observer=name), as_built=False) for name in OBSERVERS[1:]),
            Rung(f"{FULL}, SmoothQuant {smoothed.smooth}", "int8", smoothed, as_built=False),
            Rung(f"{FULL}, bias correction", "int8", corrected, as_built=False),
            Rung("fp32, for the CPU", "fp32", cpu=True),
            Rung(f"{FULL}, for the CPU", "int8", on_cpu, cpu=True),
        ]

    def climb(self, rung: Rung) -> dict[str, Any]:
        """The row of one rung."""
        graph = self.work / "graph.onnx"
        target = "cpu" if rung.cpu else "gpu"
        self._write(rung, self.quantizer(target), graph)
        written = replace(self.exports[target], precision="fp32" if rung.plan else rung.precision)
        job = replace(self.job, graph=written, int8=self.int8 if rung.plan else None)
        candidate = gate_candidate(job, graph, self.facts, ships=not rung.cpu, engines={})
        self.judge.thresholds = Thresholds.of(job.precision, min_images=self.judge.thresholds.min_images)
        result = self.judge(candidate, progress=progress)
        row = {"name": rung.name, "as_built": rung.as_built, "cpu": rung.cpu, **self._scores(result)}
        row["graph_bytes"] = graph.stat().st_size
        if rung.engine:
            row |= self._engine(rung)
        if rung.cpu:
            (self.work / f"{rung.precision}.cpu.onnx").write_bytes(graph.read_bytes())
        return row

    def _write(self, rung: Rung, graphs: QuantizedGraphs, path: Path) -> tuple[GraphInfo, Quantization | None]:
        if rung.plan is None:
            return export_graph(self.model, path, replace(graphs.options, precision=rung.precision)), None
        if rung.plan.bias_correction and not graphs.shifts:
            assert self.int8.images is not None  # as requested
            graphs.correct_biases(rung.plan, pixels(self.int8.images.open()), threads=self.arguments.threads)
        graph, info, quantization = graphs.build(rung.plan, in_float32=not rung.as_built)
        write_graph(graph, path, info, precision="int8")
        return info, quantization

    def _engine(self, rung: Rung) -> dict[str, Any]:
        """The engine of the graph as it ships: kernels, fused attentions, size, and planned INT8 that is missing."""
        graph = self.work / "engine.onnx"
        info, quantization = self._write(replace(rung, as_built=True), self.quantizer("gpu"), graph)
        built = build_in_thread(graph, EngineOptions(targets=TARGETS), silent)
        audit = audit_layers(built.layers, expected_attentions=info.attentions)
        return {
            "engine_bytes": len(built.serialized),
            "kernels": audit.kernels,
            "attentions": audit.attentions,
            "expected_attentions": audit.expected_attentions,
            "bytes_moved": audit.bytes_moved,
            "not_int8": [] if quantization is None else list(check_int8(built.layers, quantization)),
            "compiler": f"{built.flavour} {built.version}",
        }

    def _scores(self, result: GateResult) -> dict[str, Any]:
        return {
            "miou": result.scores.miou,
            "reference_miou": result.reference.miou,
            "drop": result.drop.mean,
            "drop_low": result.drop.low,
            "drop_high": result.drop.high,
            "agreement": result.agreement,
            "passed": result.passed,
            "images": result.images,
        }

    def time_cpu(self) -> dict[str, float]:
        """The median milliseconds of an image, by precision. The two graphs for the CPU take turns."""
        image = next(iter(open_dataset(self.arguments.data, split="val"))).image[None]
        options = RuntimeOptions(threads=self.arguments.threads)
        files = {name: self.work / f"{name}.cpu.onnx" for name in ("fp32", "int8")}
        engines = {name: OnnxRuntimeEngine(file, options=options) for name, file in files.items()}
        taken: dict[str, list[float]] = {name: [] for name in engines}
        for turn in range(ROUNDS + 1):
            for name, engine in engines.items():
                started = time.perf_counter()
                engine(image)
                if turn:  # the first warms up
                    taken[name].append(1000 * (time.perf_counter() - started))
        return {name: statistics.median(times) for name, times in taken.items()}


def progress(step: str, detail: str, share: float | None) -> None:
    """A `Progress` that prints one line a call."""
    print(detail, flush=True)


def kept(work: Path, key: str, row: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The row of an earlier run with the same key; else a new row, which is kept for later runs."""
    path = work / f"row-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    if not path.is_file():
        path.write_text(json.dumps(row()))
    stored: dict[str, Any] = json.loads(path.read_text())
    return stored


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ladder", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", required=True, metavar="KIND:PATH")
    parser.add_argument("--size", required=True, metavar="HxW", help="the images' own size, so that nothing is resized")
    parser.add_argument("--images", type=int, default=64, help="to calibrate on; default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--limit", type=int, help="only the first images, for a try; nothing is written")
    parser.add_argument("--work", type=Path, help="keeps ranges, the reference's masks and finished rows")
    parser.add_argument("--time", action="store_true", help="time the CPU's graphs too: on an otherwise idle machine")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        ladder = Ladder(arguments, work)
        rows: list[dict[str, Any]] = []
        for rung in ladder.rungs():
            key = f"{rung} {ladder.quantizer('cpu' if rung.cpu else 'gpu').ranges.key} {arguments.limit}"
            rows.append(kept(work, key, partial(ladder.climb, rung)))
            print({name: value for name, value in rows[-1].items() if name != "not_int8"}, flush=True)
        timed = kept(work, f"time {[row['name'] for row in rows]}", ladder.time_cpu) if arguments.time else {}
        for row in rows:
            row["cpu_ms"] = timed.get("int8" if row["name"].startswith("int8") else "fp32") if row["cpu"] else None
    if arguments.limit is None:
        kind = arguments.data.split(":", 1)[0]
        settings = {
            "model": arguments.model,
            "data": kind,
            "calibrated_on": arguments.images,
            "size": [int(side) for side in arguments.size.split("x")],
            "targets": list(TARGETS),
            "threads": arguments.threads,
            "rounds": ROUNDS,
            "searched_strength": ladder.searched,
        }
        command = f"python -m benchmarks.ladder --model {arguments.model} --checkpoint FILE --data {kind}:PATH"
        write_results("ladder", command=f"{command} --size {arguments.size} --time", settings=settings, rows=rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
