"""Downloading published weights: resumed where it broke off, checked against the sha256 in the file's name."""

from __future__ import annotations

import errno
import http.client
import json
import logging
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twins_trt.errors import FetchError, UsageError
from twins_trt.files import locked, sha256_of, whole_file
from twins_trt.models.zoo import get_spec
from twins_trt.spelling import spelled
from twins_trt.version import __version__

log = logging.getLogger("twins_trt")

Progress = Callable[[int, "int | None"], None]
"""Called with (bytes on disk, bytes in all or None where the server does not say)."""

ATTEMPTS = 5
"""Tries in a row without a new byte before giving up."""
BACKOFF_S = 0.5
"""Pause after the first failure, seconds; doubled after each further one."""
TIMEOUT_S = 30.0
"""Silence, in seconds, after which a connection counts as broken."""

_CHUNK = 1 << 16
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNREACHABLE = (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)
_TRANSIENT_STATUS = (408, 425, 429, 500, 502, 503, 504)


def default_cache_dir() -> Path:
    """Where weights are kept: `$TWINS_TRT_CACHE`, or `~/.cache/twins-trt/weights`."""
    chosen = os.environ.get("TWINS_TRT_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "twins-trt" / "weights"


def cached_path(name: str, *, cache_dir: str | Path | None = None) -> Path:
    """Where `fetch` puts the weights of the model called `name`, whether they are there or not.

    Raises `UsageError` for an unknown model, and for the demo's, of which nothing is published.
    """
    spec = get_spec(name)
    if spec.packaged:
        raise UsageError(f"{name} comes with the package: there is nothing to fetch", "use it as it is: twins-trt demo")
    return (default_cache_dir() if cache_dir is None else Path(cache_dir)) / spec.weights_file


def fetch(
    name: str, *, cache_dir: str | Path | None = None, progress: Progress | None = None, url: str | None = None
) -> Path:
    """The file with the published weights of the model called `name`, downloaded unless it is there already.

    cache_dir: the folder to keep it in, `default_cache_dir()` when not given. progress: called with (bytes on disk,
    bytes in all or None) about every 64 KiB. url: a mirror's address of the same file.
    The bytes go to `FILE.part`, which an interruption (Ctrl-C too) leaves to be resumed, and take their name only when
    their sha256 begins as the file's name says. One process downloads at a time, others wait and take its result.
    Raises `UsageError` for an unknown model or an address that is not http(s); `FetchError` where the server cannot be
    reached or refuses, what arrives is something else, or it cannot be stored.
    """
    spec = get_spec(name)
    target = cached_path(name, cache_dir=cache_dir)
    source = spec.weights_url if url is None else url
    if not re.match(r"https?://[^/\s]", source):
        raise UsageError(f"cannot download {source!r}: only http and https addresses", f"check {spelled('url')}")
    job = _Job(source, target, spec.weights_sha256_prefix, name)
    try:
        if _is_there(job):  # before anything is written: the folder may be read-only
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target, waiting=f"another process is downloading {target.name}: waiting for it"):
            return target if _is_there(job) else _download(job, progress)
    except OSError as error:
        raise _storage_error(error, job) from error


@dataclass(frozen=True)
class _Job:
    url: str
    target: Path
    sha256_prefix: str
    model: str

    @property
    def part(self) -> Path:
        return self.target.with_name(self.target.name + ".part")

    @property
    def notes(self) -> Path:
        """What is needed to resume: the address, and the server's ETag or date of the file."""
        return self.target.with_name(self.target.name + ".part.json")

    def by_hand(self) -> str:
        return (
            f"download {self.url} on another machine and put it, as {self.target.name}, into {self.target.parent}; "
            f"or name any file with these weights: {spelled('checkpoint', 'FILE')}"
        )


def _is_there(job: _Job) -> bool:
    if not job.target.is_file():
        return False
    found = sha256_of(job.target)
    if not found.startswith(job.sha256_prefix):
        log.warning("%s has sha256 %s..., not %s...", job.target, found[:8], job.sha256_prefix)
        return False
    return True


