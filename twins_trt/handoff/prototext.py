"""Protocol buffers' text format, as far as configurations need it: written, never read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence


class Symbol(str):
    """The name of an enumeration's value: written without quotes."""


def prototext(fields: Mapping[str, object]) -> str:
    """`fields` as text: a mapping is a message, a list of mappings a repeated one, any other list a repeated scalar.

    None and empty lists are left out. Raises TypeError for a value that is none of these.
    """
    return "".join(f"{line}\n" for line in _lines(fields))


def _lines(fields: Mapping[str, object]) -> list[str]:
    lines = []
    for name, value in fields.items():
        if isinstance(value, Mapping):
            lines += [f"{name} {{", *(f"  {line}" for line in _lines(value)), "}"]
        elif isinstance(value, (list, tuple)):
            lines += _repeated(name, value)
        elif value is not None:
            lines.append(f"{name}: {_scalar(value)}")
    return lines


def _repeated(name: str, values: Sequence[object]) -> list[str]:
    if any(isinstance(value, Mapping) for value in values):
        return [line for value in values for line in _lines({name: value})]
    return [f"{name}: [{', '.join(map(_scalar, values))}]"] if values else []


def _scalar(value: object) -> str:
    if isinstance(value, Symbol):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # the escapes of JSON strings are among those of the text format
    raise TypeError(f"{type(value).__name__} has no text format")
