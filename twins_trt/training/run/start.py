"""What training starts from: a whole model's checkpoint, a backbone's, the published weights, or random ones."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from twins_trt.errors import CheckpointError
from twins_trt.models.checkpoint import check_finite, list_misfits
from twins_trt.models.conventions import Conventions
from twins_trt.models.examine import OpenedCheckpoint, examine, expected_tensors, open_checkpoint
from twins_trt.models.segmentor import Segmentor
from twins_trt.models.weights import find_weights
from twins_trt.models.widths import backbone_spec
from twins_trt.models.zoo import ModelSpec, get_spec, is_model
from twins_trt.training.options import TrainOptions
from twins_trt.verbs.request import either
from twins_trt.verbs.train import DEFAULTS, TrainRequest

log = logging.getLogger("twins_trt")

_BACKBONE = "backbone."
_AFTER_STAGES = "backbone.norm_list."


@dataclass(frozen=True)
class Start:
    """Where the weights came from. file: None from scratch. anew: parts that start at random."""

    file: str | None
    sha256: str | None
    anew: tuple[str, ...]


@dataclass(frozen=True)
class StartFile:
    """A checkpoint that fits, and what it tells.

    state_dict: float32 and int64 under mmsegmentation's keys, of a whole model or of its backbone. spec: of the model
    to train, with the file's own widths and epsilons. num_classes: of its head; None for a backbone alone.
    """

    path: Path
    sha256: str
    state_dict: dict[str, Tensor]
    spec: ModelSpec
    num_classes: int | None
    conventions: Conventions


def weights_file(options: TrainOptions) -> Path | None:
    """The file that training starts from; None from scratch. Raises as `find_weights` does."""
    if options.scratch:
        return None
    return find_weights(options.model, checkpoint=options.checkpoint)


def read_start(
    path: Path, *, model: str | None, padding: str | None, weights: str, conventions: Mapping[str, str]
) -> StartFile:
    """A checkpoint that training starts from: a whole model's, or a backbone's alone (ImageNet).

    The arguments are those of `examine`. model: None takes the file's, which a backbone alone does not tell.
    Raises as `examine` does, `CheckpointError` also for a backbone of another model.
    """
    # The threshold is of the head that is trained, which the file need not have.
    flags = {name: value for name, value in conventions.items() if name != "threshold"}
    opened = open_checkpoint(path, weights=weights)
    if model is not None and not opened.recognized.whole:
        backbone = backbone_spec(opened.recognized.state_dict, path)
        if backbone is not None:
            return _backbone_alone(opened, backbone, path, model=model, padding=padding, flags=flags)
    found = examine(path, model=model, padding=padding, conventions=flags, any_classes=True, opened=opened)
    return StartFile(path, str(found.source.sha256), found.state_dict, found.spec, found.num_classes, found.conventions)


def told_start(checkpoint: str, request: TrainRequest, *, model: str | None) -> StartFile:
    """The checkpoint of a request, where it alone tells the model. model: of own widths, or None."""
    path = find_weights(model, checkpoint=checkpoint)
    assert path is not None  # it is named
    return read_start(
        path,
        model=model,
        padding=request.padding,
        weights=either(request.weights, DEFAULTS.weights),
        conventions=either(request.conventions, {}),
    )


def _backbone_alone(
    opened: OpenedCheckpoint,
    backbone: ModelSpec,
    path: Path,
    *,
    model: str,
    padding: str | None,
    flags: Mapping[str, str],
) -> StartFile:
    recognized, head = opened.recognized, model.rpartition("_")[2]
    if f"{backbone.name}_{head}" != model:
        raise CheckpointError(
            f"{path} holds the backbone {backbone.name}, not that of {model}",
            f"train {backbone.name}_{head}, or name a backbone of {model}",
        )
    told, numbers = opened.conventions(path, num_logits=0, padding=padding, flags=flags)
    spec = get_spec(model) if is_model(model) else replace(backbone, name=model, head=head)
    spec = opened.with_own_numbers(spec, numbers, path)
    expected = {key: value for key, value in expected_tensors(spec, 1).items() if key.startswith(_BACKBONE)}
    state = {key: value for key, value in recognized.state_dict.items() if key in expected}
    if not any(key.startswith(_AFTER_STAGES) for key in state):
        expected = {key: value for key, value in expected.items() if not key.startswith(_AFTER_STAGES)}
    if misfits := list_misfits(state, expected):
        raise CheckpointError(f"{path} does not fit the backbone: {misfits}", "use the weights of this very backbone")
    check_finite(state, path)
    return StartFile(path, opened.content.sha256, state, spec, None, told)


def start_weights(model: Segmentor, file: StartFile | None) -> Start:
    """Gives `model` its first weights: those of the file, and mmseg's random initialization for what the file lacks.

    A classifier of another number of rows starts at random, and so does an auxiliary head that is missing; the log
    says so. With a file of a backbone alone (ImageNet weights) all heads start at random, and so do the norms after
    SVT's stages, which classification has none of.
    """
    initialize(model)
    if file is None:
        return Start(None, None, ("every layer",))
    weights, expected = file.state_dict, model.state_dict()
    if file.num_classes is None:
        parts: tuple[str, ...] = ("neck and heads",)
        log.warning("%s holds a backbone only: neck and heads start at random", file.path)
        if any(key.startswith(_AFTER_STAGES) for key in expected.keys() - weights.keys()):
            log.info("%s has no norms after its stages: they start as they do from scratch", file.path)
    else:
        anew = [key for key in expected if _is_classifier(key) and key in weights and _differ(weights, expected, key)]
        if not any(key.startswith("auxiliary_head.") for key in weights):
            anew += [key for key in expected if key.startswith("auxiliary_head.")]
        parts = tuple(dict.fromkeys(_part(key, weights) for key in anew))
        if parts:
            log.warning("%s: %s at random", file.path, ", ".join(parts))
        weights = {key: value for key, value in weights.items() if key not in anew}
    model.load_state_dict(weights, strict=False)  # every key was compared by `read_start`
    return Start(str(file.path), file.sha256, parts)


def initialize(model: Segmentor) -> None:
    """Random weights as mmseg initializes each part, drawn from torch's global generator.

    Backbone: Linear normal(0.02) cut at two sigma, convolutions normal with the fan-out's variance (mmseg's
    models/backbones/twins.py). Neck: Xavier, uniform. Heads: Kaiming for ReLU, classifiers normal(0.01). Biases are 0,
    norms 1. The packed projections of GSA keep `nn.MultiheadAttention`'s Xavier, which they were built with.
    """
    for name, module in model.named_modules():
        if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            _initialize_convolution(name, module)


def _initialize_convolution(name: str, module: nn.Conv2d) -> None:
    if name.startswith("neck."):
        nn.init.xavier_uniform_(module.weight)
    elif name.endswith("conv_seg"):
        nn.init.normal_(module.weight, std=0.01)
    else:
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))  # mmcv's Kaiming for ReLU is the same
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def _is_classifier(key: str) -> bool:
    return ".conv_seg." in key


def _differ(weights: dict[str, Tensor], expected: dict[str, Tensor], key: str) -> bool:
    return bool(weights[key].shape != expected[key].shape)


def _part(key: str, weights: dict[str, Tensor]) -> str:
    head = "auxiliary head" if key.startswith("auxiliary_head.") else "head"
    if key not in weights:
        return f"the {head} is missing and starts"
    rows = weights[key].shape[0]
    return f"the {head}'s classifier of {'one logit' if rows == 1 else f'{rows} classes'} is replaced and starts"
