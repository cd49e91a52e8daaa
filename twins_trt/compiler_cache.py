"""Files that keep a compiler's work from one process to the next: timed tactics and compiled kernels.

TensorRT checks little of such a file, and one of another device or version makes builds slow or wrong (TensorRT#3137).
So a file starts with a line that says what it was made with. A file that does not fit is not read, and is replaced when
there is new content. Several processes may share a file: it is read and merged under a lock, and replaced in one step.
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


@dataclass(frozen=True)
class CacheKey:
    """What the content is valid for: flavour and full version of the compiler, and the device.

    engine: the hash of an engine, for content that is valid for this engine alone.
    """

    flavour: str
    version: str
    target: str
    device: str
    engine: str = ""

    def to_json(self) -> dict[str, str]:
        """The key as cache files hold it, where the engine's hash is called `plan`."""
        fields = asdict(self)
        fields["plan"] = fields.pop("engine")
        return fields


@dataclass(frozen=True)
class CompilerCache:
    """One cache file. kind: its name in its first line and in the log, such as `timing cache`."""

    path: Path
    key: CacheKey
    kind: str

    @classmethod
    def at(cls, place: str | Path, key: CacheKey, kind: str) -> CompilerCache:
        """The file `place`, or a file named after the key if `place` is an existing folder.

        Raises UsageError if the file's folder does not exist.
        """
        path = Path(place)
        if path.is_dir():
            words = "-".join(word for word in key.to_json().values() if word)
            return cls(path / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', words)}.cache", key, kind)
        if not path.parent.is_dir():
            raise UsageError(f"the {kind}'s folder {path.parent} does not exist", f"mkdir -p {path.parent}")
        return cls(path, key, kind)

    def read(self) -> bytes:
        """The content if it fits the key; otherwise empty, and the log says why."""
        try:
            with locked(self.path):
                return self._unpack(logging.WARNING)
        except OSError as error:
            log.warning("%s %s cannot be read: %s", self.kind, self.path, error)
            return b""

    def write(self, merge: Callable[[bytes], bytes]) -> None:
        """Replaces the file by `merge(its current content)` in one step. A failure is only logged."""
        try:
            with locked(self.path):
                blob = merge(self._unpack(logging.DEBUG))
                head = {**self.key.to_json(), "sha256": hashlib.sha256(blob).hexdigest()}
                with whole_file(self.path) as file:
                    file.write(self._magic + json.dumps(head).encode() + b"\n" + blob)
        except OSError as error:
            log.warning("%s %s cannot be written: %s", self.kind, self.path, error)

    @property
    def _magic(self) -> bytes:
        return f"twins-trt {self.kind} 1\n".encode()

    def _unpack(self, level: int) -> bytes:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return b""
        head, _, blob = data[len(self._magic) :].partition(b"\n")
        try:
            fields = json.loads(head) if data.startswith(self._magic) else {}
        except ValueError:
            fields = {}
        if not fields:
            return self._refuse(level, "was not written by twins-trt")
        if fields.pop("sha256", None) != hashlib.sha256(blob).hexdigest():
            return self._refuse(level, "is damaged")
        for field, value in self.key.to_json().items():
            if fields.get(field) != value:
                return self._refuse(level, f"was made with {field} {fields.get(field)!r}, and this is {value!r}")
        return blob

    def _refuse(self, level: int, why: str) -> bytes:
        log.log(level, "%s %s %s: not used, and replaced", self.kind, self.path, why)
        return b""


def home_folder(name: str, *, what: str) -> Path | None:
    """The folder `name` of caches in the user's home; None if it cannot be made, and the log says so.

    what: is not kept then, in words and with its verb: `compiled kernels are`.
    """
    try:
        folder = Path.home() / ".cache" / "twins-trt" / name
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a container's or service's user without a home
        log.warning("%s not kept: %s", what, error)
        return None
    return folder
