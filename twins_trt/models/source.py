"""Where a model's weights came from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A checkpoint's file name and sha256, or a generator of random weights (seeded)."""

    checkpoint: str | None = None
    sha256: str | None = None
    seeded: bool = False
