"""Fixtures of compilations."""

from __future__ import annotations

from pathlib import Path

import pytest
from compiling import Install, ToCompile, bundle_maker, installer
from tiny_graphs import MakeBundle


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
    return installer(monkeypatch, tmp_path / "home")


@pytest.fixture
def to_compile(make_bundle: MakeBundle) -> ToCompile:
    return bundle_maker(make_bundle)
