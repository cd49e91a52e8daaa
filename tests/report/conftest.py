"""A report of everything there is, and a browser to look at it with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, find_browser
from samples import full_bundle, full_profile, ladder, pictures

from tests.tiny_graphs import MakeBundle
from twins_trt.report import write_report


@pytest.fixture
def full_report(make_bundle: MakeBundle, tmp_path: Path) -> Path:
    """report.html of a bundle whose names try to break out."""
    bundle = full_bundle(make_bundle)
    out = tmp_path / "report.html"
    write_report(
        bundle.path,
        out,
        profiles=[full_profile(tmp_path, bundle)],
        ladder=ladder(tmp_path),
        pictures=pictures(tmp_path / "worst"),
    )
    return out


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("Chromium missing: apt-get install chromium")
    with Browser(program, tmp_path_factory.mktemp("chromium")) as opened:
        yield opened
