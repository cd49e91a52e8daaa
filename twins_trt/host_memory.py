"""The host memory of this process."""

from __future__ import annotations

import sys


def peak_host_mib() -> float | None:
    """The highest resident memory of this process so far, MiB to one decimal; None if the system does not tell."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)
