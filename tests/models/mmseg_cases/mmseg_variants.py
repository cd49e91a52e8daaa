"""Small models and checkpoints such as mmsegmentation's users have: what its recorder and our tests both build.

Nothing here needs mmsegmentation. Weights are made from the names of tensors, and images are drawn, so that neither is
stored.
"""

from __future__ import annotations

import base64
import copy
import re
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from twins_trt.models.seeded import seeded_array

UInt8Array = npt.NDArray[np.uint8]
State = dict[str, Tensor]
Config = dict[str, Any]

IMAGENET = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "bgr_to_rgb": True}
SIZE = (96, 120)  # whole windows in no stage: padded keys are masked
PALETTE = [[10 * i, 255 - 20 * i, 7 * i] for i in range(12)]


@dataclass(frozen=True)
class Variant:
    """A model, as a configuration of mmsegmentation describes it.

    changes: values by dotted place, over those of `base_config`. gain: of the classifier's weights, so that classes
    take turns. bias: of the classifier, added. shrink: of the backbone's weights in front of LayerNorms. labels: how
    many classes the drawn labels have. first_label: the label file's value of class 0. size: (height, width) of the
    image, pixels. wrong: conventions, as flags take them, under which mask or score differs: what the file forbids.
    old: whether version 0.x could write it too.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    gain: float = 1.0
    bias: float = 0.0
    shrink: float = 1.0
    labels: int = 4
    first_label: int = 0
    size: tuple[int, int] = SIZE
    wrong: Mapping[str, str] = field(default_factory=dict)
    old: bool = True


def base_config() -> Config:
    """A small SVT with FPN, as version 1.x writes its configuration."""
    return {
        "model": {
            "type": "EncoderDecoder",
            "data_preprocessor": {
                "type": "SegDataPreProcessor",
                **copy.deepcopy(IMAGENET),
                "pad_val": 0,
                "seg_pad_val": 255,
                "size": (64, 64),
            },
            "backbone": {
                "type": "SVT",
                "in_channels": 3,
                "embed_dims": [32, 64, 96, 128],
                "num_heads": [1, 2, 3, 4],
                "mlp_ratios": [4, 4, 4, 4],
                "out_indices": (0, 1, 2, 3),
                "qkv_bias": True,
                "norm_cfg": {"type": "LN"},
                "depths": [2, 2, 2, 2],
                "sr_ratios": [8, 4, 2, 1],
                "norm_after_stage": True,
                "drop_rate": 0.0,
                "attn_drop_rate": 0.0,
                "drop_path_rate": 0.2,
                "windiow_sizes": [7, 7, 7, 7],
            },
            "neck": {"type": "FPN", "in_channels": [32, 64, 96, 128], "out_channels": 64, "num_outs": 4},
            "decode_head": {
                "type": "FPNHead",
                "in_channels": [64, 64, 64, 64],
                "in_index": [0, 1, 2, 3],
                "feature_strides": [4, 8, 16, 32],
                "channels": 64,
                "dropout_ratio": 0.1,
                "num_classes": 4,
                "norm_cfg": {"type": "SyncBN", "requires_grad": True},
                "align_corners": False,
                "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
            },
            "train_cfg": {},
            "test_cfg": {"mode": "whole"},
        },
        "dataset_type": "BaseSegDataset",
        "data_root": "data/drawn",
        "crop_size": (64, 64),
        "test_pipeline": [
            {"type": "LoadImageFromFile"},
            {"type": "LoadAnnotations"},
            {"type": "PackSegInputs"},
        ],
        "test_dataloader": {
            "batch_size": 1,
            "num_workers": 0,
            "dataset": {
                "type": "BaseSegDataset",
                "data_root": "data/drawn",
                "metainfo": {"classes": ["road", "tree", "sky", "sign"], "palette": PALETTE[:4]},
                "data_prefix": {"img_path": "images", "seg_map_path": "labels"},
                "img_suffix": ".png",
                "seg_map_suffix": ".png",
            },
        },
        "test_evaluator": {"type": "IoUMetric", "iou_metrics": ["mIoU"]},
    }


_HEAD = "model.decode_head"
_DATA = "test_dataloader.dataset"
_PREPROCESSOR = "model.data_preprocessor"


def _resized(scale: tuple[int, int], *, keep_ratio: bool) -> Config:
    steps = copy.deepcopy(base_config()["test_pipeline"])
    steps.insert(1, {"type": "Resize", "scale": scale, "keep_ratio": keep_ratio})
    return {"test_pipeline": steps, f"{_DATA}.pipeline": steps}


def _one_logit(num_classes: int, **more: Any) -> Config:
    names = ["ground", "water"][-num_classes:]
    return {
        f"{_HEAD}.num_classes": num_classes,
        f"{_HEAD}.out_channels": 1,
        f"{_HEAD}.loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
        f"{_DATA}.metainfo": {"classes": names, "palette": PALETTE[:num_classes]},
        **{f"{_HEAD}.{name}": value for name, value in more.items()},
    }


def _uper(channels: int) -> Config:
    return {
        "model.neck": None,
        _HEAD: {
            "type": "UPerHead",
            "in_channels": [32, 64, 96, 128],
            "in_index": [0, 1, 2, 3],
            "pool_scales": (1, 2, 3, 6),
            "channels": channels,
            "dropout_ratio": 0.1,
            "num_classes": 4,
            "norm_cfg": {"type": "SyncBN", "requires_grad": True},
            "align_corners": False,
            "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
        },
        "model.auxiliary_head": auxiliary(2, 96, 24),
    }


def auxiliary(index: int, in_channels: int, channels: int) -> Config:
    """An auxiliary head on one of the backbone's maps."""
    return {
        "type": "FCNHead",
        "in_channels": in_channels,
        "in_index": index,
        "channels": channels,
        "num_convs": 1,
        "concat_input": False,
        "dropout_ratio": 0.1,
        "num_classes": 4,
        "norm_cfg": {"type": "SyncBN", "requires_grad": True},
        "align_corners": False,
        "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 0.4},
    }


