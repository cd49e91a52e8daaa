"""The results file of one GPU. Every row is written at once, so that a run that was cut off can be continued."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import results

ROOT = Path(__file__).parents[2]
SOURCES = (
    *(f"twins_trt/{folder}" for folder in ("models", "runtime", "training", "data")),
    "kernels",
    "benchmarks/gpu",
)
DECIDES_NO_FIGURE = frozenset(
    (
        "__main__",
        "costs",
        "jobs",
        "parent",
        "runner",
        "sanitizer",
        "schedule",
        "store",
        "tables",
        "unattended",
        "worker",
    )
)
"""Modules of this package that may be mended without measuring anew."""

Key = tuple[str, str]
"""Section and name of a row."""


class Store:
    """The rows of one GPU's results file, by section and name.

    settings: facts of the run, for the file. fingerprint: of the code and packages; rows of another are forgotten.
    tests: fingerprint of the tests; checks that ran others are forgotten. fresh: forget all rows. folder: of the file,
    by default `benchmarks/results`. copy_to: a folder that gets a copy of the file after each row; where the file is
    missing, the copy that lies there is continued.
    """

    def __init__(
        self,
        name: str,
        settings: Mapping[str, Any],
        *,
        fingerprint: str,
        fresh: bool,
        tests: str = "",
        folder: Path = results.RESULTS,
        copy_to: Path | None = None,
    ) -> None:
        self.name = name
        self._settings = {**settings, "fingerprint": fingerprint}
        self._rows: dict[Key, dict[str, Any]] = {}
        self._folder, self._copy_to = folder, copy_to
        found = [path for path in self.places() if path.is_file()]
        if found and not fresh:
            kept = results.read_results(name, folder=found[0].parent)
            if kept["settings"].get("fingerprint") == fingerprint:
                rows = (row for row in kept["rows"] if row.get("tests", tests) == tests)
                self._rows = {(row["section"], row["name"]): row for row in rows}

    def places(self) -> list[Path]:
        """Where the file lies, and its copy."""
        folders = [self._folder] if self._copy_to is None else [self._folder, self._copy_to]
        return [folder / f"{self.name}.json" for folder in folders]

    def has(self, section: str, name: str) -> bool:
        """Whether the row need not be measured."""
        row = self._rows.get((section, name))
        return row is not None and is_settled(row)

    def get(self, section: str, name: str) -> Mapping[str, Any] | None:
        """The row, measured or not; None where none was begun."""
        return self._rows.get((section, name))

    def seconds(self) -> dict[Key, float]:
        """Wall seconds that rows took, by section and name."""
        return _seconds(list(self._rows.values()))

    def red(self) -> dict[str, tuple[str, ...]]:
        """What each red check covers, by the check's name."""
        return red_checks(list(self._rows.values()))

    def put(self, section: str, name: str, row: Mapping[str, Any]) -> None:
        """Add a row, write the file, and copy it."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._rows[section, name] = {"section": section, "name": name, **row, "at": at}
        path = results.write_results(
            self.name,
            command="python -m benchmarks.gpu",
            settings=self._settings,
            rows=list(self._rows.values()),
            folder=self._folder,
        )
        if self._copy_to is not None and self._copy_to.resolve() != self._folder.resolve():
            self._copy_to.mkdir(parents=True, exist_ok=True)
            partial = self._copy_to / f"{path.name}.partial"  # renamed, so that a copy is whole or the one before
            shutil.copyfile(path, partial)
            os.replace(partial, self._copy_to / path.name)


def is_settled(row: Mapping[str, Any]) -> bool:
    """Whether another run would give the same row. What failed may have been mended since; a failed capture is kept,
    because the code decides it."""
    if "excluded" in row or "given_up" in row:
        return False
    return bool(row.get("passed", True)) and ("error" not in row or row.get("capture_failed", False))


def red_checks(rows: list[dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    """What each red check among the rows covers, by the check's name."""
    return {row["name"]: tuple(row.get("covers", ())) for row in rows if not row.get("passed", True)}


def seconds_taken(files: list[Path]) -> dict[Key, float]:
    """Wall seconds that rows of these results files took, by section and name; the last file's where several say."""
    return _seconds([row for path in files for row in json.loads(path.read_text(encoding="utf-8"))["rows"]])


def _seconds(rows: list[dict[str, Any]]) -> dict[Key, float]:
    known = (row for row in rows if "took_s" in row and ("error" not in row or "given_up" in row))
    return {(row["section"], row["name"]): row["took_s"] for row in known}  # another error may have come early


def file_name(gpu: str) -> str:
    """`gpu-nvidia-h200` for `NVIDIA H200`."""
    return "gpu-" + re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def fingerprint() -> str:
    """Hash of the code that decides a figure, and of the versions of the packages that run it."""
    files = [path for folder in SOURCES for path in sorted((ROOT / folder).rglob("*.py"))]
    ours = ROOT / "benchmarks" / "gpu"
    decides = [path for path in files if path.parent != ours or path.stem not in DECIDES_NO_FIGURE]
    return _hash(json.dumps(results.describe_versions(), sort_keys=True).encode(), decides)


def tests_fingerprint() -> str:
    """Hash of the tests marked gpu and of what lies beside them: they decide checks, but no figure."""
    return _hash(b"", sorted({path for file in gpu_test_files() for path in file.parent.glob("*.py")}))


def gpu_test_files() -> list[Path]:
    """The files of tests that have the mark gpu. Only these are collected: others may import what a machine lacks."""
    return [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if _has_gpu_tests(path)]


def _has_gpu_tests(path: Path) -> bool:
    return re.search(r"^(pytestmark = .*|@|    )pytest\.mark\.gpu\b", path.read_text("utf-8"), re.MULTILINE) is not None


def _hash(start: bytes, files: list[Path]) -> str:
    digest = hashlib.sha256(start)
    for path in files:
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]
