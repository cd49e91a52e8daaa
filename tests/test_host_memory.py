"""The peak of this process's host memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from twins_trt.host_memory import peak_host_mib

MEMORY = """
import json, os
from twins_trt.host_memory import peak_host_mib
if os.fork() == 0:
    before, size, after = peak_host_mib(), None, None
    if before is not None:
        size = int(before) + 64  # more than all of this process held so far, so that the peak has to grow
        block = bytearray(b"\\1") * (size << 20)
        del block
        after = peak_host_mib()
    print(json.dumps([before, size, after]))
else:
    os.wait()
"""


def test_the_peak_counts_what_was_held_and_freed() -> None:
    """In a small process, of which little more must be held than its peak.

    That process forks: a program's peak begins with that of the one which started it, a fork's does not.
    """
    ran = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    before, size, after = json.loads(ran.stdout)
    assert before is not None and before == round(before, 1)
    assert after is not None and after >= max(before, size)


def test_a_system_that_does_not_tell_has_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_host_mib() is None
