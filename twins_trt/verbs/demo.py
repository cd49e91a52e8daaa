"""`demo`: the request of a demo, its defaults and flags; `twins_trt.demo.run` does it."""

from __future__ import annotations

from dataclasses import dataclass

from twins_trt.verbs.flags import Flag, FlagTable, settle
from twins_trt.verbs.gate import MIN_IMAGES
from twins_trt.verbs.groups.running import THREADS_FLAG
from twins_trt.verbs.kinds import WHOLE


@dataclass(frozen=True)
class DemoRequest:
    """A demo.

    out: the folder to fill; new, or empty. calibration, gate: how many scenes; a gate needs `MIN_IMAGES`.
    rounds: of the profile, 5 calls each. threads: of the CPU; None for every core.
    """

    out: str = "twins-trt-demo"
    calibration: int = 24
    gate: int = 48
    rounds: int = 20
    threads: int | None = None

    def __post_init__(self) -> None:
        settle(self, TABLE)


TABLE: tuple[Flag, ...] = (
    Flag("--out", "out", "a new folder; default: {default}", metavar="DIR"),
    Flag("--calib-scenes", "calibration", "to calibrate on; default: {default}", WHOLE, "N"),
    Flag("--gate-scenes", "gate", f"to judge on; default: {{default}}, at least {MIN_IMAGES}", WHOLE, "N"),
    Flag("--rounds", "rounds", "of the profile, 5 calls each; default: {default}", WHOLE, "N"),
    THREADS_FLAG,
)

FLAGS = FlagTable(DemoRequest, TABLE)
