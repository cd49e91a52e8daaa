"""What a configuration of mmsegmentation says: each value with the dotted place that holds it.

Versions 0.x keep normalization in the pipelines (`img_norm_cfg`), 1.x in `data_preprocessor`. Images are loaded in the
order BGR by both, and `to_rgb` or `bgr_to_rgb` turns them (mmseg/models/data_preprocessor.py, mmcv's Normalize).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twins_trt.errors import CheckpointError
from twins_trt.spelling import spelled

Config = Mapping[str, Any]

REDUCES_ZERO = (
    "ADE20KDataset",
    "PascalContextDataset59",
    "LoveDADataset",
    "PotsdamDataset",
    "ISPRSDataset",
)
"""mmseg's data sets whose label 0 means "no class" unless the configuration says otherwise (mmseg/datasets)."""
CHANGES_PIXELS = ("AdjustGamma", "Albu", "CenterCrop", "CLAHE", "RandomCrop", "Rerange", "RGB2Gray")
"""Steps of mmcv and mmseg that change what the network sees (mmseg/datasets/transforms/transforms.py)."""
MOST_STEPS = 500  # of a pipeline that are looked at


@dataclass(frozen=True)
class Said:
    """A value and the dotted place of the configuration that holds it."""

    value: Any
    place: str


class MmsegConfig:
    """Looks values up in a configuration. path: of the checkpoint, for errors."""

    def __init__(self, values: Config, path: str | Path) -> None:
        self.values = values
        self.path = path

    def at(self, *places: str) -> Said | None:
        """The first of these dotted places that is there, and not None."""
        for place in places:
            value: Any = self.values
            for name in place.split("."):
                value = value.get(name) if isinstance(value, Mapping) else None
            if value is not None:
                return Said(value, place)
        return None

    def mapping(self, *places: str) -> tuple[Config, str]:
        """The first of these places that holds a dict, and its name; an empty one if there is none."""
        for place in places:
            said = self.at(place)
            if said is not None and isinstance(said.value, Mapping):
                return said.value, said.place
        return {}, ""

    def steps(self, *places: str) -> Iterator[tuple[Config, str]]:
        """The steps of the first of these pipelines that is there, those within a step included."""
        for place in places:
            said = self.at(place)
            if said is not None and isinstance(said.value, list):
                yield from _steps(said.value, place, [MOST_STEPS])
                return

    def refuse(self, place: str, value: object, why: str, *, flag: str = "") -> CheckpointError:
        """The error for a value that cannot be honoured. flag: a convention that overrides it."""
        override = f"override it, if you know better: {spelled('conventions', flag)}"
        fix = override if flag else "change the model, and train it again"
        return CheckpointError(f"{self.path}: its configuration says {place} = {short_text(value)}: {why}", fix)


def _steps(pipeline: list[Any], place: str, left: list[int]) -> Iterator[tuple[Config, str]]:
    for i, step in enumerate(pipeline):
        left[0] -= 1
        if left[0] < 0:
            return
        if isinstance(step, list):  # the variants of test-time augmentation
            yield from _steps(step, f"{place}.{i}", left)
        elif isinstance(step, Mapping):
            yield step, f"{place}.{i}"
            if isinstance(inner := step.get("transforms"), list):
                yield from _steps(inner, f"{place}.{i}.transforms", left)


def plain_type(config: Config) -> str:
    """The `type` of a part without the registry's scope: `SVT` for `mmseg.SVT`."""
    kind = config.get("type")
    return kind.rpartition(".")[2] if isinstance(kind, str) else ""


PADS = ("pad_val", "seg_pad_val")
TEST_PIPELINES = (
    "test_pipeline",
    "test_dataloader.dataset.pipeline",
    "val_dataloader.dataset.pipeline",
    "data.test.pipeline",
    "data.val.pipeline",
)
TRAIN_PIPELINES = (
    "train_pipeline",
    "train_dataloader.dataset.pipeline",
    "train_dataloader.dataset.dataset.pipeline",
    "data.train.pipeline",
    "data.train.dataset.pipeline",
)
DATASETS = (
    "test_dataloader.dataset",
    "val_dataloader.dataset",
    "train_dataloader.dataset",
    "train_dataloader.dataset.dataset",
    "data.test",
    "data.val",
    "data.train",
    "data.train.dataset",
)


def find_normalization(config: MmsegConfig) -> dict[str, Said]:
    """`mean`, `std` and `channels` (`rgb` or `bgr`), as far as they are said."""
    part, place = config.mapping("model.data_preprocessor", "data_preprocessor")
    if part:
        kind = plain_type(part)
        if kind not in ("", "SegDataPreProcessor", "ClsDataPreprocessor"):
            raise config.refuse(f"{place}.type", kind, "twins-trt knows SegDataPreProcessor alone")
        turning = "to_rgb" if "to_rgb" in part else "bgr_to_rgb"  # mmpretrain's name, mmseg's
        turned = part.get(turning) is True or part.get("rgb_to_bgr") is True
        found = {"channels": Said("rgb" if turned else "bgr", f"{place}.{turning}")}
        unscaled = part.get("mean") is None
        for name, none in (("mean", [0, 0, 0]), ("std", [1, 1, 1])):
            found[name] = Said(none if unscaled else part.get(name), f"{place}.{name}")
        return found
    for step, where in config.steps(*TEST_PIPELINES):
        if plain_type(step) == "Normalize":
            return _of_step(step, where)
    step, where = config.mapping("img_norm_cfg")
    return _of_step(step, where) if step else {}


