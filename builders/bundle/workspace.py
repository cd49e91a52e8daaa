"""The folder that a build works in: locked by one build at a time, and removed when the build has succeeded."""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from twins_trt.builders.bundle.job import CALIBRATION, FALLBACK, PLAN
from twins_trt.errors import BundleError
from twins_trt.files import whole_file
from twins_trt.folders import HOLDER, sign_work_folder, take_work_folder, work_folder_holder
from twins_trt.runtime.manifest import GATE, GRAPH, WEIGHTS
from twins_trt.spelling import spelled

KEY = "key.json"
FP32_GRAPH = "fp32.onnx"
CALIBRATION_STATE, SEARCH_STATE = "calibration.partial", "search.json"
STATE = (CALIBRATION_STATE, SEARCH_STATE)
"""What a build of the same key resumes from."""
REFERENCE = "reference"
"""The reference's masks. A mask's name changes with everything that the mask depends on, so any build may use them."""
REACHED_PLAN = "reached.json"
"""The plan that a fallback reached, if plan.json is the user's own."""
RESULTS = (PLAN, REACHED_PLAN, CALIBRATION, GATE, FALLBACK)
"""What a build that failed its gate leaves for its user."""
PARTS = (FP32_GRAPH, GRAPH, WEIGHTS, f"{CALIBRATION_STATE}.damaged")
"""What every build makes again."""

EARLIER = ("candidate.bundle",)
"""What earlier versions made and may have left."""

_OURS = {KEY, HOLDER, REFERENCE, *STATE, *RESULTS, *PARTS, *EARLIER}
_STAGED = re.compile(r"\..+\.[0-9a-f]{8}\.(partial|old)")  # left by `whole_file` and `whole_folder` after a kill
_FORMAT = 1

log = logging.getLogger("twins_trt")


@contextmanager
def temporary() -> Iterator[Path]:
    """A work folder that is always removed at the end."""
    with tempfile.TemporaryDirectory(prefix="twins-trt-") as scratch:
        yield Path(scratch)


@contextmanager
def workspace(folder: Path, key: str) -> Iterator[Path]:
    """A work folder, with the state that an earlier build of the same key left in it.

    folder: what the build makes in it is removed when the block ends; it stays if the block raises or is killed.
    key: a hash of everything that `STATE` depends on; the state of another key is removed. `RESULTS` and the masks in
    `REFERENCE` stay.
    Raises BundleError if another build works in the folder, with that build's process and start; if the folder is no
    build's; and if it cannot be made.
    """
    with ExitStack() as lock:
        try:
            take_work_folder(folder, lock, busy=partial(_refuse_busy, folder))
            _refuse_strangers(folder)
            _drop(folder, key)
            _write(folder / KEY, {"format": _FORMAT, "key": key})
            sign_work_folder(folder)
        except OSError as error:
            raise BundleError(f"{folder} cannot be made: {error.strerror}", "choose another place") from error
        try:
            yield folder
        except BaseException:
            (folder / HOLDER).unlink(missing_ok=True)
            raise
        for child in filter(_is_ours, list(folder.iterdir())):
            _remove(child)
        with suppress(OSError):  # it holds files of the user
            folder.rmdir()  # still locked: a build that waits for the lock then finds that the folder is gone


def _refuse_busy(folder: Path, error: BlockingIOError) -> None:
    """Raises BundleError for a folder in which another build works."""
    holder = work_folder_holder(folder)
    raise BundleError(
        f"{folder} is in use by another build{holder and f', {holder}'}",
        f"wait until it is done, or choose another {spelled('out')}",
    ) from error


def _refuse_strangers(folder: Path) -> None:
    """Raises BundleError for a folder of this name that no build has made."""
    strange = [child.name for child in folder.iterdir() if not _is_ours(child)]
    if strange and not (folder / KEY).exists():
        raise BundleError(
            f"{folder} holds {strange[0]}, which no build made there", f"move it, or choose another {spelled('out')}"
        )


def _drop(folder: Path, key: str) -> None:
    """Removes parts, which are made again, damaged files, and the state of another key."""
    kept = {REFERENCE, *RESULTS}
    if _read(folder / KEY) == {"format": _FORMAT, "key": key}:
        kept |= set(STATE)
    elif states := [name for name in STATE if (folder / name).exists()]:
        why = "is of a build with other ranges" if _key(folder) else f"does not say whose it is ({KEY} is damaged)"
        log.warning("%s %s: %s cannot be used, and is dropped", folder, why, ", ".join(states))
    for child in filter(_is_ours, list(folder.iterdir())):
        sound = child.is_dir() if child.name == REFERENCE else child.is_file()
        if child.name in kept and sound and not child.is_symlink():
            continue
        if child.name in kept:
            log.warning("%s is damaged, and is dropped", child)
        _remove(child)


def _is_ours(child: Path) -> bool:
    """Whether a build has made this file or folder."""
    return child.name in _OURS or _STAGED.fullmatch(child.name) is not None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _key(folder: Path) -> str | None:
    """The key of the build that worked in the folder; None if its file is missing or damaged."""
    content = _read(folder / KEY)
    key = content.get("key") if isinstance(content, dict) else None
    return key if isinstance(key, str) else None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _write(path: Path, content: dict[str, Any]) -> None:
    with whole_file(path, durable=False) as file:
        file.write((json.dumps(content) + "\n").encode())
