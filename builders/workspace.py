"""The folder a build works in: one build's at a time, of one key, and gone once the build is done."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from twins_trt.errors import BundleError
from twins_trt.files import whole_file
from twins_trt.folders import held
from twins_trt.spelling import spelled

KEY, HOLDER = "key.json", "holder.json"
REFERENCE = "reference"  # masks whose names change with all they depend on, so any build may have them
RESULTS = ("plan.json", "reached.json", "calibration.json", "gate.json", "fallback.json")
"""What a build that failed its gate leaves for its user."""

_FORMAT = 1

log = logging.getLogger("twins_trt")


@contextmanager
def workspace(folder: Path | None, key: str) -> Iterator[Path]:
    """A folder for the time of a build, with what a build of the same key has left there if it was cut off.

    folder: it vanishes when the block ends, and stays where the block raises or is killed. None for a temporary one,
    which never stays. key: of all that what is left there depends on; what a build of another key has left is dropped,
    save `RESULTS` and the masks in `REFERENCE`. Raises BundleError, saying who has it, where another build works there,
    and where the folder cannot be made.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="twins-trt-") as scratch:
            yield Path(scratch)
        return
    with ExitStack() as lock:
        try:
            _take(folder, lock)
            _drop_others(folder, key)
            _write(folder / KEY, {"format": _FORMAT, "key": key})
            _write(folder / HOLDER, {"pid": os.getpid(), "since": datetime.now(timezone.utc).isoformat(" ", "seconds")})
        except OSError as error:
            raise BundleError(f"{folder} cannot be made: {error.strerror}", "choose another place") from error
        try:
            yield folder
        finally:
            with suppress(OSError):
                (folder / HOLDER).unlink()
        shutil.rmtree(folder, ignore_errors=True)  # still locked: who waits for it finds that it has gone


def _take(folder: Path, lock: ExitStack) -> None:
    """Makes the folder and locks it."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.enter_context(held(folder, wait=False))
            return
        except (FileExistsError, FileNotFoundError):  # its last holder has just removed it, or it is no folder
            with suppress(FileNotFoundError):
                if not stat.S_ISDIR(os.lstat(folder).st_mode):
                    raise
        except BlockingIOError as error:
            raise BundleError(
                f"{folder} is in use by {_holder(folder)}", f"wait until it is done, or choose another {spelled('out')}"
            ) from error


def _drop_others(folder: Path, key: str) -> None:
    """Removes what cannot be gone on with: what was half-written, and all that a build of another key has left."""
    left = [child for child in folder.iterdir() if child.name not in (KEY, HOLDER)]
    same = _read(folder / KEY) == {"format": _FORMAT, "key": key}
    gone = [child for child in left if child.suffix == ".partial" and child.name.startswith(".")]
    if not same:
        others = [child for child in left if child.name not in (REFERENCE, *RESULTS)]
        if states := sorted(child.name for child in set(others) - set(gone)):
            log.warning("%s is of another build: %s cannot be used, and is dropped", folder, ", ".join(states))
        gone = others
    for child in gone:
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()


def _holder(folder: Path) -> str:
    said = _read(folder / HOLDER)
    if not isinstance(said, dict) or not {"pid", "since"} <= set(said):
        return "another build"  # which has just begun
    return f"another build, process {said['pid']}, since {said['since']}"


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _write(path: Path, content: dict[str, Any]) -> None:
    with whole_file(path, durable=False) as file:
        file.write((json.dumps(content) + "\n").encode())
