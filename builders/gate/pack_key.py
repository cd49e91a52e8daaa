"""What a pack and a bundle must share: checkpoint, padding, classes, preprocessing and size, but not the graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twins_trt.data.preprocessing import Preprocessing
from twins_trt.inference.interface import GraphInterface
from twins_trt.models.source import Source

if TYPE_CHECKING:
    from twins_trt.runtime import Bundle


@dataclass(frozen=True)
class PackKey:
    """Everything that the masks of the reference depend on, but the images.

    model: a name of the zoo. source: of the weights. padding: `parity` or `masked`. classes: names by index; empty
    where they are not known yet, which differs from nothing.
    size: (height, width) of the images, pixels; None for a graph of dynamic size, which gets each at its own.
    """

    model: str
    source: Source
    padding: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    size: tuple[int, int] | None

    @classmethod
    def of(cls, interface: GraphInterface, *, model: str, source: Source, padding: str) -> PackKey:
        """The key of a graph's interface and its model."""
        return cls(model, source, padding, interface.classes, interface.preprocessing, interface.size)

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> PackKey:
        manifest = bundle.manifest
        return cls.of(manifest.interface, model=manifest.model, source=manifest.source, padding=manifest.padding)

    def differences(self, other: PackKey) -> Iterator[tuple[str, str, str]]:
        """Field, value here and value there, of everything that differs. The name of a checkpoint's file does not
        count."""
        rows = [
            ("model", self.model, other.model),
            ("checkpoint", _weights(self.source), _weights(other.source)),
            ("padding", self.padding, other.padding),
            *_classes(self.classes, other.classes),
            *_preprocessing(self.preprocessing, other.preprocessing),
            ("size", _size(self.size), _size(other.size)),
        ]
        return ((field, here, there) for field, here, there in rows if here != there)


def _weights(source: Source) -> str:
    return "seeded weights" if source.seeded else f"the one with sha256 {source.sha256}"


def _classes(here: tuple[str, ...], there: tuple[str, ...]) -> list[tuple[str, str, str]]:
    if not here or not there:
        return []
    if len(here) != len(there):
        return [("number of classes", str(len(here)), str(len(there)))]
    return [(f"class {i}", repr(a), repr(b)) for i, (a, b) in enumerate(zip(here, there, strict=True))]


def _preprocessing(here: Preprocessing, there: Preprocessing) -> list[tuple[str, str, str]]:
    values, others = here.to_json(), there.to_json()
    return [(f"preprocessing.{name}", str(values[name]), str(others[name])) for name in values]


def _size(size: tuple[int, int] | None) -> str:
    return "dynamic" if size is None else f"{size[0]}x{size[1]}"
