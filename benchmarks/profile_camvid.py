"""One trained model on this CPU: our float32, FP16 and INT8 graphs, mmsegmentation's export, PyTorch.

    python -m benchmarks.profile_camvid --checkpoint F.pth --data camvid:PATH --mmseg-python PATH --folder DIR

writes results/profile_camvid.json, as `twins-trt profile --out` does, and results/profile_camvid_checks.json: how many
pixels of every mask equal PyTorch's, and what a call of a Segmenter costs beside the bare session of ONNX Runtime.
Nothing is written where a mask differs from PyTorch's by more than its precision explains. `--mmseg-python` is an
interpreter with mmsegmentation (benchmarks/mmseg_export.py says how). Bundles and the export stay in `--folder` for the
next time. `--build` only builds, so that one can measure later, on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mmseg_baseline import export_baseline
from benchmarks.results import RESULTS, write_results

MODEL, SIZE = "twins_svt-s_fpn", (360, 480)
PRECISIONS = ("fp32", "fp16", "int8")
MMSEG, EAGER = "mmsegmentation's export", "PyTorch eager"
# The smallest share of pixels that must equal PyTorch's. In float32, ties may differ by rounding.
AGREEMENT = {"fp32": 0.999, MMSEG: 0.999, "fp16": 0.99, "int8": 0.93, EAGER: 1.0}
ROUNDS, CALLS = 12, 4  # of the Segmenter and the bare session in turn, as in a profile


def build(arguments: argparse.Namespace) -> None:
    """Builds the bundles of all precisions and mmsegmentation's export that do not exist yet."""
    from twins_trt.cli import main as twins
    from twins_trt.models.weights import load_weights

    size = "x".join(map(str, SIZE))
    for precision in PRECISIONS:
        path = arguments.folder / f"{precision}.bundle"
        words = ["build", MODEL, "--checkpoint", arguments.checkpoint, "--size", size, "--target", "cpu"]
        words += ["--precision", precision, "--out", path]
        if precision == "int8":
            words += ["--calib-data", arguments.data, "--no-gate"]  # another benchmark measures its accuracy
        if not path.exists() and (code := twins([str(word) for word in words])):
            sys.exit(code)
    if not (arguments.folder / f"{MODEL}.onnx").exists():  # otherwise the weights need not take memory
        model, _ = load_weights(MODEL, checkpoint=arguments.checkpoint)
        export_baseline(arguments.mmseg_python, MODEL, arguments.folder, size=SIZE, model=model)


def candidates(arguments: argparse.Namespace) -> list[Any]:
    """PyTorch first, then mmsegmentation's export, then our bundles."""
    from twins_trt.models.weights import load_weights
    from twins_trt.profiling.candidates import bundle_candidate, onnx_candidate, torch_candidate

    def load() -> Any:
        model, facts = load_weights(MODEL, checkpoint=arguments.checkpoint)
        return model, facts.source

    ours = [bundle_candidate(arguments.folder / f"{each}.bundle", label=each) for each in PRECISIONS]
    theirs = onnx_candidate(arguments.folder / f"{MODEL}.onnx", label=MMSEG)
    return [torch_candidate(MODEL, load, size=SIZE, label=EAGER), theirs, *ours]


def check(measured: Sequence[Any], picture: Path, *, threads: int) -> list[dict[str, Any]]:
    """Rows with each candidate's agreement with PyTorch's mask. Raises SystemExit where one is too low."""
    from twins_trt.runtime import RuntimeOptions

    rows, reference = [], None
    for candidate in measured:
        segmenter, _ = candidate.open(RuntimeOptions(threads=threads))
        with segmenter:
            mask = segmenter(picture).mask
        reference = mask if candidate.label == EAGER else reference
        agreement = float((mask == reference).mean())
        if agreement < AGREEMENT[candidate.label]:
            sys.exit(f"{candidate.label} agrees with {EAGER} on {agreement:.4f} of the pixels: nothing is written")
        rows.append({"what": "agreement", "label": candidate.label, "value": round(agreement, 6)})
    return rows


def by_the_clock(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def overhead(
    bundle: Path,
    *,
    threads: int,
    size: tuple[int, int] = SIZE,
    seconds: Callable[[Callable[[], object]], float] = by_the_clock,
) -> dict[str, Any]:
    """A row with how much longer a Segmenter's call on a picture in memory takes than `session.run` alone.

    size: (height, width) of the graph. seconds: times a call.
    """
    import onnxruntime

    from twins_trt.profiling.statistics import ratio_of_medians
    from twins_trt.runtime import RuntimeOptions, Segmenter

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(bundle / "graph.onnx"), options, providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    batch = image[None]
    with Segmenter(bundle, "onnxruntime", options=RuntimeOptions(threads=threads)) as segmenter:
        calls = {"bare": lambda: session.run(None, {"image": batch}), "whole": lambda: segmenter(image)}
        times: dict[str, list[list[float]]] = {"bare": [], "whole": []}
        for number in range(ROUNDS):
            for name in ("bare", "whole")[:: 1 if number % 2 else -1]:
                calls[name]()  # the threads of the other session spin for a while after its run
                times[name].append([seconds(calls[name]) for _ in range(CALLS)])
    value, low, high = ratio_of_medians(times["bare"], times["whole"])
    medians = {f"{name}_ms": round(1e3 * float(np.median(each)), 2) for name, each in times.items()}
    return {"what": "overhead", "value": value, "low": low, "high": high, "rounds": ROUNDS, "calls": CALLS, **medians}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile_camvid", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument(
        "--data", required=True, metavar="KIND:PATH", help="CamVid: pictures to calibrate on and to run"
    )
    parser.add_argument("--mmseg-python", required=True, help="a Python that has mmsegmentation")
    parser.add_argument("--folder", type=Path, required=True, help="where bundles and export are kept")
    parser.add_argument("--build", action="store_true", help="build what is missing, and measure nothing")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    build(arguments)
    if arguments.build:
        return 0

    from twins_trt.cli.profile import text_of
    from twins_trt.data import open_dataset
    from twins_trt.profiling.measure import profile
    from twins_trt.profiling.results import ProfileOptions, write_profile

    command = (
        "python -m benchmarks.profile_camvid --checkpoint FILE --data camvid:PATH --mmseg-python PATH --folder DIR"
    )
    picture = open_dataset(arguments.data, split="val").first(1).items[0].image
    measured = candidates(arguments)
    options = ProfileOptions(rounds=arguments.rounds, calls=5, warm_up_s=20.0, threads=arguments.threads, power_s=0.0)
    result = profile(measured, options, picture=picture, baseline=MMSEG, command=command, progress=_say)
    rows = check(measured, picture, threads=arguments.threads)  # after the profile, which wants free memory
    rows.append(overhead(arguments.folder / "fp32.bundle", threads=arguments.threads))
    # Layers of graphs that are not ours belong to no block: they would only make the file long.
    kept = tuple(m if m.subject.kind == "bundle" else replace(m, layers=()) for m in result.measurements)
    write_profile(RESULTS / "profile_camvid.json", replace(result, measurements=kept))
    settings = {"model": MODEL, "size": list(SIZE), "threads": arguments.threads}
    write_results("profile_camvid_checks", command=command, settings=settings, rows=rows)
    print(text_of(result))
    print(*rows, sep="\n")
    return 0


def _say(step: str, detail: str, share: float | None) -> None:
    print(f"{step} {detail}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
