"""Sizes that may be known now or only at run time.

A `Dim` is an int or a `Sym`. Python arithmetic on Dims folds where everything is an int, so the same code writes
constants for a fixed size and shape arithmetic for a dynamic one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Sym:
    """A non-negative integer known at run time: `op` is `axis` (of a named tensor) or an ONNX integer operator."""

    op: str
    args: tuple[Dim | str, ...]

    def __add__(self, other: Dim) -> Dim:
        return _combine("Add", self, other)

    def __radd__(self, other: int) -> Dim:
        return _combine("Add", other, self)

    def __sub__(self, other: Dim) -> Dim:
        return _combine("Sub", self, other)

    def __rsub__(self, other: int) -> Dim:
        return _combine("Sub", other, self)

    def __mul__(self, other: Dim) -> Dim:
        return _combine("Mul", self, other)

    def __rmul__(self, other: int) -> Dim:
        return _combine("Mul", other, self)

    def __floordiv__(self, other: Dim) -> Dim:
        return _combine("Div", self, other)


Dim = int | Sym
Size = tuple[Dim, Dim]
"""Height and width, pixels of a map."""


@dataclass(frozen=True)
class MapShape:
    """The shape of a map [B, C, H, W], whose tokens are [B, H·W, C]. size: (H, W)."""

    batch: Dim
    channels: int
    size: Size

    @property
    def tokens(self) -> Dim:
        """H·W."""
        return self.size[0] * self.size[1]

    def of(self, channels: int) -> MapShape:
        """The same map with another number of channels."""
        return replace(self, channels=channels)


_FOLD: dict[str, Callable[[int, int], int]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": operator.floordiv,
    "Min": min,
}
_NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}


def _combine(op: str, left: Dim, right: Dim) -> Dim:
    if isinstance(left, int) and isinstance(right, int):
        return _FOLD[op](left, right)
    if op in _NEUTRAL and right == _NEUTRAL[op]:
        return left
    if op in ("Add", "Mul") and left == _NEUTRAL[op]:
        return right
    return Sym(op, (left, right))


def minimum(left: Dim, right: Dim) -> Dim:
    return _combine("Min", left, right)


def ceil_div(value: Dim, by: int) -> Dim:
    return (value + (by - 1)) // by


def pad_to_multiple(value: Dim, of: int) -> Dim:
    """The number to add to `value` to reach a multiple of `of`."""
    return ceil_div(value, of) * of - value


def known(*dims: Dim) -> bool:
    """Whether every dimension is known now."""
    return all(isinstance(dim, int) for dim in dims)


def ints(*dims: Dim) -> tuple[int, ...]:
    """The dimensions as ints. Raises ValueError unless all are `known`."""
    if not known(*dims):
        raise ValueError(f"{dims} are not all known before run time")
    return tuple(dim for dim in dims if isinstance(dim, int))
