"""A folder takes another's place at once, never that of a stranger, and its lock is on the folder, not on its name."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from twins_trt import exchange, folders
from twins_trt.folders import held, restore, whole_folder


@pytest.fixture(params=["exchanged", "renamed twice"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the system's exchange, and without."""
    if request.param == "renamed twice":
        monkeypatch.setattr(exchange, "_renameat2", lambda source, target, flags: False)
    return str(request.param)


def write(path: Path, content: str, *, replace: Callable[[], None] | None = None) -> None:
    with whole_folder(path, replace=replace) as staging:
        (staging / "below").mkdir()
        (staging / "below" / "file").write_text(content)


def read(path: Path) -> str:
    return (path / "below" / "file").read_text()


def allow() -> None:
    """Whatever is there may be replaced."""


def test_this_system_has_an_exchange(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("renameat2 is Linux's")
    for name in ("a", "b"):
        write(tmp_path / name, name)
    assert exchange.exchange(tmp_path / "a", tmp_path / "b")
    assert (read(tmp_path / "a"), read(tmp_path / "b")) == ("b", "a")
    with pytest.raises(FileNotFoundError):
        exchange.exchange(tmp_path / "a", tmp_path / "absent")


def test_the_system_call_by_number_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a C library that does not name it."""
    import ctypes
    import platform

    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("its number is not known here")
    library = ctypes.CDLL(None, use_errno=True)
    older = type("Older", (), {"syscall": library.syscall})
    monkeypatch.setattr(ctypes, "CDLL", lambda *given, **named: older)
    exchange._system_call.cache_clear()
    try:
        write(tmp_path / "a", "a")
        write(tmp_path / "b", "b")
        assert exchange.exchange(tmp_path / "a", tmp_path / "b") and read(tmp_path / "a") == "b"
        with pytest.raises(FileExistsError):
            exchange.rename_new(tmp_path / "a", tmp_path / "b")
    finally:
        exchange._system_call.cache_clear()


def test_a_new_folder_and_one_in_its_place(tmp_path: Path, ways: str) -> None:
    write(tmp_path / "x", "old")
    assert read(tmp_path / "x") == "old"
    write(tmp_path / "x", "new", replace=allow)
    assert read(tmp_path / "x") == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("full", [True, False])
def test_what_has_come_meanwhile_stays(tmp_path: Path, ways: str, full: bool) -> None:
    with pytest.raises(FileExistsError), whole_folder(tmp_path / "x") as staging:
        (staging / "file").touch()
        (tmp_path / "x").mkdir()
        if full:
            (tmp_path / "x" / "precious").touch()
    assert [path.name for path in (tmp_path / "x").iterdir()] == (["precious"] if full else [])
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_has_come_meanwhile_is_asked_about(tmp_path: Path, ways: str) -> None:
    asked: list[bool] = []

    def refuse() -> None:
        asked.append((tmp_path / "x" / "precious").exists())
        raise PermissionError("it is precious")

    with pytest.raises(PermissionError, match="precious"), whole_folder(tmp_path / "x", replace=refuse):
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "precious").touch()
    assert asked == [True]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_everything_is_on_the_disk_before_the_old_goes(
    tmp_path: Path, ways: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new folders' names before the exchange, the parent's after it, and only then is the old one removed."""
    path = tmp_path / "x"
    write(path, "old")
    events: list[str] = []
    fsync, rmtree = os.fsync, shutil.rmtree

    def note_fsync(descriptor: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        events.append(f"{name.split('.')[-1]}, {read(path)}")
        fsync(descriptor)

    def note_rmtree(folder: Path, **given: bool) -> None:
        events.append(f"remove {read(folder)}")
        rmtree(folder, **given)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(shutil, "rmtree", note_rmtree)
    write(path, "new", replace=allow)
    assert events == ["partial, old", "below, old", f"{tmp_path.name}, new", "remove old"]


@pytest.mark.parametrize("left", [["old"], ["old", "partial"]])
def test_a_replacement_that_was_cut_off_is_undone(
    tmp_path: Path, ways: str, left: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    for kind in left:
        write(tmp_path / f".x.0123abcd.{kind}", kind)
    assert restore(tmp_path / "x") and read(tmp_path / "x") == "old"
    assert "x was about to be replaced by a process that was killed" in caplog.text
    assert not restore(tmp_path / "x")
    write(tmp_path / "x", "new", replace=allow)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_replacement_under_way_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two renames: the folder is away, but whoever replaces it lives."""
    monkeypatch.setattr(exchange, "_renameat2", lambda source, target, flags: False)
    path = tmp_path / "x"
    write(path, "old")
    between, go_on = threading.Event(), threading.Event()
    rename_new = folders.rename_new

    def slow(source: Path, target: Path) -> None:
        if not target.exists():
            between.set()
            assert go_on.wait(10)
        rename_new(source, target)

    monkeypatch.setattr(folders, "rename_new", slow)
    threads = [threading.Thread(target=lambda: write(path, "new", replace=allow))]
    threads[0].start()
    assert between.wait(10) and not path.exists()
    found: list[bool] = []
    threads.append(threading.Thread(target=lambda: found.append(restore(path))))
    threads.append(threading.Thread(target=lambda: write(path, "newest", replace=allow)))
    for thread in threads[1:]:
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert found == [True] and read(path) == "newest"
    assert [each.name for each in tmp_path.iterdir()] == ["x"]


def test_what_others_are_still_writing_stays(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "x") as mine:
        write(tmp_path / "x.y", "of another name")
        with whole_folder(tmp_path / "x", replace=allow) as other:
            assert mine.is_dir() and other.is_dir()
        assert mine.is_dir()
        shutil.rmtree(tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "x.y"]


def test_a_lock_leaves_nothing_and_is_one_holders(tmp_path: Path) -> None:
    with held(tmp_path) as locked:
        assert locked
        with pytest.raises(BlockingIOError), held(tmp_path, wait=False):
            pass
    with held(tmp_path, wait=False) as locked:
        assert locked
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError), held(tmp_path / "absent"):
        pass


@pytest.mark.parametrize("becomes", ["absent", "another"])
def test_who_waits_for_a_folder_is_never_left_with_one_that_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, becomes: str
) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    flock = fcntl.flock
    calls = 0

    def lock_late(descriptor: int, operation: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:  # opened, and removed before the lock is there
            folder.rmdir()
            if becomes == "another":
                folder.mkdir()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    if becomes == "absent":
        with pytest.raises(FileNotFoundError), held(folder):
            pass
        return
    with held(folder), pytest.raises(BlockingIOError), held(folder, wait=False):
        pass
    assert calls > 2


@pytest.mark.parametrize("without", ["fcntl", "flock of this file system"])
def test_where_nothing_can_be_locked_folders_are_still_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: str
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")  # NFS

    if without == "fcntl":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl, "flock", refuse)
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with held(tmp_path) as locked:
        assert not locked
    write(tmp_path / "x", "old")
    write(tmp_path / "x", "new", replace=allow)
    assert read(tmp_path / "x") == "new"
    (tmp_path / "x").rename(tmp_path / ".x.0123abcd.old")
    assert restore(tmp_path / "x") and read(tmp_path / "x") == "new"
    assert pauses == [1.0]  # another process may be between its two renames
    write(tmp_path / ".x.0123abcd.partial", "somebody's")  # who may live
    write(tmp_path / "x", "newest", replace=allow)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.0123abcd.partial", "x"]
