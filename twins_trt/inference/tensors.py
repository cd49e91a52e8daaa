"""The inputs and outputs of engines: names, data types and shapes, with the limits of dynamic dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from twins_trt.errors import UsageError

DType = Literal["uint8", "int32", "int64", "float16", "float32"]
Dim = int | tuple[int, int, int]  # fixed, or (min, opt, max)


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph.

    shape: a number for a fixed dimension, a name (`"N"`) for a dynamic one.
    min, opt, max: the shapes of the optimization profile; all three or none. TensorRT needs them for an input with
    dynamic dimensions. Without them any size of at least 1 fits.
    Raises UsageError, naming the field, if the parts contradict each other.
    """

    name: str
    dtype: DType
    shape: tuple[int | str, ...]
    min: tuple[int, ...] | None = None
    opt: tuple[int, ...] | None = None
    max: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise UsageError("a tensor needs a name")
        if any(dim < 1 if isinstance(dim, int) else not dim for dim in self.shape):
            raise UsageError(f"{self.name}.shape is {list(self.shape)}; dimensions are at least 1, or named")
        if len({self.min is None, self.opt is None, self.max is None}) == 2:
            raise UsageError(f"{self.name} has some of min, opt and max; give all three or none")
        if self.min is None or self.opt is None or self.max is None:
            return
        for kind, limits in (("min", self.min), ("opt", self.opt), ("max", self.max)):
            if len(limits) != len(self.shape):
                raise UsageError(f"{self.name}.{kind} is {list(limits)} but its shape is {list(self.shape)}")
        for low, middle, high, dim in zip(self.min, self.opt, self.max, self.shape, strict=True):
            if not 1 <= low <= middle <= high or (isinstance(dim, int) and not low == high == dim):
                raise UsageError(
                    f"{self.name} has the shape {list(self.shape)} but the profile "
                    f"{list(self.min)}, {list(self.opt)}, {list(self.max)}"
                )

    @classmethod
    def image(cls, height: Dim, width: Dim, *, batch: Dim = 1, dtype: DType = "uint8") -> TensorSpec:
        """The input `image`: uint8 [N, H, W, 3], or float32 [N, 3, H, W]. Each size fixed or (min, opt, max)."""
        sizes = [("N", batch), ("H", height), ("W", width)]
        sizes.insert(3 if dtype == "uint8" else 1, ("C", 3))
        shape = tuple(dim if isinstance(dim, int) else name for name, dim in sizes)
        if all(isinstance(dim, int) for dim in shape):
            return cls("image", dtype, shape)
        low, middle, high = zip(*((d, d, d) if isinstance(d, int) else d for _, d in sizes), strict=True)
        return cls("image", dtype, shape, low, middle, high)

    @classmethod
    def mask(cls, height: Dim, width: Dim, *, batch: Dim = 1) -> TensorSpec:
        """The output `mask`: uint8 [N, H, W], one class index per pixel. Sizes as in `image`."""
        sizes = (("N", batch), ("H", height), ("W", width))
        return cls("mask", "uint8", tuple(dim if isinstance(dim, int) else name for name, dim in sizes))

    @property
    def dynamic(self) -> bool:
        return any(isinstance(dim, str) for dim in self.shape)

    def limits(self) -> tuple[tuple[int, int | None], ...]:
        """(min, max) of every dimension; max is None without a limit."""
        if self.min is not None and self.max is not None:
            return tuple(zip(self.min, self.max, strict=True))
        return tuple((dim, dim) if isinstance(dim, int) else (1, None) for dim in self.shape)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of `shape` can be bound to this tensor."""
        limits = self.limits()
        return len(shape) == len(limits) and all(
            low <= dim and (high is None or dim <= high) for dim, (low, high) in zip(shape, limits, strict=True)
        )

    def __str__(self) -> str:
        """Formats a tensor, such as `image uint8 [1-8, 480, 360, 3]`."""
        dims = []
        for dim, (low, high) in zip(self.shape, self.limits(), strict=True):
            dims.append(str(dim) if low == high else f"{dim}>={low}" if high is None else f"{dim}={low}-{high}")
        return f"{self.name} {self.dtype} [{', '.join(dims)}]"


class Described(Protocol):
    """Anything with a data type and a shape: an array on the host or on a GPU, or just a description."""

    @property
    def dtype(self) -> Any: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


def describe(array: Described) -> str:
    """Formats the type and shape of an array, such as `uint8 [1, 480, 360, 3]`."""
    return f"{array.dtype} {list(array.shape)}"
