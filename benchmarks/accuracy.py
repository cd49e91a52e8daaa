"""One trained model scored in PyTorch, as a float32 graph and as an FP16 graph, beside what mmsegmentation measured.

    python -m benchmarks.accuracy --model twins_svt-s_fpn --checkpoint F.pth --data camvid:PATH --size 360x480

writes results/accuracy.json. Graphs run on ONNX Runtime on the CPU; the checkpoint's meta holds mmsegmentation's score.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.results import write_results


def score(command: list[str]) -> dict[str, Any]:
    """Runs `twins-trt` with --json. Returns what it prints."""
    from twins_trt.cli import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main([*command, "--json"])
    if code:
        raise SystemExit(code)
    return json.loads(out.getvalue())


def mmseg_score(checkpoint: Path) -> float | None:
    """The mIoU in percent that mmsegmentation's evaluation left in the checkpoint's meta as `val_miou`, or None."""
    from twins_trt.models.checkpoint import read_checkpoint

    miou = read_checkpoint(checkpoint).meta.raw.get("val_miou")
    return None if miou is None else float(miou)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", required=True, metavar="KIND:PATH")
    parser.add_argument("--size", required=True, metavar="HxW", help="the images' own size, so that nothing is resized")
    parser.add_argument("--limit", type=int, help="only the first images, for a try; nothing is written")
    arguments = parser.parse_args()
    data = ["--data", arguments.data, *(["--limit", str(arguments.limit)] if arguments.limit else [])]
    weights = [arguments.model, "--checkpoint", str(arguments.checkpoint)]
    reference = mmseg_score(arguments.checkpoint)
    scores = {"twins-trt, PyTorch float32": score(["eval", *weights, *data, "--device", "cpu"])}
    with tempfile.TemporaryDirectory() as folder:
        for precision, words in (("fp32", "float32"), ("fp16", "FP16")):
            bundle = str(Path(folder, f"{precision}.bundle"))
            form = ["--size", arguments.size, "--precision", precision, "--target", "cpu"]
            score(["build", *weights, *form, "--out", bundle])
            scores[f"twins-trt, {words} graph"] = score(["eval", bundle, *data])
    rows = []
    if reference is not None:
        rows.append({"what": "mmsegmentation (in the checkpoint)", "miou": reference, "difference": None})
    for what, result in scores.items():
        miou = result["scores"]["miou"]
        rows.append({"what": what, "miou": miou, "difference": None if reference is None else miou - reference})
    for row in rows:
        print(row)
    if arguments.limit is None:
        kind = arguments.data.split(":", 1)[0]
        settings = {
            "model": arguments.model,
            "data": f"{kind} val",
            "images": next(iter(scores.values()))["images"],
            "size": [int(side) for side in arguments.size.split("x")],
        }
        command = f"python -m benchmarks.accuracy --model {arguments.model} --checkpoint FILE --data {kind}:PATH"
        command += f" --size {arguments.size}"
        write_results("accuracy", command=command, settings=settings, rows=rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