def _slide(crop: tuple[int, int], stride: tuple[int, int]) -> Config:
    return {"model.test_cfg": {"mode": "slide", "crop_size": crop, "stride": stride}}


def _backbone(**values: Any) -> Config:
    return {f"model.backbone.{name}": value for name, value in values.items()}


_CUSTOM = {
    **_backbone(embed_dims=[24, 48, 64, 80], num_heads=[2, 4, 4, 5], depths=[2, 1, 3, 2], mlp_ratios=[3, 4, 2, 4]),
    "model.neck.in_channels": [24, 48, 64, 80],
}
_PCPVT = {
    "model.backbone": {
        "type": "PCPVT",
        "in_channels": 3,
        "embed_dims": [16, 32, 64, 128],
        "num_heads": [1, 2, 2, 4],
        "mlp_ratios": [8, 8, 4, 4],
        "out_indices": (0, 1, 2, 3),
        "qkv_bias": True,
        "norm_cfg": {"type": "LN"},
        "depths": [1, 2, 2, 1],
        "sr_ratios": [8, 4, 2, 1],
        "norm_after_stage": False,
        "drop_path_rate": 0.2,
    },
    "model.neck.in_channels": [16, 32, 64, 128],
}

VARIANTS: dict[str, Variant] = {
    "plain": Variant(),
    "bgr": Variant(
        {f"{_PREPROCESSOR}.mean": [0.0, 0.0, 0.0], f"{_PREPROCESSOR}.std": [255.0, 255.0, 255.0]}
        | {f"{_PREPROCESSOR}.bgr_to_rgb": False},
        wrong={"channels": "rgb"},
    ),
    "statistics": Variant(
        {f"{_PREPROCESSOR}.mean": [90.0, 100.0, 110.0], f"{_PREPROCESSOR}.std": [30.0, 60.0, 90.0]},
        wrong={"mean": "123.675,116.28,103.53", "std": "58.395,57.12,57.375"},
    ),
    "unnormalized": Variant(
        {_PREPROCESSOR: {"type": "SegDataPreProcessor", "bgr_to_rgb": True, "size": (64, 64)}},
        wrong={"mean": "123.675,116.28,103.53", "std": "58.395,57.12,57.375"},
        old=False,
    ),
    "one_logit": Variant(_one_logit(2), gain=3, bias=-0.85, labels=2, wrong={"threshold": "0.6"}, old=False),
    "one_logit_threshold": Variant(
        _one_logit(2, threshold=0.6), gain=3, labels=2, wrong={"threshold": "0.3"}, old=False
    ),
    "one_logit_one_class": Variant(_one_logit(1), gain=3, bias=-0.85, labels=1, wrong={"threshold": "0.6"}, old=False),
    "one_logit_old": Variant(_one_logit(2, threshold=0.4), gain=3, bias=-0.4, labels=2, wrong={"threshold": "0.7"}),
    "reduce_zero_label": Variant(
        {f"{_DATA}.reduce_zero_label": True, "test_pipeline.1.reduce_zero_label": True},
        first_label=1,
        wrong={"reduce_zero_label": "false"},
    ),
    "ignore_index": Variant(
        {f"{_HEAD}.ignore_index": 9, "test_evaluator.ignore_index": 9}, wrong={"ignore_index": "255"}
    ),
    "ignore_index_of_a_class": Variant(
        {f"{_HEAD}.ignore_index": 0, "test_evaluator.ignore_index": 0}, wrong={"ignore_index": "255"}
    ),
    "slide": Variant(_slide((64, 64), (43, 43)), wrong={"test_mode": "whole"}),
    "slide_rectangular": Variant(_slide((64, 80), (40, 50)), wrong={"test_mode": "slide:64x64:43x43"}),
    "slide_one_logit": Variant(
        _slide((64, 80), (40, 50)) | _one_logit(2, threshold=0.5),
        gain=3,
        labels=2,
        wrong={"test_mode": "whole"},
        old=False,
    ),
    "scale_keeping_ratio": Variant(_resized((200, 64), keep_ratio=True), wrong={"test_scale": "none"}),
    "scale_exact": Variant(_resized((112, 80), keep_ratio=False), wrong={"keep_ratio": "true"}),
    "slide_scaled": Variant(
        _slide((64, 64), (32, 48)) | _resized((200, 80), keep_ratio=True), wrong={"test_scale": "none"}
    ),
    "bare_class": Variant(
        _one_logit(1, threshold=0.5) | {f"{_DATA}.metainfo": {"classes": "water"}}, gain=3, labels=1, old=False
    ),
    "narrow": Variant(
        {"model.neck.out_channels": 128, f"{_HEAD}.in_channels": [128] * 4, f"{_HEAD}.channels": 64},
    ),
    "upernet": Variant(_uper(48)),
    "upernet_wide": Variant(_uper(80) | {"model.auxiliary_head": auxiliary(2, 96, 40)}),
    "upernet_without_auxiliary": Variant(_uper(48) | {"model.auxiliary_head": None}),
    "auxiliary": Variant({"model.auxiliary_head": auxiliary(2, 96, 16)}),
    "several_auxiliary": Variant({"model.auxiliary_head": [auxiliary(1, 64, 16), auxiliary(2, 96, 24)]}),
    "custom_backbone": Variant(_CUSTOM, wrong={"num_heads": "1,2,2,2"}),
    "window": Variant(_backbone(windiow_sizes=[5, 5, 5, 5]), wrong={"window_size": "7"}),
    "pcpvt": Variant(_PCPVT, wrong={"num_heads": "2,4,4,8"}),
    "eps": Variant(_backbone(norm_cfg={"type": "LN", "eps": 1e-6}), shrink=2e-3, wrong={"norm_eps": "1e-5"}),
    "many_classes": Variant({f"{_HEAD}.num_classes": 300}),
    "aligned": Variant({f"{_HEAD}.align_corners": True}),
}
REFUSED = {"many_classes": "300 classes", "aligned": "align_corners"}
"""Variants that are no part of this package, and what the refusal names."""


