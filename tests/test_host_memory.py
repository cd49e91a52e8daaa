"""The peak of this process's host memory."""

from __future__ import annotations

import sys

import pytest

from twins_trt.host_memory import peak_host_mib


def test_the_peak_counts_what_was_held_and_freed() -> None:
    before = peak_host_mib()
    assert before is not None and before == round(before, 1)
    size = int(before) + 64  # more than all of this process held so far, so that the peak has to grow
    block = bytearray(b"\1") * (size << 20)
    del block
    after = peak_host_mib()
    assert after is not None and after >= max(before, size)


def test_a_system_that_does_not_tell_has_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_host_mib() is None
