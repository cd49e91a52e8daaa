"""Finds and loads weights: of a checkpoint, published and fetched before, packaged (the demo's), or seeded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from twins_trt.data.ade20k import ADE20K_CLASSES, ADE20K_PALETTE
from twins_trt.data.palette import Colour, camvid_palette
from twins_trt.errors import CheckpointError, UsageError
from twins_trt.files import whole_file
from twins_trt.models.fetch import cached_path
from twins_trt.models.source import FoundModel, Source
from twins_trt.models.telling import named
from twins_trt.models.zoo import check_num_classes, check_padding, get_spec, is_model
from twins_trt.spelling import spelled

if TYPE_CHECKING:
    from twins_trt.models.conventions import Conventions
    from twins_trt.models.segmentor import Segmentor
    from twins_trt.models.zoo import ModelSpec

BINARY_CLASSES = ("background", "foreground")


@dataclass(frozen=True)
class ModelFacts:
    """Where a model's weights came from, and the name and RGB colour of each of its classes."""

    source: Source
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]


def find_model(
    model: str | None,
    *,
    checkpoint: str | Path | None = None,
    seeded: bool = False,
    num_classes: int | None = None,
    padding: str | None = None,
    weights: str = "auto",
    conventions: Mapping[str, str] | None = None,
) -> FoundModel:
    """The model that a request names, and its weights. Reads the file, so that whatever fits here loads later.

    model: a name, a checkpoint in its place, or None where `checkpoint` tells it. The other arguments are those of
    `load_weights`. Raises as `named`, `find_weights` and `examine` do.
    """
    from twins_trt.models.examine import examine

    model, checkpoint = named(model, None if checkpoint is None else str(checkpoint))
    path = find_weights(model, checkpoint=checkpoint, seeded=seeded)
    if path is None:
        spec, count, told = _seeded(str(model), num_classes, padding, conventions)
        return FoundModel(spec, checkpoint, None, count, told)
    found = examine(
        path, model=model, num_classes=num_classes, padding=padding, weights=weights, conventions=conventions
    )
    return FoundModel(found.spec, checkpoint, path, found.num_classes, found.conventions, found)


def find_weights(name: str | None, *, checkpoint: str | Path | None = None, seeded: bool = False) -> Path | None:
    """The file with the weights of the model called `name`. Reads nothing.

    It is `checkpoint`; without one, the file that comes with the package or that `fetch` has put into the cache; None
    for seeded weights. name: may be None beside a checkpoint.
    Raises `UsageError` for an unknown model, for a checkpoint beside seeded weights, and where neither is named and
    nothing was fetched; `CheckpointError` where the checkpoint is no file.
    """
    if checkpoint is not None and seeded:
        raise UsageError(
            "a checkpoint and seeded weights exclude each other", f"give {spelled('checkpoint')} or {spelled('seeded')}"
        )
    if checkpoint is not None:
        path = Path(checkpoint)
        if not path.is_file():
            what = "is a directory, not a checkpoint" if path.is_dir() else "does not exist"
            get = f"twins-trt fetch {name}" if name is not None and is_model(name) else "twins-trt fetch MODEL"
            raise CheckpointError(f"{path} {what}", f"check the path, or get a checkpoint: {get}")
        return path
    spec = get_spec(str(name))
    if seeded:
        return None
    if spec.packaged:
        return Path(__file__).parents[1] / spec.packaged
    path = cached_path(spec.name)
    if not path.is_file():
        raise UsageError(
            f"no weights are named for {name}, and its published ones have not been fetched",
            f"{spelled('checkpoint', 'FILE')}, {spelled('seeded', True)} for random weights, or: "
            f"twins-trt fetch {name}",
        )
    return path


