"""Which of a request's names is a model, and which a checkpoint."""

from __future__ import annotations

from pathlib import Path

from twins_trt.errors import UsageError
from twins_trt.models.zoo import get_spec, is_model
from twins_trt.spelling import spelled

CHECKPOINTS = (".pth", ".pt", ".bin", ".safetensors")
"""Suffixes of files that may be named in place of a model."""


def named(model: str | None, checkpoint: str | None) -> tuple[str | None, str | None]:
    """(model, checkpoint) as they were meant; one of them may be None, not both. Reads nothing.

    model: a name, a checkpoint in its place, or None where `checkpoint` tells it.
    Raises `UsageError` where neither is given, the checkpoint is named twice, or without a checkpoint for an unknown
    model.
    """
    if model is not None and not is_model(model) and (Path(model).suffix in CHECKPOINTS or Path(model).is_file()):
        if checkpoint is not None:
            raise UsageError(
                f"two checkpoints are named, {model} and {checkpoint}", f"leave {spelled('checkpoint')} out"
            )
        model, checkpoint = None, model
    if model is None and checkpoint is None:
        raise UsageError(
            "no model is named", f"name one that twins-trt models lists, or {spelled('checkpoint', 'FILE')}"
        )
    if model is not None and checkpoint is None:
        get_spec(model)
    return model, checkpoint
