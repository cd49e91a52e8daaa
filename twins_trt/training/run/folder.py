"""A run's folder: its options, the state to resume from, the log of every iteration, and checkpoints as mmseg's.

options.json   TrainOptions
model.json     TrainedModel: architecture and conventions; runs of earlier versions have none
log.csv        one line an iteration; validation.csv: one line a validation
tensorboard/   the same for TensorBoard, where it is installed
state.pth      everything that `resume` needs
last.pth       the weights of state.pth; best.pth: those of the best validation. Every other command takes both
"""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twins_trt.errors import TrainingError, UsageError
from twins_trt.files import whole_file
from twins_trt.models.convention_flags import spelled_value
from twins_trt.models.conventions import Conventions, Fact
from twins_trt.models.read_conventions import OWN, write_conventions
from twins_trt.spelling import spelled
from twins_trt.training.options import TrainOptions, as_mapping, changed, differing
from twins_trt.training.run.trained import TrainedModel
from twins_trt.verbs.train import CHANGEABLE, TrainRequest
from twins_trt.version import __version__

log = logging.getLogger("twins_trt")

OPTIONS, STATE, LAST, BEST = "options.json", "state.pth", "last.pth", "best.pth"
LOG, VALIDATION, CURVES = "log.csv", "validation.csv", "tensorboard"
PLAN, MODEL = "plan.json", "model.json"
STATE_VERSION = 1


def check_new(out: str) -> None:
    """Raises `TrainingError` where `out` is a file or holds a run already."""
    folder = Path(out)
    _check_folder(folder)
    if (folder / OPTIONS).exists():
        raise TrainingError(
            f"{folder} holds a training run",
            f"twins-trt train --resume {folder}, or choose another {spelled('out')}",
        )


def resumed(request: TrainRequest) -> TrainOptions:
    """The options with which the run in the folder `request.out` is resumed: its own, except for fields of the request.

    Raises `TrainingError` where there is no run, `UsageError` where the request changes what may not change.
    """
    if request.out is None:
        raise UsageError(f"{spelled('out')} is missing", f"name the run's folder: {spelled('out', 'DIR')}")
    folder = Path(request.out)
    _check_folder(folder)
    saved = load_options(folder)
    options = changed(saved, request)
    if different := [name for name in differing(options, saved) if name not in ("out", *CHANGEABLE)]:
        name = different[0]
        raise UsageError(
            f"{folder} was started with {spelled(name)} {getattr(saved, name)!r}, not {getattr(options, name)!r}",
            f"resume it as it was started: twins-trt train --resume {folder}",
        )
    return options


def load_options(folder: str | Path) -> TrainOptions:
    """The options of the run in `folder`. Raises `TrainingError` where there is no run."""
    path = Path(folder) / OPTIONS
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TrainingError(
            f"{folder} holds no training run: {path} cannot be read", "start one: twins-trt train MODEL --out FOLDER"
        ) from error
    return TrainOptions.from_json(text)


def load_model(folder: str | Path) -> TrainedModel | None:
    """The model of the run in `folder`; None for a run of an earlier version. Raises `TrainingError`."""
    path = Path(folder) / MODEL
    if not path.exists():
        return None
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} cannot be read: {error}", "start the run again") from error
    return TrainedModel.from_json(text, where=str(path))


def save_text(path: Path, text: str) -> None:
    """Writes a file of the run's folder, and makes the folder. Raises `TrainingError` where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise _unwritable(path.parent, error) from error


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Replaces the run's state, whole or not at all."""
    _save(folder / STATE, {"version": STATE_VERSION, **state})


def load_state(folder: Path) -> dict[str, Any]:
    """What `save_state` wrote. Raises `TrainingError` for a missing or damaged file, or another version's."""
    path = folder / STATE
    if not path.exists():
        raise TrainingError(f"{folder} has no state to resume from", f"remove {folder} and start the run again")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        version = state["version"]
    except Exception as error:  # a damaged file can make the unpickler raise anything
        raise TrainingError(f"{path} is damaged ({type(error).__name__})", "start the run again") from error
    if version != STATE_VERSION:
        raise TrainingError(f"{path} is of version {version}, this is {STATE_VERSION}", "pip install -U twins-trt")
    return dict(state)


