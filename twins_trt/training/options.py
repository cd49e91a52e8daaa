"""What a training run is asked to do: one value that is saved with the run and describes it whole."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from twins_trt.errors import UsageError
from twins_trt.models.zoo import get_spec
from twins_trt.runtime.codec import decode, encode

AMP = ("off", "bf16", "fp16")
DECAY = ("weights", "mmseg")
DEVICES = ("auto", "cpu", "cuda")
SMALLEST_CROP = 32  # one pixel of the last stage
LONGEST_WARM_UP = 1500  # iterations: mmseg's, of 160,000
ADE20K_SCALE = (2048, 512)


@dataclass(frozen=True)
class TrainOptions:
    """What to train, on what, how, and where the run is kept.

    model: a name of the zoo. data: `camvid:PATH`, `ade20k:PATH` or `folder:PATH`. out: the run's folder.
    checkpoint: where the weights start: a whole model's, or a backbone's alone; None takes the published ones that
        were fetched, unless scratch asks for random ones. A classifier of another number of classes starts anew.
    split, val_split: of the data set; an empty val_split validates never.
    iterations: steps of the optimiser; None is the schedule the zoo's weights were trained with.
    batch: images of one step, over all processes. crop: (height, width), pixels; None is the zoo's.
    scale: (long, short) side that an image is fitted into before `ratios` resize it at random, pixels; None is the
        image's own size, and mmseg's 2048x512 for ADE20K. cat_max_ratio: crops with more of one class are drawn again.
    flip: probability of mirroring. distort: change brightness, contrast, saturation and hue at random.
    lr, weight_decay, power: None is what mmseg has for the model's head. warmup: iterations; None is a tenth of all, at
        most 1500. min_lr: where the polynomial ends.
    decay: `weights` decays neither norms nor biases nor position encodings; `mmseg` what mmseg's configuration decays.
    clip_norm: largest norm of the gradient. aux_weight: of the auxiliary head's loss. drop_path: largest rate; None is
        the zoo's. dropout: before the classifiers.
    amp: `off`, `bf16`, or `fp16` with loss scaling (CUDA only). checkpointing: compute each block twice and keep less.
    ema: decay of a running mean of the weights, which is then what is validated and saved; None keeps none.
    validate_every, save_every: iterations; None is a tenth of all. val_limit: only the first images. log_every:
        iterations between TensorBoard's points; the CSV has every iteration.
    seed: of everything random. workers: processes that read ahead. threads: of the CPU; None is PyTorch's choice.
    padding: as `build_model` takes it.
    plan: a precision plan's file: train with its INT8 rounding in place. calibration: a range file for it, of a graph
        of the crop's size; None observes the first pictures.

    Raises `UsageError` for a value that cannot be.
    """

    model: str
    data: str
    out: str
    checkpoint: str | None = None
    scratch: bool = False
    split: str = "train"
    val_split: str = "val"
    iterations: int | None = None
    batch: int = 16
    crop: tuple[int, int] | None = None
    scale: tuple[int, int] | None = None
    ratios: tuple[float, float] = (0.5, 2.0)
    cat_max_ratio: float = 0.75
    flip: float = 0.5
    distort: bool = True
    lr: float | None = None
    weight_decay: float | None = None
    power: float | None = None
    warmup: int | None = None
    min_lr: float = 0.0
    decay: str = "weights"
    clip_norm: float | None = None
    aux_weight: float = 0.4
    drop_path: float | None = None
    dropout: float = 0.1
    amp: str = "off"
    checkpointing: bool = False
    ema: float | None = None
    validate_every: int | None = None
    save_every: int | None = None
    val_limit: int | None = None
    log_every: int = 50
    seed: int = 0
    workers: int = 0
    threads: int | None = None
    device: str = "auto"
    padding: str = "parity"
    plan: str | None = None
    calibration: str | None = None

    def __post_init__(self) -> None:
        get_spec(self.model)
        for name, allowed in (("amp", AMP), ("decay", DECAY), ("device", DEVICES)):
            if getattr(self, name) not in allowed:
                raise UsageError(f"{name} cannot be {getattr(self, name)!r}", f"use one of {', '.join(allowed)}")
        if self.checkpoint is not None and self.scratch:
            raise UsageError("a checkpoint and training from scratch exclude each other", "give one of them")
        if self.calibration is not None and self.plan is None:
            raise UsageError("ranges are of no use without a precision plan", "give --plan, or leave --calibration out")
        for name in ("iterations", "batch", "validate_every", "save_every", "val_limit", "log_every", "threads"):
            self._check(name, least=1)
        for name in ("warmup", "workers", "seed", "weight_decay", "min_lr", "aux_weight"):
            self._check(name, least=0)
        for name in ("lr", "power", "clip_norm"):
            self._check(name, least=0, open_end=True)
        for name in ("flip", "cat_max_ratio"):
            self._check(name, least=0, most=1)
        for name in ("drop_path", "dropout", "ema"):
            self._check(name, least=0, below=1)
        if self.crop is not None and min(self.crop) < SMALLEST_CROP:
            raise UsageError(f"a crop of {_size(self.crop)}", f"give sides of {SMALLEST_CROP} pixels or more")
        if self.scale is not None and min(self.scale) < 1:
            raise UsageError(f"a scale of {_size(self.scale)}", "give LONGxSHORT in pixels")
        if not 0 < self.ratios[0] <= self.ratios[1] or not math.isfinite(self.ratios[1]):
            raise UsageError(f"ratios from {self.ratios[0]} to {self.ratios[1]}", "give MIN:MAX, such as 0.5:2.0")

    def completed(self) -> TrainOptions:
        """The same options with every None that stands for a number of the recipe replaced by it.

        mmsegmentation's numbers (configs/twins): FPN trains with AdamW, lr 1e-4, weight decay 1e-4, power 0.9; UPerNet
        with lr 6e-5, weight decay 0.01, power 1 and 1500 iterations of warm-up. Its FPN configurations also inherit a
        smallest rate of 1e-4, which makes the rate a constant: `min_lr=1e-4` does so here.
        """
        spec = get_spec(self.model)
        fpn = spec.head == "fpn"
        iterations = self.iterations or spec.schedule_iterations
        tenth = max(1, iterations // 10)
        return replace(
            self,
            iterations=iterations,
            crop=_first(self.crop, spec.crop_size),
            scale=_first(self.scale, ADE20K_SCALE if self.data.startswith("ade20k:") else None),
            lr=_first(self.lr, 1e-4 if fpn else 6e-5),
            weight_decay=_first(self.weight_decay, 1e-4 if fpn else 1e-2),
            power=_first(self.power, 0.9 if fpn else 1.0),
            warmup=_first(self.warmup, min(LONGEST_WARM_UP, iterations // 10)),
            drop_path=_first(self.drop_path, spec.drop_path_rate),
            validate_every=_first(self.validate_every, tenth),
            save_every=_first(self.save_every, tenth),
        )

    def to_json(self) -> str:
        """The options as indented JSON text, one line each."""
        return json.dumps(encode(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> TrainOptions:
        """The inverse of `to_json`. Raises `UsageError` with the field that does not fit."""
        try:
            return decode(cls, json.loads(text))
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(f"training options: {error}", "mend the file, or start a new run") from error

    def _check(
        self,
        name: str,
        *,
        least: float,
        most: float = math.inf,
        below: float = math.inf,
        open_end: bool = False,
    ) -> None:
        value = getattr(self, name)
        if value is None:
            return
        fits = least <= value <= most and value < below and not (open_end and value == least)
        if not fits or not math.isfinite(value):
            start = f"more than {least}" if open_end else f"at least {least}"
            end = f", at most {most}" if most < math.inf else f", below {below}" if below < math.inf else ""
            raise UsageError(f"{name} is {value}", f"give {start}{end}")


def differing(options: TrainOptions, others: TrainOptions) -> tuple[str, ...]:
    """Names of the fields that two runs differ in."""
    return tuple(each.name for each in fields(options) if getattr(options, each.name) != getattr(others, each.name))


def as_mapping(options: TrainOptions) -> Mapping[str, Any]:
    """Plain values by name."""
    plain: Mapping[str, Any] = encode(options)
    return plain


def _first(value: Any, default: Any) -> Any:
    return default if value is None else value


def _size(size: tuple[int, int]) -> str:
    return "x".join(map(str, size))
