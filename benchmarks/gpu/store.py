"""Where rows go, and how a run that was cut off goes on: every row is written at once, and none is measured twice."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import results

ROOT = Path(__file__).parents[2]
SOURCES = ("twins_trt/models", "kernels", "benchmarks/gpu")


class Store:
    """The rows of one GPU's results file, by section and name. fingerprint: of the code and packages they are of."""

    def __init__(self, name: str, settings: Mapping[str, Any], *, fingerprint: str, fresh: bool) -> None:
        self.name = name
        self._settings = {**settings, "fingerprint": fingerprint}
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}
        path = results.RESULTS / f"{name}.json"
        if path.is_file() and not fresh:
            kept = results.read_results(name)
            if kept["settings"].get("fingerprint") == fingerprint:
                self._rows = {(row["section"], row["name"]): row for row in kept["rows"]}

    def has(self, section: str, name: str) -> bool:
        """Whether the row need not be measured: it is there, and no check that failed."""
        row = self._rows.get((section, name))
        return row is not None and row.get("passed", True)

    def put(self, section: str, name: str, row: Mapping[str, Any]) -> None:
        """Add a row and write the file."""
        self._rows[section, name] = {"section": section, "name": name, **row}
        results.write_results(
            self.name, command="python -m benchmarks.gpu", settings=self._settings, rows=list(self._rows.values())
        )

    def red(self) -> list[str]:
        """Names of the checks that failed."""
        return [name for (section, name), row in self._rows.items() if section == "checks" and not row["passed"]]


def file_name(gpu: str) -> str:
    """`gpu-nvidia-h200` for `NVIDIA H200`."""
    return "gpu-" + re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def fingerprint() -> str:
    """Hash of the code that decides a figure, and of the versions of what runs it."""
    digest = hashlib.sha256(json.dumps(results.describe_versions(), sort_keys=True).encode())
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]
