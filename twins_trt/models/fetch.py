"""Downloads published weights: resumes where a download broke off, and checks the sha256 in the file's name."""

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
from twins_trt.progress import Progress, silent
from twins_trt.spelling import spelled
from twins_trt.version import __version__

log = logging.getLogger("twins_trt")

_CHUNK = 1 << 16
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNREACHABLE = (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)
_TRANSIENT_STATUS = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Published:
    """A file to download. sha256_prefix: how its sha256 begins. target: where to put it. model: for errors."""

    url: str
    sha256_prefix: str
    target: Path
    model: str

    @property
    def part(self) -> Path:
        """The bytes that have come so far."""
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


@dataclass(frozen=True)
class Retries:
    """When a download tries again.

    attempts: failures in a row, without a new byte, before it gives up. backoff_s: seconds to pause after the first
    failure, doubled after each further one. timeout_s: seconds of silence after which a connection counts as broken.
    sleep: what pauses.
    """

    attempts: int = 5
    backoff_s: float = 0.5
    timeout_s: float = 30.0
    sleep: Callable[[float], None] = time.sleep


def default_cache_dir() -> Path:
    """Where weights are kept: `$TWINS_TRT_CACHE`, or `~/.cache/twins-trt/weights`."""
    chosen = os.environ.get("TWINS_TRT_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "twins-trt" / "weights"


def cached_path(name: str, *, cache_dir: str | Path | None = None) -> Path:
    """Where `fetch` puts the weights of the model called `name`, whether they are there or not.

    Raises `UsageError` for an unknown model, and for the demo's, which is not published.
    """
    spec = get_spec(name)
    if spec.packaged:
        raise UsageError(f"{name} comes with the package: there is nothing to fetch", "use it as it is: twins-trt demo")
    return (default_cache_dir() if cache_dir is None else Path(cache_dir)) / spec.weights_file


def fetch(
    name: str, *, cache_dir: str | Path | None = None, progress: Progress | None = None, url: str | None = None
) -> Path:
    """The file with the published weights of the model called `name`, downloaded unless it is there already.

    cache_dir: the folder to keep it in, `default_cache_dir()` when not given. url: a mirror's address of the same file.
    Downloads, reports progress and raises as `download` does; `UsageError` also for an unknown model.
    """
    spec = get_spec(name)
    target = cached_path(name, cache_dir=cache_dir)
    source = spec.weights_url if url is None else url
    return download(Published(source, spec.weights_sha256_prefix, target, name), progress=progress)


def download(file: Published, *, progress: Progress | None = None, retries: Retries | None = None) -> Path:
    """Downloads a file unless it is there already, and returns its path.

    progress: called about every 64 KiB with step `download`.
    The bytes go to `FILE.part`. An interruption (Ctrl-C too) leaves that, and the next call resumes it. It takes the
    file's name once its sha256 is right. One process downloads at a time; others wait and take its result.
    Raises `UsageError` for an address that is not http(s); `FetchError` where the server cannot be reached or refuses,
    what arrives is something else, or it cannot be stored.
    """
    if not re.match(r"https?://[^/\s]", file.url):
        raise UsageError(f"cannot download {file.url!r}: only http and https addresses", f"check {spelled('url')}")
    target = file.target
    try:
        if _is_there(file):  # before anything is written: the folder may be read-only
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target, waiting=f"another process is downloading {target.name}: waiting for it"):
            return target if _is_there(file) else _download(file, progress or silent, retries or Retries())
    except OSError as error:
        raise _storage_error(error, file) from error


def _is_there(file: Published) -> bool:
    if not file.target.is_file():
        return False
    sha256 = sha256_of(file.target)
    if not sha256.startswith(file.sha256_prefix):
        log.warning("%s has sha256 %s..., not %s...", file.target, sha256[:8], file.sha256_prefix)
        return False
    return True


