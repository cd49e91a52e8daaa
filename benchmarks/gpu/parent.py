"""A process that must not outlive the one that started it."""

from __future__ import annotations

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1  # Linux, prctl(2)

# Found here and not between fork and exec, where a lock of another thread's may be held for ever.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Ends this process, on Linux, when its parent ends, however that ends: nobody waits for its result any more."""
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
