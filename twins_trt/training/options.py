"""The options of a training: one value that describes a run completely and is saved with it; made from a request."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from twins_trt.codec import decode, encode
from twins_trt.errors import UsageError
from twins_trt.models.telling import named
from twins_trt.models.zoo import PADDINGS, ModelSpec, get_spec, is_model
from twins_trt.spelling import speaking, spelled
from twins_trt.verbs.groups.images import scale_of
from twins_trt.verbs.request import either
from twins_trt.verbs.train import (
    AMP,
    DECAY,
    DEFAULTS,
    DEVICES,
    LONGEST_WARM_UP,
    RECIPES,
    WEIGHTS,
    TrainRequest,
)

SMALLEST_CROP = 32  # one pixel of the last stage


@dataclass(frozen=True)
class TrainOptions:
    """Every number that a training needs. `resolve_options` makes it; `TrainRequest` describes the fields.

    Where None stands it means: checkpoint: the published weights, or random ones with scratch. scale: the image's own
    size. clip_norm: no limit. ema: no running mean. val_limit: all images. threads: PyTorch's choice. plan: no INT8
    rounding. calibration: ranges of the first pictures. padding: the checkpoint's; a run that has begun has one.
    model: a name of the zoo, or that of a checkpoint with own widths.

    Raises `UsageError` for a value out of bounds and for fields that exclude each other.
    """

    model: str
    data: str
    out: str
    checkpoint: str | None
    scratch: bool
    split: str
    val_split: str
    iterations: int
    batch: int
    crop: tuple[int, int]
    scale: tuple[int, int] | None
    ratios: tuple[float, float]
    cat_max_ratio: float
    flip: float
    distort: bool
    lr: float
    weight_decay: float
    power: float
    warmup: int
    min_lr: float
    decay: str
    clip_norm: float | None
    aux_weight: float
    drop_path: float
    dropout: float
    amp: str
    checkpointing: bool
    ema: float | None
    validate_every: int
    save_every: int
    val_limit: int | None
    log_every: int
    seed: int
    workers: int
    threads: int | None
    device: str
    padding: str | None
    plan: str | None
    calibration: str | None
    # Runs of earlier versions have none of these.
    binary: bool = False
    weights: str = "auto"
    conventions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        head = head_of(self.model)
        paddings = (*PADDINGS, None)
        words = (("amp", AMP), ("decay", DECAY), ("device", DEVICES), ("padding", paddings), ("weights", WEIGHTS))
        for name, allowed in words:
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"{spelled(name)} cannot be {getattr(self, name)!r}",
                    f"use one of {', '.join(filter(None, allowed))}",
                )
        if self.checkpoint is not None and self.scratch:
            raise UsageError(
                "a checkpoint and training from scratch exclude each other",
                f"give {spelled('checkpoint')} or {spelled('scratch')}, not both",
            )
        if self.calibration is not None and self.plan is None:
            raise UsageError(
                "ranges are of no use without a precision plan",
                f"give {spelled('plan', 'FILE')}, or leave {spelled('calibration')} out",
            )
        for name in ("iterations", "batch", "validate_every", "save_every", "val_limit", "log_every", "threads"):
            self._check(name, at_least=1)
        for name in ("warmup", "workers", "seed", "weight_decay", "min_lr", "aux_weight"):
            self._check(name, at_least=0)
        for name in ("lr", "power", "clip_norm"):
            self._check(name, above=0)
        for name in ("flip", "cat_max_ratio"):
            self._check(name, at_least=0, at_most=1)
        for name in ("drop_path", "dropout", "ema"):
            self._check(name, at_least=0, below=1)
        if min(self.crop) < SMALLEST_CROP:
            raise UsageError(
                f"a crop of {_size(self.crop)}", f"give {spelled('crop')} sides of {SMALLEST_CROP} pixels or more"
            )
        if self.scale is not None and min(self.scale) < 1:
            raise UsageError(f"a scale of {_size(self.scale)}", f"give {spelled('scale')} as LONGxSHORT in pixels")
        if not 0 < self.ratios[0] <= self.ratios[1] or not math.isfinite(self.ratios[1]):
            raise UsageError(
                f"ratios from {self.ratios[0]} to {self.ratios[1]}",
                f"give {spelled('ratios')} as MIN:MAX, such as 0.5:2.0",
            )
        if head == "upernet" and self.batch == 1:
            raise UsageError(
                "UPerNet normalizes over a batch, and one picture is none", f"give {spelled('batch', 2)} or more"
            )

    def to_json(self) -> str:
        """The options as indented JSON text, one line each."""
        return json.dumps(encode(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> TrainOptions:
        """The inverse of `to_json`. Raises `UsageError` with the field that does not fit."""
        try:
            with speaking(None):  # a file has fields, also where a command line reads it
                return decode(cls, json.loads(text))
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(f"training options: {error}", "mend the file, or start a new run") from error

    def _check(
        self,
        name: str,
        *,
        at_least: float = -math.inf,
        above: float = -math.inf,
        at_most: float = math.inf,
        below: float = math.inf,
    ) -> None:
        value = getattr(self, name)
        if value is None:
            return
        fits = at_least <= value <= at_most and above < value < below
        if not fits or not math.isfinite(value):
            start = f"more than {above}" if above > -math.inf else f"at least {at_least}"
            end = f", at most {at_most}" if at_most < math.inf else f", below {below}" if below < math.inf else ""
            raise UsageError(f"{spelled(name)} is {value}", f"give {start}{end}")


def resolve_options(request: TrainRequest, *, spec: ModelSpec | None = None) -> TrainOptions:
    """The options of a request: every default decided, every combination checked.

    spec: of a checkpoint that alone tells the model; None reads it where it is needed.

    mmsegmentation's numbers (configs/twins): FPN trains with AdamW, lr 1e-4, weight decay 1e-4, power 0.9; UPerNet
    with lr 6e-5, weight decay 0.01, power 1 and 1500 iterations of warm-up. Its FPN configurations also inherit a
    smallest rate of 1e-4, which makes the rate a constant: `min_lr=1e-4` has that effect here.

    Raises `UsageError` where model, data or out is missing, for an unknown model, and as `TrainOptions` does.
    """
    model, checkpoint, data, out = request.model, request.checkpoint, request.data, request.out
    if model is not None or checkpoint is not None:
        model, checkpoint = named(model, checkpoint)
    if (model is None and checkpoint is None) or data is None or out is None:
        missing = "data" if model or checkpoint else "model"
        missing = "out" if data is not None and missing == "data" else missing
        wanted = spelled("model", "NAME"), spelled("data", "KIND:PATH"), spelled("out", "DIR")
        raise UsageError(f"{spelled(missing)} is missing", f"a new run needs {wanted[0]}, {wanted[1]} and {wanted[2]}")
    scratch = either(request.scratch, DEFAULTS.scratch)
    spec = _spec(model, checkpoint, spec, request)
    recipe = RECIPES[spec.head]
    iterations = either(request.iterations, spec.schedule_iterations or recipe.iterations)
    tenth = max(1, iterations // 10)
    return TrainOptions(
        model=spec.name,
        data=data,
        out=out,
        checkpoint=checkpoint,
        scratch=scratch,
        split=either(request.split, DEFAULTS.split),
        val_split=either(request.val_split, DEFAULTS.val_split),
        iterations=iterations,
        batch=either(request.batch, DEFAULTS.batch),
        crop=either(request.crop, spec.crop_size),
        scale=scale_of(data, request.scale),
        ratios=either(request.ratios, DEFAULTS.ratios),
        cat_max_ratio=either(request.cat_max_ratio, DEFAULTS.cat_max_ratio),
        flip=either(request.flip, DEFAULTS.flip),
        distort=either(request.distort, DEFAULTS.distort),
        lr=either(request.lr, recipe.lr),
        weight_decay=either(request.weight_decay, recipe.weight_decay),
        power=either(request.power, recipe.power),
        warmup=either(request.warmup, min(LONGEST_WARM_UP, iterations // 10)),
        min_lr=either(request.min_lr, DEFAULTS.min_lr),
        decay=either(request.decay, DEFAULTS.decay),
        clip_norm=request.clip_norm,
        aux_weight=either(request.aux_weight, DEFAULTS.aux_weight),
        drop_path=either(request.drop_path, spec.drop_path_rate),
        dropout=either(request.dropout, DEFAULTS.dropout),
        amp=either(request.amp, DEFAULTS.amp),
        checkpointing=either(request.checkpointing, DEFAULTS.checkpointing),
        ema=request.ema,
        validate_every=either(request.validate_every, tenth),
        save_every=either(request.save_every, tenth),
        val_limit=request.val_limit,
        log_every=either(request.log_every, DEFAULTS.log_every),
        seed=either(request.seed, DEFAULTS.seed),
        workers=either(request.workers, DEFAULTS.workers),
        threads=request.threads,
        device=either(request.device, DEFAULTS.device),
        padding=PADDINGS[0] if scratch and request.padding is None else request.padding,
        plan=request.plan,
        calibration=request.calibration,
        binary=either(request.binary, DEFAULTS.binary),
        weights=either(request.weights, DEFAULTS.weights),
        conventions=either(request.conventions, {}),
    )


def head_of(model: str) -> str:
    """`fpn` or `upernet`, of a name of the zoo or of own widths. Raises `UsageError` for any other name."""
    if is_model(model):
        return get_spec(model).head
    from twins_trt.models.widths import CUSTOM

    backbone, _, head = model.rpartition("_")
    return head if backbone.endswith(f"-{CUSTOM}") and head in RECIPES else get_spec(model).head


def _spec(model: str | None, checkpoint: str | None, spec: ModelSpec | None, request: TrainRequest) -> ModelSpec:
    """The row of the zoo, or the architecture that only the checkpoint tells."""
    if spec is not None or checkpoint is None or (model is not None and is_model(model)):
        return spec or get_spec(str(model))
    from twins_trt.training.run.start import told_start

    return told_start(checkpoint, request, model=model).spec


def changed(options: TrainOptions, request: TrainRequest) -> TrainOptions:
    """The options with the fields that the request gives. Raises as `TrainOptions` does."""
    fields_given = request.given()
    if fields_given.get("scale") == "none":
        fields_given["scale"] = None
    return replace(options, **fields_given)


def differing(options: TrainOptions, others: TrainOptions) -> tuple[str, ...]:
    """Names of the fields in which two runs differ."""
    return tuple(each.name for each in fields(options) if getattr(options, each.name) != getattr(others, each.name))


def as_mapping(options: TrainOptions) -> Mapping[str, Any]:
    """Plain values by name."""
    plain: Mapping[str, Any] = encode(options)
    return plain


def _size(size: tuple[int, int]) -> str:
    return "x".join(map(str, size))