def load_weights(
    name: str | None,
    *,
    checkpoint: str | Path | None = None,
    seeded: bool = False,
    num_classes: int | None = None,
    padding: str | None = None,
    weights: str = "auto",
    conventions: Mapping[str, str] | None = None,
    attention: str = "auto",
) -> tuple[Segmentor, ModelFacts]:
    """A model in eval mode, with the weights that `find_weights` finds, and the facts about them.

    name: None takes the checkpoint's own. num_classes, padding, weights, conventions: as `examine` takes them; seeded
    weights have the zoo's number of classes by default. attention: as `build_model` takes it.
    Raises as `find_model` and `load_found` do.
    """
    found = find_model(
        name,
        checkpoint=checkpoint,
        seeded=seeded,
        num_classes=num_classes,
        padding=padding,
        weights=weights,
        conventions=conventions,
    )
    return load_found(found, attention=attention)


def load_found(found: FoundModel, *, attention: str = "auto") -> tuple[Segmentor, ModelFacts]:
    """The model that `find_model` found, in eval mode, and the facts about its weights. Reads no file.

    attention: as `build_model` takes it. Raises `CheckpointError` for fetched weights other than the published.
    """
    from twins_trt.models.seeded import seed_weights
    from twins_trt.models.segmentor import Segmentor

    spec, told, count = found.spec, found.conventions, found.num_classes
    if found.examined is None:
        model = Segmentor(spec, count, padding=told.padding, attention=attention, threshold=told.threshold).eval()
        model.conventions = told
        seed_weights(model)
        return model, ModelFacts(Source(seeded=True), *name_classes(told, count))
    source = found.examined.source
    if found.checkpoint is None and spec.weights and not str(source.sha256).startswith(spec.weights_sha256_prefix):
        raise CheckpointError(
            f"{found.weights} has the sha256 {source.sha256}, but {spec.name}'s published weights begin with "
            f"{spec.weights_sha256_prefix}",
            f"fetch them again: twins-trt fetch {spec.name}",
        )
    return found.examined.build(attention=attention), ModelFacts(source, *name_classes(told, count))


def _seeded(
    name: str, num_classes: int | None, padding: str | None, conventions: Mapping[str, str] | None
) -> tuple[ModelSpec, int, Conventions]:
    """Architecture, number of classes and conventions of a model with seeded weights, which say nothing themselves."""
    from twins_trt.models.read_conventions import read_conventions
    from twins_trt.models.widths import check_heads

    spec = get_spec(name)
    padding = padding or "parity"
    check_padding(padding)
    binary = "threshold" in (conventions or {})
    count = (2 if binary else spec.num_classes) if num_classes is None else num_classes
    check_num_classes(count)
    told, numbers = read_conventions(
        {}, origin="", padding=padding, num_logits=1 if binary else count, flags=conventions or {}
    )
    spec = replace(spec, **numbers.spec_changes)
    check_heads(spec, name)
    return spec, count, told


def save_weights(model: Segmentor, facts: ModelFacts, path: Path) -> None:
    """Writes a checkpoint in mmsegmentation's format: weights, names and colours of classes, and the conventions.

    Reading it gives the same model: `meta["twins_trt"]` holds what no tensor tells.
    """
    import torch

    from twins_trt.models.read_conventions import write_conventions

    told = replace(model.conventions, classes=facts.classes, palette=facts.palette)
    meta = {
        "CLASSES": list(facts.classes),
        "PALETTE": [list(colour) for colour in facts.palette],
        "twins_trt": write_conventions(told, model.spec),
    }
    with whole_file(path) as file:
        torch.save({"state_dict": model.state_dict(), "meta": meta}, file)


def name_classes(told: Conventions, num_classes: int) -> tuple[tuple[str, ...], tuple[Colour, ...]]:
    """Names and RGB colours of the classes: the checkpoint's own, where it has them.

    150 classes without names are ADE20K's; a head with one logit tells background and foreground apart; other classes
    without names get generic ones. CamVid's names without colours get CamVid's colours.
    """
    classes = told.classes
    if classes is None:
        if told.threshold is not None:
            classes = BINARY_CLASSES
        elif num_classes == len(ADE20K_CLASSES):
            classes = ADE20K_CLASSES
        else:
            classes = tuple(f"class {index}" for index in range(num_classes))
    palette = told.palette
    if palette is None:
        palette = ADE20K_PALETTE if classes == ADE20K_CLASSES else camvid_palette(classes)
    return classes, palette
