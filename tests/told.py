"""A progress callback for tests."""

from __future__ import annotations


class Told:
    """A `Progress` that keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, float | None]] = []

    def __call__(self, step: str, detail: str, share: float | None) -> None:
        self.calls.append((step, detail, share))

    @property
    def details(self) -> list[str]:
        return [detail for _, detail, _ in self.calls]
