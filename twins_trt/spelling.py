"""The caller's name for a field of its request: `calibrate_on="KIND:PATH"` in Python, `--calib-data KIND:PATH` on a
command line.

It knows no verb, so that every module with errors can import it. A command line tells it the names of its flags.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class Named(Protocol):
    """The part of a flag that errors need. option: as it is typed. sets: the value that a flag without one gives its
    field. positional: whether it is a positional argument."""

    @property
    def option(self) -> str: ...
    @property
    def sets(self) -> bool | None: ...
    @property
    def positional(self) -> bool: ...


Names = Callable[[str], Named | None]
"""Returns the flag of a field, or None for a field without one."""

_speaking: ContextVar[Names | None] = ContextVar("twins_trt_names", default=None)


@contextmanager
def speaking(names: Names | None) -> Iterator[None]:
    """Within it, errors name fields by these flags; with None by the parameters of Python."""
    token = _speaking.set(names)
    try:
        yield
    finally:
        _speaking.reset(token)


def spelled(name: str, value: object = None) -> str:
    """The caller's name for the field `name` of its request, for an error or its fix.

    value: the value to give, True for a switch; None for the name alone. In Python `checkpoint="FILE"`, on a command
    line `--checkpoint FILE`.
    """
    names = _speaking.get()
    if names is None:
        shown = json.dumps(value) if isinstance(value, str) else repr(value)  # in double quotes, as in our examples
        return name if value is None else f"{name}={shown}"
    flag = names(name)
    option = f"--{name.replace('_', '-')}" if flag is None else flag.option
    switch = isinstance(value, bool) or (flag is not None and flag.sets is not None)
    if value is None or switch or (flag is not None and flag.positional):
        return option
    return f"{option} {shlex.quote(value) if isinstance(value, str) and ' ' in value else value}"
