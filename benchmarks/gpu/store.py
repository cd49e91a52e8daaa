"""The results file of one GPU. Every row is written at once, so that a run that was cut off can be continued."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.gpu import files

ROOT = Path(__file__).parents[2]
SOURCES = (
    *(f"twins_trt/{folder}" for folder in ("models", "runtime", "training", "data")),
    "kernels",
    "benchmarks/gpu",
)
DECIDES_NO_FIGURE = frozenset(
    (
        "__main__",
        "account",
        "costs",
        "files",
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

OURS_ALONE = frozenset(
    (
        *(f"benchmarks/gpu/{module}.py" for module in ("checks", "gpu_tests", "runtime", "stub", "traces")),
        "twins_trt/models/beside.py",
        "twins_trt/models/fused.py",
    )
)
"""Files that no form without our kernels runs, beside the runtime and the kernels."""

OF_OTHERS = frozenset(
    (
        "kernels/backend.py",
        *(f"kernels/{attention}/{module}.py" for attention in ("lsa", "gsa") for module in ("op", "reference")),
        *(f"kernels/{around}/reference.py" for around in ("preprocess", "postprocess")),
    )
)
"""The files of the kernels' folder that forms without our kernels run: what chooses, and torch's own operators."""

Key = tuple[str, str]
"""Section and name of a row."""


class Store:
    """The rows of one GPU's results file, by section and name.

    settings: facts of the run, for the file. fingerprint: of the code and packages; others: the same of what decides a
    figure that none of our kernels is in, by default no different. tests: fingerprint of the tests.
    Rows of another fingerprint and checks that ran other tests do not count; nor do any where `fresh`. Before the first
    row is written, a file that has such rows, or is broken, is set aside. folder: of the file, by default
    `benchmarks/results`. copy_to: a folder that gets a copy of the file after each row. What lies there counts as well:
    of a row that both have, the later.
    """

    def __init__(
        self,
        name: str,
        settings: Mapping[str, Any],
        *,
        fingerprint: str,
        fresh: bool,
        others: str | None = None,
        tests: str = "",
        folder: Path = results.RESULTS,
        copy_to: Path | None = None,
    ) -> None:
        self.name = name
        self.copy_error: str | None = None
        self._settings = {**settings, "fingerprint": fingerprint}
        self._ours, self._others = fingerprint, others or fingerprint
        self._rows: dict[Key, dict[str, Any]] = {}
        self._folder, self._copy_to = folder, copy_to
        if copy_to is not None and copy_to.resolve() == folder.resolve():
            self._copy_to = None
        self._aside: dict[Path, tuple[str, str]] = {}  # what is set aside: its new stem, and the line that says why
        for path in self.places():
            if path.is_file():
                self._read(path, tests, fresh=fresh)

    def _read(self, path: Path, tests: str, *, fresh: bool) -> None:
        try:
            theirs, rows = files.read(path)
        except files.BrokenFileError as error:
            files.tell_once(f"{error}; what it holds does not count")
            self._aside[path] = (f"broken-{self.name}", "what is broken")
            return
        counts = [row for row in rows if row.get("tests", tests) == tests and self._is_of_now(row, theirs)]
        if fresh:
            counts = []
        if len(counts) < len(rows):
            why = "before" if fresh else "other code, packages or tests"
            stem = f"old-{self.name}-{re.sub(r'[^a-zA-Z0-9]+', '-', theirs or 'unknown')}"
            self._aside[path] = (stem, f"{len(rows) - len(counts)} rows of {why}")
        for row in counts:
            known = self._rows.get((row["section"], row["name"]))
            if known is None or known.get("at", "") < row.get("at", ""):
                self._rows[row["section"], row["name"]] = row

    def _is_of_now(self, row: Mapping[str, Any], theirs: str | None) -> bool:
        """Whether the code that decided the row is that of now. theirs: the file's, for rows that do not say."""
        return row.get("code", theirs) in (self._ours, self._others)

    def places(self) -> list[Path]:
        """Where the file lies, and its copy."""
        return [folder / f"{self.name}.json" for folder in self.folders()]

    def folders(self) -> list[Path]:
        """The folder of the file, and that of its copy."""
        return [self._folder] if self._copy_to is None else [self._folder, self._copy_to]

    def has(self, section: str, name: str) -> bool:
        """Whether the row need not be measured."""
        row = self._rows.get((section, name))
        return row is not None and _is_settled(row)

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
        """Add a row, and save."""
        code = self._others if is_of_others(row) else self._ours
        self._rows[section, name] = {"section": section, "name": name, **row, "code": code, "at": utc()}
        self.save()

    def save(self) -> None:
        """Write the file, and copy it. A copy that fails is told, and is no error: see `copy_error`.

        Raises UnwritableError where the file itself cannot be written.
        """
        path, *copies = self.places()
        try:
            self._set_aside(path)
            results.write_results(
                self.name,
                command="python -m benchmarks.gpu",
                settings=self._settings,
                rows=list(self._rows.values()),
                folder=self._folder,
            )
        except OSError as error:
            raise files.UnwritableError(f"cannot write {path}: {error.strerror or error}") from error
        self.copy_error = None
        for copy in copies:
            try:
                copy.parent.mkdir(parents=True, exist_ok=True)
                self._set_aside(copy)
                files.write(copy, path.read_bytes())
            except OSError as error:
                self.copy_error = f"cannot copy the results to {copy}: {error.strerror or error}"
                files.tell_once(f"warning: {self.copy_error}; measuring goes on")

    def clear(self) -> None:
        """Set the files aside where they hold what does not count, and remove them. Raises OSError."""
        for path in self.places():
            self._set_aside(path)
            path.unlink(missing_ok=True)

    def _set_aside(self, path: Path) -> None:
        """Before the file is overwritten."""
        if path in self._aside:
            stem, what = self._aside[path]
            files.tell_once(f"{what}: set aside as {files.set_aside(path, stem)}")
            del self._aside[path]


