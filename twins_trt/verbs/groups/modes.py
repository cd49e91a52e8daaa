"""How an image is run: whole, in windows, at several sizes, or in tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twins_trt.errors import UsageError
from twins_trt.spelling import spelled
from twins_trt.verbs.flags import Flag
from twins_trt.verbs.kinds import FIXED_SIZE, WHOLE

if TYPE_CHECKING:
    from twins_trt.inference.tiling import Tiles

MODES_GROUP = {"large images": "other modes than whole need --outputs logits in the bundle"}


def mode_flags(group: str) -> tuple[Flag, ...]:
    """Mode, tile and overlap."""
    return (
        Flag(
            "--mode",
            "mode",
            "as mmsegmentation evaluates, or in tiles at the image's own size, however large; default: as the "
            "checkpoint says that it is tested, or whole",
            metavar="{whole,slide,ms_flip,slide_ms_flip,tile}",
            group=group,
        ),
        Flag(
            "--tile",
            "tile",
            "--mode tile with tiles of this size; default: the graph's",
            FIXED_SIZE,
            "HxW",
            group=group,
        ),
        Flag("--overlap", "overlap", "pixels that tiles share; default: a third of them", WHOLE, "N", group=group),
    )


def mode_of(mode: str | None, *, tile: tuple[int, int] | None, overlap: int | None) -> str | Tiles:
    """The mode of the fields of `mode_flags`: its name, or tiles of a size. Raises `UsageError`."""
    from twins_trt.inference.runner import resolve_mode
    from twins_trt.inference.tiling import Tiles

    if tile is None and overlap is None:
        name = mode or "whole"
        resolve_mode(name)
        return name
    if mode not in (None, "tile"):
        raise UsageError(
            f"{spelled('tile')} and {spelled('overlap')} are of {spelled('mode', 'tile')}, not {mode}",
            f"leave {spelled('mode')} out",
        )
    return Tiles(tile, overlap)
