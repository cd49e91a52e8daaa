"""A file that keeps measured tactics from one build to the next.

TensorRT checks little of what it is given back, and a cache of another device or version makes builds slow or wrong
(TensorRT#3137), so the file starts with a line that says what it was measured with. One that does not fit is left
unread, and replaced when the build is done. Several builds may share a file: it is read and merged under a lock, and
replaced in one step.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from twins_trt.errors import UsageError
from twins_trt.files import locked, whole_file

log = logging.getLogger("twins_trt")

_MAGIC = b"twins-trt timing cache 1\n"


@dataclass(frozen=True)
class CacheKey:
    """What a measurement holds for: flavour and full version of the compiler, and the device it timed on."""

    flavour: str
    version: str
    target: str
    device: str


def cache_path(setting: str, key: CacheKey) -> Path:
    """The file for a setting: itself, or inside an existing folder one named after the key. Raises UsageError when
    its folder does not exist."""
    path = Path(setting)
    if path.is_dir():
        words = "-".join((key.flavour, key.version, key.target, key.device))
        return path / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', words)}.cache"
    if not path.parent.is_dir():
        raise UsageError(f"the timing cache's folder {path.parent} does not exist", f"mkdir -p {path.parent}")
    return path


def _unpack(path: Path, key: CacheKey, *, level: int = logging.WARNING) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return b""
    head, _, blob = data[len(_MAGIC) :].partition(b"\n")
    try:
        fields = json.loads(head) if data.startswith(_MAGIC) else {}
    except ValueError:
        fields = {}
    if not fields:
        log.log(level, "timing cache %s is none of ours: not used, and replaced after the build", path)
        return b""
    if fields.pop("sha256", None) != hashlib.sha256(blob).hexdigest():
        log.log(level, "timing cache %s is damaged: not used, and replaced after the build", path)
        return b""
    for field, value in asdict(key).items():
        if fields.get(field) != value:
            unlike = f"{field} {fields.get(field)!r}, and this is {value!r}"
            log.log(level, "timing cache %s was measured with %s: not used, and replaced after the build", path, unlike)
            return b""
    return blob


def read_cache(path: Path, key: CacheKey) -> bytes:
    """The cache's content when it fits `key`; empty, with a log line saying why, when it does not."""
    try:
        with locked(path):
            return _unpack(path, key)
    except OSError as error:
        log.warning("timing cache %s cannot be read: %s", path, error)
        return b""


def write_cache(path: Path, key: CacheKey, merge: Callable[[bytes], bytes]) -> None:
    """Replaces the file by `merge(its current content)`, in one step. A failure costs a log line, not the build."""
    try:
        with locked(path):
            blob = merge(_unpack(path, key, level=logging.DEBUG))
            head = {**asdict(key), "sha256": hashlib.sha256(blob).hexdigest()}
            with whole_file(path) as file:
                file.write(_MAGIC + json.dumps(head).encode() + b"\n" + blob)
    except OSError as error:
        log.warning("timing cache %s cannot be written: %s", path, error)
