"""What the caller calls a field of its request: `calibrate_on="KIND:PATH"` in Python, `--calib-data KIND:PATH` on a
command line.

Whatever raises an error may import it: it knows of no verb. A command line says itself what it calls things.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class Named(Protocol):
    """A flag, as far as errors name it. option: as it is typed. sets: its field's value, where none follows it.
    positional: it is an argument by its place."""

    @property
    def option(self) -> str: ...
    @property
    def sets(self) -> bool | None: ...
    @property
    def positional(self) -> bool: ...


Names = Callable[[str], Named | None]
"""The flag of a field, or None where there is none."""

_speaking: ContextVar[Names | None] = ContextVar("twins_trt_names", default=None)


@contextmanager
def speaking(names: Names | None) -> Iterator[None]:
    """Within it, whoever is told something asked by flags of these names; for None by parameters of Python."""
    token = _speaking.set(names)
    try:
        yield
    finally:
        _speaking.reset(token)


def spelled(name: str, value: object = None) -> str:
    """What the caller calls the field `name` of its request, for an error or its fix.

    value: to give it, True for a switch; None for the name alone. From Python `checkpoint="FILE"`, on a command line
    `--checkpoint FILE`.
    """
    names = _speaking.get()
    if names is None:
        said = json.dumps(value) if isinstance(value, str) else repr(value)  # double quotes, as the code here has them
        return name if value is None else f"{name}={said}"
    flag = names(name)
    option = f"--{name.replace('_', '-')}" if flag is None else flag.option
    switch = isinstance(value, bool) or (flag is not None and flag.sets is not None)
    if value is None or switch or (flag is not None and flag.positional):
        return option
    return f"{option} {shlex.quote(value) if isinstance(value, str) and ' ' in value else value}"