def save_checkpoint(
    path: Path,
    weights: Mapping[str, Tensor],
    *,
    model: TrainedModel,
    options: TrainOptions,
    iteration: int,
    miou: float | None,
) -> None:
    """A checkpoint in mmsegmentation's format, with the conventions by which it was trained.

    miou: of these weights on the validation split, percent, if known.
    """
    told = as_written(model.conventions, miou=miou)
    meta: dict[str, Any] = {
        "dataset_meta": {"classes": list(told.classes or ()), "palette": [list(each) for each in told.palette or ()]},
        OWN: write_conventions(told, model.spec),
        "iter": iteration,
        "seed": options.seed,
        "twins_trt_version": __version__,
        "options": as_mapping(options),
    }
    if miou is not None:
        meta["mIoU"] = miou
    _save(path, {"meta": meta, "state_dict": {key: value.detach().cpu() for key, value in weights.items()}})


def as_written(told: Conventions, *, miou: float | None) -> Conventions:
    """The conventions as the file itself tells them, all of them: its readers need no flag of the training.

    miou: of the weights, percent.
    """
    normal = told.preprocessing
    values = {
        **{name: getattr(normal, name) for name in ("mean", "std", "channels", "test_scale", "keep_ratio")},
        **{name: getattr(told, name) for name in ("threshold", "reduce_zero_label", "ignore_index", "test_mode")},
        "train_size": told.train_size,
        "padding": told.padding,
        "classes": None if told.classes is None else ", ".join(told.classes),
        "miou": None if miou is None else f"{miou:.2f}",
    }
    facts = tuple(
        Fact(name, spelled_value(value), "file", OWN)
        for name, value in values.items()
        if value is not None or name == "test_scale"
    )
    return replace(told, miou=miou, facts=facts)


class Log:
    """The two CSV files and TensorBoard's. Lines after `iteration`, which a killed run left, are removed."""

    def __init__(self, folder: Path, *, iteration: int) -> None:
        columns = ("iteration", "loss", "decode", "auxiliary", "accuracy", "lr", "seconds")
        try:
            self._steps = _opened(folder / LOG, columns, iteration)
            self._validations = _opened(folder / VALIDATION, ("iteration", "miou", "aacc", "macc"), iteration)
        except OSError as error:
            raise _unwritable(folder, error) from error
        self._curves = _curves(folder / CURVES, iteration)

    def step(self, iteration: int, values: Mapping[str, float], *, point: bool) -> None:
        """Logs one iteration; point: for TensorBoard too."""
        self._write(self._steps, iteration, list(values.values()))
        if point:
            self._steps.flush()
            self._draw("train", iteration, values)

    def validation(self, iteration: int, values: Mapping[str, float]) -> None:
        self._write(self._validations, iteration, list(values.values()))
        self._validations.flush()
        self._draw("val", iteration, values)

    def flush(self) -> None:
        self._steps.flush()

    def close(self) -> None:
        self._steps.close()
        self._validations.close()
        if self._curves is not None:
            self._curves.close()

    def _write(self, file: Any, iteration: int, values: Sequence[float]) -> None:
        csv.writer(file, lineterminator="\n").writerow([iteration, *values])

    def _draw(self, group: str, iteration: int, values: Mapping[str, float]) -> None:
        if self._curves is not None:
            for name, value in values.items():
                if math.isfinite(value):
                    self._curves.add_scalar(f"{group}/{name}", value, iteration)


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise TrainingError(f"{folder} is not a folder", f"choose another {spelled('out')}")


def _opened(path: Path, columns: Sequence[str], iteration: int) -> Any:
    """The file, open for the lines after `iteration`."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() and iteration else []
    kept = [line for line in lines[1:] if line.endswith("\n") and int(line.partition(",")[0]) <= iteration]
    with whole_file(path) as file:
        file.write((",".join(columns) + "\n" + "".join(kept)).encode())
    return open(path, "a", encoding="utf-8", newline="")


def _curves(folder: Path, iteration: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info('no curves for TensorBoard: pip install "twins-trt[train]"')
        return None
    return SummaryWriter(str(folder), purge_step=iteration + 1)


def _save(path: Path, content: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            torch.save(dict(content), file)
    except (OSError, RuntimeError) as error:  # torch's zip writer wraps a full disk in a RuntimeError
        raise _unwritable(path.parent, error) from error


def _unwritable(folder: Path, error: Exception) -> TrainingError:
    reason = getattr(error, "strerror", None) or error
    return TrainingError(f"{folder} cannot be written: {reason}", "check the folder's permissions and space")
