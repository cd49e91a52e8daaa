"""`train`: the request of a training, its defaults and its flags; `twins_trt.training` trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from twins_trt.errors import UsageError
from twins_trt.models.zoo import get_spec
from twins_trt.spelling import spelled
from twins_trt.verbs.flags import Flag, FlagTable, settle
from twins_trt.verbs.groups.images import DATA_KINDS
from twins_trt.verbs.groups.weights import reading_flags
from twins_trt.verbs.kinds import FIXED_SIZE, NUMBER, SWITCH, TEST_SCALE, WHOLE, Kind
from twins_trt.verbs.request import Request

CHANGEABLE = ("device", "workers", "threads", "save_every", "log_every")
"""The fields that may change when a run is resumed: where and how fast it computes, not what."""


@dataclass(frozen=True)
class TrainRequest(Request):
    """What to train, on which images, how, and where the run is kept.

    Every field may be None. Then `DEFAULTS` applies, and for what depends on the model `RECIPES`: mmsegmentation's
    numbers for its head.

    model: a name of the zoo. data: `camvid:PATH`, `ade20k:PATH` or `folder:PATH`. out: the run's folder.
    checkpoint: the first weights, of a whole model or of a backbone; by default the published ones, if they were
        fetched. scratch: random ones. A classifier of another number of classes starts at random.
    split, val_split: of the data set; with an empty val_split the run never validates.
    iterations: steps of the optimizer; by default the schedule that the zoo's weights were trained with.
    batch: images of one step, over all processes. crop: (height, width), pixels; by default what the checkpoint
        says, or the zoo's.
    scale: (long, short) side that an image is fitted into before `ratios` resize it at random, pixels, or `none` for
        the image's own size; by default mmseg's 2048x512 for ADE20K, `none` for others. ratios: smallest and largest.
    cat_max_ratio: crops with more of one class are drawn again. flip: probability of mirroring. distort: change
        brightness, contrast, saturation and hue at random.
    lr, weight_decay, power: by default what mmseg has for the model's head. warmup: iterations; by default a tenth of
        all, at most 1500. min_lr: where the polynomial ends.
    decay: `weights` decays neither norms nor biases nor position encodings; `mmseg` what mmseg's configuration decays.
    clip_norm: largest norm of the gradient; by default any. aux_weight: of the auxiliary head's loss. drop_path:
        largest rate; by default the zoo's. dropout: before the classifiers.
    amp: `off`, `bf16`, or `fp16` with loss scaling (CUDA only). checkpointing: compute each block twice and keep less.
    ema: decay of a running mean of the weights, which is then validated and saved in their place; by default none.
    validate_every, save_every: iterations; by default a tenth of all. val_limit: only the first images. log_every:
        iterations between TensorBoard's points; the CSV has every iteration.
    seed: of everything random. workers: processes that read ahead. threads: of the CPU; by default PyTorch's choice.
    padding: as in `build_model`; by default that of the project that wrote the checkpoint.
    plan: a precision plan's file, whose INT8 rounding takes part in the training. calibration: its range file, of a
        graph of the crop's size; by default the ranges of the first pictures.
    binary: a head of one logit with a sigmoid, for two classes or for one against the rest. Without it, such a head is
        trained where a threshold is given, or where the checkpoint has one and the data no more classes.
    weights: `ema` or `raw` where the checkpoint holds both. conventions: values by name that override what the
        checkpoint says of images and labels, such as {"mean": "0,0,0", "channels": "bgr", "threshold": "0.5"}.

    Sizes and ratios may be given as their text on a command line (`crop="512x512"`, `ratios="0.5:2.0"`).
    Raises `UsageError` for a value of the wrong kind.
    """

    model: str | None = None
    data: str | None = None
    out: str | None = None
    checkpoint: str | None = None
    scratch: bool | None = None
    split: str | None = None
    val_split: str | None = None
    iterations: int | None = None
    batch: int | None = None
    crop: tuple[int, int] | None = None
    scale: tuple[int, int] | Literal["none"] | None = None
    ratios: tuple[float, float] | None = None
    cat_max_ratio: float | None = None
    flip: float | None = None
    distort: bool | None = None
    lr: float | None = None
    weight_decay: float | None = None
    power: float | None = None
    warmup: int | None = None
    min_lr: float | None = None
    decay: str | None = None
    clip_norm: float | None = None
    aux_weight: float | None = None
    drop_path: float | None = None
    dropout: float | None = None
    amp: str | None = None
    checkpointing: bool | None = None
    ema: float | None = None
    validate_every: int | None = None
    save_every: int | None = None
    val_limit: int | None = None
    log_every: int | None = None
    seed: int | None = None
    workers: int | None = None
    threads: int | None = None
    device: str | None = None
    padding: str | None = None
    plan: str | None = None
    calibration: str | None = None
    binary: bool | None = None
    weights: str | None = None
    conventions: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        settle(self, TABLE)


@dataclass(frozen=True)
class Recipe:
    """mmsegmentation's numbers for a kind of head. power: of the polynomial by which the learning rate falls.
    iterations: for a model of own widths."""

    iterations: int
    lr: float
    weight_decay: float
    power: float


RECIPES = {
    "fpn": Recipe(iterations=80_000, lr=1e-4, weight_decay=1e-4, power=0.9),
    "upernet": Recipe(iterations=160_000, lr=6e-5, weight_decay=1e-2, power=1.0),
}
"""By kind of head; from mmsegmentation's configs/twins."""

