"""Cache files of compilers: keyed, checked, merged under a lock, replaced in one step."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from twins_trt.compiler_cache import CacheKey, CompilerCache, home_folder
from twins_trt.errors import UsageError

KEY = CacheKey("tensorrt", "10.3.0", "sm_87", "Orin")


def cache(path: Path, key: CacheKey = KEY) -> CompilerCache:
    return CompilerCache(path, key, "timing cache")


def test_what_is_written_is_read_and_nothing_is_left_over(tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    assert cache(path).read() == b""
    cache(path).write(lambda present: present + b"one\n")
    cache(path).write(lambda present: present + b"two\n")
    assert cache(path).read() == b"one\ntwo\n"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["timing.cache", "timing.cache.lock"]


@pytest.mark.parametrize("field", ["flavour", "version", "target", "device"])
def test_a_cache_of_something_else_is_left_unread(field: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "timing.cache"
    cache(path).write(lambda _: b"measured")
    other = replace(KEY, **{field: "other"})
    with caplog.at_level(logging.WARNING, "twins_trt"):
        assert cache(path, other).read() == b""
    assert f"made with {field} {getattr(KEY, field)!r}, and this is 'other'" in caplog.text
    # Replaced, not merged: the merge sees nothing of it.
    cache(path, other).write(lambda present: present + b"new")
    assert cache(path, other).read() == b"new"


@pytest.mark.parametrize("damage", ["flip", "cut", "foreign", "empty", "header"])
def test_a_damaged_cache_is_left_unread(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "timing.cache"
    cache(path).write(lambda _: b"measured")
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
    path.write_bytes(
        {"cut": content[:-3], "foreign": b"ptrtd\0\1", "empty": b"", "header": content[:30]}.get(damage, content)
    )
    with caplog.at_level(logging.WARNING, "twins_trt"):
        assert cache(path).read() == b""
    assert "not used, and replaced" in caplog.text


def test_a_folder_keeps_one_file_per_device(tmp_path: Path) -> None:
    path = CompilerCache.at(str(tmp_path), KEY, "timing cache").path
    assert path == tmp_path / "tensorrt-10.3.0-sm_87-Orin.cache"
    assert CompilerCache.at(str(tmp_path), replace(KEY, device="NVIDIA A/B (x)"), "timing cache").path.name == (
        "tensorrt-10.3.0-sm_87-NVIDIA_A_B_x_.cache"
    )
    assert CompilerCache.at(str(tmp_path / "mine"), KEY, "timing cache").path == tmp_path / "mine"
    with pytest.raises(UsageError, match=r"folder .*absent does not exist"):
        CompilerCache.at(str(tmp_path / "absent" / "mine"), KEY, "timing cache")


def test_a_failing_merge_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    cache(path).write(lambda _: b"measured")

    def broken(_: bytes) -> bytes:
        raise RuntimeError("the compiler went away")

    with pytest.raises(RuntimeError, match="went away"):
        cache(path).write(broken)
    assert cache(path).read() == b"measured"


def test_a_cache_that_cannot_be_written_costs_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "twins_trt"):
        cache(tmp_path / "gone" / "timing.cache").write(lambda _: b"measured")
    assert "cannot be written" in caplog.text


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"

    def add(letter: int) -> None:
        for _ in range(20):
            cache(path).write(lambda present: present + bytes([letter]))

    threads = [threading.Thread(target=add, args=(ord("a") + index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(cache(path).read()) == sorted(b"abcd" * 20)


def test_a_user_without_a_home_keeps_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    assert home_folder("timing", what="timed kernels are") is None
    assert "timed kernels are not kept: Could not determine home directory." in caplog.text
