"""Interim: replaced by the real reader of configurations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from twins_trt.models.conventions import Conventions


@dataclass(frozen=True)
class ModelNumbers:
    num_heads: tuple[int, int, int, int] | None = None
    window_size: int | None = None
    drop_path_rate: float | None = None
    norm_eps: float | None = None
    spec_changes: dict[str, Any] = field(default_factory=dict)


def read_conventions(
    meta: Mapping[str, Any], *, origin: str, padding: str, num_logits: int, flags: Mapping[str, str]
) -> tuple[Conventions, ModelNumbers]:
    from twins_trt.models.checkpoint import read_meta

    named = read_meta(dict(meta))
    return Conventions(padding=padding, classes=named.classes, palette=named.palette), ModelNumbers()


def write_conventions(conventions: Conventions, spec: Any) -> dict[str, Any]:
    return {}
