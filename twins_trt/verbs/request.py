"""The base of requests whose fields are None where the caller gives no value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from twins_trt.codec import decode, encode
from twins_trt.errors import UsageError

R = TypeVar("R", bound="Request")
T = TypeVar("T")


def either(value: T | None, default: T) -> T:
    """The value, or the default where it is None."""
    return default if value is None else value


class Request:
    """A request, as a frozen dataclass; None is no value."""

    def given(self) -> dict[str, Any]:
        """The fields with a value, by name."""
        names = [each.name for each in dataclasses.fields(self)]  # type: ignore[arg-type]  # subclasses are dataclasses
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        plain: dict[str, Any] = encode(self)
        return plain

    @classmethod
    def from_json(cls: type[R], values: Mapping[str, Any]) -> R:
        """The inverse of `to_json`. Raises UsageError with the field that does not fit."""
        try:
            return decode(cls, dict(values))
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(f"{cls.__name__}: {error}") from error