class _Interrupted(Exception):
    """The attempt failed in a way that another may mend. `unreachable`: no server answered at all."""

    def __init__(self, reason: str, *, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.unreachable = unreachable


def _download(job: _Job, progress: Progress | None) -> Path:
    resumed = _have(job) > 0
    for _ in range(2):
        _transfer(job, progress)
        found = sha256_of(job.part)
        if found.startswith(job.sha256_prefix):
            os.replace(job.part, job.target)
            job.notes.unlink(missing_ok=True)
            return job.target
        _forget(job)
        if not resumed:
            break
        # The earlier part may be what is wrong: one whole download decides.
        log.warning("%s: the resumed file has sha256 %s..., starting over", job.target.name, found[:8])
        resumed = False
    raise FetchError(
        f"{job.url} has sha256 {found}, but {job.model}'s weights begin with {job.sha256_prefix}; nothing was kept",
        f"the file was altered on its way (a proxy or mirror?): {job.by_hand()}",
    )


def _transfer(job: _Job, progress: Progress | None) -> None:
    """Fills `.part` to the end of the file, over as many connections as that takes."""
    failures = 0
    while True:
        before = _have(job)
        try:
            return _attempt(job, progress)
        except _Interrupted as error:
            failures = 1 if _have(job) > before else failures + 1
            limit = 2 if error.unreachable else ATTEMPTS  # name resolution and routes rarely mend in seconds
            if failures >= limit:
                host = urllib.parse.urlsplit(job.url).netloc
                kept = f" ({_have(job)} bytes are kept and will be resumed)" if _have(job) else ""
                raise FetchError(f"cannot download from {host}: {error}{kept}", job.by_hand()) from error
            pause = BACKOFF_S * 2 ** (failures - 1)
            log.info("%s: %s; again in %.1f s", job.target.name, error, pause)
            time.sleep(pause)


def _attempt(job: _Job, progress: Progress | None) -> None:
    start = _have(job)
    notes = _read_notes(job)
    headers = {"User-Agent": f"twins-trt/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if notes.get("validator"):
            headers["If-Range"] = notes["validator"]  # a changed file then comes whole, as 200
    try:
        response = urllib.request.urlopen(urllib.request.Request(job.url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and start:
                return _after_416(job, error.headers.get("Content-Range"), start)
            if error.code in _TRANSIENT_STATUS:
                raise _Interrupted(f"HTTP {error.code} {error.reason}") from error
            raise FetchError(f"{job.url}: HTTP {error.code} {error.reason}", job.by_hand()) from error
    except (OSError, http.client.HTTPException) as error:
        raise _network_failure(error, job) from error
    with response:
        if response.headers.get_content_type() == "text/html":
            raise FetchError(f"{job.url} answered with a web page (a login or a blocking proxy?)", job.by_hand())
        _receive(job, response, start, progress)


def _receive(job: _Job, response: Any, start: int, progress: Progress | None) -> None:
    """Appends a 206's bytes, or writes a 200's from the beginning, and checks that all of them came."""
    length = response.headers.get("Content-Length", "")
    total = int(length) if length.isdigit() else None
    if response.status == 206:
        first, whole = _content_range(response.headers.get("Content-Range"))
        if first != start or (whole is not None and whole < start):
            _forget(job)
            raise _Interrupted(f"the server resumed at byte {first} instead of {start}")
        total = whole if whole is not None else (None if total is None else start + total)
    else:
        start = 0
    etag = response.headers.get("ETag", "")
    # Weak ETags are not allowed in If-Range (RFC 9110, section 13.1.5).
    validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
    with whole_file(job.notes, durable=False) as notes:
        notes.write(json.dumps({"url": job.url, "validator": validator, "total": total}).encode())
    _check_space(job, start, total)
    done = start
    with open(job.part, "ab" if start else "wb") as file:
        if progress:
            progress(done, total)
        while True:
            try:
                chunk = response.read(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _network_failure(error, job) from error
            if not chunk:
                break
            file.write(chunk)
            done += len(chunk)
            if progress:
                progress(done, total)
    if total is not None and done < total:
        raise _Interrupted(f"the connection closed after {done} of {total} bytes")


def _after_416(job: _Job, content_range: str | None, start: int) -> None:
    """Nothing follows what is there: it is complete, or of another version of the file and of no use."""
    whole = _content_range(content_range)[1]
    if whole == start:
        return
    _forget(job)
    raise _Interrupted(f"the file on the server has {whole or 'fewer'} bytes, {start} were here")


def _content_range(text: str | None) -> tuple[int | None, int | None]:
    """(first byte, whole size) of `bytes 5-9/10`, `bytes 5-9/*` or `bytes */10`; None for what is not said."""
    unit, _, value = (text or "").partition(" ")
    span, _, size = value.partition("/")
    first = span.partition("-")[0]
    if unit != "bytes":
        return None, None
    return int(first) if first.isdigit() else None, int(size) if size.isdigit() else None


def _network_failure(error: BaseException, job: _Job) -> Exception:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return FetchError(
            f"{job.url}: the server's certificate is not trusted ({reason.verify_message})", job.by_hand()
        )
    if isinstance(reason, socket.gaierror):
        return _Interrupted("its name cannot be resolved (is this machine offline?)", unreachable=True)
    unreachable = isinstance(reason, OSError) and reason.errno in _UNREACHABLE
    said = "no answer in time" if isinstance(reason, TimeoutError) else (str(reason) or type(reason).__name__)
    return _Interrupted(said, unreachable=unreachable)


def _check_space(job: _Job, start: int, total: int | None) -> None:
    free = shutil.disk_usage(job.part.parent).free
    if not start and job.part.exists():
        free += job.part.stat().st_size  # about to be overwritten
    if total is not None and total - start > free:
        raise OSError(errno.ENOSPC, f"{(total - start) / 1e6:.1f} MB to come, {free / 1e6:.1f} MB free")


def _storage_error(error: OSError, job: _Job) -> FetchError:
    folder = job.target.parent
    if error.errno in _NO_SPACE:
        return FetchError(
            f"no space left for {job.target.name} in {folder} ({error.strerror})",
            "free some space and run it again (it resumes), or keep weights elsewhere: TWINS_TRT_CACHE=FOLDER",
        )
    return FetchError(
        f"cannot store {job.target.name} in {folder}: {error.strerror or error}",
        "keep weights in a folder that can be written: TWINS_TRT_CACHE=FOLDER",
    )


def _have(job: _Job) -> int:
    """Bytes of `.part` that can be resumed: none where its notes are lost or of another address."""
    if not job.part.is_file() or _read_notes(job).get("url") != job.url:
        return 0
    return job.part.stat().st_size


def _read_notes(job: _Job) -> dict[str, Any]:
    try:
        notes = json.loads(job.notes.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _forget(job: _Job) -> None:
    job.part.unlink(missing_ok=True)
    job.notes.unlink(missing_ok=True)