def is_of_others(row: Mapping[str, Any]) -> bool:
    """Whether a figure is of a form that none of our kernels is in."""
    return not str(row.get("form", "ours")).startswith("ours")


def utc() -> str:
    """The time now, as rows say when they were written: the later is the greater."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _is_settled(row: Mapping[str, Any]) -> bool:
    """Whether another run would give the same row. What failed may have been mended since; a failed capture is kept,
    because the code decides it."""
    if "excluded" in row or "given_up" in row:
        return False
    return bool(row.get("passed", True)) and ("error" not in row or row.get("capture_failed", False))


def red_checks(rows: list[dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    """What each red check among the rows covers, by the check's name."""
    return {row["name"]: tuple(row.get("covers", ())) for row in rows if not row.get("passed", True)}


def seconds_taken(paths: list[Path]) -> dict[Key, float]:
    """Wall seconds that rows of these results files took, by section and name; the last file's where several say.

    What is broken is told and left out.
    """
    rows = []
    for path in paths:
        try:
            rows += files.read(path)[1]
        except files.BrokenFileError as error:
            files.tell_once(f"{error}; what it holds does not count")
    return _seconds(rows)


def _seconds(rows: list[dict[str, Any]]) -> dict[Key, float]:
    known = (row for row in rows if "took_s" in row and ("error" not in row or "given_up" in row))
    return {(row["section"], row["name"]): row["took_s"] for row in known}  # another error may have come early


def file_name(gpu: str) -> str:
    """`gpu-nvidia-h200` for `NVIDIA H200`."""
    return "gpu-" + re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def fingerprint(*, ours: bool = True) -> str:
    """Hash of the code that decides a figure, and of the versions of the packages that run it.

    ours: of figures with our kernels in them, or of those without, so that a tuned kernel lets the others stand.
    """
    sources = [path for folder in SOURCES for path in sorted((ROOT / folder).rglob("*.py"))]
    benchmark = ROOT / "benchmarks" / "gpu"
    decides = [path for path in sources if path.parent != benchmark or path.stem not in DECIDES_NO_FIGURE]
    if not ours:
        decides = [path for path in decides if not is_of_ours_alone(path)]
    return _hash(json.dumps(results.describe_versions(), sort_keys=True).encode(), decides)


def is_of_ours_alone(path: Path) -> bool:
    """Whether a file of this checkout decides no figure of a form without our kernels."""
    name = path.relative_to(ROOT).as_posix()
    if name.startswith("kernels/"):
        return name not in OF_OTHERS
    return name in OURS_ALONE or name.startswith("twins_trt/runtime/")


def tests_fingerprint() -> str:
    """Hash of the tests marked gpu and of what lies beside them: they decide checks, but no figure."""
    return _hash(b"", sorted({path for file in gpu_test_files() for path in file.parent.glob("*.py")}))


def gpu_test_files() -> list[Path]:
    """The files of tests that have the mark gpu. Only these are collected: others may import what a machine lacks."""
    return [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if _has_gpu_tests(path)]


def _has_gpu_tests(path: Path) -> bool:
    marked = r"^(pytestmark = .*|@|    |.*\bpytest\.param\(.*\bmarks=)pytest\.mark\.gpu\b"
    return re.search(marked, path.read_text("utf-8"), re.MULTILINE) is not None


def _hash(start: bytes, paths: list[Path]) -> str:
    digest = hashlib.sha256(start)
    for path in paths:
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]
