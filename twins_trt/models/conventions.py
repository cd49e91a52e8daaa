"""What a checkpoint says of itself beside its weights: how images, labels and results are to be treated.

Each value has an origin, so that nobody has to guess where it came from. This module needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from twins_trt.data.preprocessing import Preprocessing

if TYPE_CHECKING:
    from twins_trt.data import Dataset

Origin = Literal["file", "weights", "flag", "default", "assumed"]
"""`file`: written in it. `weights`: read off its tensors. `flag`: the caller's. `default`: mmsegmentation's own where
its configuration is silent. `assumed`: nothing tells it."""


@dataclass(frozen=True)
class Fact:
    """One value and where it came from.

    name: such as `mean` or `reduce_zero_label`. value: as text, as a flag would take it. place: of a value of the file,
    the dotted place in its configuration, such as `cfg: model.data_preprocessor.mean`.
    """

    name: str
    value: str
    origin: Origin
    place: str = ""

    @property
    def where(self) -> str:
        """In words: `file (cfg: model.data_preprocessor.mean)`."""
        return f"{self.origin} ({self.place})" if self.place else self.origin


@dataclass(frozen=True)
class TestMode:
    """How mmsegmentation tests the model: the whole image, or sliding windows of `crop` every `stride` pixels.

    crop, stride: (height, width) in pixels of the resized image; None for `whole`.
    """

    name: Literal["whole", "slide"] = "whole"
    crop: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None

    __test__ = False  # not a class of tests


@dataclass(frozen=True)
class Conventions:
    """How a model's images, labels and logits are to be treated.

    preprocessing: normalization, order of channels and test scale. threshold: of a head with one logit: a pixel is
    class 1 where sigmoid(logit) is larger; None for a head with softmax. reduce_zero_label: whether 0 in a label file
    means "no class" and classes count from 1; None if nothing says so. ignore_index: the label of pixels that do not
    count. test_mode: as the model is scored. train_size: (height, width) of the crops that it was trained on, pixels.
    padding: how LSA treats padded keys. classes, palette: names and RGB colours by label; None where nothing tells.
    miou: percent, as the file recorded it of these classes; None if it did not. licence: of the weights,
    empty where unknown. facts: every value above with its origin, in the order in which they are shown.
    """

    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    threshold: float | None = None
    reduce_zero_label: bool | None = None
    ignore_index: int = 255
    test_mode: TestMode = field(default_factory=TestMode)
    train_size: tuple[int, int] | None = None
    padding: str = "parity"
    classes: tuple[str, ...] | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None
    miou: float | None = None
    licence: str = ""
    facts: tuple[Fact, ...] = ()

    def fact(self, name: str) -> Fact | None:
        """The fact of this name."""
        return next((each for each in self.facts if each.name == name), None)

    def labels_of(self, dataset: Dataset) -> Dataset:
        """The data set with its labels read as these conventions say.

        A head with one logit gets a background beside the one class that a data set names.
        """
        return dataset.with_conventions(
            reduce_zero_label=self.reduce_zero_label,
            ignore_index=self.ignore_index,
            binary=self.threshold is not None,
        )

    def with_padding(self, padding: str) -> Conventions:
        """The same with the caller's padding in place of the origin's."""
        others = tuple(each for each in self.facts if each.name != "padding")
        return replace(self, padding=padding, facts=(*others, Fact("padding", padding, "flag")))
