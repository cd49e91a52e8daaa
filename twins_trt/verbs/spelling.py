"""What the caller calls a field of its request: `calibrate_on="KIND:PATH"` in Python, `--calib-data KIND:PATH` on a
command line.

Light enough for whatever raises an error: the flags of a verb are imported where a command line asks for them.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twins_trt.verbs.flags import Flag, FlagTable

_speaking: ContextVar[FlagTable[Any] | None] = ContextVar("twins_trt_flags", default=None)


@contextmanager
def on_command_line(table: FlagTable[Any] | None) -> Iterator[None]:
    """Within it, whoever is told something asked by the flags of `table`, not by parameters of Python."""
    token = _speaking.set(table)
    try:
        yield
    finally:
        _speaking.reset(token)


def spelled(name: str, value: object = None) -> str:
    """What the caller calls the field `name` of its request, for an error or its fix.

    name: a field of the verb that is running; where that has none, of `build`, whose bundles the others run.
    value: to give it, True for a switch; None for the name alone. From Python `checkpoint="FILE"`, on a command line
    `--checkpoint FILE`.
    """
    table = _speaking.get()
    if table is None:
        said = json.dumps(value) if isinstance(value, str) else repr(value)  # double quotes, as the code here has them
        return name if value is None else f"{name}={said}"
    flag = table.of(name) or _flag_of_build(name)
    option = f"--{name.replace('_', '-')}" if flag is None else flag.option
    switch = isinstance(value, bool) or (flag is not None and flag.sets is not None)
    if value is None or switch or (flag is not None and flag.positional):
        return option
    return f"{option} {shlex.quote(value) if isinstance(value, str) and ' ' in value else value}"


def _flag_of_build(name: str) -> Flag | None:
    from twins_trt.verbs.build import FLAGS

    return FLAGS.of(name)
