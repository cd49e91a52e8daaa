"""Conventions that a caller states in place of the checkpoint's, as text: `--convention NAME=VALUE`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from twins_trt.errors import UsageError
from twins_trt.models.conventions import TestMode
from twins_trt.spelling import spelled

Flagged = Mapping[str, Any]
"""Values by the names of `NAMES`."""


def read_flags(flags: Mapping[str, str]) -> Flagged:
    """The values of flags. Raises `UsageError` for a name that there is not, and for a value that does not fit it."""
    read: dict[str, Any] = {}
    for name, text in flags.items():
        if name not in NAMES:
            raise UsageError(f"there is no convention {name!r}", f"name one of: {', '.join(NAMES)}")
        parse, form = NAMES[name]
        try:
            read[name] = parse(str(text).strip())
        except ValueError:
            raise UsageError(
                f"the convention {name} cannot be {text!r}", f"{spelled('conventions', f'{name}={form}')}"
            ) from None
    return read


def _numbers(text: str) -> tuple[float, float, float]:
    a, b, c = (float(part) for part in text.split(","))
    return (a, b, c) if all(map(math.isfinite, (a, b, c))) else _no()


def _deviations(text: str) -> tuple[float, float, float]:
    values = _numbers(text)
    return values if all(value > 0 for value in values) else _no()


def _order(text: str) -> str:
    return text.lower() if text.lower() in ("rgb", "bgr") else _no()


def _switch(text: str) -> bool:
    if text.lower() in ("true", "yes", "1"):
        return True
    return False if text.lower() in ("false", "no", "0") else _no()


def _never(text: str) -> bool:
    """Only false: the package computes nothing else."""
    return False if not _switch(text) else _no()


def _one(text: str) -> int:
    """Only 1: images are not padded."""
    return 1 if text == "1" else _no()


def _sides(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    sides = (int(found[1]), int(found[2])) if found else _no()
    return sides if min(sides) > 0 else _no()


def _scale(text: str) -> tuple[int, int] | None:
    return None if text.lower() == "none" else _sides(text)


def _probability(text: str) -> float:
    value = float(text)
    return value if 0 < value < 1 else _no()


def _label(text: str) -> int:
    value = int(text)
    return value if 0 <= value <= 255 else _no()


def _mode(text: str) -> TestMode:
    if text == "whole":
        return TestMode()
    name, crop, stride = text.split(":")
    return TestMode("slide", _sides(crop), _sides(stride)) if name == "slide" else _no()


def _heads(text: str) -> tuple[int, int, int, int]:
    a, b, c, d = (int(part) for part in text.split(","))
    return (a, b, c, d) if min(a, b, c, d) > 0 else _no()


def _positive(text: str) -> int:
    value = int(text)
    return value if value > 0 else _no()


def _epsilon(text: str) -> float:
    value = float(text)
    return value if 0 < value < 1 else _no()


def _no() -> Any:
    raise ValueError


NAMES: dict[str, tuple[Callable[[str], Any], str]] = {
    "mean": (_numbers, "123.675,116.28,103.53"),
    "std": (_deviations, "58.395,57.12,57.375"),
    "channels": (_order, "rgb"),
    "test_scale": (_scale, "2048x512"),
    "keep_ratio": (_switch, "true"),
    "threshold": (_probability, "0.5"),
    "reduce_zero_label": (_switch, "true"),
    "ignore_index": (_label, "255"),
    "test_mode": (_mode, "slide:512x512:341x341"),
    "train_size": (_sides, "512x512"),
    "num_heads": (_heads, "2,4,8,16"),
    "window_size": (_positive, "7"),
    "norm_eps": (_epsilon, "1e-5"),
    "align_corners": (_never, "false"),
    "size_divisor": (_one, "1"),
}
"""Every convention by name: how its text is read, and an example of it."""


def spelled_value(value: object) -> str:
    """A value as a flag takes it: `2048x512`, `0,0,0`, `true`, `slide:512x512:341x341`."""
    if isinstance(value, TestMode):
        return value.name if value.crop is None else f"{value.name}:{_x(value.crop)}:{_x(value.stride)}"
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    if isinstance(value, (tuple, list)):
        return _x(value) if len(value) == 2 else ",".join(map(spelled_value, value))
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)


def _x(sides: object) -> str:
    return "x".join(map(str, sides)) if isinstance(sides, (tuple, list)) else "none"
