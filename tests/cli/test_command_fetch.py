from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from commands import MODEL, Twins

from twins_trt.models import get_spec
from twins_trt.models.zoo import SPECS

PAYLOAD = bytes(range(256)) * 1000
PREFIX = hashlib.sha256(PAYLOAD).hexdigest()[:8]


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of PAYLOAD, which the zoo names as MODEL's weights."""
    spec = get_spec(MODEL)
    ours = dataclasses.replace(spec, weights=f"{spec.weights.rsplit('-', 1)[0]}-{PREFIX}")
    monkeypatch.setitem(SPECS, MODEL, ours)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(len(PAYLOAD)))
            self.end_headers()
            self.wfile.write(PAYLOAD)

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/weights.pth"
    server.shutdown()
    server.server_close()


def test_weights_arrive_checked_and_are_not_fetched_twice(twins: Twins, url: str, tmp_path: Path) -> None:
    ran = twins("fetch", MODEL, "--url", url, "--cache-dir", tmp_path, "--json")
    assert ran.code == 0, ran.err
    path = Path(ran.json["path"])
    assert path.parent == tmp_path and path.name.endswith(f"-{PREFIX}.pth")
    assert path.read_bytes() == PAYLOAD and ran.json["size"] == len(PAYLOAD)
    assert f"fetch {MODEL}" in ran.err
    nowhere = "http://127.0.0.1:9/x"
    again = twins("fetch", MODEL, "--url", nowhere, "--cache-dir", tmp_path)
    assert again.code == 0 and again.out == f"{path} (0.3 MB, sha256 checked)\n"


def test_a_dry_run_downloads_nothing(twins: Twins, tmp_path: Path) -> None:
    ran = twins("fetch", MODEL, "--cache-dir", tmp_path, "--dry-run", "--json")
    assert ran.code == 0
    assert ran.json["url"] == get_spec(MODEL).weights_url and ran.json["present"] is False
    assert list(tmp_path.iterdir()) == []


def test_offline_says_what_to_do_by_hand(twins: Twins, tmp_path: Path) -> None:
    ran = twins("fetch", MODEL, "--url", "http://127.0.0.1:9/x.pth", "--cache-dir", tmp_path, "--json")
    assert ran.code == 1
    assert "cannot download" in ran.json["error"]
    assert str(tmp_path) in ran.json["fix"] and "--checkpoint" in ran.json["fix"]
