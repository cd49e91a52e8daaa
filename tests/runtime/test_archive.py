"""Packed bundles: whole or absent on both sides, the same bytes each time, and nothing taken on trust."""

from __future__ import annotations

import os
import tarfile
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from archives import CONTENT, ENGINE, alter, good, names, packed, road_manifest, write_tar
from kills import killed
from tiny_graphs import tensors, tiny_interface

from twins_trt import folders
from twins_trt.errors import BundleError, UsageError
from twins_trt.runtime import Bundle, Manifest, open_bundle
from twins_trt.runtime.archive import holds_bundle, pack_bundle, seal, unpack_bundle
from twins_trt.runtime.bundle import amend_bundle

NAMES = ("road.tar", "road.tar.gz", "road.tgz", "my road.tar")


@pytest.fixture
def manifest() -> Manifest:
    return road_manifest()


@pytest.mark.parametrize("name", NAMES)
def test_what_was_packed_is_what_is_unpacked(tmp_path: Path, manifest: Manifest, name: str) -> None:
    tar = packed(tmp_path / name, manifest)
    place = unpack_bundle(tar)
    assert place == tmp_path / f"{name.split('.')[0]}.bundle"
    bundle = open_bundle(place)
    assert bundle.manifest == seal(manifest, CONTENT)
    assert {file: (place / file).read_bytes() for file in bundle.files} == CONTENT
    assert names(tmp_path) == sorted([tar.name, place.name])
    assert unpack_bundle(str(tar), into=tmp_path / "deep" / "x") == tmp_path / "deep" / "x"
    assert open_bundle(tmp_path / "deep" / "x").manifest == bundle.manifest


def test_any_tar_program_reads_it_and_the_manifest_comes_first(tmp_path: Path, manifest: Manifest) -> None:
    with tarfile.open(packed(tmp_path / "road.tar.gz", manifest)) as tar:
        members = tar.getmembers()
    order = ["manifest.json", "a b.json", "gate.json", "graph.onnx"]
    assert [member.name for member in members] == [f"road.bundle/{name}" for name in order]
    assert {member.mtime for member in members} == {1767323045}  # 2026-01-02T03:04:05Z
    assert {(m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, "", "", 0o644)}


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bundle_gives_the_same_bytes(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    once = packed(tmp_path / name, manifest).read_bytes()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "graph.onnx").write_bytes(CONTENT["graph.onnx"])  # type: ignore[arg-type]
    os.utime(tmp_path / "graph.onnx", (1, 1))
    monkeypatch.setattr("time.time", lambda: 4e9)
    files = {**dict(reversed(CONTENT.items())), "graph.onnx": tmp_path / "graph.onnx"}
    assert packed(tmp_path / "elsewhere" / name, manifest, files).read_bytes() == once


def test_a_time_that_is_none_is_the_epoch(tmp_path: Path, manifest: Manifest) -> None:
    with tarfile.open(packed(tmp_path / "x.tar", replace(manifest, created="yesterday"))) as tar:
        assert {member.mtime for member in tar.getmembers()} == {0}


def test_a_packed_bundle_is_no_folder_and_says_what_unpacks_it(tmp_path: Path, manifest: Manifest) -> None:
    with pytest.raises(BundleError, match="is a packed bundle") as caught:
        open_bundle(packed(tmp_path / "my road.tar", manifest))
    assert caught.value.fix == f"twins-trt compile '{tmp_path / 'my road.tar'}'"


