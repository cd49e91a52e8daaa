"""A file that a verb writes: whether it may be replaced, and whether it can be written at all."""

from __future__ import annotations

from pathlib import Path

from twins_trt.errors import TwinsError
from twins_trt.spelling import spelled
from twins_trt.verbs.flags import Flag
from twins_trt.verbs.kinds import SWITCH

OVERWRITE_FLAG = Flag("--overwrite", "overwrite", "replace FILE if it is there", SWITCH, sets=True)


def check_new_file(out: Path, *, overwrite: bool, such_as: str, error: type[TwinsError]) -> None:
    """Raises `error` where `out` cannot be written, before any work is done for it. such_as: a file's name."""
    if out.is_dir():
        raise error(f"{out} is a folder", f"name the file to write in it, such as {such_as}")
    if out.exists() and not overwrite:
        raise error(f"{out} exists", f"choose another name, or replace it: {spelled('overwrite', True)}")
    if not out.absolute().parent.is_dir():
        raise error(f"there is no folder {out.absolute().parent}", f"mkdir -p {out.parent}")
