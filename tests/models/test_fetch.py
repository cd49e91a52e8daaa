"""Downloads against a real HTTP server on this machine: resuming, retrying, hashes, locks and what the errors say."""

from __future__ import annotations

import errno
import hashlib
import json
import random
import resource
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from told import Told

from twins_trt.errors import FetchError, UsageError
from twins_trt.models import get_spec, list_models
from twins_trt.models.fetch import Published, Retries, cached_path, default_cache_dir, download, fetch
from twins_trt.progress import Progress
from twins_trt.verbs.build import FLAGS
from twins_trt.verbs.command_line import on_command_line

MODEL = "twins_svt-s_fpn"
PAYLOAD = random.Random(0).randbytes(700_001)
SHA256 = hashlib.sha256(PAYLOAD).hexdigest()
NAME = f"tiny-{SHA256[:8]}.pth"
SHORT = Retries(backoff_s=0.005)


class Server:
    """What the next answers are, and which requests came."""

    def __init__(self) -> None:
        self.payload = PAYLOAD
        self.etag: str | None = '"one"'
        self.ranges = True
        self.statuses: list[int] = []  # for the next requests, before any content
        self.cut_after: list[int] = []  # for the next requests: body bytes after which the connection closes
        self.content_type = "application/octet-stream"
        self.send_length = True
        self.shift = 0  # a server that resumes at the wrong byte
        self.pause = 0.0  # between blocks of 64 KiB
        self.requests: list[dict[str, str]] = []
        self.url = ""


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.requests.append({key.lower(): value for key, value in self.headers.items()})
            if server.statuses:
                self.send_error(server.statuses.pop(0))
                return
            start, status, size = 0, 200, len(server.payload)
            asked = self.headers.get("Range")
            same = self.headers.get("If-Range") in (None, server.etag)
            if asked and server.ranges and same:
                start, status = int(asked.removeprefix("bytes=").rstrip("-")), 206
                if start >= size:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{size}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                start = max(0, start - server.shift)
            self.send_response(status)
            self.send_header("Content-Type", server.content_type)
            if server.send_length:
                self.send_header("Content-Length", str(size - start))
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            if server.etag:
                self.send_header("ETag", server.etag)
            self.end_headers()
            body = server.payload[start:]
            if server.cut_after:
                body = body[: server.cut_after.pop(0)]
            for i in range(0, len(body), 1 << 16):
                self.wfile.write(body[i : i + (1 << 16)])
                time.sleep(server.pause)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """The client hung up: some tests want that."""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()
    http = _QuietServer(("127.0.0.1", 0), _handler(state))
    state.url = f"http://127.0.0.1:{http.server_address[1]}/weights.pth"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def fetch_payload(url: str, folder: Path, *, progress: Progress | None = None, retries: Retries = SHORT) -> Path:
    """Downloads the small payload in the place of a model's weights."""
    return download(Published(url, SHA256[:8], folder / NAME, MODEL), progress=progress, retries=retries)


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def _leave_part(folder: Path, server: Server, size: int, validator: str = '"one"') -> Path:
    target = folder / NAME
    part = target.with_name(target.name + ".part")
    part.write_bytes(PAYLOAD[:size])
    notes = {"url": server.url, "validator": validator, "total": len(PAYLOAD)}
    target.with_name(target.name + ".part.json").write_text(json.dumps(notes))
    return part


def test_downloads_once_reports_progress_and_leaves_one_file(server: Server, tmp_path: Path) -> None:
    told = Told()
    path = fetch_payload(server.url, tmp_path / "a" / "b", progress=told)
    assert path.read_bytes() == PAYLOAD
    assert path == tmp_path / "a" / "b" / NAME
    assert _files(path.parent) == {path.name}
    assert told.calls[0] == ("download", "0.0 MB of 0.7 MB", 0.0)
    assert told.calls[-1] == ("download", "0.7 MB of 0.7 MB", 1.0)
    shares = [share for _, _, share in told.calls]
    assert shares == sorted(shares) and len(shares) >= len(PAYLOAD) >> 16
    assert fetch_payload(server.url, path.parent) == path
    assert len(server.requests) == 1  # the second call found it
    assert "range" not in server.requests[0]