def test_one_that_is_not_there_is_copied_or_written_and_not_built(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist") as caught:
        open_bundle(tmp_path / "my road.tar")
    command = "twins-trt export-to device BUNDLE --out 'my road.tar' --overwrite"
    assert caught.value.fix == f"copy it here, or write it where the bundle is: {command}"
    (tmp_path / "my road.tar").write_bytes(b"")
    with pytest.raises(BundleError, match="ends early") as caught:
        unpack_bundle(tmp_path / "my road.tar")
    assert caught.value.fix == f"copy it again, or write it again: {command}"


def test_a_checkpoint_may_be_called_tar(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "x.pth.tar").write_bytes(b"checkpoint")
    assert not holds_bundle(tmp_path / "x.pth.tar") and not holds_bundle(tmp_path / "absent.tar")
    tar = packed(tmp_path / "road.tar", manifest)
    assert holds_bundle(tar) and not holds_bundle(tar.rename(tmp_path / "road"))


def test_where_nothing_can_be_written_it_is_copied_first(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a read-only file system: this also runs as root, who may write into every folder of others."""
    tar = packed(tmp_path / "road.tar", manifest)
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != tmp_path)
    for into in (None, tmp_path / "deep" / "x"):
        with pytest.raises(BundleError, match="nothing can be written there") as caught:
            unpack_bundle(tar, into=into)
        assert caught.value.fix == "copy it to a folder that can be written to"
    assert names(tmp_path) == ["road.tar"]


# An earlier bundle in its place


@pytest.fixture
def there(tmp_path: Path, manifest: Manifest) -> Bundle:
    """The bundle of `road.tar`, unpacked, with an engine that this device compiled and its own verdict."""
    bundle = open_bundle(unpack_bundle(packed(tmp_path / "road.tar", manifest)))
    return amend_bundle(
        bundle,
        {ENGINE.file: b"engine", "gate.json": b'{"simulated": false}'},
        change=lambda manifest: replace(manifest, engines=(ENGINE,), awaits=(), gate="passed", files=()),
    )


def inode(bundle: Bundle) -> int:
    return (bundle.path / "manifest.json").stat().st_ino


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_bundle_of_the_same_graph_keeps_what_the_device_made(tmp_path: Path, there: Bundle, overwrite: bool) -> None:
    before = inode(there)
    assert unpack_bundle(tmp_path / "road.tar", overwrite=overwrite) == there.path
    assert open_bundle(there.path) == there and inode(there) == before
    assert names(tmp_path) == ["road.bundle", "road.tar"]


def test_it_gets_a_pack_that_it_lacks_and_a_newer_one(tmp_path: Path, manifest: Manifest, there: Bundle) -> None:
    for pack in (b"pack", b"newer pack"):
        tar = packed(tmp_path / "road.tar", manifest, {**CONTENT, "gate.pack": pack}, overwrite=True)
        bundle = open_bundle(unpack_bundle(tar))
        assert bundle.file("gate.pack").read_bytes() == pack
        assert bundle.engines == (ENGINE,) and bundle.read_json("gate.json") == {"simulated": False}
        assert (bundle.manifest.gate, bundle.manifest.awaits) == ("passed", ())
    assert names(tmp_path) == ["road.bundle", "road.tar"]


def test_it_gets_an_engine_that_it_awaits(tmp_path: Path, manifest: Manifest) -> None:
    """As one that another device of its kind has compiled."""
    unpack_bundle(packed(tmp_path / "road.tar", manifest))
    left = tuple(entry for entry in seal(manifest, CONTENT).files if entry.path == "graph.onnx")
    alone = replace(manifest, engines=(ENGINE,), awaits=(), left_behind=left)
    tar = packed(tmp_path / "road.tar", alone, {ENGINE.file: b"engine"}, overwrite=True)
    bundle = open_bundle(unpack_bundle(tar))
    assert bundle.files == ("a b.json", ENGINE.file, "gate.json", "graph.onnx")
    assert (bundle.engines, bundle.manifest.awaits, bundle.manifest.left_behind) == ((ENGINE,), (), ())


def test_it_gets_a_verdict_only_if_it_has_none(tmp_path: Path, manifest: Manifest) -> None:
    ungated = {"graph.onnx": CONTENT["graph.onnx"]}
    failed, passed = replace(manifest, gate="failed"), replace(manifest, gate="passed")
    unpack_bundle(packed(tmp_path / "road.tar", manifest, ungated))
    for sent in (failed, passed):
        files = {**ungated, "gate.json": sent.gate.encode()}
        bundle = open_bundle(unpack_bundle(packed(tmp_path / "road.tar", sent, files, overwrite=True)))
        assert (bundle.manifest.gate, bundle.file("gate.json").read_bytes()) == ("failed", b"failed")


def test_an_engine_without_its_graph_gets_the_graph(tmp_path: Path, manifest: Manifest) -> None:
    left = tuple(entry for entry in seal(manifest, CONTENT).files if entry.path == "graph.onnx")
    alone = replace(manifest, engines=(ENGINE,), awaits=(), left_behind=left)
    bundle = open_bundle(unpack_bundle(packed(tmp_path / "road.tar", alone, {ENGINE.file: b"engine"})))
    with pytest.raises(BundleError, match="did not travel"):
        bundle.graph  # noqa: B018
    bundle = open_bundle(unpack_bundle(packed(tmp_path / "road.tar", manifest, overwrite=True)))
    assert bundle.graph.read_bytes() == CONTENT["graph.onnx"]
    assert (bundle.engines, bundle.manifest.left_behind) == ((ENGINE,), ())


def another(manifest: Manifest, kind: str) -> tuple[Manifest, dict[str, bytes | Path]]:
    if kind == "graph":
        return manifest, {**CONTENT, "graph.onnx": b"another graph"}
    interface = replace(tiny_interface(*tensors(24, 32, 1, ("mask",), "uint8")), classes=("a", "b", "c", "d", "e"))
    return replace(manifest, interface=interface), dict(CONTENT)


@pytest.mark.parametrize("kind", ["graph", "classes"])
def test_another_bundle_is_replaced_only_if_asked(tmp_path: Path, manifest: Manifest, there: Bundle, kind: str) -> None:
    newer, files = another(manifest, kind)
    tar = packed(tmp_path / "road.tar", newer, files, overwrite=True)
    with pytest.raises(BundleError, match="is there already") as caught:
        unpack_bundle(tar)
    assert caught.value.fix == "replace it: overwrite=True"
    assert open_bundle(there.path) == there
    assert open_bundle(unpack_bundle(tar, overwrite=True)).manifest == seal(newer, files)
    assert names(tmp_path) == ["road.bundle", "road.tar"]


def test_a_damaged_tar_keeps_the_bundle_that_it_should_replace(
    tmp_path: Path, manifest: Manifest, there: Bundle
) -> None:
    newer, files = another(manifest, "graph")
    members = good(newer, files)
    alter(members)
    with pytest.raises(BundleError, match="sha256"):
        unpack_bundle(write_tar(tmp_path / "road.tar", members), overwrite=True)
    assert open_bundle(there.path) == there
    assert names(tmp_path) == ["road.bundle", "road.tar"]


def test_a_damaged_bundle_is_replaced_if_asked(tmp_path: Path, there: Bundle) -> None:
    (there.path / ENGINE.file).write_bytes(b"damage")
    with pytest.raises(BundleError, match=r"sha256 of engines/orin\.engine") as caught:
        unpack_bundle(tmp_path / "road.tar")
    assert caught.value.fix == "replace it: overwrite=True"
    assert open_bundle(unpack_bundle(tmp_path / "road.tar", overwrite=True)).engines == ()


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_no_bundle_is_never_replaced(tmp_path: Path, manifest: Manifest, kind: str) -> None:
    tar, place = packed(tmp_path / "road.tar", manifest), tmp_path / "road.bundle"
    if kind == "folder":
        place.mkdir()
        (place / "precious").touch()
    elif kind == "file":
        place.write_text("precious")
    else:
        place.symlink_to(unpack_bundle(tar, into=tmp_path / "real.bundle"))
    before = sorted(tmp_path.rglob("*"))
    for overwrite in (False, True):
        with pytest.raises(BundleError, match="is not a bundle"):
            unpack_bundle(tar, overwrite=overwrite)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_bundle_that_appears_meanwhile_is_taken(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two services of a device may unpack the same file at once."""
    tar, rename_new = packed(tmp_path / "road.tar", manifest), folders.rename_new

    def be_late(source: Path, target: Path) -> None:
        monkeypatch.setattr(folders, "rename_new", rename_new)
        unpack_bundle(tar)
        rename_new(source, target)

    monkeypatch.setattr(folders, "rename_new", be_late)
    assert open_bundle(unpack_bundle(tar)).manifest == seal(manifest, CONTENT)
    assert names(tmp_path) == ["road.bundle", "road.tar"]


# Interrupts

UNPACK = """
import sys
from twins_trt.runtime.archive import unpack_bundle
unpack_bundle(sys.argv[1], overwrite=True)
"""
PACK = """
import sys
from pathlib import Path
from twins_trt.runtime import open_bundle
from twins_trt.runtime.archive import pack_bundle
path = Path(sys.argv[1])
bundle = open_bundle(path.with_name("road.bundle"))
pack_bundle(path, bundle.manifest, {name: bundle.file(name) for name in bundle.files}, overwrite=True)
"""


def test_a_kill_while_unpacking_keeps_the_old_bundle_or_gives_the_new(
    tmp_path: Path, manifest: Manifest, there: Bundle
) -> None:
    newer, files = another(manifest, "graph")
    tar = packed(tmp_path / "road.tar", newer, files, overwrite=True)
    after = seal(newer, files)
    when, seen = 1, set()
    while killed(UNPACK, when, tar):
        now = open_bundle(there.path).manifest
        assert now in (there.manifest, after)
        seen.add(now == after)
        when += 1
    assert when > 5 and seen == {False, True}
    assert open_bundle(there.path).manifest == after
    unpack_bundle(tar)
    assert open_bundle(unpack_bundle(packed(tmp_path / "road.tar", manifest, overwrite=True), overwrite=True))
    assert names(tmp_path) == ["road.bundle", "road.tar"]  # what the killed ones left is gone


def test_a_kill_while_a_pack_is_added_keeps_what_the_device_made(
    tmp_path: Path, manifest: Manifest, there: Bundle
) -> None:
    tar = packed(tmp_path / "road.tar", manifest, {**CONTENT, "gate.pack": b"pack"}, overwrite=True)
    when = 1
    while killed(UNPACK, when, tar):
        now = open_bundle(there.path)
        assert now.engines == (ENGINE,) and now.read_json("gate.json") == {"simulated": False}
        when += 1
    assert when > 5 and open_bundle(there.path).file("gate.pack").read_bytes() == b"pack"
    unpack_bundle(packed(tar, manifest, {**CONTENT, "gate.pack": b"newer pack"}, overwrite=True))
    assert names(tmp_path) == ["road.bundle", "road.tar"]  # what the killed ones left is gone


def test_a_kill_while_packing_keeps_the_old_file(tmp_path: Path, manifest: Manifest, there: Bundle) -> None:
    tar = tmp_path / "road.tar"
    before = tar.read_bytes()
    assert killed(PACK, 1, tar)
    assert tar.read_bytes() == before
    assert not killed(PACK, 99, tar)
    assert open_bundle(unpack_bundle(tar, into=tmp_path / "new.bundle")).engines == (ENGINE,)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupt_or_a_full_disk_leaves_nothing(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    tar = packed(tmp_path / "road.tar", manifest)

    def refuse(descriptor: int) -> None:
        raise kind

    monkeypatch.setattr(os, "fsync", refuse)
    expected: Any = KeyboardInterrupt if kind is KeyboardInterrupt else BundleError
    with pytest.raises(expected, match=None if kind is KeyboardInterrupt else r"cannot be written: .*No space left"):
        unpack_bundle(tar)
    with pytest.raises(expected, match=None if kind is KeyboardInterrupt else r"cannot be written: .*No space left"):
        packed(tmp_path / "other.tar", manifest)
    assert names(tmp_path) == ["road.tar"]


def test_a_full_disk_while_a_pack_is_added_keeps_the_bundle(
    tmp_path: Path, manifest: Manifest, there: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = packed(tmp_path / "road.tar", manifest, {**CONTENT, "gate.pack": b"pack"}, overwrite=True)

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(BundleError, match=r"cannot be written: .*No space left"):
        unpack_bundle(tar)
    assert open_bundle(there.path) == there
    assert names(tmp_path) == ["road.bundle", "road.tar"]


# Places and names


def test_only_a_packed_bundle_is_overwritten(tmp_path: Path, manifest: Manifest) -> None:
    tar = packed(tmp_path / "road.tar", manifest)
    with pytest.raises(BundleError, match=r"road\.tar exists\n") as caught:
        packed(tar, manifest)
    assert caught.value.fix == "choose another name, or replace it: overwrite=True"
    (tmp_path / "precious.tar").write_bytes(b"precious")
    (tmp_path / "folder.tar").mkdir()
    for name in ("precious.tar", "folder.tar"):
        with pytest.raises(BundleError, match="is no packed bundle, so it is not overwritten"):
            packed(tmp_path / name, manifest, overwrite=True)
    assert (tmp_path / "precious.tar").read_bytes() == b"precious"


@pytest.mark.parametrize("name", [".tar", "-x.tar", ".x.tar", "a\nb.tar"])
def test_names_that_would_not_be_unpacked_are_refused(tmp_path: Path, manifest: Manifest, name: str) -> None:
    with pytest.raises(UsageError, match="is no name for a packed bundle"):
        packed(tmp_path / name, manifest)
    assert names(tmp_path) == []


def test_a_name_that_no_tar_file_can_hold(tmp_path: Path, manifest: Manifest) -> None:
    with pytest.raises(UsageError, match="no tar file can hold"):
        packed(tmp_path / f"{'x' * 160}.tar", manifest)
    assert names(tmp_path) == []
    longest = packed(tmp_path / f"{'ü' * 60}.tar", manifest)
    assert open_bundle(unpack_bundle(longest)).path.name == f"{'ü' * 60}.bundle"


def test_a_file_that_changes_while_it_is_packed_is_noticed(tmp_path: Path, manifest: Manifest) -> None:
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(b"graph")
    sealed = seal(manifest, {"graph.onnx": graph})
    graph.write_bytes(b"other")
    with pytest.raises(BundleError, match="has changed meanwhile"):
        pack_bundle(tmp_path / "x.tar", sealed, {"graph.onnx": graph})
    assert names(tmp_path) == ["graph.onnx"]


def test_a_large_file_takes_no_more_memory_than_a_small_one(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "large").write_bytes(bytes(24 << 20))
    files: dict[str, bytes | Path] = {"graph.onnx": tmp_path / "large"}
    tracemalloc.start()
    try:
        place = unpack_bundle(packed(tmp_path / "x.tar.gz", manifest, files))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (place / "graph.onnx").stat().st_size == 24 << 20
    assert peak < 8 << 20
