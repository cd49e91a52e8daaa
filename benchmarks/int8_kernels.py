"""INT8 engines of all models with TensorRT-RTX: whether planned places are INT8 and attentions fused; their kernels.

    python -m benchmarks.int8_kernels [--models NAME ...]

writes results/int8_kernels.json. Weights are seeded and all ranges are equal: neither changes what the compiler does.
Each row is built in a process of its own, so that its memory is freed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.kernels import SIZE, TARGETS
from benchmarks.mmseg_baseline import seeded_model
from benchmarks.results import write_results

LEVELS = ("int8-linear+conv",)  # its products are those of int8-linear and more
RANGE = 4.0  # of every activation


def build_int8(
    name: str, level: str, *, size: tuple[int, int] = SIZE, targets: tuple[str, ...] = TARGETS
) -> dict[str, Any]:
    """One row: a uniform plan of `level`, uint8 image in, uint8 mask out, batch 1."""
    from twins_trt.builders.engine import EngineOptions, build_engine
    from twins_trt.builders.engine.audit import audit_layers
    from twins_trt.builders.export import ExportOptions
    from twins_trt.builders.export.export import build_graph, write_graph
    from twins_trt.builders.plan.precision_plan import uniform_plan
    from twins_trt.builders.quantize import check_int8, quantize

    graph, info = build_graph(seeded_model(name), ExportOptions(*size, opset=20))
    plan = uniform_plan(graph, level)
    quantization = quantize(graph, plan, dict.fromkeys(graph.tensors(), RANGE), islands=info.islands)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "graph.onnx")
        write_graph(graph, path, info, precision="int8")
        built = build_engine(path, EngineOptions(targets=targets))
    audit = audit_layers(built.layers, expected_attentions=info.attentions)
    return {
        "model": name,
        "level": level,
        "planned": len(quantization.nodes),
        "not_int8": list(check_int8(built.layers, quantization)),
        "kernels": audit.kernels,
        "attentions": audit.attentions,
        "expected_attentions": info.attentions,
        "unfused_attentions": list(audit.unfused_attentions),
        "bytes_moved": audit.bytes_moved,
        "plan_bytes": len(built.serialized),
        "compiler": f"{built.flavour} {built.version}",
    }


def main() -> int:
    from twins_trt.models import list_models

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.int8_kernels", description=(__doc__ or "").split("\n\n", 1)[0]
    )
    parser.add_argument("--models", nargs="+", default=list_models(), help="only these, for a look: nothing is written")
    arguments = parser.parse_args()
    rows = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name in arguments.models:
            for level in LEVELS:
                rows.append(pool.apply(build_int8, (name, level)))
                row = rows[-1]
                print(
                    f"{name:<21} {level:<17} {row['kernels']:4} kernels, {row['attentions']} of "
                    f"{row['expected_attentions']} fused, {row['planned'] - len(row['not_int8'])} of {row['planned']} "
                    f"INT8, {row['bytes_moved'] / 1e6:.0f} MB moved",
                    flush=True,
                )
    if set(arguments.models) >= set(list_models()):
        settings = {"size": list(SIZE), "batch": 1, "targets": list(TARGETS), "range": RANGE}
        write_results("int8_kernels", command="python -m benchmarks.int8_kernels", settings=settings, rows=rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
