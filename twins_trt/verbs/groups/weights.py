"""Which model, and with which weights."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from twins_trt.errors import UsageError
from twins_trt.models.zoo import PADDINGS, list_models
from twins_trt.verbs.flags import Flag
from twins_trt.verbs.kinds import CONVENTION, SWITCH, WHOLE

if TYPE_CHECKING:
    from twins_trt.models.source import FoundModel

WEIGHTS_GROUP = {"weights": "by default the published ones, if they were fetched before"}


def checkpoint_flags(group: str) -> tuple[Flag, ...]:
    """Where weights come from."""
    return (
        Flag("--checkpoint", "checkpoint", "a checkpoint of this model", metavar="FILE", group=group),
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
        *reading_flags(group),
    )


def reading_flags(group: str) -> tuple[Flag, ...]:
    """How a checkpoint is read: what it says of itself is obeyed unless these say otherwise."""
    return (
        Flag(
            "--weights",
            "weights",
            "averaged ones or not, where the checkpoint holds both; left out, those that its own project would test",
            metavar="{ema,raw}",
            group=group,
        ),
        Flag(
            "--convention",
            "conventions",
            "in place of what the checkpoint says, such as mean=0,0,0; may be repeated",
            CONVENTION,
            "NAME=VALUE",
            group=group,
            repeated=True,
            pairs=True,
        ),
        Flag(
            "--padding",
            "padding",
            "padded keys take part as in mmsegmentation (parity), never (masked) or always (unmasked); default: as in "
            "the project that wrote the checkpoint",
            metavar=f"{{{','.join(PADDINGS)}}}",
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
    def padding(self) -> str | None: ...
    @property
    def weights(self) -> str | None: ...
    @property
    def conventions(self) -> Mapping[str, str] | None: ...


def find_requested(request: WeightsRequest, name: str | None, checkpoint: str | None) -> FoundModel:
    """The model of a request, which its checkpoint fits. Raises as `find_model` does."""
    from twins_trt.models.weights import find_model

    return find_model(
        name,
        checkpoint=checkpoint,
        seeded=request.seeded,
        num_classes=request.num_classes,
        padding=request.padding,
        weights=request.weights or "auto",
        conventions=request.conventions,
    )


def nothing_called(what: str, *, no: str, fix: str) -> UsageError:
    """The error for `what`, which is neither a `no`, such as a graph, nor the name of a model.

    fix: its second line where no model has a similar name.
    """
    near = difflib.get_close_matches(what, list_models(), n=3)
    mend = f"use one of: {', '.join(near)}" if near else fix
    return UsageError(f"there is no {no} and no model called {what!r}", mend)
