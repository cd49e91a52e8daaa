"""Whether a checkpoint's file fits a model, and everything that it tells: the one function that decides it.

Inspection, dry runs, export, builds, evaluation and training all ask it, so that none of them accepts a file that
another refuses.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from twins_trt.errors import CheckpointError
from twins_trt.models.checkpoint import CheckpointMeta, FileContent, check_finite, list_misfits, read_file, read_meta
from twins_trt.models.conventions import Conventions
from twins_trt.models.formats import Recognized, recognize
from twins_trt.models.mmseg_model import ModelNumbers
from twins_trt.models.read_conventions import OWN, read_conventions
from twins_trt.models.source import Source
from twins_trt.models.widths import check_heads, read_spec
from twins_trt.models.zoo import MAX_CLASSES, ModelSpec, check_padding, get_spec
from twins_trt.spelling import spelled

if TYPE_CHECKING:
    from twins_trt.models.segmentor import Segmentor

log = logging.getLogger("twins_trt")

AUXILIARY = "auxiliary_head."
CLASSIFIER = "decode_head.conv_seg.weight"
_COUNTER = "num_batches_tracked"  # of BatchNorm: only training with a cumulative average reads it


@dataclass(frozen=True)
class Examined:
    """A checkpoint that fits a model, and what it tells.

    state_dict: tensors of the model under mmsegmentation's keys, float32 and int64, on the CPU: all that inference
    uses, and the auxiliary head where the file has a fitting one. spec: the architecture, own widths included.
    num_classes: how many values a mask has. ignored: the file's other tensors. meta: its names and plain values.
    """

    state_dict: dict[str, Tensor]
    spec: ModelSpec
    num_classes: int
    conventions: Conventions
    source: Source
    ignored: tuple[str, ...]
    meta: CheckpointMeta

    def build(self, *, attention: str = "auto") -> Segmentor:
        """The model with these weights, in eval mode. attention: as `build_model` takes it."""
        from twins_trt.models.segmentor import Segmentor

        model = Segmentor(
            self.spec,
            self.num_classes,
            padding=self.conventions.padding,
            attention=attention,
            threshold=self.conventions.threshold,
        ).eval()
        model.load_state_dict(self.state_dict, strict=False)  # every key was compared by `examine`
        model.meta, model.conventions = self.meta, self.conventions
        return model


def examine(
    path: str | Path,
    *,
    model: str | None = None,
    num_classes: int | None = None,
    padding: str | None = None,
    weights: str = "auto",
    conventions: Mapping[str, str] | None = None,
    any_classes: bool = False,
    opened: OpenedCheckpoint | None = None,
) -> Examined:
    """Reads a checkpoint, and checks that it is a whole Twins model for segmentation.

    Every tensor that inference uses must be there with its shape. What inference does not use may be there or not: one
    log line says what was ignored.
    model, num_classes: what the caller expects; None takes the file's. padding: how LSA treats padded keys, of
    `PADDINGS`; None takes the origin's. weights: `ema` or `raw` where the file holds both, or `auto`. conventions:
    values by name that override the file's (`read_conventions`). any_classes: more classes than a mask holds are no
    reason to refuse the file, because its classifier will be replaced. opened: the file, where it was read before.
    Raises `CheckpointError` where the file cannot be read, does not fit, or says something of itself that cannot be
    honoured; `UsageError` for values that it contradicts.
    """
    if padding is not None:
        check_padding(padding)
    found = opened or open_checkpoint(path, weights=weights)
    recognized = found.recognized
    state = recognized.state_dict
    classifier = state.get(CLASSIFIER)
    num_logits = int(classifier.shape[0]) if classifier is not None and classifier.ndim == 4 else 0
    told, numbers = found.conventions(path, num_logits=num_logits, padding=padding, flags=conventions or {})
    spec = found.with_own_numbers(read_spec(state, path, numbers=numbers), numbers, path)
    crop = told.test_mode.crop or told.train_size
    spec = spec if crop is None else replace(spec, crop_size=crop)
    if model is not None and model != spec.name:
        get_spec(model)  # a name that nobody knows is said to be one
        raise CheckpointError(
            f"{path} holds {spec.name} with {_classes(num_logits)}, not {model}",
            f"use {spec.name}, or leave the name out",
        )
    count = 2 if told.threshold is not None else num_logits
    if not any_classes:
        _check_count(count, num_classes, path)
    state, ignored = _used(state, spec, num_logits, path)
    told = _fitting_names(told, count, path)
    meta = replace(read_meta(found.content.meta), classes=told.classes, palette=told.palette)
    source = Source(
        checkpoint=Path(path).name,
        sha256=found.content.sha256,
        origin="twins-trt" if OWN in found.content.meta else recognized.origin,
        weights=found.content.taken,
        licence=told.licence or ("" if OWN in found.content.meta else recognized.licence),
    )
    ignored = (*ignored, *recognized.dropped)
    if ignored:
        log.info("%s: %d tensors that inference does not use are ignored (%s)", path, len(ignored), _shown(ignored))
    return Examined(state, spec, count, told, source, ignored, meta)


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A file's content, and its tensors under mmsegmentation's keys."""

    content: FileContent
    recognized: Recognized

    def conventions(
        self, path: str | Path, *, num_logits: int, padding: str | None, flags: Mapping[str, str]
    ) -> tuple[Conventions, ModelNumbers]:
        """What the file says of itself. padding: the caller's, or None for the origin's. Raises as `read_conventions`
        does."""
        told, numbers = read_conventions(
            self.content.meta,
            origin=self.recognized.origin,
            padding=padding or self.recognized.padding,
            num_logits=num_logits,
            flags=flags,
            path=path,
        )
        return told if padding is None else told.with_padding(padding), numbers

    def with_own_numbers(self, spec: ModelSpec, numbers: ModelNumbers, path: str | Path) -> ModelSpec:
        """An architecture with the origin's numbers, and those of the file or the caller. Raises as `check_heads`."""
        spec = replace(spec, **self.recognized.spec_changes, **numbers.spec_changes)
        check_heads(spec, path)
        return spec


