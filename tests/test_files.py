from __future__ import annotations

import errno
import hashlib
import logging
import os
import threading
from pathlib import Path

import pytest

from twins_trt.files import CHUNK, locked, sha256_of, sync_folder, whole_file


def test_the_old_content_stays_until_the_new_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with whole_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), whole_file(tmp_path / "x.bin") as file:
        file.write(b"half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "no" / "x.bin"):
        pass


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1])
def test_sha256_over_the_edges_of_a_read(tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "x.bin").write_bytes(content)
    assert sha256_of(tmp_path / "x.bin") == hashlib.sha256(content).hexdigest()


def test_a_second_holder_waits_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("fcntl", reason="this platform has no flock")
    entered = threading.Event()

    def second() -> None:
        with locked(tmp_path / "x", waiting="waiting for x"):
            entered.set()

    with caplog.at_level(logging.INFO, "twins_trt"):
        with locked(tmp_path / "x"):
            thread = threading.Thread(target=second)
            thread.start()
            assert not entered.wait(0.2)
        thread.join(10)
    assert entered.is_set()
    assert caplog.messages == ["waiting for x"]
    assert (tmp_path / "x.lock").exists()


@pytest.mark.parametrize("durable", [True, False])
def test_the_name_is_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool) -> None:
    synced: list[bool] = []  # whether the content was at its place by then
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append((tmp_path / "x.bin").exists())
        assert os.path.samestat(os.fstat(descriptor), os.stat(tmp_path)) == synced[-1]
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    with whole_file(tmp_path / "x.bin", durable=durable) as file:
        file.write(b"new")
    assert synced == ([False, True] if durable else [])


def test_a_file_system_that_syncs_no_folders_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    number = errno.EINVAL
    sync_folder(tmp_path)
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        sync_folder(tmp_path)
