"""`report`: the request of a page about a bundle, its defaults and flags; `report.write_report` does it."""

from __future__ import annotations

from dataclasses import dataclass

from twins_trt.verbs.flags import Flag, FlagTable, settle
from twins_trt.verbs.kinds import SWITCH


@dataclass(frozen=True)
class ReportRequest:
    """A page about a bundle. `write_report` describes the fields."""

    bundle: str = ""
    profiles: tuple[str, ...] = ()
    ladder: str | None = None
    pictures: str | None = None
    out: str = ""
    markdown: bool = False

    def __post_init__(self) -> None:
        settle(self, TABLE)


TABLE: tuple[Flag, ...] = (
    Flag("BUNDLE", "bundle", "the bundle to report on"),
    Flag(
        "--profile",
        "profiles",
        "results of twins-trt profile, besides the bundle's own; repeatable",
        metavar="FILE",
        repeated=True,
    ),
    Flag("--ladder", "ladder", "results of several precisions on the same images", metavar="FILE"),
    Flag("--pictures", "pictures", "the folder that twins-trt gate --pictures filled", metavar="DIR"),
    Flag("--out", "out", "the page to write, such as report.html", metavar="FILE", required=True),
    Flag("--markdown", "markdown", "Markdown for a README, without charts and pictures", SWITCH, sets=True),
)

FLAGS = FlagTable(ReportRequest, TABLE)
