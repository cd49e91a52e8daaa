"""What every request whose fields are None until something is said can do."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from twins_trt.codec import decode, encode
from twins_trt.errors import UsageError

R = TypeVar("R", bound="Request")
T = TypeVar("T")


def either(said: T | None, default: T) -> T:
    """What a request says, or the default where it says nothing."""
    return default if said is None else said


class Request:
    """The base of such requests, which are frozen dataclasses."""

    def given(self) -> dict[str, Any]:
        """The fields that say something."""
        names = [each.name for each in dataclasses.fields(self)]  # type: ignore[arg-type]  # its subclasses are
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
