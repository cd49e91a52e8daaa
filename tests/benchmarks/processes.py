"""Whether processes still run, for tests that end them."""

from __future__ import annotations

import time
from pathlib import Path


def wait_until_gone(process: int, *, seconds: float = 10.0) -> bool:
    """Whether the process ends within so many seconds; one that nobody has waited for has ended too."""
    end = time.monotonic() + seconds
    while is_running(process):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
