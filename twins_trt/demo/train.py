"""Trains the checkpoint that ships with the package, on scenes that it draws itself.

    python -m twins_trt.demo.train weights.pth [--scenes 1200] [--iterations 1200] [--stop N] [--keep FOLDER]

From random weights, on a CPU, in one thread: the same numbers on every machine with the same versions. The weights are
rounded to float16 and scored as such on scenes that training never saw; the score goes into the file.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from twins_trt.data import open_dataset
from twins_trt.demo.scenes import CLASSES, PALETTE, write_scenes
from twins_trt.errors import TwinsError, UsageError
from twins_trt.files import whole_file
from twins_trt.models.zoo import DEMO
from twins_trt.training import TrainRequest, TrainStep, train
from twins_trt.training.run.folder import LAST, OPTIONS

SEED = 0
FIRST_TRAINING_SCENE = 100_000
FIRST_HELD_OUT_SCENE = 200_000
HELD_OUT_SCENES = 100
BATCH = 8
RATE = 1e-3  # ten times mmseg's: the weights start at random


def train_demo(
    out: Path,
    folder: Path,
    *,
    scenes: int = 1200,
    iterations: int = DEMO.schedule_iterations,
    stop: int | None = None,
    threads: int = 1,
) -> dict[str, Any]:
    """Writes the checkpoint `out` and returns its meta.

    folder: for the scenes and the run; a run that it holds is resumed. iterations: of the schedule. stop: take the
    weights of this iteration, a multiple of a tenth of the schedule, because only those are saved; None for the last.
    Raises as `train` does, `UsageError` for another `stop`.
    """
    if stop is not None and (not 0 < stop <= iterations or stop % max(1, iterations // 10)):
        raise UsageError(f"weights of iteration {stop} are not saved", f"give a multiple of {max(1, iterations // 10)}")
    data = write_scenes(
        folder / "scenes", "train", range(FIRST_TRAINING_SCENE, FIRST_TRAINING_SCENE + scenes), size=DEMO.crop_size
    )
    held_out = range(FIRST_HELD_OUT_SCENE, FIRST_HELD_OUT_SCENE + HELD_OUT_SCENES)
    write_scenes(folder / "scenes", "val", held_out, size=DEMO.crop_size)
    request = TrainRequest(
        model=DEMO.name,
        data=data,
        out=str(folder / "run"),
        scratch=True,
        val_split="",
        iterations=iterations,
        batch=BATCH,
        ratios=(0.75, 1.5),
        lr=RATE,
        weight_decay=0.01,
        clip_norm=5.0,
        drop_path=0.0,
        dropout=0.0,
        seed=SEED,
        threads=threads,
        device="cpu",
    )
    stop = stop or iterations

    def watch(step: TrainStep) -> None:
        if step.iteration % 25 == 0:
            left = "" if step.seconds_left is None else f", {step.seconds_left:.0f} s left"
            print(f"{step.iteration} of {step.iterations}, loss {step.loss:.3f}{left}", flush=True)
        if step.iteration > stop:  # the weights of `stop` are saved by now
            raise _Stopped

    with contextlib.suppress(_Stopped):
        train(request, resume=(folder / "run" / OPTIONS).is_file(), observe=watch)
    facts = {"scenes": scenes, "iterations": stop, "schedule": iterations, "batch": BATCH, "seed": SEED}
    command = f"python -m twins_trt.demo.train weights.pth --scenes {scenes} --iterations {iterations} --stop {stop}"
    return save_rounded(folder / "run" / LAST, out, data=data, facts={**facts, "command": command})


def save_rounded(trained: Path, out: Path, *, data: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Rounds a checkpoint's weights to float16, scores them on the held-out scenes of `data`, and writes them with the
    score, their conventions and `facts` in their meta, which is returned."""
    import torch

    from twins_trt.evaluation import evaluate_model
    from twins_trt.models.examine import examine
    from twins_trt.models.read_conventions import OWN, write_conventions
    from twins_trt.training.run.folder import as_written

    found = examine(trained, model=DEMO.name)
    weights = {key: value.half() if value.is_floating_point() else value for key, value in found.state_dict.items()}
    model = found.build()
    model.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
    )
    scores = evaluate_model(model, open_dataset(data, split="val")).scores
    miou = round(scores.miou, 2)
    told = replace(as_written(found.conventions, miou=miou), classes=CLASSES, palette=PALETTE)
    meta = {
        "dataset_meta": {"classes": list(CLASSES), "palette": [list(colour) for colour in PALETTE]},
        OWN: write_conventions(told, found.spec),
        "mIoU": miou,
        "held_out_scenes": HELD_OUT_SCENES,
        "torch": str(torch.__version__),
        **facts,
    }
    with whole_file(out) as file:
        torch.save({"meta": meta, "state_dict": weights}, file)
    print(scores.table(CLASSES))
    return meta


class _Stopped(Exception):
    """Ends a training before its schedule does."""


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m twins_trt.demo.train", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="the checkpoint to write")
    parser.add_argument("--scenes", type=int, default=1200, help="to train on (default %(default)s)")
    parser.add_argument("--iterations", type=int, default=DEMO.schedule_iterations, help="default %(default)s")
    parser.add_argument("--stop", type=int, metavar="N", help="take the weights of iteration N of the schedule")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep scenes and run here; a run in it is resumed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            meta = train_demo(
                arguments.out,
                arguments.keep or Path(folder),
                scenes=arguments.scenes,
                iterations=arguments.iterations,
                stop=arguments.stop,
            )
        except TwinsError as error:
            print(error, file=sys.stderr)
            return error.exit_code
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.2f} MB, mIoU {meta['mIoU']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
