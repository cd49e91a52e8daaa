"""What every engine kind offers, and the checks they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from twins_trt.errors import EngineError, UsageError
from twins_trt.runtime.tensors import TensorSpec, describe

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class EngineSettings:
    """How an engine runs. Settings that a kind has no use for are ignored by it.

    threads: CPU threads for one call; None lets the runtime take every core. deterministic: refuse kernels whose result
    depends on the order in which threads finish.
    """

    threads: int | None = None
    deterministic: bool = True

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads is {self.threads}", "give 1 or more, or None for every core")


@runtime_checkable
class Engine(Protocol):
    """Something that executes a graph.

    name: its kind (`onnxruntime`). inputs, outputs: the specs, dynamic dimensions with their limits.
    concurrent: whether several threads may call it at once; a Segmenter puts a lock around one that does not allow it.
    """

    @property
    def name(self) -> str: ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def concurrent(self) -> bool: ...

    def __call__(
        self, image: Array, *, outputs: Sequence[str] | None = None, out: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Run on `image`, whose dtype and shape must fit `inputs[0]`.

        outputs: which to bring back to the host, default all: 150 classes of logits nobody asked for cost more than the
        network. out: C-contiguous arrays, of exactly the resulting dtype and shape, to write into. An array that is not
        in `out` is newly allocated and the caller's to keep. Raises EngineError.
        """
        ...

    def close(self) -> None:
        """Give back what the engine holds; calling it again does nothing. No other call may follow."""
        ...


def check_input(spec: TensorSpec, image: Array, *, owner: str) -> None:
    """Raise EngineError, with both shapes, if `image` cannot be bound to `spec` of `owner` (a bundle or graph)."""
    if str(image.dtype) != spec.dtype or not spec.fits(image.shape):
        raise EngineError(
            f"{owner} accepts {spec}, not {describe(image)}",
            "resize or convert it (a Segmenter does), or build for this size: twins-trt build --size HxW --batch N",
        )


def wanted_outputs(specs: Sequence[TensorSpec], outputs: Sequence[str] | None, *, owner: str) -> list[str]:
    """The outputs to compute; all by default. Raises UsageError for a name the engine does not have."""
    names = [spec.name for spec in specs]
    if outputs is None:
        return names
    if unknown := [name for name in outputs if name not in names]:
        raise UsageError(f"{owner} has no output {unknown[0]!r}", f"use {' or '.join(names)}")
    return list(outputs)


def check_out(spec: TensorSpec, array: Array) -> None:
    """Raise EngineError unless the output `spec` can be written into `array`."""
    if str(array.dtype) != spec.dtype or not spec.fits(array.shape):
        raise EngineError(f"the buffer for {spec.name} is {describe(array)}, the output is {spec}")
    if not (array.flags.c_contiguous and array.flags.writeable):
        raise EngineError(f"the buffer for {spec.name} must be C-contiguous and writeable")
