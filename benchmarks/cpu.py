"""ONNX Runtime on this CPU: our float32 graphs beside mmsegmentation's plain export, with the same weights, in one run.

    python -m benchmarks.cpu --mmseg-python PATH [--models twins_svt-s_fpn ...] [--rounds 7] [--profile]

writes results/cpu.json. `--mmseg-python` is an interpreter with mmsegmentation (benchmarks/mmseg_export.py says how);
`--baselines DIR` keeps its exports for the next time. A round times every graph once, ratios are taken within a round
(benchmarks/timing.py). Outputs are compared first: a graph that computes something else is not timed. `--profile`
prints, instead, where the time goes in mmsegmentation's graph and in ours.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.mmseg_baseline import export_baseline, seeded_model
from benchmarks.results import describe_run, read_results, write_results
from benchmarks.timing import median_ms, time_rounds, times_as_fast

MODELS = ("twins_svt-s_upernet", "twins_svt-s_fpn")
SIZE = (512, 512)
TOLERANCE = 1e-4  # of the largest logit; float32 rounding gives about 1e-6


def variants(name: str) -> dict[str, dict[str, Any]]:
    """Export options by label: the default of `twins-trt build --target cpu` first, then others."""
    chosen: dict[str, dict[str, Any]] = {
        "default, mask": {"target": "cpu"},
        "default, logits": {"target": "cpu", "outputs": ("logits",)},
    }
    if name.endswith("upernet"):
        for levels in range(3):  # the default is 3
            chosen[f"{levels} levels, logits"] = {"target": "cpu", "upernet_levels": levels, "outputs": ("logits",)}
    chosen["GPU target, logits"] = {"target": "gpu", "outputs": ("logits",)}
    return chosen


def inputs(seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A picture, uint8 [1, H, W, 3], and the same for mmsegmentation's graph, normalized float32 [1, 3, H, W].

    It is made of blocks of colour with noise, because calibration refuses noise alone.
    """
    from twins_trt.models.zoo import IMAGENET_MEAN, IMAGENET_STD

    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 200, (1, SIZE[0] // 16, SIZE[1] // 16, 3)).repeat(16, axis=1).repeat(16, axis=2)
    image = (blocks + rng.integers(0, 56, blocks.shape)).astype(np.uint8)
    mean, std = np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)
    return image, np.ascontiguousarray(((image.astype(np.float32) - mean) / std).transpose(0, 3, 1, 2))


def measure(
    name: str, python: str, folder: Path, *, baselines: Path, rounds: int, threads: int
) -> list[dict[str, Any]]:
    """Rows of results for one model: mmsegmentation's export, then each of ours with its ratio to it."""
    import onnxruntime as ort

    from twins_trt.builders.export import ExportOptions, export_graph

    baseline = export_baseline(python, name, baselines, size=SIZE)
    image, planes = inputs()
    model = seeded_model(name)

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    sessions = {"mmseg": ort.InferenceSession(str(baseline), options, providers=["CPUExecutionProvider"])}
    feeds: dict[str, NDArray[Any]] = {"mmseg": planes}
    for label, chosen in variants(name).items():
        path = folder / "ours.onnx"
        export_graph(model, path, ExportOptions(height=SIZE[0], width=SIZE[1], **chosen))
        sessions[label] = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feeds[label] = image
    outputs = {label: session.run(None, {"image": feeds[label]})[0] for label, session in sessions.items()}
    disagreement = {label: disagreement_of(outputs["mmseg"], output) for label, output in outputs.items()}

    runs = {label: partial(session.run, None, {"image": feeds[label]}) for label, session in sessions.items()}
    seconds = time_rounds(runs, rounds)
    rows = [
        {
            "model": name,
            "graph": label,
            "milliseconds": median_ms(seconds[label]),
            **times_as_fast(seconds["mmseg"], seconds[label]),
            "disagreement": disagreement[label],
        }
        for label in sessions
    ]
    return rows


def disagreement_of(theirs: NDArray[Any], ours: NDArray[Any]) -> float:
    """Of logits, the largest difference over the largest logit; of a mask, the share of pixels that differ.

    Raises SystemExit where it is more than rounding explains.
    """
    if ours.dtype != np.uint8:
        worst = float(np.abs(theirs - ours).max() / np.abs(theirs).max())
        limit = TOLERANCE
    else:
        worst = float((_mask(theirs, ours.shape[1:]) != ours).mean())
        limit = 1e-3  # of the pixels may be ties within rounding
    if worst > limit:
        sys.exit(f"the graphs disagree by {worst:.2g}, more than {limit}: not timed")
    return worst


def _mask(logits: NDArray[Any], size: tuple[int, ...]) -> NDArray[np.int64]:
    import torch

    resized = torch.nn.functional.interpolate(torch.from_numpy(logits), size, mode="bilinear", align_corners=False)
    return resized.argmax(1).numpy()


def print_profiles(name: str, python: str, folder: Path, *, baselines: Path, threads: int) -> None:
    """Operator times of mmsegmentation's graph and of ours."""
    from twins_trt.builders.export import ExportOptions, export_graph

    image, planes = inputs()
    ours = folder / "ours.onnx"
    export_graph(seeded_model(name), ours, ExportOptions(height=SIZE[0], width=SIZE[1], target="cpu"))
    theirs = export_baseline(python, name, baselines, size=SIZE)
    for label, path, feed in (("mmseg", theirs, planes), ("twins-trt", ours, image)):
        times = profile(path, feed, threads=threads)
        print(f"{name} {label}: {sum(times.values()):.0f} ms")
        for operator, milliseconds in list(times.items())[:12]:
            print(f"  {operator:<24} {milliseconds:8.1f} ms")


def profile(path: Path, feed: NDArray[Any], *, threads: int) -> dict[str, float]:
    """Milliseconds per run of each operator type, largest first."""
    from twins_trt.runtime import RuntimeOptions
    from twins_trt.runtime.engines.onnxruntime import OnnxRuntimeEngine

    total: dict[str, float] = defaultdict(float)
    for layer in OnnxRuntimeEngine(path, options=RuntimeOptions(threads=threads)).profile_layers(feed, runs=3):
        total[layer.operator] += layer.milliseconds
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--mmseg-python", required=True, help="a Python that has mmsegmentation")
    parser.add_argument("--models", nargs="+", default=MODELS, help="only these, for a look: nothing is written")
    parser.add_argument("--baselines", type=Path, help="folder for mmsegmentation's exports, to keep them")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="print where the time goes, and measure nothing else")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    load = round(os.getloadavg()[0], 1)
    python, threads = arguments.mmseg_python, arguments.threads
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        baselines = arguments.baselines or folder / "mmseg"
        for name in arguments.models:
            if arguments.profile:
                print_profiles(name, python, folder, baselines=baselines, threads=threads)
                continue
            rows += measure(name, python, folder, baselines=baselines, rounds=arguments.rounds, threads=threads)
            for row in rows:
                if row["model"] == name:
                    interval = f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
                    print(f"{name} {row['graph']:<28} {row['milliseconds']:9.1f} ms  x{row['ratio']:.2f} ({interval})")
    if rows and set(arguments.models) >= set(MODELS):
        settings = {"size": list(SIZE), "rounds": arguments.rounds, "threads": arguments.threads, "load_before": load}
        command = "python -m benchmarks.cpu --mmseg-python PATH"
        write_results("cpu", command=command, settings=settings, rows=rows)
        print(describe_run(read_results("cpu")))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
