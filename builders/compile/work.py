"""The folder beside a bundle that keeps a finished engine until it is in the bundle, and lets one process work."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from twins_trt.builders.engine import BuiltEngine
from twins_trt.builders.engine.layers import Layer
from twins_trt.errors import BundleError
from twins_trt.files import sha256_of, whole_file, write_hashed
from twins_trt.folders import HOLDER, held, sign_work_folder, take_work_folder, work_folder_holder
from twins_trt.progress import Progress

ENGINE, KEPT = "finished.engine", "finished.json"
_FORMAT = 1

log = logging.getLogger("twins_trt")


def work_folder(bundle: Path) -> Path:
    """The folder, beside the bundle in `bundle`."""
    return bundle.with_name(f"{bundle.name}.compile")


@contextmanager
def working(bundle: Path, progress: Progress) -> Iterator[Path]:
    """The work folder of a bundle, locked. Another process that compiles the bundle is waited for.

    It is removed when the block ends, and stays if the block raises or is killed. Raises BundleError if it cannot be
    made.
    """
    folder = work_folder(bundle)
    with ExitStack() as lock:
        try:
            take_work_folder(folder, lock, busy=lambda _: _wait(folder, progress))
            sign_work_folder(folder)
        except OSError as error:
            raise BundleError(
                f"{folder} cannot be made: {error.strerror}", "copy the bundle to a folder that can be written to"
            ) from error
        try:
            yield folder
        except BaseException:
            (folder / HOLDER).unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()
            raise
        shutil.rmtree(folder)


def forget(bundle: Path, key: Mapping[str, Any]) -> None:
    """Removes what a process has left that was killed when its engine, of this key, was in the bundle already.

    A finished engine of another key stays.
    """
    folder = work_folder(bundle)
    with suppress(OSError), held(folder, wait=False):  # else it is in use, or there is none, or it has to stay
        if kept(folder, key) is not None or not (folder / KEPT).exists() or not (folder / ENGINE).exists():
            shutil.rmtree(folder)


def keep(folder: Path, key: Mapping[str, Any], built: BuiltEngine) -> None:
    """Keeps a finished engine in the folder. If the disk refuses, the log says so: only a kill would then lose it."""
    try:
        _keep(folder, key, built)
    except OSError as error:
        log.warning("%s cannot keep the engine until it is in the bundle: %s", folder, error.strerror)
        with suppress(OSError):  # the bundle needs the room
            (folder / ENGINE).unlink(missing_ok=True)


def _keep(folder: Path, key: Mapping[str, Any], built: BuiltEngine) -> None:
    (folder / KEPT).unlink(missing_ok=True)
    (folder / ENGINE).unlink(missing_ok=True)
    digest, _ = write_hashed(folder / ENGINE, built.serialized)
    content = {
        "format": _FORMAT,
        "key": dict(key),
        "sha256": digest,
        "layers": [layer.to_json() for layer in built.layers],
        "flavour": built.flavour,
        "version": built.version,
        "targets": list(built.targets),
        "seconds": built.seconds,
        "peak_host_mib": built.peak_host_mib,
    }
    with whole_file(folder / KEPT) as file:  # last: without it there is no finished engine
        file.write(json.dumps(content).encode())


def kept(folder: Path, key: Mapping[str, Any]) -> BuiltEngine | None:
    """The engine that was kept there, if it is of this key and whole."""
    try:
        content = json.loads((folder / KEPT).read_bytes())
        if content["format"] != _FORMAT or content["key"] != dict(key):
            log.warning("%s holds an engine of another graph, compiler or GPU, which is not used", folder)
            return None
        if content["sha256"] != sha256_of(folder / ENGINE):
            log.warning("%s is damaged, and is not used", folder / ENGINE)
            return None
        return BuiltEngine(
            (folder / ENGINE).read_bytes(),
            tuple(map(Layer.from_json, content["layers"])),
            content["flavour"],
            content["version"],
            tuple(content["targets"]),
            content["seconds"],
            content["peak_host_mib"],
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s is damaged, and is not used: %r", folder / KEPT, error)
        return None


def _wait(folder: Path, progress: Progress) -> None:
    """Waits for the process that compiles the bundle."""
    holder = work_folder_holder(folder)
    progress("wait", f"{(holder and f'{holder},') or 'another process'} compiles this bundle", None)
    with suppress(FileNotFoundError), held(folder):  # then it is gone, or left by a process that failed
        pass