@pytest.mark.parametrize("send_length", [True, False])
def test_resumes_after_a_dropped_connection(server: Server, tmp_path: Path, send_length: bool) -> None:
    server.send_length = send_length
    server.cut_after = [200_000, 0, 100_000] if send_length else []
    if not send_length:
        _leave_part(tmp_path, server, 300_000)
    told = Told()
    path = fetch_payload(server.url, tmp_path, progress=told)
    assert path.read_bytes() == PAYLOAD
    assert told.calls[-1] == ("download", "0.7 MB of 0.7 MB", 1.0)
    asked = [request.get("range") for request in server.requests]
    expected = [None, "bytes=200000-", "bytes=200000-", "bytes=300000-"] if send_length else ["bytes=300000-"]
    assert asked == expected
    assert server.requests[-1]["if-range"] == '"one"'


def test_a_length_that_the_server_does_not_say_has_no_share(server: Server, tmp_path: Path) -> None:
    server.send_length = False
    told = Told()
    fetch_payload(server.url, tmp_path, progress=told)
    assert told.calls[0] == ("download", "0.0 MB", None) and told.calls[-1] == ("download", "0.7 MB", None)


def test_what_the_zoo_says_is_downloaded(server: Server, tmp_path: Path) -> None:
    """Here it is another file, whose hash is not the published one."""
    with pytest.raises(FetchError, match=f"weights begin with {get_spec(MODEL).weights_sha256_prefix}"):
        fetch(MODEL, cache_dir=tmp_path, url=server.url)
    path = cached_path(MODEL, cache_dir=tmp_path)
    assert path == tmp_path / get_spec(MODEL).weights_file and _files(tmp_path) == set()


def test_gives_up_when_no_byte_comes_and_keeps_what_came(server: Server, tmp_path: Path) -> None:
    server.cut_after = [123_456] + [0] * 50
    with pytest.raises(FetchError, match="closed after 123456 of 700001 bytes") as raised:
        fetch_payload(server.url, tmp_path)
    assert "123456 bytes are kept" in raised.value.cause
    assert len(server.requests) == SHORT.attempts
    server.cut_after = []
    assert fetch_payload(server.url, tmp_path).read_bytes() == PAYLOAD
    assert server.requests[-1]["range"] == "bytes=123456-"


def test_a_server_without_ranges_sends_it_whole(server: Server, tmp_path: Path) -> None:
    _leave_part(tmp_path, server, 400_000)
    server.ranges = False
    assert fetch_payload(server.url, tmp_path).read_bytes() == PAYLOAD
    assert len(server.requests) == 1 and server.requests[0]["range"] == "bytes=400000-"


def test_a_changed_file_is_not_spliced_to_the_old_part(server: Server, tmp_path: Path) -> None:
    part = _leave_part(tmp_path, server, 400_000, validator='"older"')
    part.write_bytes(b"x" * 400_000)
    assert fetch_payload(server.url, tmp_path).read_bytes() == PAYLOAD
    assert len(server.requests) == 1  # If-Range did it, not the hash


def test_a_wrong_part_without_validator_is_found_by_the_hash(server: Server, tmp_path: Path) -> None:
    server.etag = None
    _leave_part(tmp_path, server, 400_000, validator="").write_bytes(b"x" * 400_000)
    assert fetch_payload(server.url, tmp_path).read_bytes() == PAYLOAD
    assert [request.get("range") for request in server.requests] == ["bytes=400000-", None]


def test_a_part_of_another_address_is_not_resumed(server: Server, tmp_path: Path) -> None:
    _leave_part(tmp_path, server, 400_000)
    assert fetch_payload(server.url + "?mirror", tmp_path).read_bytes() == PAYLOAD
    assert "range" not in server.requests[0]


