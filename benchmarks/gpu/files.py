"""Results files that are never lost: read with an error of one line, set aside instead of overwritten."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twins_trt.files import whole_file

PROBE_BYTES = 1 << 20
"""So much must fit into a folder, or nothing is begun: more than the results of a GPU take."""

_told: set[str] = set()


class BrokenFileError(Exception):
    """A file that is not one of results. It says so in one line."""


class UnwritableError(Exception):
    """A folder or file that cannot be written. It says so in one line."""


def tell_once(line: str) -> None:
    """A line to the terminal, once in this process: a results file is opened again and again."""
    if line not in _told:
        _told.add(line)
        print(line, file=sys.stderr, flush=True)


def read(path: Path) -> tuple[str | None, list[dict[str, Any]]]:
    """Fingerprint and rows of a results file. Raises BrokenFileError where it is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BrokenFileError(f"{path} is broken: {error}") from error
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(map(_is_row, rows)):
        raise BrokenFileError(f"{path} is broken: it has no list of rows with section and name")
    settings = content.get("settings")
    fingerprint = settings.get("fingerprint") if isinstance(settings, dict) else None
    return (str(fingerprint) if fingerprint else None), rows


def _is_row(row: object) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("took_s", 0.0), int | float):
        return False
    return all(isinstance(row.get(key), str) for key in ("section", "name")) and isinstance(row.get("at", ""), str)


def set_aside(path: Path, stem: str) -> Path:
    """Copies the file beside itself as `STEM.json`, or `STEM-2.json` and so on where that is another, and says where.

    Raises OSError where there is no place for it.
    """
    content = path.read_bytes()
    number = 1
    while True:
        aside = path.with_name(f"{stem}.json" if number == 1 else f"{stem}-{number}.json")
        if not aside.exists():
            write(aside, content)
        if aside.read_bytes() == content:
            return aside
        number += 1


def kept_aside(folders: Sequence[Path], name: str) -> list[str]:
    """What was set aside of the results file `NAME.json` in these folders, a line each."""
    lines = []
    for path in (found for folder in folders for found in sorted(folder.glob(f"*-{name}*.json"))):
        if path.name.startswith("broken-"):
            lines.append(f"set aside, because it is broken: {path}")
        elif path.name.startswith("old-"):
            with contextlib.suppress(BrokenFileError):
                lines.append(f"set aside: {len(read(path)[1])} rows of before: {path}")
    return lines


def write(path: Path, content: bytes) -> None:
    """Writes the file whole or not at all. Raises OSError."""
    with whole_file(path, durable=False) as file:
        file.write(content)


def check_writable(folder: Path) -> None:
    """Makes the folder. Raises UnwritableError where it cannot be made, or is full."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(probe, bytes(PROBE_BYTES))
        probe.unlink()
    except OSError as error:
        raise UnwritableError(f"cannot write into {folder}: {error.strerror or error}") from error
