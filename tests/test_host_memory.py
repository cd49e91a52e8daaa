"""The peak of this process's host memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from twins_trt import host_memory
from twins_trt.host_memory import peak_host_mib

MEMORY = """
import json
from twins_trt.host_memory import peak_host_mib
before, size, after = peak_host_mib(), None, None
if before is not None:
    size = int(before) + 64  # more than all that this process held so far, so that the peak has to grow
    block = bytearray(b"\\1") * (size << 20)
    del block
    after = peak_host_mib()
print(json.dumps([before, size, after]))
"""


def measure() -> list[float]:
    ran = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    found: list[float] = json.loads(ran.stdout)
    return found


def test_the_peak_counts_what_was_held_and_freed() -> None:
    before, size, after = measure()
    assert before is not None and before == round(before, 1)
    assert after is not None and after >= max(before, size)


def test_the_peak_of_the_program_that_started_this_one_does_not_count() -> None:
    held = bytearray(b"\1") * (500 << 20)
    before, _, _ = measure()
    assert len(held) == 500 << 20 and before < 400


def test_a_system_without_proc_is_asked_for_its_accounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host_memory, "STATUS", tmp_path / "status")
    peak = peak_host_mib()
    assert peak is not None and peak > 10


def test_a_system_that_does_not_tell_has_no_peak(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host_memory, "STATUS", tmp_path / "status")
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_host_mib() is None
