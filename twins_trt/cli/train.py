"""`twins-trt train`: fine-tune a model on a data set."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from twins_trt.cli.console import Console
from twins_trt.cli.parsing import DATA_KINDS, parse_size, parse_test_scale
from twins_trt.errors import UsageError

if TYPE_CHECKING:
    from twins_trt.training import TrainOptions, TrainPlan, TrainReport, TrainStep

EXAMPLE = (
    "twins-trt train twins_svt-s_fpn --data camvid:PATH --checkpoint F.pth --iterations 4000 --out runs/camvid\n"
    "  twins-trt train --resume runs/camvid\n"
    "  torchrun --nproc-per-node 4 -m twins_trt train twins_svt-b_fpn --data ade20k:PATH --amp bf16 --out runs/ade\n\n"
    "Starts from --checkpoint (a whole model's, or a backbone's alone), by default from the published weights; a\n"
    "classifier of another number of classes starts anew. The folder gets last.pth and best.pth, which every other\n"
    "command takes as --checkpoint, log.csv and validation.csv, and TensorBoard's curves. Ctrl-C saves what --resume\n"
    "goes on from, to the same losses."
)
_RESUMABLE = ("device", "workers", "threads", "save_every", "log_every")


def configure(parser: argparse.ArgumentParser) -> None:
    """MODEL, --data, --out or --resume, then the fields of `TrainOptions`; only what is given enters the namespace."""
    parser.set_defaults(model=None, data=None, out=None, resume=None)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a name that twins-trt models lists")
    parser.add_argument("--data", metavar="KIND:PATH", help=DATA_KINDS)
    parser.add_argument("--out", metavar="DIR", help="the folder that the run is kept in")
    parser.add_argument("--resume", metavar="DIR", help="go on with the run in DIR, with its own options")
    parser.add_argument("--dry-run", action="store_true", help="check everything and say what would be done")

    group = parser.add_argument_group("start and data")
    _add(group, "--checkpoint", metavar="FILE", help="weights to start from; default: the published ones, if fetched")
    _add(group, "--scratch", action="store_true", help="start from random weights")
    _add(group, "--split", help="to train on; default: train")
    _add(group, "--val-split", metavar="SPLIT", help="to validate on; default: val; '' for none")
    _add(group, "--val-limit", type=int, metavar="N", help="validate on the first N images; default: all")

    group = parser.add_argument_group("schedule", "by default what mmsegmentation has for the model")
    _add(group, "--iterations", type=int, metavar="N", help="80000 for FPN, 160000 for UPerNet")
    _add(group, "--batch", type=int, metavar="N", help="images a step, over all processes; default: 16")
    _add(group, "--lr", type=float, metavar="X", help="1e-4 for FPN, 6e-5 for UPerNet")
    _add(group, "--warmup", type=int, metavar="N", help="iterations; a tenth of all, at most 1500")
    _add(group, "--lr-power", dest="power", type=float, metavar="X", help="of its fall; 0.9 for FPN, 1 for UPerNet")
    _add(group, "--min-lr", type=float, metavar="X", help="where the polynomial ends; default: 0")
    _add(group, "--weight-decay", type=float, metavar="X", help="1e-4 for FPN, 0.01 for UPerNet")
    _add(group, "--decay", metavar="{weights,mmseg}", help="weights (default): no norm, bias or position encoding")
    _add(group, "--clip-norm", type=float, metavar="X", help="largest norm of the gradient; default: any")
    _add(group, "--aux-weight", type=float, metavar="X", help="of UPerNet's auxiliary loss; default: 0.4")
    _add(group, "--drop-path", type=float, metavar="X", help="0.2, or 0.3 for the large ones")
    _add(group, "--dropout", type=float, metavar="X", help="before the classifiers; default: 0.1")
    _add(group, "--ema", type=float, metavar="X", help="keep a running mean of the weights, such as 0.9998")
    _add(group, "--seed", type=int, metavar="N", help="default: 0")

    group = parser.add_argument_group("pictures")
    _add(group, "--crop", metavar="HxW", help="default: 512x512")
    _add(group, "--scale", metavar="LONGxSHORT", help="fit into this first; 2048x512 for ade20k")
    _add(group, "--ratios", metavar="MIN:MAX", help="then resize by a random factor; default: 0.5:2.0")
    _add(group, "--cat-max-ratio", type=float, metavar="X", help="largest share of one class in a crop; default: 0.75")
    _add(group, "--flip", type=float, metavar="X", help="probability of mirroring; default: 0.5")
    _add(group, "--no-distort", dest="distort", action="store_false", help="leave the colours as they are")

    group = parser.add_argument_group("INT8", "the last resort where calibration alone does not pass the gate")
    _add(group, "--plan", metavar="FILE", help="train with the INT8 rounding of this precision plan")
    _add(group, "--calibration", metavar="FILE", help="a range file for it; default: observe the first pictures")

    group = parser.add_argument_group("how it runs")
    _add(group, "--device", metavar="{auto,cpu,cuda}", help="default: auto")
    _add(group, "--amp", metavar="{off,bf16,fp16}", help="mixed precision; default: off")
    _add(group, "--checkpointing", action="store_true", help="compute blocks twice to keep less in memory")
    _add(group, "--workers", type=int, metavar="N", help="processes that read ahead; default: 0")
    _add(group, "--threads", type=int, metavar="N", help="CPU threads; default: every core")
    _add(group, "--validate-every", type=int, metavar="N", help="iterations; default: a tenth of all")
    _add(group, "--save-every", type=int, metavar="N", help="iterations; default: a tenth of all")
    _add(group, "--log-every", type=int, metavar="N", help="iterations between TensorBoard's points; default: 50")
    _add(group, "--padding", metavar="{parity,masked}", help="treatment of padded keys; default: parity")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Train, or go on training."""
    from twins_trt.training import plan_training, train

    resume = arguments.resume is not None
    options = _resumed(arguments) if resume else _options(arguments)
    plan = plan_training(options, resume=resume)
    if arguments.dry_run:
        console.result({"dry_run": True, **plan.to_json()}, _plan_text(plan))
        return 0
    first = plan.rank == 0

    def progress(step: TrainStep) -> None:
        console.progress(*_progress(step), step.share)

    report = train(options, resume=resume, progress=progress)
    if first:
        console.result(report.to_json(), _report_text(report))
    return 0


