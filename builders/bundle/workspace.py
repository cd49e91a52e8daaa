"""The folder a build works in: one build's at a time, of one key, and gone once the build is done."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from twins_trt.errors import BundleError
from twins_trt.files import locked, whole_file
from twins_trt.folders import held
from twins_trt.runtime.manifest import GRAPH, WEIGHTS
from twins_trt.spelling import spelled

KEY, HOLDER = "key.json", "holder.json"
STATE = ("calibration.partial", "search.json")
"""What a build of the same key goes on from."""
REFERENCE = "reference"  # masks whose names change with all they depend on, so any build may have them
RESULTS = ("plan.json", "reached.json", "calibration.json", "gate.json", "fallback.json")
"""What a build that failed its gate leaves for its user."""
PARTS = ("fp32.onnx", GRAPH, WEIGHTS, "candidate.bundle", "calibration.partial.damaged")
"""What every build makes anew."""

_OURS = {KEY, HOLDER, REFERENCE, *STATE, *RESULTS, *PARTS}
_STAGED = re.compile(r"\..+\.[0-9a-f]{8}\.(partial|old)")  # of `whole_file` and `whole_folder`, cut off
_FORMAT = 1

log = logging.getLogger("twins_trt")


@contextmanager
def temporary() -> Iterator[Path]:
    """A folder for the time of a build that leaves nothing."""
    with tempfile.TemporaryDirectory(prefix="twins-trt-") as scratch:
        yield Path(scratch)


@contextmanager
def workspace(folder: Path, key: str) -> Iterator[Path]:
    """A folder for the time of a build, with what a build of the same key has left there if it was cut off.

    folder: what the build makes in it vanishes when the block ends, and stays where the block raises or is killed.
    key: of all that `STATE` depends on; what a build of another key has left of it is dropped. `RESULTS` and the masks
    in `REFERENCE` stay. Raises BundleError, saying who has it, where another build works there; where the folder is
    something else's; and where it cannot be made.
    """
    with ExitStack() as lock:
        try:
            _take(folder, lock)
            _refuse_strangers(folder)
            _drop(folder, key)
            _write(folder / KEY, {"format": _FORMAT, "key": key})
            _write(folder / HOLDER, {"pid": os.getpid(), "since": datetime.now(timezone.utc).isoformat(" ", "seconds")})
        except OSError as error:
            raise BundleError(f"{folder} cannot be made: {error.strerror}", "choose another place") from error
        try:
            yield folder
        except BaseException:
            (folder / HOLDER).unlink(missing_ok=True)
            raise
        for child in filter(_is_ours, list(folder.iterdir())):
            _remove(child)
        with suppress(OSError):  # something of the user's is in it
            folder.rmdir()  # still locked: who waits for it finds that it has gone


def _take(folder: Path, lock: ExitStack) -> None:
    """Makes the folder and locks it."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not lock.enter_context(held(folder, wait=False)):  # NFS, which locks only what is open for writing
                lock.enter_context(locked(folder, waiting=f"{folder} is in use: waiting until it is free"))
                folder.mkdir(exist_ok=True)  # whom this waited for has removed it
            return
        except (FileNotFoundError, FileExistsError):  # its last holder has just removed it, between two looks at it
            if os.path.lexists(folder) and not folder.is_dir():
                raise
        except BlockingIOError as error:
            raise BundleError(
                f"{folder} is in use by {_holder(folder)}", f"wait until it is done, or choose another {spelled('out')}"
            ) from error


def _refuse_strangers(folder: Path) -> None:
    """A folder that merely has this name is left alone."""
    strange = [child.name for child in folder.iterdir() if not _is_ours(child)]
    if strange and not (folder / KEY).exists():
        raise BundleError(
            f"{folder} holds {strange[0]}, which no build made there", f"move it, or choose another {spelled('out')}"
        )


def _drop(folder: Path, key: str) -> None:
    """Removes what cannot be gone on with: parts that are made anew, and the state of another key."""
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
    """Whether it is what a build makes in its folder."""
    return child.name in _OURS or _STAGED.fullmatch(child.name) is not None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _holder(folder: Path) -> str:
    said = _read(folder / HOLDER)
    if not isinstance(said, dict) or not {"pid", "since"} <= set(said):
        return "another build"  # which has just begun
    return f"another build, process {said['pid']}, since {said['since']}"


def _key(folder: Path) -> str | None:
    """The key that the folder says it is of; None where it says none."""
    said = _read(folder / KEY)
    found = said.get("key") if isinstance(said, dict) else None
    return found if isinstance(found, str) else None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _write(path: Path, content: dict[str, Any]) -> None:
    with whole_file(path, durable=False) as file:
        file.write((json.dumps(content) + "\n").encode())