def _of_step(step: Config, place: str) -> dict[str, Said]:
    order = "rgb" if step.get("to_rgb", True) is True else "bgr"
    return {
        "mean": Said(step.get("mean"), f"{place}.mean"),
        "std": Said(step.get("std"), f"{place}.std"),
        "channels": Said(order, f"{place}.to_rgb"),
    }


def find_loading(config: MmsegConfig) -> None:
    """Raises `CheckpointError` for images that are loaded otherwise than as colours, or changed before the test."""
    for step, place in config.steps(*TEST_PIPELINES):
        if plain_type(step) in CHANGES_PIXELS:
            raise config.refuse(f"{place}.type", plain_type(step), "twins-trt resizes and normalizes images alone")
        kind = step.get("color_type", "color")
        if plain_type(step) == "LoadImageFromFile" and kind not in ("color", "color_ignore_orientation"):
            raise config.refuse(f"{place}.color_type", kind, "twins-trt reads images as colours")


def find_test_padding(config: MmsegConfig) -> Said | None:
    """The number of pixels whose multiple images are padded to, or resized to, while the model is tested."""
    part, place = config.mapping("model.data_preprocessor.test_cfg", "data_preprocessor.test_cfg")
    for name in ("size_divisor", "size"):
        if part.get(name) is not None:
            return Said(part[name], f"{place}.{name}")
    for step, where in config.steps(*TEST_PIPELINES):
        if plain_type(step) in ("Pad", "ResizeToMultiple"):
            for name in ("size_divisor", "size"):
                if step.get(name) is not None:
                    return Said(step[name], f"{where}.{name}")
            if plain_type(step) == "ResizeToMultiple":
                return Said(32, f"{where}.size_divisor")  # its default
    return None


def find_test_scale(config: MmsegConfig) -> dict[str, Said]:
    """`test_scale` (width, height) and `keep_ratio` of the test pipeline; empty where it does not resize."""
    outer: Said | None = None
    for step, place in config.steps(*TEST_PIPELINES):
        kind = plain_type(step)
        if kind == "MultiScaleFlipAug" and step.get("img_scale") is not None:
            outer = Said(step["img_scale"], f"{place}.img_scale")
        if kind == "ResizeShortestEdge":  # it keeps the ratio, and bounds the long side
            sides = [step.get("max_size"), step.get("scale")]
            return {"test_scale": Said(sides, f"{place}.scale"), "keep_ratio": Said(True, f"{place}.type")}
        if kind != "Resize":
            continue
        own = next((name for name in ("scale", "img_scale") if step.get(name) is not None), None)
        scale = Said(step[own], f"{place}.{own}") if own else outer
        if scale is None:
            continue
        keep = step.get("keep_ratio", own != "scale")  # 0.x keeps it by default, 1.x does not
        return {"test_scale": scale, "keep_ratio": Said(keep, f"{place}.keep_ratio")}
    return {}


def find_reduce_zero(config: MmsegConfig) -> Said | None:
    """Whether label 0 means "no class"."""
    for pipelines in (TEST_PIPELINES, TRAIN_PIPELINES):
        for step, place in config.steps(*pipelines):
            if plain_type(step) == "LoadAnnotations" and isinstance(step.get("reduce_zero_label"), bool):
                return Said(step["reduce_zero_label"], f"{place}.reduce_zero_label")
    for place in DATASETS:
        part, where = config.mapping(place)
        if isinstance(part.get("reduce_zero_label"), bool):
            return Said(part["reduce_zero_label"], f"{where}.reduce_zero_label")
    for place in (*DATASETS, ""):
        kind = config.at(f"{place}.type") if place else config.at("dataset_type")
        if kind is not None and isinstance(kind.value, str):
            name = kind.value.rpartition(".")[2]
            if name in REDUCES_ZERO:
                return Said(True, kind.place)
    return None


def find_padding(config: MmsegConfig) -> dict[str, Said]:
    """`pad_val` and `seg_pad_val`: what fills images, after normalization, and labels that are padded for training."""
    part, place = config.mapping("model.data_preprocessor", "data_preprocessor")
    found = {name: Said(part[name], f"{place}.{name}") for name in PADS if part.get(name) is not None}
    for step, where in config.steps(*TRAIN_PIPELINES):
        if plain_type(step) == "Pad":
            found |= {name: Said(step[name], f"{where}.{name}") for name in PADS if step.get(name) is not None}
    return found


def find_train_size(config: MmsegConfig) -> Said | None:
    """(height, width) of the crops that the model was trained on."""
    if (size := config.at("model.data_preprocessor.size", "data_preprocessor.size")) is not None:
        return size
    for step, place in config.steps(*TRAIN_PIPELINES):
        if plain_type(step) == "RandomCrop" and step.get("crop_size") is not None:
            return Said(step["crop_size"], f"{place}.crop_size")
    return config.at("crop_size")


def short_text(value: object) -> str:
    """A value for one line of text."""
    text = repr(value)
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= 60 else f"{text[:57]}..."
