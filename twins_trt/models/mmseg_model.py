"""What a configuration says of the model itself: numbers that no tensor tells, and forms that are not supported.

A form that would change the masks, and that this package does not compute, is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from twins_trt.models.mmseg_config import Config, MmsegConfig, plain_type

Quadruple = tuple[int, int, int, int]

SEGMENTORS = ("EncoderDecoder",)
BACKBONES = ("PCPVT", "SVT")
HEADS = ("FPNHead", "UPerHead")
OFFICIAL_BACKBONES = ("alt_gvt", "pcpvt")
"""How the official repository's own backbones begin their names (segmentation/gvt.py)."""
THRESHOLD = 0.3
"""mmseg's default for a head with one logit (`BaseDecodeHead`)."""
_NORMS = ("BN", "SyncBN", "BN2d", "MMSyncBN")
_EPS = 1e-5


@dataclass(frozen=True)
class ModelNumbers:
    """What no tensor tells of the architecture, as the configuration states it; None where it is silent.

    norm_eps: of `ModelSpec.outer_norm_eps`. spec_changes: fields of the spec that our own checkpoints and flags
    state. places: of each stated number in the configuration.
    """

    num_heads: Quadruple | None = None
    window_size: int | None = None
    drop_path_rate: float | None = None
    norm_eps: float | None = None
    spec_changes: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)


def read_model(config: MmsegConfig, *, aligned: bool | None) -> ModelNumbers:
    """The numbers of the model. aligned: the caller's `align_corners`, in place of the configuration's.

    Raises `CheckpointError` for a form of the model that is not supported.
    """
    model, _ = config.mapping("model")
    _check_type(config, model, "model", SEGMENTORS)
    for name in ("decode_head", "backbone"):
        if isinstance(model.get(name), list):
            raise config.refuse(f"model.{name}", model[name], "twins-trt runs one of them, not a cascade")
    _check_head(config, aligned)
    _check_neck(config)
    return _read_backbone(config)


def _check_type(config: MmsegConfig, part: Config, place: str, known: tuple[str, ...]) -> None:
    kind = plain_type(part)
    if kind and kind not in known:
        raise config.refuse(f"{place}.type", kind, f"twins-trt runs {' and '.join(known)}")


def _check_head(config: MmsegConfig, aligned: bool | None) -> None:
    head, place = config.mapping("model.decode_head")
    _check_type(config, head, place, HEADS)
    if aligned is None and head.get("align_corners") is True:
        raise config.refuse(
            f"{place}.align_corners", True, "twins-trt resizes with align_corners=False", flag="align_corners=false"
        )
    _check_equal(config, head, place, "pool_scales", [1, 2, 3, 6])
    _check_equal(config, head, place, "in_index", [0, 1, 2, 3])
    _check_equal(config, head, place, "feature_strides", [4, 8, 16, 32])
    _check_norm(config, head, place)
    _check_activation(config, head, place, "ReLU")


def _check_neck(config: MmsegConfig) -> None:
    neck, place = config.mapping("model.neck")
    _check_type(config, neck, place, ("FPN",))
    upsampling = neck.get("upsample_cfg")
    if isinstance(upsampling, Mapping) and upsampling.get("mode", "nearest") != "nearest":
        raise config.refuse(f"{place}.upsample_cfg.mode", upsampling["mode"], "twins-trt's neck takes the nearest")
    for name in ("act_cfg", "norm_cfg"):
        if neck.get(name) is not None:
            raise config.refuse(f"{place}.{name}", neck[name], "twins-trt's neck has neither norms nor activations")
    _check_equal(config, neck, place, "num_outs", 4)
    _check_equal(config, neck, place, "start_level", 0)


def _check_equal(config: MmsegConfig, part: Config, place: str, name: str, only: object) -> None:
    if part.get(name) is not None and part[name] != only:
        raise config.refuse(f"{place}.{name}", part[name], f"twins-trt runs {only} alone")


def _check_norm(config: MmsegConfig, part: Config, place: str) -> None:
    norm = part.get("norm_cfg")
    if not isinstance(norm, Mapping):
        return
    if plain_type(norm) not in _NORMS:
        raise config.refuse(f"{place}.norm_cfg.type", plain_type(norm), "twins-trt's heads have BatchNorm")
    if norm.get("eps", _EPS) != _EPS:
        raise config.refuse(f"{place}.norm_cfg.eps", norm["eps"], f"twins-trt's BatchNorm has {_EPS}")


def _check_activation(config: MmsegConfig, part: Config, place: str, only: str) -> None:
    activation = part.get("act_cfg")
    if isinstance(activation, Mapping) and plain_type(activation) != only:
        raise config.refuse(f"{place}.act_cfg.type", plain_type(activation), f"twins-trt runs {only} there")


def _read_backbone(config: MmsegConfig) -> ModelNumbers:
    part, place = config.mapping("model.backbone")
    kind = plain_type(part)
    if kind and kind not in BACKBONES and not kind.startswith(OFFICIAL_BACKBONES):
        raise config.refuse(f"{place}.type", kind, "twins-trt runs Twins backbones, PCPVT and SVT")
    _check_equal(config, part, place, "in_channels", 3)
    _check_equal(config, part, place, "strides", [4, 2, 2, 2])
    _check_equal(config, part, place, "out_indices", [0, 1, 2, 3])
    _check_activation(config, part, place, "GELU")
    values: dict[str, Any] = {}
    if (heads := _quadruple(part.get("num_heads"))) is not None:
        values["num_heads"] = heads
    if (windows := _quadruple(part.get("windiow_sizes", part.get("window_sizes")))) is not None:  # mmseg's spelling
        if len(set(windows)) > 1:
            raise config.refuse(f"{place}.windiow_sizes", list(windows), "twins-trt runs one size in all stages")
        values["window_size"] = windows[0]
    rate = part.get("drop_path_rate")
    if isinstance(rate, (int, float)) and 0 <= rate < 1:
        values["drop_path_rate"] = float(rate)
    norm = part.get("norm_cfg")
    if isinstance(norm, Mapping):
        if plain_type(norm) not in ("", "LN"):
            raise config.refuse(f"{place}.norm_cfg.type", plain_type(norm), "Twins backbones have LayerNorm")
        if isinstance(norm.get("eps"), float):
            values["norm_eps"] = norm["eps"]
    return ModelNumbers(**values, places={name: f"{place}.{_KEYS.get(name, name)}" for name in values})


_KEYS = {"window_size": "windiow_sizes", "norm_eps": "norm_cfg.eps"}


def _quadruple(value: object) -> Quadruple | None:
    if isinstance(value, list) and len(value) == 4 and all(type(each) is int and each > 0 for each in value):
        a, b, c, d = value
        return a, b, c, d
    return None