def _options(arguments: argparse.Namespace) -> TrainOptions:
    from twins_trt.training import TrainOptions

    for name, word in (("model", "MODEL"), ("data", "--data"), ("out", "--out")):
        if getattr(arguments, name) is None:
            raise UsageError(f"{word} is missing", "twins-trt train MODEL --data KIND:PATH --out DIR")
    return TrainOptions(**_given(arguments))


def _resumed(arguments: argparse.Namespace) -> TrainOptions:
    from twins_trt.training import load_options

    given = _given(arguments)
    if refused := [name for name in given if name not in _RESUMABLE]:
        raise UsageError(
            f"--resume goes on with the run's own options, {refused[0]} among them",
            f"leave it out, or start a new run; {', '.join(_RESUMABLE)} may change",
        )
    return replace(load_options(arguments.resume), out=arguments.resume, **given)


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of `TrainOptions` that the command line sets."""
    ours = ("resume", "dry_run", "json", "verbose")
    texts = {"crop": _crop, "scale": parse_test_scale, "ratios": _ratios}
    given = {name: value for name, value in vars(arguments).items() if name not in ours and value is not None}
    return {name: texts[name](value) if name in texts else value for name, value in given.items()}


def _add(group: argparse._ArgumentGroup, name: str, **settings: Any) -> None:
    group.add_argument(name, default=argparse.SUPPRESS, **settings)


def _crop(text: str) -> tuple[int, int]:
    height, width = parse_size(text)
    if not isinstance(height, int) or not isinstance(width, int):
        raise UsageError(f"{text!r} is not a crop", "write HxW in pixels, such as 512x512")
    return height, width


def _ratios(text: str) -> tuple[float, float]:
    try:
        smallest, largest = map(float, text.split(":"))
    except ValueError as error:
        raise UsageError(f"{text!r} are not two ratios", "write MIN:MAX, such as 0.5:2.0") from error
    return smallest, largest


def _progress(step: TrainStep) -> tuple[str, str]:
    parts = [f"iteration {step.iteration} of {step.iterations}"]
    if step.loss is not None:
        parts.append(f"loss {step.loss:.4f}")
    if step.miou is not None:
        parts.append(f"mIoU {step.miou:.2f}")
    if step.seconds_left is not None:
        parts.append(f"{_duration(step.seconds_left)} left")
    return step.phase, ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def _plan_text(plan: TrainPlan) -> str:
    options = plan.options
    on = f"{plan.processes} processes on {plan.device}" if plan.processes > 1 else plan.device
    rows = {
        "model": f"{options.model}, {len(plan.classes)} classes, from {plan.weights or plan.start}",
        "data": f"{options.data}: {plan.images} images to train on, {plan.val_images} to validate on",
        "schedule": f"{options.iterations} iterations of {options.batch} images ({plan.epochs:.1f} epochs)",
        "optimiser": f"AdamW, lr {options.lr:g} after {options.warmup} iterations of warm-up, power {options.power:g}, "
        f"weight decay {options.weight_decay:g}",
        "runs on": f"{on}, amp {options.amp}",
        "out": options.out,
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())


def _report_text(report: TrainReport) -> str:
    lines = [f"{report.out}: {report.iterations} iterations, {_duration(report.seconds)}"]
    if report.first_loss is not None:
        lines.append(f"loss {report.first_loss:.4f} at first, {report.last_loss:.4f} at last")
    if report.miou is not None:
        lines.append(f"mIoU {report.miou:.2f} of {report.last}, {report.best_miou:.2f} of {report.best}")
    return "\n".join(lines)
