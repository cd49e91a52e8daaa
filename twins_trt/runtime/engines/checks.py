"""The checks that all kinds of engines share: of their tensors, of an image, of output names and buffers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from twins_trt.errors import BundleError, EngineError, UsageError
from twins_trt.inference.tensors import Described, TensorSpec, describe
from twins_trt.spelling import spelled

if TYPE_CHECKING:
    from twins_trt.runtime.engines.protocol import Array, EngineSource


def why_no_graph(source: EngineSource) -> str | None:
    """Why the graph of `source` cannot be run, or None if it is there."""
    try:
        source.graph  # noqa: B018  # a bundle that holds engines alone has none
    except BundleError as error:
        return error.cause
    return None


class TakesInterface(Protocol):
    """An engine that has just been opened. inputs, outputs: as its runtime describes them."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def take_interface(engine: TakesInterface, source: EngineSource, *, file: str) -> None:
    """Gives an engine the tensors of the source's interface, which know the limits of the profile.

    file: the name of the file that was opened. Raises BundleError, with both sides, unless the engine's own tensors
    agree with the interface.
    """
    interface = source.interface
    pairs = (("inputs", interface.inputs, engine.inputs), ("outputs", interface.outputs, engine.outputs))
    for kind, listed, actual in pairs:
        by_name = {spec.name: spec for spec in actual}
        for i, spec in enumerate(listed):
            other = by_name.get(spec.name)
            if other is None or not _agree(spec, other):
                has = ", ".join(map(str, actual)) if other is None else str(other)
                raise BundleError(
                    f"{source.path}: manifest.json: {kind}[{i}] is {spec}, {file} has {has}", source.rebuild
                )
    engine.inputs, engine.outputs = interface.inputs, interface.outputs


def _agree(listed: TensorSpec, actual: TensorSpec) -> bool:
    """Whether the interface's spec describes the engine's tensor; of an open size, the limits have to fit."""
    if listed.dtype != actual.dtype or len(listed.shape) != len(actual.shape):
        return False
    pairs = zip(listed.shape, actual.shape, strict=True)
    if not all(isinstance(theirs, str) or ours == theirs for ours, theirs in pairs):
        return False
    limits = zip(listed.limits(), actual.limits(), strict=True)
    return actual.min is None or all(
        low >= smallest and (high or largest) <= largest
        for (low, high), (smallest, largest) in limits
        if largest is not None
    )


def check_input(spec: TensorSpec, image: Described, *, owner: str) -> None:
    """Raises EngineError, with both shapes, if `image` cannot be bound to `spec` of `owner` (a bundle or graph)."""
    if str(image.dtype) != spec.dtype or not spec.fits(image.shape):
        raise EngineError(
            f"{owner} accepts {spec}, not {describe(image)}",
            "resize or convert it (a Segmenter does), or build for it: "
            f"{spelled('size', 'HxW')}, {spelled('batch', 'N')}",
        )


def wanted_outputs(specs: Sequence[TensorSpec], outputs: Sequence[str] | None, *, owner: str) -> list[str]:
    """The outputs to compute; all by default. Raises UsageError for a name the engine does not have."""
    names = [spec.name for spec in specs]
    if outputs is None:
        return names
    if unknown := [name for name in outputs if name not in names]:
        raise UsageError(f"{owner} has no output {unknown[0]!r}", f"use {' or '.join(names)}")
    return list(outputs)


def check_buffer(spec: TensorSpec, array: Array) -> None:
    """Raises EngineError unless the output `spec` can be written into `array`."""
    if str(array.dtype) != spec.dtype or not spec.fits(array.shape):
        raise EngineError(f"the buffer for {spec.name} is {describe(array)}, the output is {spec}")
    if not (array.flags.c_contiguous and array.flags.writeable):
        raise EngineError(f"the buffer for {spec.name} must be C-contiguous and writeable")
