"""Which model, and with which weights."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Protocol

from twins_trt.errors import UsageError
from twins_trt.models.zoo import list_models
from twins_trt.verbs.flags import Flag
from twins_trt.verbs.kinds import SWITCH, WHOLE

if TYPE_CHECKING:
    from twins_trt.models.segmentor import Segmentor
    from twins_trt.models.source import FoundModel
    from twins_trt.models.weights import ModelFacts

WEIGHTS_GROUP = {"weights": "by default the published ones, if they were fetched before"}


def checkpoint_flags(group: str) -> tuple[Flag, ...]:
    """Where weights come from."""
    return (
        Flag("--checkpoint", "checkpoint", "an mmsegmentation checkpoint of this model", metavar="FILE", group=group),
        Flag(
            "--seeded",
            "seeded",
            "random weights, the same on every machine; marked so",
            SWITCH,
            sets=True,
            group=group,
        ),
    )


def weights_flags(group: str) -> tuple[Flag, ...]:
    """Which weights, and of which model."""
    return (
        *checkpoint_flags(group),
        Flag("--num-classes", "num_classes", "default: what the checkpoint has", WHOLE, "N", group=group),
        Flag(
            "--padding",
            "padding",
            "parity: mmsegmentation's own treatment of padded keys; masked: they never take part; default: {default}",
            metavar="{parity,masked}",
            group=group,
        ),
    )


class WeightsRequest(Protocol):
    """A request with the fields of `weights_flags` but the checkpoint, which `find_model` settles."""

    @property
    def seeded(self) -> bool: ...
    @property
    def num_classes(self) -> int | None: ...
    @property
    def padding(self) -> str: ...


def load_requested(request: WeightsRequest, model: FoundModel) -> tuple[Segmentor, ModelFacts]:
    """The model of a request, with its weights. Raises as `load_weights` does."""
    from twins_trt.models.weights import load_weights

    return load_weights(
        model.name,
        checkpoint=model.checkpoint,
        seeded=request.seeded,
        num_classes=request.num_classes,
        padding=request.padding,
    )


def nothing_called(what: str, *, no: str, fix: str) -> UsageError:
    """The error for `what`, which is neither a `no`, such as a graph, nor the name of a model.

    fix: its second line where no model has a similar name.
    """
    near = difflib.get_close_matches(what, list_models(), n=3)
    mend = f"use one of: {', '.join(near)}" if near else fix
    return UsageError(f"there is no {no} and no model called {what!r}", mend)
