"""What training starts from: a whole model's checkpoint, a backbone's, the published weights, or random ones."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from twins_trt.models.checkpoint import explain_misfit, identify_backbone, list_misfits, read_checkpoint
from twins_trt.models.convert import load_backbone
from twins_trt.models.segmentor import Segmentor
from twins_trt.models.weights import find_weights
from twins_trt.training.options import TrainOptions

log = logging.getLogger("twins_trt")

_HEADS = ("neck.", "decode_head.", "auxiliary_head.")


@dataclass(frozen=True)
class Start:
    """Where the weights came from. file: None from scratch. anew: parts that start at random."""

    file: str | None
    sha256: str | None
    anew: tuple[str, ...]


def weights_file(options: TrainOptions) -> Path | None:
    """The file that training starts from; None from scratch. Raises as `find_weights` does."""
    if options.scratch:
        return None
    return find_weights(options.model, checkpoint=options.checkpoint)


def start_weights(model: Segmentor, path: Path | None) -> Start:
    """Gives `model` its first weights: those of the file, and mmseg's random initialization for what the file lacks.

    A classifier of another number of classes starts at random, and so does an auxiliary head that is missing; the log
    says so. With a file of a backbone alone (ImageNet weights) all heads start at random.
    Raises `CheckpointError`, before the model has changed, for weights of another model.
    """
    if path is None:
        initialize(model)
        return Start(None, None, ("every layer",))
    checkpoint = read_checkpoint(path)
    weights, expected = checkpoint.state_dict, model.state_dict()
    if identify_backbone(weights) and not any(key.startswith(_HEADS) for key in weights):
        initialize(model)
        load_backbone(model, path)
        log.warning("%s holds a backbone only: neck and heads start at random", path)
        return Start(str(path), checkpoint.sha256, ("neck and heads",))
    anew = [key for key in expected if key in weights and _is_classifier(key) and _differ(weights, expected, key)]
    if not any(key.startswith("auxiliary_head.") for key in weights):
        anew += [key for key in expected if key.startswith("auxiliary_head.")]
    fitting = {key: value for key, value in weights.items() if key not in anew}
    if list_misfits(fitting, {key: value for key, value in expected.items() if key not in anew}):
        raise explain_misfit(weights, expected, path, name=model.spec.name)
    initialize(model)
    model.load_state_dict(fitting, strict=False)  # every key was compared above
    parts = tuple(dict.fromkeys(_part(key, weights) for key in anew))
    if parts:
        log.warning("%s: %s at random", path, ", ".join(parts))
    return Start(str(path), checkpoint.sha256, parts)


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


def _differ(weights: dict, expected: dict, key: str) -> bool:
    return bool(weights[key].shape != expected[key].shape)


def _part(key: str, weights: dict) -> str:
    head = "auxiliary head" if key.startswith("auxiliary_head.") else "head"
    if key not in weights:
        return f"the {head} is missing and starts"
    return f"the {head}'s classifier of {weights[key].shape[0]} classes is replaced and starts"