def config_of(variant: Variant) -> Config:
    """The variant's configuration, as version 1.x has it."""
    config = base_config()
    config["test_dataloader"]["dataset"]["pipeline"] = config["test_pipeline"]
    for place, value in variant.changes.items():
        *parents, last = place.split(".")
        part: Any = config
        for name in parents:
            part = part[int(name)] if isinstance(part, list) else part[name]
        if value is None:
            part.pop(last, None)
        else:
            part[last] = copy.deepcopy(value)
    return config


def old_config_of(variant: Variant) -> Config:
    """The same as version 0.x has it: normalization and scale in the pipeline, data sets below `data`."""
    config = config_of(variant)
    model = config["model"]
    preprocessor = model.pop("data_preprocessor")
    normalize = {
        "mean": preprocessor["mean"],
        "std": preprocessor["std"],
        "to_rgb": preprocessor["bgr_to_rgb"],
    }
    resize = next((step for step in config["test_pipeline"] if step["type"] == "Resize"), None)
    inner = [
        {"type": "Resize", "keep_ratio": resize is None or resize["keep_ratio"]},
        {"type": "RandomFlip"},
        {"type": "Normalize", **normalize},
        {"type": "ImageToTensor", "keys": ["img"]},
        {"type": "Collect", "keys": ["img"]},
    ]
    steps: list[Config] = [{"type": "LoadImageFromFile"}]
    if resize is None:
        steps += inner[1:]
    else:
        outer = {"type": "MultiScaleFlipAug", "img_scale": resize["scale"], "flip": False, "transforms": inner}
        steps.append(outer)
    dataset = config["test_dataloader"]["dataset"]
    data = {"type": "CustomDataset", "data_root": "data/drawn", "img_dir": "images", "ann_dir": "labels"}
    data |= {"pipeline": steps, "classes": dataset["metainfo"]["classes"]}
    if "reduce_zero_label" in dataset:
        data["reduce_zero_label"] = dataset["reduce_zero_label"]
    return {
        "dataset_type": "CustomDataset",
        "img_norm_cfg": normalize,
        "crop_size": (64, 64),
        "test_pipeline": steps,
        "data": {"samples_per_gpu": 4, "workers_per_gpu": 4, "test": data},
        "runner": {"type": "IterBasedRunner", "max_iters": 80000},
        "model": {**model, "pretrained": None},
    }


