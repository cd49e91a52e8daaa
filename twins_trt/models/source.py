"""Where a model's weights come from."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twins_trt.models.conventions import Conventions
    from twins_trt.models.examine import Examined
    from twins_trt.models.zoo import ModelSpec

log = logging.getLogger("twins_trt")


@dataclass(frozen=True)
class Source:
    """A checkpoint's file name and sha256, or a generator of random weights (seeded).

    origin: whose file it is: `mmseg`, `official`, `timm`, `mmpretrain`, `sssegmentation` or `twins-trt`; empty for
    seeded weights. weights: which ones were taken where the file holds several, `ema` or `raw`. licence: of the
    weights; empty where unknown.
    """

    checkpoint: str | None = None
    sha256: str | None = None
    seeded: bool = False
    origin: str = ""
    weights: str = ""
    licence: str = ""


@dataclass(frozen=True)
class FoundModel:
    """A model and the place of its weights, before they are loaded.

    spec: the architecture. checkpoint: the file that was named, None where none was. weights: the file that will be
    loaded, None for seeded weights. num_classes: how many values a mask has. conventions: what the file tells.
    examined: the file's content, so that it is read once; None for seeded weights.
    """

    spec: ModelSpec
    checkpoint: str | None
    weights: Path | None
    num_classes: int
    conventions: Conventions
    examined: Examined | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.spec.name


def warn_of_random_weights(name: str | Path) -> None:
    """Logs that nothing that a model computes means anything. name: of what holds the weights."""
    log.warning("%s holds random weights: its masks mean nothing", name)
