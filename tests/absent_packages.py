"""A pytest plugin: in an environment that is not the project's own, what it lacks is skipped, by name.

A GPU machine often has torch and Triton, no network, and none of the packages that build engines. Its tests must run
although other files in the same tree cannot be imported there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path

import pytest

OWN_ENVIRONMENT = (Path(sys.prefix) / ".twins-trt").is_file()  # made by tools/venv.sh, where nothing may be absent
OURS = ("twins_trt", "benchmarks", "tests")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Skips a file or folder that fails to import because a package is absent."""
    report = yield
    if not OWN_ENVIRONMENT and report.failed and (name := absent_package(str(report.longrepr))):
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, f"Skipped: {name} is not installed")
    return report


def absent_package(error: str) -> str | None:
    """The package that is absent, from the text of an import's error; None for any other error."""
    found = re.findall(r"ModuleNotFoundError: No module named '(\w+)", error)
    return found[-1] if found and found[-1] not in OURS and find_spec(found[-1]) is None else None
