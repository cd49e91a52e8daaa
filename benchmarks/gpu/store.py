"""The results file of one GPU. Every row is written at once, so that a run that was cut off can be continued."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import results

ROOT = Path(__file__).parents[2]
SOURCES = (
    *(f"twins_trt/{folder}" for folder in ("models", "runtime", "training", "data")),
    "kernels",
    "benchmarks/gpu",
    "tests/kernels",  # the tests marked gpu, which are checks here
)


class Store:
    """The rows of one GPU's results file, by section and name.

    settings: facts of the run, for the file. fingerprint: of the code and packages; rows of another are forgotten.
    fresh: forget all rows. folder: of the file, by default `benchmarks/results`.
    """

    def __init__(
        self, name: str, settings: Mapping[str, Any], *, fingerprint: str, fresh: bool, folder: Path = results.RESULTS
    ) -> None:
        self.name = name
        self._settings = {**settings, "fingerprint": fingerprint}
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}
        self._folder = folder
        path = folder / f"{name}.json"
        if path.is_file() and not fresh:
            kept = results.read_results(name, folder=folder)
            if kept["settings"].get("fingerprint") == fingerprint:
                self._rows = {(row["section"], row["name"]): row for row in kept["rows"] if _is_settled(row)}

    def has(self, section: str, name: str) -> bool:
        """Whether the row need not be measured."""
        return (section, name) in self._rows

    def put(self, section: str, name: str, row: Mapping[str, Any]) -> None:
        """Add a row and write the file."""
        self._rows[section, name] = {"section": section, "name": name, **row}
        results.write_results(
            self.name,
            command="python -m benchmarks.gpu",
            settings=self._settings,
            rows=list(self._rows.values()),
            folder=self._folder,
        )


def _is_settled(row: Mapping[str, Any]) -> bool:
    """Whether another run would give the same row. What failed may have been mended since; a failed capture is kept,
    because the code decides it and it would end every process."""
    return row.get("passed", True) and ("error" not in row or row.get("capture_failed", False))


def file_name(gpu: str) -> str:
    """`gpu-nvidia-h200` for `NVIDIA H200`."""
    return "gpu-" + re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def fingerprint() -> str:
    """Hash of the code that decides a figure, and of the versions of the packages that run it."""
    digest = hashlib.sha256(json.dumps(results.describe_versions(), sort_keys=True).encode())
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]