LONGEST_WARM_UP = 1500
"""Iterations: mmseg's for UPerNet, of 160,000."""

ADE20K_SCALE = (2048, 512)
"""(long, short), pixels, for the help: that of `ADE20K_TEST`, which NumPy comes with."""


@dataclass(frozen=True)
class TrainDefaults:
    """The defaults of a request. `twins_trt.training.resolve_options` decides those that depend on other fields."""

    scratch: bool = False
    split: str = "train"
    val_split: str = "val"
    batch: int = 16
    ratios: tuple[float, float] = (0.5, 2.0)
    cat_max_ratio: float = 0.75
    flip: float = 0.5
    distort: bool = True
    min_lr: float = 0.0
    decay: str = "weights"
    aux_weight: float = 0.4
    dropout: float = 0.1
    amp: str = "off"
    checkpointing: bool = False
    log_every: int = 50
    seed: int = 0
    workers: int = 0
    device: str = "auto"
    binary: bool = False
    weights: str = "auto"


DEFAULTS = TrainDefaults()

AMP = ("off", "bf16", "fp16")
DECAY = ("weights", "mmseg")
DEVICES = ("auto", "cpu", "cuda")
WEIGHTS = ("auto", "ema", "raw")


def _ratios(value: Any) -> tuple[float, float]:
    """`0.5:2.0`, or two numbers."""
    try:
        smallest, largest = map(float, value.split(":") if isinstance(value, str) else value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{value!r} are not two ratios", "write MIN:MAX, such as 0.5:2.0") from error
    return smallest, largest


RATIOS = Kind(_ratios, lambda value: ":".join(map(repr, value)))


def _by_head(field: str) -> str:
    fpn, upernet = (getattr(RECIPES[head], field) for head in ("fpn", "upernet"))
    return f"{fpn:g} for FPN, {upernet:g} for UPerNet"


def _any_of(words: tuple[str, ...]) -> str:
    return f"{{{','.join(words)}}}"


START, SCHEDULE, PICTURES, INT8, RUNNING = "start and data", "schedule", "pictures", "INT8", "how it runs"
_SMALL, _LARGE = get_spec("twins_svt-s_fpn"), get_spec("twins_svt-l_upernet")  # help shows their numbers

TABLE: tuple[Flag, ...] = (
    Flag("MODEL", "model", "a name that twins-trt models lists", nargs="?"),
    Flag("--data", "data", DATA_KINDS, metavar="KIND:PATH"),
    Flag("--out", "out", "the folder that the run is kept in", metavar="DIR"),
    Flag(
        "--checkpoint",
        "checkpoint",
        "weights to start from; default: the published ones, if fetched",
        metavar="FILE",
        group=START,
    ),
    Flag("--scratch", "scratch", "start from random weights", SWITCH, sets=True, group=START),
    Flag("--binary", "binary", "one logit with a sigmoid: one class against the rest", SWITCH, sets=True, group=START),
    *reading_flags(START),
    Flag("--split", "split", "to train on; default: {default}", group=START),
    Flag("--val-split", "val_split", "to validate on; default: {default}; '' for none", metavar="SPLIT", group=START),
    Flag("--val-limit", "val_limit", "validate on the first N images; default: all", WHOLE, "N", group=START),
    Flag(
        "--iterations",
        "iterations",
        f"{_SMALL.schedule_iterations} for FPN, {_LARGE.schedule_iterations} for UPerNet",
        WHOLE,
        "N",
        group=SCHEDULE,
    ),
    Flag("--batch", "batch", "images a step, over all processes; default: {default}", WHOLE, "N", group=SCHEDULE),
    Flag("--lr", "lr", _by_head("lr"), NUMBER, "X", group=SCHEDULE),
    Flag("--warmup", "warmup", f"iterations; a tenth of all, at most {LONGEST_WARM_UP}", WHOLE, "N", group=SCHEDULE),
    Flag("--lr-power", "power", f"of its fall; {_by_head('power')}", NUMBER, "X", group=SCHEDULE),
    Flag("--min-lr", "min_lr", "where the polynomial ends; default: {default}", NUMBER, "X", group=SCHEDULE),
    Flag("--weight-decay", "weight_decay", _by_head("weight_decay"), NUMBER, "X", group=SCHEDULE),
    Flag(
        "--decay",
        "decay",
        "weights: no norm, bias or position encoding; default: {default}",
        metavar=_any_of(DECAY),
        group=SCHEDULE,
    ),
    Flag("--clip-norm", "clip_norm", "largest norm of the gradient; default: any", NUMBER, "X", group=SCHEDULE),
    Flag("--aux-weight", "aux_weight", "of UPerNet's auxiliary loss; default: {default}", NUMBER, "X", group=SCHEDULE),
    Flag(
        "--drop-path",
        "drop_path",
        f"{_SMALL.drop_path_rate:g}, or {_LARGE.drop_path_rate:g} for the large ones",
        NUMBER,
        "X",
        group=SCHEDULE,
    ),
    Flag("--dropout", "dropout", "before the classifiers; default: {default}", NUMBER, "X", group=SCHEDULE),
    Flag("--ema", "ema", "keep a running mean of the weights, such as 0.9998", NUMBER, "X", group=SCHEDULE),
    Flag("--seed", "seed", "default: {default}", WHOLE, "N", group=SCHEDULE),
    Flag("--crop", "crop", f"default: {FIXED_SIZE.show(_SMALL.crop_size)}", FIXED_SIZE, metavar="HxW", group=PICTURES),
    Flag(
        "--scale",
        "scale",
        f"fit into this first, or none; {TEST_SCALE.show(ADE20K_SCALE)} for ade20k",
        TEST_SCALE,
        "LONGxSHORT",
        group=PICTURES,
    ),
    Flag("--ratios", "ratios", "then resize by a random factor; default: {default}", RATIOS, "MIN:MAX", group=PICTURES),
    Flag(
        "--cat-max-ratio",
        "cat_max_ratio",
        "largest share of one class in a crop; default: {default}",
        NUMBER,
        "X",
        group=PICTURES,
    ),
    Flag("--flip", "flip", "probability of mirroring; default: {default}", NUMBER, "X", group=PICTURES),
    Flag("--no-distort", "distort", "leave the colours as they are", SWITCH, sets=False, group=PICTURES),
    Flag("--plan", "plan", "train with the INT8 rounding of this precision plan", metavar="FILE", group=INT8),
    Flag(
        "--calibration",
        "calibration",
        "a range file for it; default: observe the first pictures",
        metavar="FILE",
        group=INT8,
    ),
    Flag("--device", "device", "default: {default}", metavar=_any_of(DEVICES), group=RUNNING),
    Flag("--amp", "amp", "mixed precision; default: {default}", metavar=_any_of(AMP), group=RUNNING),
    Flag(
        "--checkpointing",
        "checkpointing",
        "compute blocks twice to keep less in memory",
        SWITCH,
        sets=True,
        group=RUNNING,
    ),
    Flag("--workers", "workers", "processes that read ahead; default: {default}", WHOLE, "N", group=RUNNING),
    Flag("--threads", "threads", "CPU threads; default: every core", WHOLE, "N", group=RUNNING),
    Flag("--validate-every", "validate_every", "iterations; default: a tenth of all", WHOLE, "N", group=RUNNING),
    Flag("--save-every", "save_every", "iterations; default: a tenth of all", WHOLE, "N", group=RUNNING),
    Flag(
        "--log-every",
        "log_every",
        "iterations between TensorBoard's points; default: {default}",
        WHOLE,
        "N",
        group=RUNNING,
    ),
)

FLAGS = FlagTable(
    TrainRequest,
    TABLE,
    defaults=DEFAULTS,
    groups={
        SCHEDULE: "by default what mmsegmentation has for the model",
        INT8: "the last resort where calibration alone does not pass the gate",
    },
)


def resume_request(request: TrainRequest, folder: str) -> TrainRequest:
    """The request to resume the run in `folder`. Raises `UsageError` for a field that may not change."""
    if refused := [name for name in request.given() if name not in CHANGEABLE]:
        raise UsageError(
            f"a resumed run keeps its own options, {spelled(refused[0])} among them",
            f"leave it out, or start a new run; {', '.join(map(spelled, CHANGEABLE))} may change",
        )
    return dataclasses.replace(request, out=folder)
