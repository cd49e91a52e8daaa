"""Stand-ins for a section of the GPU benchmark: rows that are quick, slow, that die, and that stop a process's work."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.jobs import Job
from benchmarks.gpu.timing import CaptureError

QUICK = 6
FIGURE = {"ms": 1.0, "timed": "wall"}


def jobs(workload: object) -> Iterator[Job]:
    """Rows of every kind, told apart by their form."""
    for number in range(QUICK):
        measure = functools.partial(quick, 0.3)
        yield Job(f"quick {number}", measure, form="ours", model="twins_svt-s_fpn", batch=1, rests_on=("lsa",))
    yield Job("slow", slow, form="slow", seconds=1.0, rests_on=("gsa",))
    yield Job("dies", functools.partial(os._exit, 3), form="dies")
    yield Job("raises", raises, form="raises")
    yield Job("captures", captures, form="captures")
    yield Job("process", process, form="process")


def quick(seconds: float) -> dict[str, Any]:
    time.sleep(seconds)
    return dict(FIGURE)


def slow() -> dict[str, Any]:
    """As a compilation is slow: in a process below this one, whose id it leaves in the folder of STUB_FOLDER."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    (Path(os.environ["STUB_FOLDER"]) / "child").write_text(str(child.pid), encoding="utf-8")
    child.wait()
    return dict(FIGURE)


def raises() -> dict[str, Any]:
    raise RuntimeError("no kernel\nand more")


def captures() -> dict[str, Any]:
    raise CaptureError("operation not permitted when stream is capturing")


def process() -> dict[str, Any]:
    return {**FIGURE, "process": os.getpid()}
