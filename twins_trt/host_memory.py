"""The host memory of this process."""

from __future__ import annotations

import re
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")  # of Linux


def peak_host_mib() -> float | None:
    """The highest resident memory of this process so far, MiB to one decimal; None if the system does not tell.

    Linux's getrusage would also count what the program held that started this one, until it started it.
    """
    try:
        if found := re.search(r"^VmHWM:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE):
            return round(int(found[1]) / 1024, 1)
    except OSError:
        pass  # not Linux
    try:
        import resource
    except ImportError:  # not a POSIX system
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)
