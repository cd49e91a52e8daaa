"""Errors that name flags where a command line caused them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from twins_trt.spelling import speaking
from twins_trt.verbs.flags import Flag, FlagTable


def on_command_line(table: FlagTable[Any] | None) -> AbstractContextManager[None]:
    """Within it, errors name fields by the flags of this table, or by those of `build`, whose bundles other verbs
    run."""

    def names(field: str) -> Flag | None:
        from twins_trt.verbs.build import FLAGS  # only errors need it, so that most commands do not load it

        return (None if table is None else table.of(field)) or FLAGS.of(field)

    return speaking(names)