_WRITERS = re.compile(
    r"patch_embeds\.\d\.(projection|norm)\.|attn\.(sr|proj|attn\.out_proj)\.|ffn\.layers\.1\.|position_encodings"
)
"""Tensors behind which a LayerNorm comes: small ones leave it small values, so that its epsilon shows."""


def seeded_state(shapes: Mapping[str, list[int]], variant: Variant) -> State:
    """The variant's weights: a tensor for every key and shape."""
    state = OrderedDict((k, torch.from_numpy(np.array(seeded_array(k, tuple(s))))) for k, s in shapes.items())
    state["decode_head.conv_seg.weight"] *= variant.gain
    state["decode_head.conv_seg.bias"] += variant.bias
    for key in state:
        if _WRITERS.search(key):
            state[key] *= variant.shrink
    return state


def drawn_image(height: int, width: int) -> UInt8Array:
    """uint8 [height, width, 3], RGB: stripes, squares and discs of whole numbers, so that every machine draws alike."""
    y, x = np.mgrid[:height, :width]
    red = (3 * x + 2 * y) % 256
    green = 40 + 150 * ((x // 17 + y // 13) % 2) + (x * y) % 40
    blue = np.where((x - width // 3) ** 2 + (y - height // 2) ** 2 < (height // 3) ** 2, 220, (5 * y) % 120)
    return np.stack([red, green, blue], axis=2).astype(np.uint8)


def drawn_labels(variant: Variant) -> UInt8Array:
    """uint8 [height, width]: blocks of the variant's classes, from its first label, with every other label as a rim."""
    height, width = variant.size
    y, x = np.mgrid[:height, :width]
    label = (x // 20 + 2 * (y // 24)) % variant.labels + variant.first_label
    if variant.first_label:
        label[:5] = 0  # no class
    ignored = next((v for k, v in variant.changes.items() if k == "test_evaluator.ignore_index"), 255)
    label[-7:] = ignored
    return label.astype(np.uint8)


def write_drawn(variant: Variant, folder: Path, label: UInt8Array | None = None) -> None:
    """Writes `images/a.png` and `labels/a.png`. label: in place of the drawn ones."""
    for part, pixels in (
        ("images", drawn_image(*variant.size)),
        ("labels", drawn_labels(variant) if label is None else label),
    ):
        (folder / part).mkdir(parents=True)
        Image.fromarray(pixels).save(folder / part / "a.png")


def checkpoint_of(state: Mapping[str, Tensor], record: Mapping[str, Any], *, version: str) -> dict[str, Any]:
    """The content of a file as mmengine (`1.x`) or mmcv (`0.x`) writes it. record: of recorded.json."""
    names = record["dataset_meta"]
    if version == "0.x":
        meta = {"mmseg_version": "0.30.0", "mmcv_version": "1.7.0", "config": unpacked(record["old_config"]).decode()}
        meta |= {"CLASSES": names["classes"], "PALETTE": names["palette"], "epoch": 1, "iter": 80000}
        return {"meta": meta, "state_dict": OrderedDict(state)}
    meta = {"cfg": unpacked(record["config"]).decode(), "dataset_meta": names, "seed": 0, "experiment_name": "drawn"}
    meta |= {"mmengine_version": "0.10.7", "epoch": 1, "iter": 80000}
    return {"meta": meta, "state_dict": OrderedDict(state), "message_hub": {"resumed_keys": {}}}


def unpacked(text: str) -> bytes:
    """The bytes behind packed text of recorded.json."""
    return zlib.decompress(base64.b64decode(text))


def narrowed(state: Mapping[str, Tensor], width: int = 128) -> State:
    """The weights of an SVT-S FPN model whose neck has its first `width` channels alone."""
    narrow = dict(state)
    for key, value in state.items():
        if key.startswith("neck.fpn_convs") and value.ndim == 4:
            narrow[key] = value[:width, :width]
        elif key.startswith("neck."):
            narrow[key] = value[:width]
        elif key.startswith("decode_head.scale_heads") and key.endswith(".0.conv.weight"):
            narrow[key] = value[:, :width]
    return {key: value.clone() for key, value in narrow.items()}


def _prefixed(prefix: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda content: _with_state(content, {prefix + k: v for k, v in content["state_dict"].items()})


def _with_state(content: dict[str, Any], state: Mapping[str, Tensor], **more: Any) -> dict[str, Any]:
    return {**content, "state_dict": OrderedDict(state), **more}


def _compiled_backbone(content: dict[str, Any]) -> dict[str, Any]:
    state = content["state_dict"]
    return _with_state(content, {k.replace("backbone.", "backbone._orig_mod.", 1): v for k, v in state.items()})


def averaged(state: Mapping[str, Tensor]) -> State:
    """Other weights of the same model, as if averaged: their masks differ from those of `state`."""
    return {k: v.flip(0) if k == "decode_head.conv_seg.weight" else v for k, v in state.items()}


def _ema_buffers(content: dict[str, Any]) -> dict[str, Any]:
    state = content["state_dict"]
    of_parameters = {k: v for k, v in averaged(state).items() if not k.endswith("num_batches_tracked")}
    return _with_state(content, {**state, **{f"ema_{k.replace('.', '_')}": v for k, v in of_parameters.items()}})


def _ema_of_mmengine(content: dict[str, Any]) -> dict[str, Any]:
    raw = {f"module.{key}": value for key, value in averaged(content["state_dict"]).items()}
    return {**content, "ema_state_dict": OrderedDict({"steps": torch.tensor(7), **raw})}


def _without_counters(content: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in content["state_dict"].items() if not k.endswith("num_batches_tracked")}
    return _with_state(content, kept)


def _extra_auxiliary(content: dict[str, Any]) -> dict[str, Any]:
    extra = {f"auxiliary_head.{i}.conv_seg.weight": torch.zeros(4, 8, 1, 1) for i in range(2)}
    return _with_state(content, {**content["state_dict"], **extra, "auxiliary_head.conv_seg.bias": torch.zeros(4)})


WRAPPERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "module": _prefixed("module."),
    "compiled": _prefixed("_orig_mod."),
    "module_compiled": _prefixed("module._orig_mod."),
    "compiled_backbone": _compiled_backbone,
    "lightning": lambda content: {
        **_prefixed("model.")(content),
        "pytorch-lightning_version": "2.4.0",
        "hyper_parameters": {"lr": 1e-4},
        "global_step": 10,
    },
    "model_state_dict": lambda content: {"epoch": 3, "model_state_dict": content["state_dict"], "loss": 0.3},
    "bare": lambda content: content["state_dict"],
    "ema_state_dict": lambda content: {"ema_state_dict": content["state_dict"], "epoch": 3},
    "ema_of_mmengine": _ema_of_mmengine,
    "ema_buffers": _ema_buffers,
    "without_counters": _without_counters,
    "extra_auxiliary": _extra_auxiliary,
}
"""What surrounds the weights of `plain` in people's files, by name. Inference uses the same tensors in all."""
