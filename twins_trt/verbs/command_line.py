"""Errors that speak to a command line."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from twins_trt.spelling import speaking
from twins_trt.verbs.flags import Flag, FlagTable


def on_command_line(table: FlagTable[Any] | None) -> AbstractContextManager[None]:
    """Within it, whoever is told something asked by flags: those of this table, else `build`'s, whose bundles the other
    verbs run."""

    def names(field: str) -> Flag | None:
        from twins_trt.verbs.build import FLAGS  # only where an error names something: most commands need not load it

        return (None if table is None else table.of(field)) or FLAGS.of(field)

    return speaking(names)
