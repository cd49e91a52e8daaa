"""Builds all 12 models and mmsegmentation's own exports with TensorRT-RTX: kernels, fused attentions, memory traffic.

    python -m benchmarks.kernels --mmseg-python PATH [--models twins_svt-s_fpn ...]

writes results/kernels.json; no GPU is used. `--mmseg-python` is an interpreter with mmsegmentation
(benchmarks/mmseg_export.py says how); without it, mmsegmentation's rows of the last results are kept. Every row is
built in a process of its own, so that the peak memory is its own; ours includes the export, as in `twins-trt build`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.mmseg_baseline import export_baseline, seeded_model
from benchmarks.results import describe_versions, read_results, write_results

TARGETS = ("sm_86", "sm_89", "sm_120")
SIZE = (512, 512)
MMSEG_OPSETS = (18, 20)  # the exporter's default, and the first with a Gelu operator, which fuses more often


def build_ours(name: str, targets: tuple[str, ...] = TARGETS) -> dict[str, Any]:
    """One row for our graph: uint8 image in, uint8 mask out, FP16, batch 1."""
    from twins_trt.builders.export import ExportOptions, export_graph

    start = time.perf_counter()
    model = seeded_model(name)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder, "graph.onnx")
        options = ExportOptions(height=SIZE[0], width=SIZE[1], precision="fp16")
        info = export_graph(model, graph, options)
        seconds = time.perf_counter() - start
        row = build_row(graph, targets, expected=info.attentions)
    return {"model": name, "graph": "twins-trt", "opset": options.opset, "export_seconds": round(seconds, 1), **row}


def build_mmseg(name: str, graph: Path, opset: int, targets: tuple[str, ...] = TARGETS) -> dict[str, Any]:
    """One row for mmsegmentation's plain FP16 export: normalized float image in, logits out."""
    from twins_trt.models import get_spec

    row = build_row(graph, targets, expected=get_spec(name).attentions)
    return {"model": name, "graph": "mmseg", "opset": opset, **row}


def build_row(graph: Path, targets: tuple[str, ...], *, expected: int) -> dict[str, Any]:
    """Builds an engine from a graph, and counts what is in it."""
    from twins_trt.builders.engine import EngineOptions, build_engine
    from twins_trt.builders.engine.audit import audit_layers

    built = build_engine(graph, EngineOptions(targets=targets))
    audit = audit_layers(built.layers, expected_attentions=expected)
    return {
        "kernels": audit.kernels,
        "attentions": audit.attentions,
        "expected_attentions": expected,
        "unfused_attentions": list(audit.unfused_attentions),
        "copies": audit.copies,
        "pointwise": audit.pointwise,
        "bytes_moved": audit.bytes_moved,
        "float32_kernels": len(audit.float32),
        "by_type": audit.by_type,
        "build_seconds": round(built.seconds, 1),
        "plan_bytes": len(built.serialized),
        "peak_host_mib": None if built.peak_host_mib is None else round(built.peak_host_mib),
        "compiler": f"{built.flavour} {built.version}",
    }


def mmseg_rows(last: Mapping[str, Any], versions: Mapping[str, str]) -> list[dict[str, Any]]:
    """mmsegmentation's rows of the last results. Raises SystemExit where their compiler is not that of `versions`."""
    compiler = "tensorrt-rtx-cu13"
    if last["versions"][compiler] != versions[compiler]:
        raise SystemExit(f"the last results are {compiler} {last['versions'][compiler]}'s: give --mmseg-python")
    return [row for row in last["rows"] if row["graph"] == "mmseg"]


def main() -> int:
    from twins_trt.models import list_models

    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--mmseg-python", help="a Python that has mmsegmentation; without it, its rows are kept")
    parser.add_argument("--models", nargs="+", default=list_models(), help="only these, for a look: nothing is written")
    arguments = parser.parse_args()
    kept = [] if arguments.mmseg_python else mmseg_rows(read_results("kernels"), describe_versions())
    load = round(os.getloadavg()[0], 1)
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool,
    ):
        for name in arguments.models:
            rows.append(pool.apply(build_ours, (name,)))
            print(_line(rows[-1]), flush=True)
            for opset in MMSEG_OPSETS if arguments.mmseg_python else ():
                baseline = Path(folder, str(opset))
                graph = export_baseline(arguments.mmseg_python, name, baseline, size=SIZE, opset=opset)
                rows.append(pool.apply(build_mmseg, (name, graph.with_suffix(".fp16.onnx"), opset)))
                print(_line(rows[-1]), flush=True)
                for file in baseline.glob(f"{name}.*"):
                    file.unlink()
            rows += [row for row in kept if row["model"] == name]
    if set(arguments.models) >= set(list_models()):
        settings = {"size": list(SIZE), "batch": 1, "precision": "fp16", "targets": list(TARGETS), "load_before": load}
        command = "python -m benchmarks.kernels --mmseg-python PATH"
        print(write_results("kernels", command=command, settings=settings, rows=rows).name)
    return 0


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['model']:<21} {row['graph']:<9} opset {row['opset']}: {row['kernels']:4} kernels, "
        f"{row['attentions']:2} of {row['expected_attentions']} fused, {row['copies']:3} copies, "
        f"{row['bytes_moved'] / 1e6:6.0f} MB moved, {row['build_seconds']:.1f} s, {row['peak_host_mib']} MiB"
    )


if __name__ == "__main__":
    raise SystemExit(main())
