"""The kinds of values in requests: how each is given in Python, read from a command line, and written as text."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twins_trt.builders.export.options import DynamicDim
from twins_trt.errors import UsageError

Extent = int | DynamicDim
"""A side of an image or a batch: fixed or dynamic."""

LARGEST_SIDE = 8192  # pixels; a larger one is likely a typing error, and an export of it would run out of memory


@dataclass(frozen=True)
class Kind:
    """A kind of value.

    take: converts what Python gives, which may be its text; raises UsageError for another kind. show: the text of a
    value, which `read` converts back. read: converts a command line's text; None where `take` does.
    """

    take: Callable[[Any], Any]
    show: Callable[[Any], str] = str
    read: Callable[[str], Any] | None = None


def _text(value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise UsageError(f"{value!r} is no text", "give a text or a path")
    text = os.fspath(value)
    if "\0" in text:
        raise UsageError(f"{text!r} holds a NUL", "give a text without one")
    return text


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):  # NumPy's integers have it too
        raise UsageError(f"{value!r} is no whole number", "give one such as 8")
    return int(value.__index__())


def _number(value: Any) -> float:
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise UsageError(f"{value!r} is no number", "give one such as 0.5")
    return float(value)


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{value!r} is neither True nor False", "give True or False")
    return value


def _names(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else tuple(value)
    return tuple(text for part in parts if (text := _text(part).strip()))


def _counts(value: Any) -> tuple[int, ...]:
    if isinstance(value, str) and value.strip().lower() == "none":
        return ()
    parts = value.split(",") if isinstance(value, str) else tuple(value)
    numbers = [_extent(part) for part in parts]
    if not all(isinstance(number, int) and number > 0 for number in numbers):
        raise UsageError(f"{value!r} is no list of numbers from 1 on", "write numbers such as 1,2,4,8, or none")
    return tuple(number for number in numbers if isinstance(number, int))


def _extent(value: Any) -> int | DynamicDim | None:
    """A side or a batch, from a number, a `DynamicDim`, or the text of one; None for anything else."""
    if isinstance(value, DynamicDim):
        return value
    if not isinstance(value, str):
        return None if isinstance(value, bool) or not hasattr(value, "__index__") else int(value.__index__())
    parts = value.strip().split(":")
    if len(parts) not in (1, 3) or not all(re.fullmatch(r"\d{1,9}", part) for part in parts):
        return None
    numbers = [int(part) for part in parts]
    return numbers[0] if len(numbers) == 1 else DynamicDim(*numbers)


def _show_extent(value: int | DynamicDim) -> str:
    return f"{value.min}:{value.opt}:{value.max}" if isinstance(value, DynamicDim) else str(value)


def parse_size(value: Any) -> tuple[int | DynamicDim, int | DynamicDim]:
    """(height, width) of `512x384`, `512`, (512, 384), or with MIN:OPT:MAX or a `DynamicDim` in place of a number.

    Raises `UsageError`.
    """
    if hasattr(value, "__iter__") and not isinstance(value, (str, bytes)):
        parts = list(value)
    else:
        parts = re.split("[x×]", value.strip().lower()) if isinstance(value, str) else [value]
    sides = [_extent(part) for part in parts]
    if len(sides) not in (1, 2) or None in sides:
        raise UsageError(
            f"{_text_of(value)!r} is not a size", "write HxW in pixels, such as 512x512, or 256:512:1024x256:512:2048"
        )
    for side in sides:
        if side is not None and (side.max if isinstance(side, DynamicDim) else side) > LARGEST_SIDE:
            raise UsageError(
                f"{_text_of(value)!r} has a side of more than {LARGEST_SIDE} pixels", "give a smaller size HxW"
            )
    return sides[0], sides[-1]  # type: ignore[return-value]  # none of them is None


def parse_fixed_size(value: Any) -> tuple[int, int]:
    """(height, width) of anything that `parse_size` takes but a dynamic size. Raises `UsageError`."""
    height, width = parse_size(value)
    if isinstance(height, DynamicDim) or isinstance(width, DynamicDim):
        raise UsageError(f"{_text_of(value)!r} is a range", "give one size, such as 512x512")
    return height, width


def parse_batch(value: Any) -> int | DynamicDim:
    """The batch of `8`, `MIN:OPT:MAX`, a number or a `DynamicDim`. Raises `UsageError`."""
    batch = _extent(value)
    if batch is None:
        raise UsageError(f"{value!r} is not a batch", "write how many images, such as 1, or 1:4:16")
    return batch


def parse_test_scale(value: Any) -> tuple[int, int] | str:
    """(long, short) of `2048x512` or of two numbers, pixels; `none` for `none`. Raises `UsageError`."""
    if isinstance(value, str) and value.strip().lower() == "none":
        return "none"
    parts = re.split("[x×]", value.strip().lower()) if isinstance(value, str) else list(value)
    sides = [_extent(part) for part in parts]
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise UsageError(
            f"{_text_of(value)!r} is not a test scale", "write LONGxSHORT in pixels, such as 2048x512, or none"
        )
    first, second = (side for side in sides if isinstance(side, int))
    return max(first, second), min(first, second)


def _text_of(value: Any) -> str:
    """The text of a value for errors: the same from Python and from a command line."""
    return "x".join(map(_text_of, value)) if isinstance(value, (tuple, list)) else _show_extent(value)


def _by_x(value: Any) -> str:
    return value if isinstance(value, str) else "x".join(map(_show_extent, value))


def _convention(value: Any) -> str:
    """`NAME=VALUE` of a convention that there is. Raises `UsageError` for another name, and for a value of no use."""
    from twins_trt.models.convention_flags import NAMES, read_flags

    name, equals, text = _text(value).partition("=")
    if not equals:
        raise UsageError(f"{name!r} is no convention", f"write NAME=VALUE, such as mean=0,0,0: {', '.join(NAMES)}")
    read_flags({name.strip(): text})
    return f"{name.strip()}={text.strip()}"


TEXT = Kind(_text)
CONVENTION = Kind(_convention)
WHOLE = Kind(_whole, read=int)
NUMBER = Kind(_number, lambda value: repr(value).removesuffix(".0"), read=float)
SWITCH = Kind(_switch)
NAMES = Kind(_names, ",".join)
COUNTS = Kind(_counts, lambda value: ",".join(map(str, value)) or "none")
SIZE = Kind(parse_size, _by_x)
FIXED_SIZE = Kind(parse_fixed_size, _by_x)
BATCH = Kind(parse_batch, _show_extent)
TEST_SCALE = Kind(parse_test_scale, _by_x)
