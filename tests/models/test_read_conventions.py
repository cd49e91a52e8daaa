"""What a checkpoint's configuration says, as both generations of mmsegmentation write it, flags, and refusals."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest

from twins_trt.codec import encode
from twins_trt.data.preprocessing import Preprocessing
from twins_trt.errors import CheckpointError, UsageError
from twins_trt.models.conventions import Conventions, Fact, TestMode
from twins_trt.models.mmseg_model import ModelNumbers
from twins_trt.models.read_conventions import OWN, read_conventions, write_conventions
from twins_trt.models.zoo import get_spec
from twins_trt.spelling import speaking

NEW: dict[str, Any] = {
    "crop_size": [64, 96],
    "data_preprocessor": {"type": "SegDataPreProcessor", "mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]},
    "model": {
        "type": "EncoderDecoder",
        "backbone": {
            "type": "mmseg.SVT",
            "num_heads": [2, 4, 8, 16],
            "windiow_sizes": [7, 7, 7, 7],
            "norm_cfg": {"type": "LN", "eps": 1e-6},
            "drop_path_rate": 0.2,
        },
        "decode_head": {"type": "FPNHead", "num_classes": 4, "ignore_index": 254, "align_corners": False},
        "test_cfg": {"mode": "slide", "crop_size": [64, 96], "stride": [42, 60]},
    },
    "test_pipeline": [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": [2048, 512], "keep_ratio": True},
        {"type": "LoadAnnotations", "reduce_zero_label": True},
    ],
}
OLD: dict[str, Any] = {
    "img_norm_cfg": {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "to_rgb": False},
    "train_pipeline": [
        {"type": "LoadAnnotations", "reduce_zero_label": True},
        {"type": "RandomCrop", "crop_size": [64, 96]},
    ],
    "test_pipeline": [
        {"type": "LoadImageFromFile"},
        {
            "type": "MultiScaleFlipAug",
            "img_scale": [2048, 512],
            "transforms": [
                {"type": "Resize", "keep_ratio": True},
                {"type": "Normalize", "mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "to_rgb": False},
            ],
        },
    ],
    "model": {"type": "EncoderDecoder", "test_cfg": {"mode": "slide", "crop_size": 64, "stride": 42}},
}


def read(config: Any = None, **options: Any) -> tuple[Conventions, ModelNumbers]:
    """The conventions of a file with this configuration."""
    meta = options.pop("meta", {}) | ({} if config is None else {options.pop("key", "cfg"): config})
    given = {"origin": "mmseg", "padding": "parity", "num_logits": 4, "flags": {}, "path": "x.pth"}
    return read_conventions(meta, **{**given, **options})


def told_of(config: Any = None, **options: Any) -> Conventions:
    return read(config, **options)[0]


def changed(config: dict[str, Any], place: str, value: object) -> dict[str, Any]:
    """The configuration with one value of a dotted place."""
    name, _, rest = place.partition(".")
    inner = config.get(name)
    return {**config, name: changed(inner if isinstance(inner, dict) else {}, rest, value) if rest else value}


def where(told: Conventions, name: str) -> str:
    fact = told.fact(name)
    assert fact is not None, name
    return fact.where


def test_version_1_is_read_with_the_place_of_each_value() -> None:
    told, numbers = read(NEW)
    assert told.preprocessing == Preprocessing((1, 2, 3), (4, 5, 6), test_scale=(2048, 512), channels="bgr")
    assert told.test_mode == TestMode("slide", (64, 96), (42, 60))
    assert (told.reduce_zero_label, told.ignore_index, told.train_size) == (True, 254, (64, 96))
    assert (told.threshold, told.padding, told.miou) == (None, "parity", None)
    assert (numbers.num_heads, numbers.window_size, numbers.norm_eps) == ((2, 4, 8, 16), 7, 1e-6)
    assert numbers.drop_path_rate == 0.2
    assert {fact.name: fact.place for fact in told.facts if fact.origin == "file"} == {
        "mean": "data_preprocessor.mean",
        "std": "data_preprocessor.std",
        "channels": "data_preprocessor.bgr_to_rgb",
        "test_scale": "test_pipeline.1.scale",
        "keep_ratio": "test_pipeline.1.keep_ratio",
        "reduce_zero_label": "test_pipeline.2.reduce_zero_label",
        "ignore_index": "model.decode_head.ignore_index",
        "align_corners": "model.decode_head.align_corners",
        "num_classes": "model.decode_head.num_classes",
        "test_mode": "model.test_cfg",
        "train_size": "crop_size",
        "num_heads": "model.backbone.num_heads",
        "window_size": "model.backbone.windiow_sizes",
        "norm_eps": "model.backbone.norm_cfg.eps",
        "drop_path_rate": "model.backbone.drop_path_rate",
    }


def test_version_0_says_the_same_elsewhere() -> None:
    told = told_of(OLD, key="config")
    assert told.preprocessing == Preprocessing((1, 2, 3), (4, 5, 6), test_scale=(2048, 512), channels="bgr")
    assert told.test_mode == TestMode("slide", (64, 64), (42, 42))
    assert (told.reduce_zero_label, told.train_size) == (True, (64, 96))
    assert where(told, "mean") == "file (test_pipeline.1.transforms.1.mean)"
    assert where(told, "test_scale") == "file (test_pipeline.1.img_scale)"
    assert where(told, "train_size") == "file (train_pipeline.1.crop_size)"
    assert where(told, "ignore_index") == "default"


@pytest.mark.parametrize(
    ("config", "channels"),
    [
        ({"data_preprocessor": {"mean": [0, 0, 0], "std": [1, 1, 1], "bgr_to_rgb": True}}, "rgb"),
        ({"data_preprocessor": {"mean": [0, 0, 0], "std": [1, 1, 1], "rgb_to_bgr": True}}, "rgb"),
        ({"data_preprocessor": {"mean": [0, 0, 0], "std": [1, 1, 1]}}, "bgr"),
        ({"data_preprocessor": {"type": "SegDataPreProcessor"}}, "bgr"),
        ({"img_norm_cfg": {"mean": [0, 0, 0], "std": [1, 1, 1]}}, "rgb"),
        ({"img_norm_cfg": {"mean": [0, 0, 0], "std": [1, 1, 1], "to_rgb": False}}, "bgr"),
    ],
)
def test_order_of_channels(config: dict[str, Any], channels: str) -> None:
    assert told_of(config).preprocessing == Preprocessing((0, 0, 0), (1, 1, 1), channels=channels)


@pytest.mark.parametrize(
    ("step", "scale", "keep"),
    [
        ({"type": "Resize", "scale": [640, 480]}, (640, 480), False),
        ({"type": "Resize", "scale": 512, "keep_ratio": True}, (512, 512), True),
        ({"type": "Resize", "img_scale": [640, 480]}, (640, 480), True),
        ({"type": "mmseg.ResizeShortestEdge", "scale": 512, "max_size": 2048}, (2048, 512), True),
        ({"type": "LoadImageFromFile"}, None, True),
    ],
)
def test_test_scale(step: dict[str, Any], scale: tuple[int, int] | None, keep: bool) -> None:
    preprocessing = told_of({"test_dataloader": {"dataset": {"pipeline": [step]}}}).preprocessing
    assert (preprocessing.test_scale, preprocessing.keep_ratio) == (scale, keep)


@pytest.mark.parametrize(
    ("meta", "reduces", "place"),
    [
        ({"cfg": {"dataset_type": "ADE20KDataset"}}, True, "file (dataset_type)"),
        ({"cfg": {"data": {"train": {"type": "LoveDADataset"}}}}, True, "file (data.train.type)"),
        ({"cfg": {"data": {"test": {"type": "CustomDataset", "reduce_zero_label": False}}}}, False, None),
        ({"cfg": {"test_pipeline": [{"type": "LoadAnnotations", "reduce_zero_label": True}]}}, True, None),
        ({"dataset_meta": {"classes": ["a"], "reduce_zero_label": True}}, True, None),
        ({"cfg": {"dataset_type": "CityscapesDataset"}}, None, None),
        ({}, None, None),
    ],
)
def test_whether_label_0_means_no_class(meta: dict[str, Any], reduces: bool | None, place: str | None) -> None:
    told = told_of(meta=meta)
    assert told.reduce_zero_label is reduces
    if place is not None:
        assert where(told, "reduce_zero_label") == place


@pytest.mark.parametrize(
    ("head", "threshold", "origin"),
    [({"threshold": 0.6}, 0.6, "file (model.decode_head.threshold)"), ({"num_classes": 2}, 0.3, "default")],
)
def test_one_logit_has_the_files_threshold(head: dict[str, Any], threshold: float, origin: str) -> None:
    told = told_of({"model": {"decode_head": head}}, num_logits=1)
    assert (told.threshold, where(told, "threshold")) == (threshold, origin)


def test_without_configuration_imagenet_is_assumed_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "twins_trt")
    told = told_of(meta={"CLASSES": ["a", "b", "c", "d"]})
    assert told.preprocessing == Preprocessing()
    assert [where(told, name) for name in ("mean", "std", "channels")] == ["assumed"] * 3
    assert [where(told, name) for name in ("test_scale", "ignore_index", "test_mode")] == ["default"] * 3
    (line,) = caplog.messages
    assert line.startswith("x.pth does not say how images are normalized; assumed: mean 123.675,116.28,103.53, ")


def test_a_configuration_that_is_a_files_name_is_said(caplog: pytest.LogCaptureFixture) -> None:
    told = told_of("twins_svt-s.py", key="config")
    assert where(told, "mean") == "assumed"
    assert "x.pth: parts of its configuration are in files that are not there: twins_svt-s.py" in caplog.messages


def test_what_was_not_understood_is_said_and_the_rest_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    text = "data_preprocessor = dict(mean=[0, 0, 0], std=[255, 255, 255])\nwork_dir = f('x')"
    assert told_of(text).preprocessing == Preprocessing((0, 0, 0), (255, 255, 255), channels="bgr")
    assert "x.pth: parts of its configuration were not understood: work_dir" in caplog.messages


@pytest.mark.parametrize(
    ("meta", "classes", "miou"),
    [
        ({"CLASSES": "water", "val_miou": 51.9}, ("water",), 51.9),
        ({"dataset_meta": {"classes": ["a", "b"]}, "miou": 40}, ("a", "b"), 40.0),
        ({"classes": ["a"], "hook_msgs": {"best_score": 0.4321, "best_ckpt": "best_mIoU_iter_4.pth"}}, ("a",), 43.21),
        ({"hook_msgs": {"best_score": 0.9, "best_ckpt": "best_aAcc_iter_4.pth"}}, None, None),
        ({"miou": float("nan")}, None, None),
        ({"miou": "high"}, None, None),
    ],
)
def test_classes_and_record(meta: dict[str, Any], classes: tuple[str, ...] | None, miou: float | None) -> None:
    told = told_of(meta=meta)
    assert (told.classes, told.miou) == (classes, miou)


def test_the_licence_that_a_file_names() -> None:
    told = told_of(meta={"license": "CC-BY\n4.0"})
    assert (told.licence, where(told, "licence")) == ("CC-BY 4.0", "file (license)")


REFUSED = [
    ("model.type", "CascadeEncoderDecoder", None),
    ("model.backbone.type", "ResNet", None),
    ("model.backbone.act_cfg", {"type": "ReLU"}, None),
    ("model.backbone.norm_cfg", {"type": "BN"}, None),
    ("model.backbone.windiow_sizes", [7, 7, 7, 14], None),
    ("model.backbone.strides", [4, 2, 2, 1], None),
    ("model.backbone.out_indices", [0, 1, 2], None),
    ("model.backbone.in_channels", 4, None),
    ("model.decode_head.type", "ASPPHead", None),
    ("model.decode_head", [{"type": "FPNHead"}], None),
    ("model.decode_head.act_cfg", {"type": "GELU"}, None),
    ("model.decode_head.norm_cfg", {"type": "GN", "num_groups": 32}, None),
    ("model.decode_head.pool_scales", [1, 2], None),
    ("model.decode_head.align_corners", True, "align_corners=false"),
    ("model.decode_head.ignore_index", -100, "ignore_index=255"),
    ("model.decode_head.threshold", 3, "threshold=0.5"),
    ("model.neck.type", "MLAFPN", None),
    ("model.neck.upsample_cfg", {"mode": "bilinear"}, None),
    ("model.test_cfg.mode", "patch", "test_mode=whole"),
    ("model.test_cfg", {"mode": "slide", "crop_size": [64, 64]}, "test_mode=slide:512x512:341x341"),
    ("data_preprocessor.type", "MyPreProcessor", None),
    ("data_preprocessor.mean", [1.0], "mean=123.675,116.28,103.53"),
    ("data_preprocessor.std", [0, 1, 1], "std=58.395,57.12,57.375"),
    ("data_preprocessor.test_cfg", {"size_divisor": 32}, "size_divisor=1"),
    ("data_preprocessor.size", "large", "train_size=512x512"),
    ("test_pipeline", [{"type": "Resize", "scale": [[640, 480], [320, 240]]}], "test_scale=2048x512"),
    ("test_pipeline", [{"type": "ResizeToMultiple"}], "size_divisor=1"),
    ("test_pipeline", [{"type": "LoadImageFromFile", "color_type": "grayscale"}], None),
    ("test_pipeline", [{"type": "CLAHE"}], None),
]


@pytest.mark.parametrize(("place", "value", "flag"), REFUSED, ids=[f"{place}={value}" for place, value, _ in REFUSED])
def test_what_cannot_be_honoured_is_refused_by_name(place: str, value: object, flag: str | None) -> None:
    config = changed(NEW, place, value)
    with pytest.raises(CheckpointError) as refusal:
        read(config, num_logits=1)
    words = place.rpartition(".")[2]
    assert words in refusal.value.cause and refusal.value.cause.startswith("x.pth: its configuration says ")
    if flag is None:
        assert refusal.value.fix == "change the model, and train it again"
    else:
        assert refusal.value.fix == f'override it, if you know better: conventions="{flag}"'


OVERRIDDEN = [(place, value, flag) for place, value, flag in REFUSED if flag is not None]


@pytest.mark.parametrize(("place", "value", "flag"), OVERRIDDEN, ids=[flag for _, _, flag in OVERRIDDEN])
def test_the_fix_of_a_refusal_works(place: str, value: object, flag: str, caplog: pytest.LogCaptureFixture) -> None:
    name, _, text = flag.partition("=")
    told = told_of(changed(NEW, place, value), num_logits=1, flags={name: text})
    assert told.fact(name) == Fact(name, text, "flag")
    assert [line for line in caplog.messages if line.startswith(f"{name} is {text}, as you say, although the file")]


FLAGS = [
    ("mean", "0,0,0", lambda told: told.preprocessing.mean, (0, 0, 0)),
    ("std", "255,255,255", lambda told: told.preprocessing.std, (255, 255, 255)),
    ("channels", "rgb", lambda told: told.preprocessing.channels, "rgb"),
    ("test_scale", "640x480", lambda told: told.preprocessing.test_scale, (640, 480)),
    ("test_scale", "none", lambda told: told.preprocessing.test_scale, None),
    ("keep_ratio", "false", lambda told: told.preprocessing.keep_ratio, False),
    ("reduce_zero_label", "false", lambda told: told.reduce_zero_label, False),
    ("ignore_index", "0", lambda told: told.ignore_index, 0),
    ("test_mode", "whole", lambda told: told.test_mode, TestMode()),
    ("test_mode", "slide:32x48:16x24", lambda told: told.test_mode, TestMode("slide", (32, 48), (16, 24))),
    ("train_size", "32x48", lambda told: told.train_size, (32, 48)),
]


@pytest.mark.parametrize(("name", "text", "value_of", "value"), FLAGS, ids=[f"{f[0]}={f[1]}" for f in FLAGS])
def test_a_flag_overrides_the_file_and_the_contradiction_is_said_once(
    name: str, text: str, value_of: Any, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    said = told_of(NEW).fact(name)
    told = told_of(NEW, flags={name: text})
    assert value_of(told) == value
    assert told.fact(name) == Fact(name, text, "flag")
    assert said is not None
    warned = f"{name} is {text}, as you say, although the file says {said.value} ({said.place})"
    assert caplog.messages == [warned]
    caplog.clear()
    assert told_of(NEW, flags={name: said.value}).fact(name) == Fact(name, said.value, "flag")
    assert caplog.messages == []


def test_flags_of_the_model_are_changes_of_its_spec() -> None:
    flags = {"num_heads": "1,2,4,8", "window_size": "14", "norm_eps": "1e-5"}
    wanted = {
        "num_heads": (1, 2, 4, 8),
        "window_size": 14,
        "norm_eps": 1e-5,
        "block_norm_eps": 1e-5,
        "outer_norm_eps": None,
    }
    assert read(NEW, flags=flags)[1].spec_changes == wanted


@pytest.mark.parametrize(
    "flag",
    [
        "mean=1,2",
        "mean=nan,0,0",
        "std=0,1,1",
        "std=inf,1,1",
        "channels=grb",
        "test_scale=0x5",
        "keep_ratio=perhaps",
        "threshold=1",
        "reduce_zero_label=2",
        "ignore_index=256",
        "test_mode=slide",
        "test_mode=slide:1x1:0x1",
        "train_size=512",
        "num_heads=1,2,3",
        "window_size=0",
        "norm_eps=0",
        "align_corners=true",
        "size_divisor=32",
    ],
)
def test_flags_that_do_not_fit_are_refused(flag: str) -> None:
    name, _, text = flag.partition("=")
    with pytest.raises(UsageError) as refusal:
        read(num_logits=1, flags={name: text})
    assert name in refusal.value.cause and repr(text) in refusal.value.cause
    fix = refusal.value.fix
    read(num_logits=1, flags=dict([fix.removeprefix('conventions="').removesuffix('"').split("=", 1)]))


def test_an_unknown_flag_and_a_threshold_without_one_logit_are_refused() -> None:
    with pytest.raises(UsageError, match="there is no convention 'gamma'"):
        read(flags={"gamma": "2"})
    with pytest.raises(UsageError, match="a threshold belongs to a head with one logit, this one has 4"):
        read(flags={"threshold": "0.5"})


def test_a_refusal_names_the_flag_of_a_command_line() -> None:
    with speaking(lambda name: None), pytest.raises(CheckpointError) as refusal:
        read(changed(NEW, "model.decode_head.align_corners", True))
    assert refusal.value.fix == "override it, if you know better: --conventions align_corners=false"


def test_other_numbers_than_the_weights_have_are_said(caplog: pytest.LogCaptureFixture) -> None:
    read(NEW, num_logits=11)
    assert caplog.messages == ["x.pth: model.decode_head.num_classes is 4 in its configuration, but 11 in its weights"]
    caplog.clear()
    read(changed(NEW, "model.decode_head.num_classes", 2), num_logits=1)
    assert caplog.messages == []


def test_other_padding_of_training_images_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="twins_trt"):
        told = told_of(changed(NEW, "data_preprocessor.pad_val", 114))
    assert where(told, "pad_val") == "file (data_preprocessor.pad_val)"
    assert caplog.messages == ["x.pth was trained with padding of 114; training here pads with 0"]


def test_our_own_files_read_back_exactly() -> None:
    told = replace(told_of(NEW, flags={"mean": "0,0,0"}), licence="MIT", miou=51.25, classes=("a", "b"), palette=None)
    spec = replace(get_spec("twins_svt-s_fpn"), num_heads=(1, 2, 4, 8), window_size=14, norm_eps=1e-6)
    own = write_conventions(told, spec)
    again, numbers = read(meta={OWN: own, "cfg": "data_preprocessor = dict(mean=[9, 9, 9])"})
    assert encode(again) == encode(told) and again == told
    assert replace(get_spec("twins_svt-s_fpn"), **numbers.spec_changes) == spec


@pytest.mark.parametrize("own", [{}, {"conventions": {"gamma": 1}, "spec": {}}, {"conventions": 3}])
def test_own_files_of_another_version_are_refused(own: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="was written by another version of twins-trt"):
        read(meta={OWN: own})


@pytest.mark.parametrize("place", ["model", "model.backbone", "model.decode_head", "model.test_cfg", "model.neck"])
@pytest.mark.parametrize("value", [None, 3, "text", [1, 2], {"type": 3}, {"mode": [], "type": []}])
def test_a_configuration_of_other_forms_ends_in_a_typed_error_at_most(place: str, value: object) -> None:
    try:
        told = told_of(changed(NEW, place, value))
    except CheckpointError as error:
        assert place in error.cause
    else:
        assert told.preprocessing.mean == (1, 2, 3)
