"""Which images: data set, split and limit, and the test scale that they are fitted into."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twins_trt.errors import UsageError
from twins_trt.spelling import spelled
from twins_trt.verbs.flags import Flag
from twins_trt.verbs.kinds import TEST_SCALE, WHOLE

if TYPE_CHECKING:
    from twins_trt.data import Dataset

DATA_KINDS = "camvid:PATH, ade20k:PATH or folder:PATH"

TEST_SCALE_FLAG = Flag(
    "--test-scale",
    "test_scale",
    "fit images into this before a graph of dynamic size, as 2048x512",
    TEST_SCALE,
    "LONGxSHORT",
)


def data_flags() -> tuple[Flag, ...]:
    """Which labelled images."""
    return (
        Flag("--data", "data", DATA_KINDS, metavar="KIND:PATH", required=True),
        Flag("--split", "split", "default: {default}"),
        Flag("--limit", "limit", "only the first N images", WHOLE, "N"),
    )


def labelled_images(data: str, *, split: str, limit: int | None) -> Dataset:
    """The images that the fields of `data_flags` name.

    Raises `UsageError` for a limit below 1, and as `open_dataset` does.
    """
    from twins_trt.data import open_dataset

    check_limit(limit)
    return open_dataset(data, split=split).first(limit)


def check_limit(limit: int | None) -> None:
    """Raises `UsageError` for a limit below 1."""
    if limit is not None and limit < 1:
        raise UsageError(f"{spelled('limit')} is {limit}", "give at least 1")


def scale_of(data: str, test_scale: tuple[int, int] | str | None) -> tuple[int, int] | None:
    """(long, short) side that images of `data` are fitted into, pixels; None for their own size.

    test_scale: as in the request: two sides, `none`, or None for the default, mmsegmentation's for ADE20K.
    """
    from twins_trt.data.preprocessing import ADE20K_TEST

    if test_scale is None:
        return ADE20K_TEST.test_scale if data.startswith("ade20k:") else None
    return None if isinstance(test_scale, str) else test_scale
