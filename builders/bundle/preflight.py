"""Checks before a build what would make it fail only after minutes of work."""

from __future__ import annotations

import os
from pathlib import Path

from twins_trt.builders.bundle.job import BuildJob
from twins_trt.builders.gate.pack_key import PackKey
from twins_trt.builders.gate.pack_writing import check_new_pack
from twins_trt.builders.plan.precision_plan import read_plan
from twins_trt.errors import BundleError, UsageError
from twins_trt.folders import restore
from twins_trt.models.source import Source
from twins_trt.runtime.bundle import check_place


def check(job: BuildJob) -> None:
    """Checks that the bundle can be written, and that the data and files of the job exist.

    Raises `BundleError` for an `out` that exists or cannot be written, `DataError` and `UsageError` for data and files.
    """
    _check_place(job.out, overwrite=job.overwrite)
    if job.gate is not None:
        job.gate.open()
        if job.gate.pack is not None:
            check_new_pack(Path(job.gate.pack), _pack_key(job), overwrite=job.overwrite, outside=job.out)
    if job.int8 is None:
        return
    if job.int8.images is not None:
        job.int8.images.open()
    if job.int8.plan is not None:
        read_plan(job.int8.plan)
    if isinstance(job.int8.ranges, str) and not Path(job.int8.ranges).is_file():
        raise UsageError(f"there is no range file {job.int8.ranges}", "twins-trt calibrate writes one")


def _pack_key(job: BuildJob) -> PackKey:
    """As much of it as is known before the weights are loaded: not the classes."""
    height, width = job.graph.height, job.graph.width
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    source = Source(sha256=job.weights_sha256, seeded=job.weights is None)
    told = job.conventions
    return PackKey(
        job.model,
        source,
        job.padding,
        (),
        job.preprocessing,
        size,
        threshold=told.threshold,
        reduce_zero_label=told.reduce_zero_label,
        ignore_index=told.ignore_index,
    )


def _check_place(out: Path, *, overwrite: bool) -> None:
    """Raises the errors of `write_bundle`."""
    restore(out)  # an interrupted replacement left the bundle under another name
    check_place(out, overwrite=overwrite)
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise BundleError(f"{out} cannot be written: {parent} is no folder to write in", "choose another place")
