"""What fields that several verbs share ask for: images, a test scale, a mode, a graph, a device."""

from __future__ import annotations

import difflib
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from twins_trt.builders.export.options import DynamicDim, ExportOptions
from twins_trt.data.preprocessing import ADE20K_TEST
from twins_trt.errors import MissingDependencyError, TwinsError, UsageError
from twins_trt.models.zoo import list_models
from twins_trt.spelling import spelled

if TYPE_CHECKING:
    from twins_trt.data import Dataset
    from twins_trt.inference.fitting import FitMode
    from twins_trt.inference.tiling import Tiles
    from twins_trt.models.segmentor import Segmentor
    from twins_trt.models.weights import ModelFacts
    from twins_trt.runtime import Bundle


def labelled_images(data: str, *, split: str, limit: int | None) -> Dataset:
    """The images of `data_flags`. Raises `UsageError` for a limit below 1, and as `open_dataset` does."""
    from twins_trt.data import open_dataset

    if limit is not None and limit < 1:
        raise UsageError(f"{spelled('limit')} is {limit}", "give at least 1")
    return open_dataset(data, split=split).first(limit)


def scale_of(data: str, asked: tuple[int, int] | str | None) -> tuple[int, int] | None:
    """(long, short) side that images of `data` are fitted into: what was asked, else mmsegmentation's for ADE20K."""
    if asked is None:
        return ADE20K_TEST.test_scale if data.startswith("ade20k:") else None
    return None if isinstance(asked, str) else asked


def mode_of(mode: str | None, *, tile: tuple[int, int] | None, overlap: int | None) -> str | Tiles:
    """What the fields of `mode_flags` say. Raises `UsageError`."""
    from twins_trt.inference.runner import resolve_mode
    from twins_trt.inference.tiling import Tiles

    if tile is None and overlap is None:
        whole = mode or "whole"
        resolve_mode(whole)
        return whole
    if mode not in (None, "tile"):
        raise UsageError(
            f"{spelled('tile')} and {spelled('overlap')} are of {spelled('mode', 'tile')}, not {mode}",
            f"leave {spelled('mode')} out",
        )
    return Tiles(tile, overlap)


def fit_of(fit: str) -> FitMode:
    """How images meet a graph of fixed size. Raises `UsageError` for another word."""
    if fit == "stretch":
        return "stretch"
    if fit == "letterbox":
        return "letterbox"
    raise UsageError(f"there is no fit {fit!r}", "use stretch or letterbox")


def place_of(bundle: str | PathLike[str] | Bundle) -> str:
    """The folder of a bundle that may be open already."""
    return fspath(bundle) if isinstance(bundle, (str, PathLike)) else str(bundle.path)


class AsksForWeights(Protocol):
    """A request with the fields of `weights_flags`, its checkpoint aside, which may have stood in the model's place."""

    @property
    def seeded(self) -> bool: ...
    @property
    def num_classes(self) -> int | None: ...
    @property
    def padding(self) -> str: ...


def load_asked(asked: AsksForWeights, model: str, checkpoint: str | None) -> tuple[Segmentor, ModelFacts]:
    """The model that a request asks for, with its weights. model, checkpoint: as `tell_model` gives them.

    Raises as `load_weights` does.
    """
    from twins_trt.models.weights import load_weights

    return load_weights(
        model, checkpoint=checkpoint, seeded=asked.seeded, num_classes=asked.num_classes, padding=asked.padding
    )


class AsksForGraph(Protocol):
    """A request with the fields of `graph_flags`."""

    @property
    def size(self) -> tuple[int | DynamicDim, int | DynamicDim] | None: ...
    @property
    def batch(self) -> int | DynamicDim: ...
    @property
    def precision(self) -> str | None: ...
    @property
    def opset(self) -> int | None: ...
    @property
    def input(self) -> str: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...
    @property
    def upernet_levels(self) -> int | None: ...


def export_options(
    asked: AsksForGraph, *, target: str, precision: str, crop_size: tuple[int, int], opset: int = ExportOptions.opset
) -> ExportOptions:
    """The export that a request asks for.

    target, precision, crop_size, opset: what holds where it leaves them open. Raises `UsageError`.
    """
    height, width = asked.size or crop_size
    return ExportOptions(
        height=height,
        width=width,
        batch=asked.batch,
        precision=asked.precision or precision,
        opset=asked.opset or opset,
        input=asked.input,
        outputs=asked.outputs,
        target=target,
        upernet_levels=asked.upernet_levels,
    )


def torch_device(name: str) -> str:
    """`cpu` or `cuda`, of the device called `name`. Raises `UsageError`, `MissingDependencyError` without a GPU."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise UsageError(f"there is no device {name!r}", "use auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise MissingDependencyError(
            "PyTorch sees no CUDA device", f"use {spelled('device', 'cpu')}; twins-trt doctor says more"
        )
    return name


def nothing_called(what: str, *, no: str, fix: str) -> UsageError:
    """The error for what is neither a `no` nor a model's name; fix: where no model has a name like it."""
    near = difflib.get_close_matches(what, list_models(), n=3)
    mend = f"use one of: {', '.join(near)}" if near else fix
    return UsageError(f"there is no {no} and no model called {what!r}", mend)


def check_new_file(out: Path, *, overwrite: bool, such_as: str, error: type[TwinsError]) -> None:
    """Raises `error` where `out` cannot be a new file, before the work that it is for. such_as: a file's name."""
    if out.is_dir():
        raise error(f"{out} is a folder", f"name the file to write in it, such as {such_as}")
    if out.exists() and not overwrite:
        raise error(f"{out} exists", f"choose another name, or replace it: {spelled('overwrite', True)}")
    if not out.absolute().parent.is_dir():
        raise error(f"there is no folder {out.absolute().parent}", f"mkdir -p {out.parent}")
