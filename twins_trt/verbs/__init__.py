"""What can be asked for: one module a verb, with its request, its defaults, its flags and the function that does it."""

from __future__ import annotations

from collections.abc import Callable

# progress(step, detail, share): what is done, what about it, and the share of the step that is done, 0 to 1 or None.
Progress = Callable[[str, str, float | None], None]


def silent(step: str, detail: str, share: float | None) -> None:
    """The progress of whom nobody listens to."""
