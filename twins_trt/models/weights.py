"""Finds and loads weights: of a checkpoint, published and fetched before, packaged (the demo's), or seeded."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from twins_trt.data.ade20k import ADE20K_CLASSES, ADE20K_PALETTE
from twins_trt.data.palette import Colour, camvid_palette
from twins_trt.errors import CheckpointError, UsageError
from twins_trt.files import whole_file
from twins_trt.models.fetch import cached_path
from twins_trt.models.source import FoundModel, Source
from twins_trt.models.telling import tell_classes, tell_model
from twins_trt.models.zoo import get_spec
from twins_trt.spelling import spelled

if TYPE_CHECKING:
    from twins_trt.models.checkpoint import CheckpointMeta
    from twins_trt.models.segmentor import Segmentor

log = logging.getLogger("twins_trt")


@dataclass(frozen=True)
class ModelFacts:
    """Where a model's weights came from, and the name and RGB colour of each of its classes."""

    source: Source
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]


def find_model(model: str | None, *, checkpoint: str | None = None, seeded: bool = False) -> FoundModel:
    """The model that a request names, and its weights. Reads a checkpoint only where nothing else tells the model.

    model: a name of the zoo, a checkpoint in its place, or None where `checkpoint` tells it.
    Raises as `tell_model` does, then as `find_weights` does.
    """
    name, checkpoint = tell_model(model, checkpoint)
    return FoundModel(name, checkpoint, find_weights(name, checkpoint=checkpoint, seeded=seeded))


def find_weights(name: str, *, checkpoint: str | Path | None = None, seeded: bool = False) -> Path | None:
    """The file with the weights of the model called `name`. Reads nothing.

    It is `checkpoint`; without one, the file that comes with the package or that `fetch` has put into the cache; None
    for seeded weights.
    Raises `UsageError` for an unknown model, for a checkpoint beside seeded weights, and where neither is named and
    nothing was fetched; `CheckpointError` where the checkpoint is no file.
    """
    spec = get_spec(name)
    if checkpoint is not None and seeded:
        raise UsageError(
            "a checkpoint and seeded weights exclude each other", f"give {spelled('checkpoint')} or {spelled('seeded')}"
        )
    if seeded:
        return None
    if checkpoint is not None:
        path = Path(checkpoint)
        if not path.is_file():
            what = "is a directory, not a checkpoint" if path.is_dir() else "does not exist"
            raise CheckpointError(f"{path} {what}", f"check the path, or get a checkpoint: twins-trt fetch {name}")
        return path
    if spec.packaged:
        return Path(__file__).parents[1] / spec.packaged
    path = cached_path(name)
    if not path.is_file():
        raise UsageError(
            f"no weights are named for {name}, and its published ones have not been fetched",
            f"{spelled('checkpoint', 'FILE')}, {spelled('seeded', True)} for random weights, or: "
            f"twins-trt fetch {name}",
        )
    return path


def load_weights(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    seeded: bool = False,
    num_classes: int | None = None,
    padding: str = "parity",
    attention: str = "auto",
) -> tuple[Segmentor, ModelFacts]:
    """The model called `name` in eval mode, with the weights that `find_weights` finds, and the facts about them.

    num_classes: None takes the checkpoint's own number, and the zoo's for seeded weights. padding, attention: as
    `build_model` takes them. Raises as `find_weights` and `build_model` do.
    """
    from twins_trt.models.checkpoint import CheckpointMeta, load_checkpoint
    from twins_trt.models.seeded import seed_weights
    from twins_trt.models.segmentor import build_model

    path = find_weights(name, checkpoint=checkpoint, seeded=seeded)
    spec = get_spec(name)
    if path is None:
        model = build_model(name, num_classes, padding=padding, attention=attention)
        seed_weights(model)
        return model, ModelFacts(Source(seeded=True), *name_classes(CheckpointMeta(), model.num_classes))
    model = build_model(
        name, tell_classes(spec, path) if num_classes is None else num_classes, padding=padding, attention=attention
    )
    loaded = load_checkpoint(model, path)
    if checkpoint is None and spec.weights and not loaded.sha256.startswith(spec.weights_sha256_prefix):
        raise CheckpointError(
            f"{path} has the sha256 {loaded.sha256}, but {name}'s published weights begin with "
            f"{spec.weights_sha256_prefix}",
            f"fetch them again: twins-trt fetch {name}",
        )
    model.meta = loaded.meta
    source = Source(checkpoint=path.name, sha256=loaded.sha256)
    return model, ModelFacts(source, *name_classes(loaded.meta, model.num_classes))


def save_weights(model: Segmentor, facts: ModelFacts, path: Path) -> None:
    """Writes a checkpoint in mmsegmentation's format: weights, and names and colours of the classes."""
    import torch

    meta = {"CLASSES": list(facts.classes), "PALETTE": [list(colour) for colour in facts.palette]}
    with whole_file(path) as file:
        torch.save({"state_dict": model.state_dict(), "meta": meta}, file)


def name_classes(meta: CheckpointMeta, num_classes: int) -> tuple[tuple[str, ...], tuple[Colour, ...]]:
    """Names and RGB colours of the classes: the checkpoint's own, where it has them.

    150 classes without names are ADE20K's; other classes without names get generic ones. CamVid's names without
    colours get CamVid's colours.
    """
    ade20k = num_classes == len(ADE20K_CLASSES)
    classes = meta.classes
    if classes is None:
        classes = ADE20K_CLASSES if ade20k else tuple(f"class {index}" for index in range(num_classes))
    palette = meta.palette
    if palette is None:
        palette = ADE20K_PALETTE if classes == ADE20K_CLASSES else camvid_palette(classes)
    return classes, palette
