"""The check of what came after Python 3.10 finds it, and finds nothing in the code of the package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("vermin")

from environment import ROOT
from python310 import newer_than_310

LATER = {
    "import tomllib": "tomllib",
    "from typing import Self": "typing.Self",
    "import datetime\nnow = datetime.datetime.now(datetime.UTC)": "datetime.UTC",
    "import enum\nclass A(enum.StrEnum): ...": "enum.StrEnum",
    "import hashlib\nhashlib.file_digest(open('x', 'rb'), 'sha256')": "hashlib.file_digest",
    "try:\n    pass\nexcept* ValueError:\n    pass": "except*",
    "from itertools import batched": "itertools.batched",
    "import contextlib\nwith contextlib.chdir('/'): pass": "contextlib.chdir",
}


@pytest.mark.parametrize("source", LATER)
def test_what_came_later_is_found(tmp_path: Path, source: str) -> None:
    path = tmp_path / "later.py"
    path.write_text(f"from __future__ import annotations\n{source}\n")
    found = newer_than_310([path])
    assert len(found) >= 1 and any(LATER[source] in line for line in found), found


@pytest.mark.parametrize("source", ["match 1:\n    case 1: pass", "file = open('x')\nif (n := 2): print(n, file)"])
def test_what_310_has_is_not(tmp_path: Path, source: str) -> None:
    path = tmp_path / "fine.py"
    path.write_text(f"{source}\n")
    assert newer_than_310([path]) == []


def test_the_whole_package_runs_on_310() -> None:
    files = [path for room in ("twins_trt", "builders", "calib", "kernels") for path in (ROOT / room).rglob("*.py")]
    assert len(files) > 300 and newer_than_310(files) == []
    assert importlib.util.find_spec("vermin") is not None
