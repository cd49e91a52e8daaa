"""Stand-ins for the checks: one that is green, and one that is as red as STUB_RED says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.jobs import Job


def jobs(workload: object) -> Iterator[Job]:
    yield Job("of lsa", lambda: {"passed": True}, covers=("lsa",))
    yield Job("of gsa", doubtful, covers=("gsa",))


def doubtful() -> dict[str, Any]:
    return {"passed": "gsa" not in os.environ.get("STUB_RED", "")}
