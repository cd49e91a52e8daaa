"""What a checkpoint tells of itself: which model it belongs to, and how many classes it has."""

from __future__ import annotations

from pathlib import Path

from twins_trt.errors import CheckpointError, UsageError
from twins_trt.models.zoo import ModelSpec, get_spec, is_model
from twins_trt.spelling import spelled

CHECKPOINTS = (".pth", ".pt", ".bin", ".safetensors")
"""Suffixes of files that may be named in place of a model."""


def tell_model(model: str | None, checkpoint: str | None) -> tuple[str, str | None]:
    """A model's name, and its checkpoint; None without one.

    model: a name of the zoo, a checkpoint in its place, or None where `checkpoint` tells it.
    Raises `UsageError` where neither is given or the checkpoint is named twice, `CheckpointError` where it cannot be
    read or belongs to none of our models.
    """
    if model is not None and not is_model(model) and (Path(model).suffix in CHECKPOINTS or Path(model).is_file()):
        if checkpoint is not None:
            raise UsageError(
                f"two checkpoints are named, {model} and {checkpoint}", f"leave {spelled('checkpoint')} out"
            )
        model, checkpoint = None, model
    if model is not None:
        return get_spec(model).name, checkpoint
    if checkpoint is None:
        raise UsageError(
            "no model is named", f"name one that twins-trt models lists, or {spelled('checkpoint', 'FILE')}"
        )
    from twins_trt.models.checkpoint import identify, read_checkpoint

    identity = identify(read_checkpoint(checkpoint).state_dict)
    if identity is None:
        raise CheckpointError(
            f"{checkpoint} does not tell which model it is of", "name the model, one that twins-trt models lists"
        )
    return identity[0], checkpoint


def tell_classes(spec: ModelSpec, checkpoint: str | Path | None) -> int:
    """The class count of a checkpoint of this model, or the zoo's. Raises as `read_checkpoint` does.

    The zoo's also stands in for another model's checkpoint: loading that raises an error, which a second difference
    would only blur.
    """
    if checkpoint is None:
        return spec.num_classes
    from twins_trt.models.checkpoint import identify, read_checkpoint

    identity = identify(read_checkpoint(checkpoint).state_dict)
    return identity[1] if identity and identity[0] == spec.name else spec.num_classes