class _Interrupted(Exception):
    """The attempt failed in a way that another may mend. `unreachable`: no server answered at all."""

    def __init__(self, reason: str, *, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.unreachable = unreachable


def _download(file: Published, progress: Progress, retries: Retries) -> Path:
    resumed = _have(file) > 0
    for _ in range(2):
        _transfer(file, progress, retries)
        sha256 = sha256_of(file.part)
        if sha256.startswith(file.sha256_prefix):
            os.replace(file.part, file.target)
            file.notes.unlink(missing_ok=True)
            return file.target
        _forget(file)
        if not resumed:
            break
        # The earlier part may be what is wrong: one whole download decides.
        log.warning("%s: the resumed file has sha256 %s..., starting over", file.target.name, sha256[:8])
        resumed = False
    raise FetchError(
        f"{file.url} has sha256 {sha256}, but {file.model}'s weights begin with {file.sha256_prefix}; nothing was kept",
        f"the file was altered on its way (a proxy or mirror?): {file.by_hand()}",
    )


def _transfer(file: Published, progress: Progress, retries: Retries) -> None:
    """Fills `.part` to the end of the file, over as many connections as that takes."""
    failures = 0
    while True:
        before = _have(file)
        try:
            return _attempt(file, progress, retries.timeout_s)
        except _Interrupted as error:
            failures = 1 if _have(file) > before else failures + 1
            limit = 2 if error.unreachable else retries.attempts  # name resolution and routes rarely mend in seconds
            if failures >= limit:
                host = urllib.parse.urlsplit(file.url).netloc
                kept = f" ({_have(file)} bytes are kept and will be resumed)" if _have(file) else ""
                raise FetchError(f"cannot download from {host}: {error}{kept}", file.by_hand()) from error
            pause = retries.backoff_s * 2 ** (failures - 1)
            log.info("%s: %s; again in %.1f s", file.target.name, error, pause)
            retries.sleep(pause)


def _attempt(file: Published, progress: Progress, timeout_s: float) -> None:
    start = _have(file)
    notes = _read_notes(file)
    headers = {"User-Agent": f"twins-trt/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if notes.get("validator"):
            headers["If-Range"] = notes["validator"]  # a changed file then comes whole, as 200
    try:
        response = urllib.request.urlopen(urllib.request.Request(file.url, headers=headers), timeout=timeout_s)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and start:
                return _after_416(file, error.headers.get("Content-Range"), start)
            if error.code in _TRANSIENT_STATUS:
                raise _Interrupted(f"HTTP {error.code} {error.reason}") from error
            raise FetchError(f"{file.url}: HTTP {error.code} {error.reason}", file.by_hand()) from error
    except (OSError, http.client.HTTPException) as error:
        raise _network_failure(error, file) from error
    with response:
        if response.headers.get_content_type() == "text/html":
            raise FetchError(f"{file.url} answered with a web page (a login or a blocking proxy?)", file.by_hand())
        _receive(file, response, start, progress)


def _receive(file: Published, response: Any, start: int, progress: Progress) -> None:
    """Appends a 206's bytes, or writes a 200's from the beginning, and checks that all of them came."""
    length = response.headers.get("Content-Length", "")
    total = int(length) if length.isdigit() else None
    if response.status == 206:
        first, whole = _content_range(response.headers.get("Content-Range"))
        if first != start or (whole is not None and whole < start):
            _forget(file)
            raise _Interrupted(f"the server resumed at byte {first} instead of {start}")
        total = whole if whole is not None else (None if total is None else start + total)
    else:
        start = 0
    etag = response.headers.get("ETag", "")
    # Weak ETags are not allowed in If-Range (RFC 9110, section 13.1.5).
    validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
    with whole_file(file.notes, durable=False) as notes:
        notes.write(json.dumps({"url": file.url, "validator": validator, "total": total}).encode())
    _check_space(file, start, total)
    done = start
    with open(file.part, "ab" if start else "wb") as part:
        _say(progress, done, total)
        while True:
            try:
                chunk = response.read(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _network_failure(error, file) from error
            if not chunk:
                break
            part.write(chunk)
            done += len(chunk)
            _say(progress, done, total)
    if total is not None and done < total:
        raise _Interrupted(f"the connection closed after {done} of {total} bytes")


def _say(progress: Progress, done: int, total: int | None) -> None:
    """done, total: bytes; total is None where the server does not say."""
    if total is None:
        progress("download", f"{done / 1e6:.1f} MB", None)
    else:
        progress("download", f"{done / 1e6:.1f} MB of {total / 1e6:.1f} MB", done / total if total else 1.0)


def _after_416(file: Published, content_range: str | None, start: int) -> None:
    """The server has no byte beyond those here: the part is complete, or of another version of the file and useless."""
    whole = _content_range(content_range)[1]
    if whole == start:
        return
    _forget(file)
    raise _Interrupted(f"the file on the server has {whole or 'fewer'} bytes, {start} were here")


def _content_range(text: str | None) -> tuple[int | None, int | None]:
    """(first byte, whole size) of `bytes 5-9/10`, `bytes 5-9/*` or `bytes */10`; None for what is not said."""
    unit, _, value = (text or "").partition(" ")
    span, _, size = value.partition("/")
    first = span.partition("-")[0]
    if unit != "bytes":
        return None, None
    return int(first) if first.isdigit() else None, int(size) if size.isdigit() else None


def _network_failure(error: BaseException, file: Published) -> Exception:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return FetchError(
            f"{file.url}: the server's certificate is not trusted ({reason.verify_message})", file.by_hand()
        )
    if isinstance(reason, socket.gaierror):
        return _Interrupted("its name cannot be resolved (is this machine offline?)", unreachable=True)
    unreachable = isinstance(reason, OSError) and reason.errno in _UNREACHABLE
    said = "no answer in time" if isinstance(reason, TimeoutError) else (str(reason) or type(reason).__name__)
    return _Interrupted(said, unreachable=unreachable)


def _check_space(file: Published, start: int, total: int | None) -> None:
    free = shutil.disk_usage(file.part.parent).free
    if not start and file.part.exists():
        free += file.part.stat().st_size  # about to be overwritten
    if total is not None and total - start > free:
        raise OSError(errno.ENOSPC, f"{(total - start) / 1e6:.1f} MB to come, {free / 1e6:.1f} MB free")


def _storage_error(error: OSError, file: Published) -> FetchError:
    folder = file.target.parent
    if error.errno in _NO_SPACE:
        return FetchError(
            f"no space left for {file.target.name} in {folder} ({error.strerror})",
            "free some space and run it again (it resumes), or keep weights elsewhere: TWINS_TRT_CACHE=FOLDER",
        )
    return FetchError(
        f"cannot store {file.target.name} in {folder}: {error.strerror or error}",
        "keep weights in a folder that can be written: TWINS_TRT_CACHE=FOLDER",
    )


def _have(file: Published) -> int:
    """Bytes of `.part` that can be resumed: none where its notes are lost or of another address."""
    if not file.part.is_file() or _read_notes(file).get("url") != file.url:
        return 0
    return file.part.stat().st_size


def _read_notes(file: Published) -> dict[str, Any]:
    try:
        notes = json.loads(file.notes.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _forget(file: Published) -> None:
    file.part.unlink(missing_ok=True)
    file.notes.unlink(missing_ok=True)
