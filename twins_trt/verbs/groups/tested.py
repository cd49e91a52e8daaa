"""How a model is tested: what the caller says, else what its checkpoint says, else the default."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from twins_trt.errors import UsageError
from twins_trt.models.conventions import Conventions, Fact, Origin
from twins_trt.spelling import spelled
from twins_trt.verbs.groups.images import scale_of
from twins_trt.verbs.groups.modes import mode_of

if TYPE_CHECKING:
    from twins_trt.data import Dataset
    from twins_trt.inference.interface import GraphInterface
    from twins_trt.inference.modes import InferenceMode
    from twins_trt.inference.tiling import Tiles
    from twins_trt.runtime import Bundle

    RunMode: TypeAlias = str | InferenceMode | Tiles

log = logging.getLogger("twins_trt")

OF_LABELS_AND_TESTS = ("reduce_zero_label", "ignore_index", "test_mode", "test_scale", "keep_ratio")
"""Conventions that a bundle leaves open; the others are inside its graph."""

_SHOWN = ("test_scale", "test_mode", "threshold", "reduce_zero_label", "ignore_index", "mean", "std", "channels")


@dataclass(frozen=True)
class Tested:
    """How images are run and labels are read.

    mode: as a `Segmenter` takes it. told: the conventions that hold, with the origin of each. notes: what was not done
    as the checkpoint says, and why.
    """

    mode: RunMode
    told: Conventions
    notes: tuple[str, ...] = ()


def resolve_test(
    told: Conventions,
    *,
    data: str | None = None,
    test_scale: tuple[int, int] | str | None = None,
    mode: str | None = None,
    tile: tuple[int, int] | None = None,
    overlap: int | None = None,
    interface: GraphInterface | None = None,
) -> Tested:
    """What holds of the fields of a request and the conventions of its model.

    data: the images, whose kind may have a test scale of its own. test_scale, mode, tile, overlap: as in
    `EvaluateRequest`. interface: of a bundle, whose graph may be unable to run the windows of its checkpoint.
    A mode or test scale of the caller that contradicts the checkpoint's is logged.
    Raises `UsageError` as `mode_of` does.
    """
    if data is not None:
        told = _scaled(told, data, test_scale)
    if (mode, tile, overlap) != (None, None, None):
        run = mode_of(mode, tile=tile, overlap=overlap)
        _say_other_windows(told, run)
        return Tested(run, _with_fact(told, "test_mode", run if isinstance(run, str) else "tile", "flag"))
    tested = told.test_mode
    if tested.crop is None or tested.stride is None:
        return Tested("whole", told)
    reason = None if interface is None else _why_no_windows(interface, tested.crop)
    if reason is not None:
        note = f"the checkpoint is tested in windows of {_x(tested.crop)}, but images were run whole: {reason}"
        return Tested("whole", _with_fact(told, "test_mode", "whole", "default"), (note,))
    from twins_trt.inference.modes import InferenceMode

    return Tested(InferenceMode("slide", crop=tested.crop, stride=tested.stride), told)


def told_by_bundle(bundle: Bundle, conventions: Mapping[str, str] | None = None) -> Conventions:
    """What a bundle's manifest says of images, labels and tests.

    conventions: values by name that hold in place of its own. Raises `UsageError` for one that is inside the graph.
    """
    from twins_trt.models.convention_flags import read_flags, spelled_value

    manifest, interface = bundle.manifest, bundle.interface
    told = Conventions(
        preprocessing=interface.preprocessing,
        threshold=interface.threshold,
        reduce_zero_label=manifest.reduce_zero_label,
        ignore_index=manifest.ignore_index,
        test_mode=manifest.test_mode,
        padding=manifest.padding,
        classes=interface.classes,
        palette=interface.palette,
        miou=manifest.miou,
        facts=manifest.facts,
    )
    asked = dict(read_flags(conventions or {}))
    if inside := [name for name in asked if name not in OF_LABELS_AND_TESTS]:
        raise UsageError(
            f"{inside[0]} is inside the graph of {bundle.path}",
            f"leave it out, or build anew with {spelled('conventions', f'{inside[0]}=VALUE')}",
        )
    preprocessing = told.preprocessing
    for name, value in asked.items():
        before = getattr(preprocessing if name in ("test_scale", "keep_ratio") else told, name)
        if before not in (None, value) and told.fact(name) is not None:
            log.warning("%s=%s, where %s says %s", name, spelled_value(value), bundle.path, spelled_value(before))
        told = _with_fact(told, name, spelled_value(value), "flag")
    scaling = {name: asked.pop(name) for name in ("test_scale", "keep_ratio") if name in asked}
    return replace(told, preprocessing=replace(preprocessing, **scaling), **asked)


def facts_that_hold(told: Conventions, dataset: Dataset) -> tuple[Fact, ...]:
    """What decided the scores, each with its origin. Labels of a data set with a convention of its own need none."""
    folder = dataset.source.startswith("folder:")
    of_labels = () if folder else ("reduce_zero_label", "ignore_index")
    return tuple(fact for name in _SHOWN if name not in of_labels and (fact := told.fact(name)) is not None)


def _scaled(told: Conventions, data: str, test_scale: tuple[int, int] | str | None) -> Conventions:
    """The conventions with the test scale that holds: the caller's, the checkpoint's, that of the kind of data."""
    from twins_trt.models.convention_flags import spelled_value

    if test_scale is None and told.preprocessing.test_scale is not None:
        return told
    scale = scale_of(data, test_scale)
    if test_scale is None and scale is None:
        return told
    if scale != told.preprocessing.test_scale:
        _say_other(told, "test_scale", spelled_value(scale))
    preprocessing = replace(told.preprocessing, test_scale=scale, keep_ratio=True)
    told = replace(told, preprocessing=preprocessing)
    return _with_fact(told, "test_scale", spelled_value(scale), "default" if test_scale is None else "flag")


def _say_other_windows(told: Conventions, run: str | Tiles) -> None:
    """Logs a mode whose windows are not the checkpoint's. Tiles are no mode of mmsegmentation, and scores say so."""
    from twins_trt.inference.modes import INFERENCE_MODES

    if not isinstance(run, str) or run not in INFERENCE_MODES:
        return
    windows = INFERENCE_MODES[run].windows
    crop, stride = windows or (None, None)
    if (crop, stride) != (told.test_mode.crop, told.test_mode.stride):
        _say_other(told, "test_mode", run if windows is None else f"{run} in windows of {_x(windows[0])}")


def _say_other(told: Conventions, name: str, value: str) -> None:
    """Logs a value of the caller where the checkpoint's file states another."""
    fact = told.fact(name)
    if fact is not None and fact.origin == "file":
        log.warning("%s is %s, as you say, although the file says %s (%s)", name, value, fact.value, fact.place)


def _why_no_windows(interface: GraphInterface, crop: tuple[int, int]) -> str | None:
    """Why a graph cannot run windows of (height, width) `crop`; None if it can."""
    if interface.output("logits") is None:
        return f"the graph gives no logits ({spelled('outputs', 'logits')})"
    for side, (low, high) in zip(crop, interface.size_limits, strict=True):
        if side < low or (high is not None and side > high):
            return f"the graph takes {interface.image} ({spelled('size', _x(crop))})"
    return None


def _with_fact(told: Conventions, name: str, value: str, origin: Origin) -> Conventions:
    others = tuple(fact for fact in told.facts if fact.name != name)
    return replace(told, facts=(*others, Fact(name, value, origin)))


def _x(sides: tuple[int, int]) -> str:
    return f"{sides[0]}x{sides[1]}"
