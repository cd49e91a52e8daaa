"""`fetch`: the request of a download of published weights, and its flags; `models.fetch.fetch` does it."""

from __future__ import annotations

from dataclasses import dataclass

from twins_trt.models.fetch import default_cache_dir
from twins_trt.verbs.flags import Flag, FlagTable, settle


@dataclass(frozen=True)
class FetchRequest:
    """A download. model: a name of the zoo. `models.fetch.fetch` describes the other fields."""

    model: str = ""
    cache_dir: str | None = None
    url: str | None = None

    def __post_init__(self) -> None:
        settle(self, TABLE)


TABLE: tuple[Flag, ...] = (
    Flag("MODEL", "model", "a name that twins-trt models lists"),
    Flag(
        "--cache-dir",
        "cache_dir",
        f"where to keep it; default: $TWINS_TRT_CACHE or {default_cache_dir()}",
        metavar="DIR",
    ),
    Flag("--url", "url", "a mirror's address of the same file", metavar="URL"),
)

FLAGS = FlagTable(FetchRequest, TABLE)
