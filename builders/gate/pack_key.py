"""What a pack and a bundle must share: checkpoint, padding, classes, size, and conventions of images and labels; but
not the graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twins_trt.codec import encode
from twins_trt.data.images import IGNORE_INDEX
from twins_trt.data.preprocessing import Preprocessing
from twins_trt.inference.interface import GraphInterface
from twins_trt.models.source import Source

if TYPE_CHECKING:
    from twins_trt.runtime import Bundle


@dataclass(frozen=True)
class PackKey:
    """Everything that the masks of the reference depend on, but the images.

    model: its name. source: of the weights. padding: one of the padding semantics. classes: names by index; empty
    where they are not known yet, which differs from nothing.
    size: (height, width) of the images, pixels; None for a graph of dynamic size, which gets each at its own.
    threshold, reduce_zero_label, ignore_index: as in `Conventions`. Where a side says nothing of label 0, or of which
    weights of a file were taken, it differs from nothing.
    """

    model: str
    source: Source
    padding: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    size: tuple[int, int] | None
    threshold: float | None = None
    reduce_zero_label: bool | None = None
    ignore_index: int = IGNORE_INDEX

    @classmethod
    def of(
        cls,
        interface: GraphInterface,
        *,
        model: str,
        source: Source,
        padding: str,
        reduce_zero_label: bool | None = None,
        ignore_index: int = IGNORE_INDEX,
    ) -> PackKey:
        """The key of a graph's interface and its model."""
        return cls(
            model,
            source,
            padding,
            interface.classes,
            interface.preprocessing,
            interface.size,
            interface.threshold,
            reduce_zero_label,
            ignore_index,
        )

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> PackKey:
        manifest = bundle.manifest
        return cls.of(
            manifest.interface,
            model=manifest.model,
            source=manifest.source,
            padding=manifest.padding,
            reduce_zero_label=manifest.reduce_zero_label,
            ignore_index=manifest.ignore_index,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`. What says nothing is left out, so that earlier versions read them."""
        plain: dict[str, Any] = encode(self)
        plain["preprocessing"] = self.preprocessing.to_json()
        silent = {"threshold": None, "reduce_zero_label": None, "ignore_index": IGNORE_INDEX}
        sources = {"origin": "", "weights": "", "licence": ""}
        plain["source"] = _without(plain["source"], sources)
        return _without(plain, silent)

    def differences(self, other: PackKey) -> Iterator[tuple[str, str, str]]:
        """Field, value here and value there, of everything that differs. The name of a checkpoint's file does not
        count."""
        rows = [
            ("model", self.model, other.model),
            ("checkpoint", _weights(self.source), _weights(other.source)),
            *_where_known("weights of the checkpoint", self.source.weights or None, other.source.weights or None),
            ("padding", self.padding, other.padding),
            *_classes(self.classes, other.classes),
            ("threshold", str(self.threshold), str(other.threshold)),
            *_where_known("reduce_zero_label", self.reduce_zero_label, other.reduce_zero_label),
            ("ignore_index", str(self.ignore_index), str(other.ignore_index)),
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


def _where_known(name: str, here: object, there: object) -> list[tuple[str, str, str]]:
    """A row of `differences`, where both sides say something."""
    return [] if here is None or there is None else [(name, str(here), str(there))]


def _without(values: dict[str, Any], unsaid: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in unsaid or value != unsaid[name]}


def _preprocessing(here: Preprocessing, there: Preprocessing) -> list[tuple[str, str, str]]:
    values, others = here.to_json(), there.to_json()
    shared = dict.fromkeys([*values, *others])  # an order of channels that is the usual one is not written
    return [(f"preprocessing.{name}", str(values.get(name, "rgb")), str(others.get(name, "rgb"))) for name in shared]


def _size(size: tuple[int, int] | None) -> str:
    return "dynamic" if size is None else f"{size[0]}x{size[1]}"
