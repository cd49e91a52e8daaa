"""What a gate judges on: labelled images, each with the mask of the float32 reference.

A gate takes any `GateImages`: a data set with the PyTorch model (`reference.py`), or a pack (`pack.py`), which needs no
torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from twins_trt.evaluation import ConfusionMatrix

UInt8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class JudgedImage:
    """One image of a gate, at the size at which the engine gets it.

    image: uint8 [H, W, 3], RGB. label, reference: uint8 [H, W]; label 255 is ignored. counts: of the reference's mask
    against the label. outside: how many pixels had a label that is no class of the model, and are ignored here;
    highest: the largest such label, as the data set gives it.
    """

    name: str
    image: UInt8Array
    label: UInt8Array
    reference: UInt8Array
    counts: ConfusionMatrix
    outside: int = 0
    highest: int = 0


class GateImages(Protocol):
    """The images of a gate, read one at a time.

    dataset, split: what they were read from first. pack: sha256 of the pack that they come from; None for a data set.
    seconds: wall time that the reference took; None if its masks were not all computed. miou: percent, as it was
    recorded of the reference's weights and the same classes (`recorded_miou`); None if nothing is known.
    """

    @property
    def dataset(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def pack(self) -> str | None: ...
    @property
    def seconds(self) -> float | None: ...
    @property
    def miou(self) -> float | None: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[JudgedImage]: ...
