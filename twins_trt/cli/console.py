"""The output of a command: its result to stdout, as text or as one JSON object; everything else to stderr."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

_HEARTBEAT_S = 10.0


class Console:
    """The terminal of one command.

    as_json: the result is one JSON object on stdout. Progress is one redrawn line on a terminal; elsewhere one line a
    step, and one every ten seconds while a step lasts.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._terminal = sys.stderr.isatty()
        self._drawn = ""
        self._step = ""
        self._printed_at = 0.0

    def result(self, value: Mapping[str, Any], text: str) -> None:
        """Prints the result: `value` with --json, else `text`."""
        self.clear()
        print(dump_json(value) if self.as_json else printable(text))

    def note(self, text: str) -> None:
        """Prints one line on stderr."""
        self.clear()
        print(printable(text), file=sys.stderr, flush=True)

    def progress(self, step: str, detail: str = "", share: float | None = None) -> None:
        """A `Progress`: shows `step`, its detail, and the share of it that is done, 0 to 1."""
        percent = "" if share is None else f" {100 * share:3.0f} %"
        line = printable(f"{step}{percent}{'  ' if detail else ''}{detail}")
        if self._terminal:
            self._draw(line)
            return
        now = time.monotonic()
        if step != self._step or now - self._printed_at >= _HEARTBEAT_S:
            self._step, self._printed_at = step, now
            print(line, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Removes the progress line from the terminal."""
        if self._drawn:
            self._draw("")

    def _draw(self, line: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        line = line if len(line) <= width else line[: max(width - 3, 0)] + "..."
        sys.stderr.write("\r" + line.ljust(len(self._drawn)) + ("" if line else "\r"))
        sys.stderr.flush()
        self._drawn = line


class LogHandler(logging.Handler):
    """Log lines on stderr, without tearing the progress line."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._console.note(f"{record.levelname.lower()}: {self.format(record)}")
        except Exception:
            self.handleError(record)


def printable(text: str) -> str:
    """Text with `?` for control characters: names of checkpoints, manifests and folders could steer a terminal."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def dump_json(value: Mapping[str, Any]) -> str:
    """One JSON object over several lines, in ASCII, which every terminal shows. Raises ValueError for NaN."""
    return json.dumps(value, indent=2, allow_nan=False)


def table(rows: Sequence[tuple[str, ...]], *, right: frozenset[int] = frozenset()) -> str:
    """Rows in columns as wide as their widest cell; columns in `right` are aligned to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (
        "  ".join(cell.rjust(width) if i in right else cell.ljust(width) for i, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    )
    return "\n".join(line.rstrip() for line in lines)


def megabytes(size: int) -> str:
    """Formats a size in bytes, such as `55.7 MB`, or `1.9 kB` if it is small."""
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"