def test_a_server_that_resumes_elsewhere_is_not_believed(server: Server, tmp_path: Path) -> None:
    _leave_part(tmp_path, server, 400_000)
    server.shift = 10
    assert fetch_payload(server.url, tmp_path).read_bytes() == PAYLOAD
    assert [request.get("range") for request in server.requests] == ["bytes=400000-", None]


@pytest.mark.parametrize("extra", [0, 5])
def test_416_means_complete_or_useless(server: Server, tmp_path: Path, extra: int) -> None:
    part = _leave_part(tmp_path, server, len(PAYLOAD))
    part.write_bytes(PAYLOAD + b"?" * extra)
    assert fetch_payload(server.url, tmp_path).read_bytes() == PAYLOAD
    assert [request.get("range") for request in server.requests] == (
        [f"bytes={len(PAYLOAD) + extra}-"] + [None] * bool(extra)
    )
    assert len(_files(tmp_path)) == 1


def test_a_wrong_hash_keeps_nothing_and_says_both(server: Server, tmp_path: Path) -> None:
    server.payload = PAYLOAD[:-1] + b"?"
    with pytest.raises(FetchError) as raised:
        fetch_payload(server.url, tmp_path)
    assert hashlib.sha256(server.payload).hexdigest() in raised.value.cause and SHA256[:8] in raised.value.cause
    assert _files(tmp_path) == set()
    assert len(server.requests) == 1


def test_a_wrong_file_in_the_cache_is_replaced(server: Server, tmp_path: Path) -> None:
    target = tmp_path / NAME
    target.write_bytes(b"something else")
    assert fetch_payload(server.url, tmp_path).read_bytes() == PAYLOAD


def test_404_fails_at_once(server: Server, tmp_path: Path) -> None:
    server.statuses = [404] * 9
    with pytest.raises(FetchError, match="HTTP 404") as raised:
        fetch_payload(server.url, tmp_path)
    assert len(server.requests) == 1 and server.url in (raised.value.fix or "")
    assert _files(tmp_path) == set()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again_with_growing_pauses(server: Server, tmp_path: Path, status: int) -> None:
    pauses: list[float] = []
    server.statuses = [status] * 3
    retries = Retries(backoff_s=0.005, sleep=pauses.append)
    assert fetch_payload(server.url, tmp_path, retries=retries).read_bytes() == PAYLOAD
    assert pauses == [0.005, 0.01, 0.02]


def test_a_web_page_is_recognized(server: Server, tmp_path: Path) -> None:
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(FetchError, match="web page"):
        fetch_payload(server.url, tmp_path)
    assert _files(tmp_path) == set()


def test_slow_is_waited_for_but_silence_is_not(server: Server, tmp_path: Path) -> None:
    impatient = Retries(backoff_s=0.005, timeout_s=0.25)
    server.pause = 0.05  # 11 blocks: longer in all than the limit, never silent that long
    assert fetch_payload(server.url, tmp_path / "slow", retries=impatient).read_bytes() == PAYLOAD
    server.pause = 0.5
    with pytest.raises(FetchError, match="no answer in time"):
        fetch_payload(_silent_server(), tmp_path / "silent", retries=impatient)


