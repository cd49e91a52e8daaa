"""Frozen dataclasses to plain JSON values and back. An error names the place of a value that does not fit."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def encode(value: Any) -> Any:
    """Dataclasses, tuples and mappings as dicts and lists that `json.dump` takes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    return value


def decode(kind: type[T], value: Any, where: str = "") -> T:
    """Plain JSON values as the dataclass `kind`, every type checked.

    where: the value's name in errors, empty for the whole. Unknown fields are refused, because a field that an old
    reader skips could change the meaning of the masks. Raises ValueError with the dotted place, the value, and the
    expected type.
    """
    return typing.cast(T, _decode(kind, value, where))


def _decode(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, value, where)
    if origin is typing.Literal:
        if value not in arguments or isinstance(value, bool):
            raise ValueError(f"{where} is {_short(value)}, not one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        return _decode_tuple(arguments, value, where)
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise _mismatch(where, value, "an object")
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:  # exactly: a JSON true is an int to isinstance
        raise _mismatch(
            where, value, {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[kind]
        )
    return value


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _mismatch(where, value, "an object")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(set(value) - set(fields)):
        raise ValueError(f"{where} has the field {unknown[0]!r}, which this version does not know".lstrip())
    hints = typing.get_type_hints(kind)
    plain = {}
    for name, field in fields.items():
        if name in value:
            plain[name] = _decode(hints[name], value[name], f"{where}.{name}".lstrip("."))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where} lacks the field {name!r}".lstrip())
    return kind(**plain)


def _decode_union(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    options = [argument for argument in arguments if argument is not type(None)]
    for option in options[:-1]:
        try:
            return _decode(option, value, where)
        except ValueError:
            continue
    return _decode(options[-1], value, where)


def _decode_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, list):
        raise _mismatch(where, value, "a list")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if len(value) != len(arguments):
        raise _mismatch(where, value, f"a list of {len(arguments)}")
    return tuple(
        _decode(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(arguments, value, strict=True))
    )


def _mismatch(where: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"{where} is {_short(value)}, not {expected}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
