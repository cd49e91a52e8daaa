"""`doctor`: the request of a diagnosis, its defaults and flags; `twins_trt.diagnosis` does it."""

from __future__ import annotations

from dataclasses import dataclass

from twins_trt.diagnosis.needs import NEEDS
from twins_trt.verbs.flags import Flag, FlagTable, settle
from twins_trt.verbs.groups.running import ENGINE_FLAG


@dataclass(frozen=True)
class DoctorRequest:
    """A diagnosis. purpose: the command that has to work here, of `diagnosis.needs.NEEDS`. engine: the kind that has to
    run bundles, of `runtime.engines.KINDS`, or `auto` for any."""

    purpose: str = "predict"
    engine: str = "auto"

    def __post_init__(self) -> None:
        settle(self, TABLE)


TABLE: tuple[Flag, ...] = (
    Flag(
        "--for",
        "purpose",
        "the command that has to work here; default: {default}",
        metavar=f"{{{','.join(NEEDS)}}}",
    ),
    ENGINE_FLAG,
)

FLAGS = FlagTable(DoctorRequest, TABLE)