def open_checkpoint(path: str | Path, *, weights: str = "auto") -> OpenedCheckpoint:
    """Reads a checkpoint of any origin: a whole model, or a backbone alone. Raises as `examine` does for content."""
    content = read_file(path, weights=weights)
    return OpenedCheckpoint(content, recognize(content.weights, path))


def _classes(count: int) -> str:
    return f"{count} {'class' if count == 1 else 'classes'}"


def _check_count(count: int, wanted: int | None, path: str | Path) -> None:
    if count > MAX_CLASSES:
        raise CheckpointError(
            f"{path} has {count} classes: masks are uint8, which holds {MAX_CLASSES}",
            f"fine-tune it on {MAX_CLASSES} classes at most: twins-trt train --checkpoint {path} --data KIND:PATH",
        )
    if wanted is not None and wanted != count:
        raise CheckpointError(
            f"{path} was trained on {count} classes, the model was asked for {wanted}", spelled("num_classes", count)
        )


def _used(
    state: Mapping[str, Tensor], spec: ModelSpec, num_logits: int, path: str | Path
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of the model, and the names of the others. Raises `CheckpointError` where one that is used is not
    there, has another shape, or is not finite."""
    expected = expected_tensors(spec, num_logits)
    needed = {k: v for k, v in expected.items() if not k.startswith(AUXILIARY) and not k.endswith(_COUNTER)}
    present = {key: value for key, value in state.items() if key in needed}
    if misfits := list_misfits(present, needed):
        raise CheckpointError(
            f"{path} does not fit {spec.name}: {misfits}",
            "use a complete checkpoint of one model, as its training saved it",
        )
    check_finite(present, path)
    optional = [key for key in expected if key not in needed and key in state]
    auxiliary = [key for key in optional if key.startswith(AUXILIARY)]
    whole = all(
        key in state and state[key].shape == expected[key].shape
        for key in expected
        if key.startswith(AUXILIARY) and not key.endswith(_COUNTER)
    )
    fitting = auxiliary if whole else []
    counters = [key for key in optional if key not in auxiliary]
    taken = present | {k: state[k] for k in (*fitting, *counters) if state[k].shape == expected[k].shape}
    return taken, tuple(key for key in state if key not in taken)


def expected_tensors(spec: ModelSpec, num_logits: int) -> dict[str, Tensor]:
    """The tensors of a model of this architecture by key, as shapes without storage."""
    from twins_trt.models.segmentor import Segmentor

    with torch.device("meta"):
        return dict(Segmentor(spec, num_logits).state_dict())


def _fitting_names(told: Conventions, count: int, path: str | Path) -> Conventions:
    """The conventions, without names and colours in another number than the classes.

    A head with one logit whose foreground alone has a name gets a background.
    """
    classes, palette = told.classes, told.palette
    if told.threshold is not None:
        classes = ("background", *classes) if classes is not None and len(classes) == 1 else classes
        palette = ((0, 0, 0), *palette) if palette is not None and len(palette) == 1 else palette
    if classes is not None and len(classes) != count:
        log.warning("%s names %s but predicts %d: names dropped", path, _classes(len(classes)), count)
        classes = None
    if palette is not None and len(palette) != count:
        log.warning("%s colours %s but predicts %d: palette dropped", path, _classes(len(palette)), count)
        palette = None
    facts = tuple(fact for fact in told.facts if fact.name != "classes" or classes is not None)
    return replace(told, classes=classes, palette=palette, facts=facts)


def _shown(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