def _silent_server() -> str:
    """A listener that accepts (in the kernel's backlog) and never answers."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=16)
    _OPEN.append(listener)
    return f"http://127.0.0.1:{listener.getsockname()[1]}/x.pth"


_OPEN: list[socket.socket] = []


@pytest.fixture(autouse=True)
def close_listeners() -> Iterator[None]:
    yield
    while _OPEN:
        _OPEN.pop().close()


def test_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_name(*args: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    with pytest.raises(FetchError, match=r"download\.openmmlab\.com") as raised:
        fetch("twins_pcpvt-l_upernet", cache_dir=tmp_path)
    spec = get_spec("twins_pcpvt-l_upernet")
    fix = raised.value.fix or ""
    assert "offline" in raised.value.cause
    assert all(text in fix for text in (spec.weights_url, spec.weights_file, str(tmp_path), 'checkpoint="FILE"'))
    with on_command_line(FLAGS), pytest.raises(FetchError) as raised:
        fetch_payload(spec.weights_url, tmp_path)
    assert str(raised.value.fix).endswith("any file with these weights: --checkpoint FILE")
    assert _files(tmp_path) == set()


def test_a_refused_connection_is_tried_twice_only(tmp_path: Path) -> None:
    pauses: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(FetchError, match=r"Connection refused"):
        fetch_payload(f"http://127.0.0.1:{port}/x.pth", tmp_path, retries=Retries(sleep=pauses.append))
    assert len(pauses) == 1


def test_ctrl_c_leaves_a_part_that_is_resumed(server: Server, tmp_path: Path) -> None:
    def stop(step: str, detail: str, share: float | None) -> None:
        if share is not None and share * len(PAYLOAD) >= 300_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_payload(server.url, tmp_path, progress=stop)
    target = tmp_path / NAME
    kept = target.with_name(target.name + ".part").stat().st_size
    assert kept >= 300_000 and not target.exists()
    told = Told()
    assert fetch_payload(server.url, tmp_path, progress=told) == target
    assert server.requests[-1]["range"] == f"bytes={kept}-" and told.calls[0][2] == kept / len(PAYLOAD)
    assert target.read_bytes() == PAYLOAD


def test_a_full_disk_is_known_before_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=600_000))
    with pytest.raises(FetchError, match=r"no space left .*0\.7 MB to come, 0\.6 MB free") as raised:
        fetch_payload(server.url, tmp_path)
    assert "TWINS_TRT_CACHE" in (raised.value.fix or "")


def test_a_disk_that_fills_up_keeps_the_part(server: Server, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, hard))  # writing beyond it fails with EFBIG
    try:
        with pytest.raises(FetchError, match="no space left"):
            fetch_payload(server.url, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    target = tmp_path / NAME
    assert 0 < target.with_name(target.name + ".part").stat().st_size <= 250_000
    assert fetch_payload(server.url, tmp_path).read_bytes() == PAYLOAD
    assert server.requests[-1]["range"].startswith("bytes=")


def test_a_folder_that_cannot_be_made_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError, match="cannot store") as raised:
        fetch_payload(server.url, tmp_path / "file" / "cache")
    assert "TWINS_TRT_CACHE" in (raised.value.fix or "") and not server.requests


def test_a_read_only_cache_serves_what_it_has(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch_payload(server.url, tmp_path)

    def read_only(folder: Path, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", read_only)
    assert fetch_payload(server.url, tmp_path) == path
    path.unlink()
    with pytest.raises(FetchError, match=r"cannot store .*Permission denied"):
        fetch_payload(server.url, tmp_path)


def test_two_at_once_download_once(server: Server, tmp_path: Path) -> None:
    server.pause = 0.02
    results: list[Path] = []
    run: Callable[[], None] = lambda: results.append(fetch_payload(server.url, tmp_path))  # noqa: E731
    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3 and len(set(results)) == 1 and results[0].read_bytes() == PAYLOAD
    assert len(server.requests) == 1


@pytest.mark.parametrize("url", ["ftp://host/x.pth", "file:///etc/hostname", "x.pth", "http://", "https:///x"])
def test_other_addresses_are_a_usage_error(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only http and https"):
        fetch_payload(url, tmp_path)


def test_an_unknown_model_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model called"):
        fetch("twins_svt-x_fpn", cache_dir=tmp_path)


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TWINS_TRT_CACHE", str(tmp_path / "w"))
    assert default_cache_dir() == tmp_path / "w"
    assert cached_path("twins_svt-b_fpn").parent == tmp_path / "w"
    monkeypatch.delenv("TWINS_TRT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "twins-trt" / "weights"


@pytest.mark.shared
def test_addresses_and_hashes_are_the_published_ones(shared: Path) -> None:
    table = {row["name"]: row for row in json.loads((shared / "data" / "zoo.json").read_text())["models"]}
    assert set(table) == set(list_models())
    for name, row in table.items():
        spec = get_spec(name)
        assert (spec.weights_url, spec.weights_file) == (row["weights_url"], row["weights_file"])
        assert spec.weights_sha256_prefix == row["weights_sha256_prefix"]
