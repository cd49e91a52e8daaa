"""INT8 on this CPU: our graphs beside mmsegmentation's model, on ONNX Runtime and on OpenVINO, in one run.

    python -m benchmarks.cpu_int8 --mmseg-python PATH [--rounds 7] [--threads 2] [--baselines DIR]

writes results/cpu_int8.json. Every row computes the logits of SVT-S FPN at 512x512 from seeded weights. Their accuracy
means nothing, so ranges come from a few blocks of colour, the same for both quantized graphs. mmsegmentation's export
is quantized by ONNX Runtime's own tool (`quantize_static`, QDQ, uint8 activations, int8 weights with a scale for each
output channel); OpenVINO reads that graph too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cpu import SIZE, disagreement_of, inputs
from benchmarks.mmseg_baseline import export_baseline, seeded_model
from benchmarks.results import describe_run, read_results, write_results
from benchmarks.timing import Run, median_ms, time_rounds, times_as_fast

MODEL = "twins_svt-s_fpn"
PICTURES = 8
REFERENCE = "ours FP32, onnxruntime"
LARGEST_INT8_ERROR = 0.7  # root mean square, relative to the logits' spread; a larger one means a broken graph


def write_ours(folder: Path) -> dict[str, Path]:
    """Our float32 graph, and our INT8 graph, in which everything else is float32."""
    from twins_trt.builders.export import ExportOptions, export_graph
    from twins_trt.builders.plan.precision_plan import uniform_plan
    from twins_trt.builders.quantize import QuantizedGraphs
    from twins_trt.calib import CalibrationOptions, calibrate

    model = seeded_model(MODEL)
    options = ExportOptions(*SIZE, target="cpu", opset=20, outputs=("logits",))
    paths = {"FP32": folder / "ours.onnx", "INT8": folder / "ours.int8.onnx"}
    export_graph(model, paths["FP32"], options)
    export_graph(model, folder / "calibrated.onnx", options, to_quantize=True)
    calibration = CalibrationOptions(observers=("minmax",), minimum=PICTURES)
    images = [inputs(seed)[0][0] for seed in range(PICTURES)]
    ranges = calibrate(folder / "calibrated.onnx", images, options=calibration)
    graphs = QuantizedGraphs(model, options, ranges)
    graphs.write(uniform_plan(graphs.sites, "int8-linear+conv", model=MODEL), paths["INT8"])
    return paths


def quantize_baseline(float32: Path, folder: Path) -> Path:
    """mmsegmentation's export in INT8, written by ONNX Runtime's tool."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Pictures(CalibrationDataReader):
        left = iter(range(PICTURES))

        def get_next(self) -> dict[str, Any] | None:
            seed = next(self.left, None)
            return None if seed is None else {"image": inputs(seed)[1]}

    prepared, path = folder / "mmseg.prepared.onnx", folder / "mmseg.int8.onnx"
    quant_pre_process(str(float32), str(prepared))
    quantize_static(
        str(prepared),
        str(path),
        Pictures(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return path


@contextmanager
def eager(python: str, folder: Path, *, threads: int) -> Iterator[Run]:
    """mmsegmentation's model in PyTorch, in a process of its own."""
    image = folder / "image.npy"
    np.save(image, inputs()[1])
    script = str(Path(__file__).with_name("mmseg_eager.py"))
    command = [python, script, MODEL, str(image), "--threads", str(threads)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    requests, answers = process.stdin, process.stdout

    def run() -> None:
        requests.write("run\n")
        requests.flush()
        if not answers.readline():
            sys.exit("mmsegmentation's model failed")

    try:
        if answers.readline().strip() != "ready":
            sys.exit(f"{python} cannot run mmsegmentation's model")
        yield run
    finally:
        requests.close()
        process.wait()


def measure(python: str, folder: Path, *, baselines: Path, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Rows of results: milliseconds, how many times as fast as our float32 graph, seconds to open."""
    from twins_trt.runtime import RuntimeOptions
    from twins_trt.runtime.engines.onnxruntime import OnnxRuntimeEngine
    from twins_trt.runtime.engines.openvino import OpenVinoEngine

    theirs = export_baseline(python, MODEL, baselines, size=SIZE)
    graphs = {("mmseg", "FP32"): theirs, ("mmseg", "INT8"): quantize_baseline(theirs, folder)}
    graphs |= {("ours", precision): path for precision, path in write_ours(folder).items()}
    feeds: dict[str, NDArray[Any]] = dict(zip(("ours", "mmseg"), inputs(), strict=True))
    options = RuntimeOptions(threads=threads)
    runs: dict[str, Run] = {}
    rows: dict[str, dict[str, Any]] = {}
    wanted = None
    for kind in (OnnxRuntimeEngine, OpenVinoEngine):
        for (whose, precision), path in graphs.items():
            start = time.perf_counter()
            engine = kind(path, options=options)
            opened = time.perf_counter() - start
            label = f"{whose} {precision}, {kind.name}"
            logits = engine(feeds[whose])["logits"]
            wanted = logits if wanted is None else wanted
            error = disagreement_of(wanted, logits) if precision == "FP32" else _int8_error(wanted, logits)
            runs[label] = partial(engine, feeds[whose])
            rows[label] = {
                "graph": whose,
                "precision": precision,
                "engine": kind.name,
                "open_seconds": round(opened, 2),
                "disagreement": error,
            }
    with eager(python, folder, threads=threads) as run:
        label = "mmseg FP32, pytorch"
        seconds = time_rounds({label: run, **runs}, rounds)
    rows = {label: {"graph": "mmseg", "precision": "FP32", "engine": "pytorch"}, **rows}
    return [
        {**row, "milliseconds": median_ms(seconds[label]), **times_as_fast(seconds[REFERENCE], seconds[label])}
        for label, row in rows.items()
    ]


def _int8_error(wanted: NDArray[Any], logits: NDArray[Any]) -> float:
    error = float(np.sqrt(np.mean((logits - wanted) ** 2)) / wanted.std())
    if error > LARGEST_INT8_ERROR:
        sys.exit(
            f"an INT8 graph is off by {error:.2g} of the logits' spread, more than {LARGEST_INT8_ERROR}: not timed"
        )
    return error


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu_int8", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--mmseg-python", required=True, help="a Python that has mmsegmentation")
    parser.add_argument("--baselines", type=Path, help="folder for mmsegmentation's export, to keep it")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    settings = {"model": MODEL, "size": list(SIZE), "rounds": arguments.rounds, "threads": arguments.threads}
    settings["load_before"] = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = measure(
            arguments.mmseg_python,
            folder,
            baselines=arguments.baselines or folder / "mmseg",
            rounds=arguments.rounds,
            threads=arguments.threads,
        )
    for row in rows:
        label = f"{row['graph']} {row['precision']} on {row['engine']}"
        interval = f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
        print(f"{label:<28} {row['milliseconds']:9.1f} ms  x{row['ratio']:.2f} ({interval})")
    write_results("cpu_int8", command="python -m benchmarks.cpu_int8 --mmseg-python PATH", settings=settings, rows=rows)
    print(describe_run(read_results("cpu_int8")))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
