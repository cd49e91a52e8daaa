"""Interim: replaced by the real reader of formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from twins_trt.errors import CheckpointError


@dataclass(frozen=True)
class Unwrapped:
    weights: Mapping[str, Tensor]
    meta: Mapping[str, Any]
    taken: str


@dataclass(frozen=True)
class Recognized:
    state_dict: dict[str, Tensor]
    origin: str
    whole: bool
    dropped: dict[str, str] = field(default_factory=dict)
    spec_changes: dict[str, Any] = field(default_factory=dict)
    padding: str = "parity"
    licence: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)


def unwrap(content: object, path: Any, *, weights: str = "auto") -> Unwrapped:
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not weights by name", "save model.state_dict() instead"
        )
    found = next((content[k] for k in ("state_dict", "model") if isinstance(content.get(k), Mapping)), content)
    meta = content.get("meta")
    return Unwrapped(found, meta if isinstance(meta, Mapping) else {}, "")


def recognize(state_dict: Mapping[str, Tensor], path: Any) -> Recognized:
    state = {key.removeprefix("module."): value for key, value in state_dict.items()}
    return Recognized(state, "mmseg", any(key.startswith("decode_head.") for key in state))
