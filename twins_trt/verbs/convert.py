"""`convert`: the request of a conversion of weights, its defaults and flags; `convert_file` does it."""

from __future__ import annotations

from dataclasses import dataclass

from twins_trt.verbs.flags import Flag, FlagTable, settle
from twins_trt.verbs.kinds import SWITCH


@dataclass(frozen=True)
class ConvertRequest:
    """A conversion of weights. `models.convert.convert_file` describes the fields."""

    src: str = ""
    dst: str = ""
    family: str | None = None
    direction: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        settle(self, TABLE)


TABLE: tuple[Flag, ...] = (
    Flag("SRC", "src", "a checkpoint, of classification or of segmentation"),
    Flag("DST", "dst", "the file to write"),
    Flag("--family", "family", "default: read from the weights", metavar="{pcpvt,svt}"),
    Flag("--direction", "direction", "default: read from the weights", metavar="{to_mmseg,to_official}"),
    Flag("--overwrite", "overwrite", "replace DST if it is there", SWITCH, sets=True),
)

FLAGS = FlagTable(ConvertRequest, TABLE)
