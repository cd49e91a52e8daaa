"""Tar files that nobody should unpack: each is refused, and leaves nothing behind."""

from __future__ import annotations

import gzip
import hashlib
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from archives import CONTENT, Member, alter, good, member, names, packed, road_manifest, write_tar

from twins_trt.errors import BundleError
from twins_trt.runtime import Manifest, open_bundle
from twins_trt.runtime.archive import LARGEST_MANIFEST, seal, unpack_bundle
from twins_trt.runtime.manifest import FileEntry

Change = Callable[[list[Member]], None]


@pytest.fixture
def manifest() -> Manifest:
    return road_manifest()


def insert(name: str, content: bytes = b"", *, at: int = 2, **fields: Any) -> Change:
    return lambda members: members.insert(at, member(name, content, **fields))


def rename(at: int, name: str) -> Change:
    return lambda members: members.__setitem__(at, member(name, members[at][1]))


def every(name: str) -> Change:
    def change(members: list[Member]) -> None:
        members[:] = [member(info.name.replace("road.bundle", name), content) for info, content in members]

    return change


def grow(members: list[Member]) -> None:
    members[1] = member(members[1][0].name, members[1][1] + b"more")


def twice(members: list[Member]) -> None:
    members.append(members[1])


def lacking(members: list[Member]) -> None:
    del members[1]


def listed_first(members: list[Member]) -> None:
    members.insert(0, members.pop(1))


ABOVE = "../../precious"
HOSTILE: dict[str, tuple[Change, str]] = {
    "symbolic link": (
        insert("road.bundle/x", type=tarfile.SYMTYPE, linkname=ABOVE),
        r"no plain file \(type b'2'\)",
    ),
    "hard link": (insert("road.bundle/x", type=tarfile.LNKTYPE, linkname=ABOVE), r"no plain file \(type b'1'\)"),
    "link in a file's place": (
        lambda members: members.__setitem__(
            1, member("road.bundle/graph.onnx", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        ),
        "no plain file",
    ),
    "character device": (insert("road.bundle/x", type=tarfile.CHRTYPE), r"no plain file \(type b'3'\)"),
    "block device": (insert("road.bundle/x", type=tarfile.BLKTYPE), r"no plain file \(type b'4'\)"),
    "pipe": (insert("road.bundle/x", type=tarfile.FIFOTYPE), r"no plain file \(type b'6'\)"),
    "folder": (insert("road.bundle/x", type=tarfile.DIRTYPE), r"no plain file \(type b'5'\)"),
    "folder first": (insert("road.bundle", type=tarfile.DIRTYPE, at=0), r"no plain file \(type b'5'\)"),
    "contiguous": (insert("road.bundle/x", type=tarfile.CONTTYPE), r"no plain file \(type b'7'\)"),
    "sparse": (insert("road.bundle/x", type=tarfile.GNUTYPE_SPARSE), r"no plain file \(type b'S'\)"),
    "GNU long name": (insert("././@LongLink", b"/etc/x\0", type=tarfile.GNUTYPE_LONGNAME), r"\(type b'L'\)"),
    "pax header": (insert("x", b"20 path=../../evil\n", type=tarfile.XHDTYPE), r"no plain file \(type b'x'\)"),
    "pax header first": (insert("x", b"20 path=../../evil\n", type=tarfile.XHDTYPE, at=0), r"\(type b'x'\)"),
    "global pax header": (insert("x", b"20 path=../../evil\n", type=tarfile.XGLTYPE, at=0), r"\(type b'g'\)"),
    "unknown type": (insert("road.bundle/x", type=b"Z"), r"no plain file \(type b'Z'\)"),
    "absolute name": (insert("/etc/evil", b"x"), r"holds '/etc/evil', which manifest.json does not list"),
    "name above": (insert("road.bundle/../evil", b"x"), r"'road.bundle/../evil', which manifest.json does not list"),
    "other folder": (insert("other.bundle/graph.onnx", b"x"), "does not list"),
    "dotted name": (rename(1, "./road.bundle/graph.onnx"), "does not list"),
    "unlisted file": (insert("road.bundle/run.sh", b"x"), "does not list"),
    "second manifest": (insert("road.bundle/manifest.json", b"{}"), "does not list or which comes twice"),
    "file twice": (twice, "comes twice"),
    "file missing": (lacking, "lacks road.bundle/graph.onnx"),
    "other size": (grow, "holds 5004 bytes of road.bundle/graph.onnx, not 5000"),
    "other content": (alter, "holds graph.onnx with the sha256 [0-9a-f]{64}, which should be [0-9a-f]{64}"),
    "manifest second": (listed_first, "does not begin with the manifest.json"),
    "no folder": (every("."), "does not begin with"),
    "folder above": (every(".."), "does not begin with"),
    "folder at the root": (every("/road.bundle"), "does not begin with"),
    "folder in a folder": (every("a/road.bundle"), "does not begin with"),
    "hidden folder": (every(".ssh.bundle"), "does not begin with"),
    "option for a folder": (every("-rf.bundle"), "does not begin with"),
    "folder of no bundle": (every("bin"), "does not begin with"),
    "folder that steers a terminal": (every("\x1b[2J.bundle"), "does not begin with"),
    "negative size": (insert("road.bundle/x", size=-1024), "does not list|bytes of|damaged"),
    "manifest that fills the memory": (
        lambda members: members.__setitem__(0, member("road.bundle/manifest.json", size=1 << 50)),
        f"has a manifest.json of {1 << 50} bytes",
    ),
}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_packed_bundle_is_refused_and_leaves_nothing(
    tmp_path: Path, manifest: Manifest, kind: str, compressed: bool
) -> None:
    change, said = HOSTILE[kind]
    members = good(manifest)
    change(members)
    tar = write_tar(tmp_path / "road.tar", members)
    if compressed:
        tar.write_bytes(gzip.compress(tar.read_bytes()))
    with pytest.raises(BundleError, match=said) as caught:
        unpack_bundle(tar)
    assert caught.value.fix is not None and "export-to device" in caught.value.fix
    assert names(tmp_path) == ["road.tar"]


def test_the_unchanged_members_are_taken(tmp_path: Path, manifest: Manifest) -> None:
    """So it is the changes above that are refused."""
    assert open_bundle(unpack_bundle(write_tar(tmp_path / "x.tar", good(manifest)))).files == tuple(sorted(CONTENT))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("../evil", r"files\[0\]\.path is '\.\./evil'"),
        ("/etc/evil", "which is not a plain path"),
        ("a/b.json", "cannot be written"),  # below the file a
    ],
)
def test_a_manifest_cannot_lead_out_of_the_folder(tmp_path: Path, manifest: Manifest, path: str, said: str) -> None:
    content: dict[str, Any] = {"a": b"file", path: b"{}", "graph.onnx": b"graph"}
    text = seal(manifest, {"graph.onnx": b"graph"}).to_json()
    entries = [FileEntry(name, hashlib.sha256(data).hexdigest(), len(data)) for name, data in content.items()]
    text["files"] = sorted(({"path": e.path, "sha256": e.sha256, "size": e.size} for e in entries), key=str)
    members = {"manifest.json": json.dumps(text).encode(), **content}
    tar = write_tar(tmp_path / "x.tar", [member(f"road.bundle/{name}", data) for name, data in members.items()])
    with pytest.raises(BundleError, match=said):
        unpack_bundle(tar)
    assert names(tmp_path) == ["x.tar"]


@pytest.mark.parametrize(
    "content", [b"", b"x", b"\x1f\x8b", b"\x1f\x8b\x08", bytes(10240), b"random" * 999, bytes(600)]
)
def test_what_is_no_tar_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(BundleError, match=r"ends early|no tar file|does not begin|cannot be read|goes on"):
        unpack_bundle(tmp_path / "x.tar")
    assert names(tmp_path) == ["x.tar"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="No such file"):
        unpack_bundle(tmp_path / "x.tar")


@pytest.mark.parametrize("name", ["road.tar", "road.tar.gz"])
def test_a_file_that_is_cut_short_anywhere_is_refused(tmp_path: Path, manifest: Manifest, name: str) -> None:
    whole = packed(tmp_path / name, manifest).read_bytes()
    needed = len(whole)
    if name.endswith(".tar"):  # the last record is filled up with zeros, which nobody misses
        needed = len(whole.rstrip(b"\0")) // 512 * 512 + 512 + 1024
    step = 331 if name.endswith(".tar") else 53
    lengths = [*range(0, needed, step), needed - 1]
    for length in lengths:
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(BundleError):
            unpack_bundle(tmp_path / name)
        assert names(tmp_path) == [name], length
    (tmp_path / name).write_bytes(whole[:needed])
    assert open_bundle(unpack_bundle(tmp_path / name)).files == tuple(sorted(CONTENT))


def test_a_changed_byte_anywhere_in_a_file_or_header_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    tar = packed(tmp_path / "road.tar", manifest)
    whole = tar.read_bytes()
    text = len(seal(manifest, CONTENT).dumps().encode())
    first = 512 + text + -text % 512
    for at in (0, 100, 156, 513, 512 + text // 2, first, first + 156, first + 513, len(whole.rstrip(b"\0")) - 1):
        tar.write_bytes(whole[:at] + bytes([whole[at] ^ 0x15]) + whole[at + 1 :])
        with pytest.raises(BundleError):
            unpack_bundle(tar)
        assert names(tmp_path) == ["road.tar"], at


@pytest.mark.parametrize("end", ["second archive", "one block", "endless zeros"])
def test_nothing_may_follow(tmp_path: Path, manifest: Manifest, end: str) -> None:
    members = good(manifest)
    ends = {"second archive": bytes(1024) + b"x" * 512, "one block": bytes(512), "endless zeros": bytes(200 << 20)}
    tar = write_tar(tmp_path / "road.tar", members, end=ends[end])
    tar.write_bytes(gzip.compress(tar.read_bytes(), 1))
    with pytest.raises(BundleError, match="goes on after its end"):
        unpack_bundle(tar)
    assert names(tmp_path) == ["road.tar"]


def test_what_the_disk_has_no_room_for_is_not_begun(tmp_path: Path, manifest: Manifest) -> None:
    """A small file may claim to hold a large one, and compressed it may even do so."""
    claimed = replace(seal(manifest, CONTENT), files=(FileEntry("graph.onnx", "ab" * 32, 1 << 60),))
    text = claimed.dumps().encode()
    members = [member("road.bundle/manifest.json", text), member("road.bundle/graph.onnx", size=1 << 60)]
    with pytest.raises(BundleError, match=r"holds 1152921504606\.8 MB, and the disk of .* has .* MB left"):
        unpack_bundle(write_tar(tmp_path / "road.tar", members))
    assert names(tmp_path) == ["road.tar"]


def test_a_manifest_as_large_as_allowed_is_read(tmp_path: Path, manifest: Manifest) -> None:
    padded = replace(manifest, tools={"x": "y" * (LARGEST_MANIFEST - 4000)})
    assert open_bundle(unpack_bundle(packed(tmp_path / "x.tar", padded))).manifest.tools == padded.tools
    with pytest.raises(BundleError, match=r"has a manifest\.json of"):
        unpack_bundle(packed(tmp_path / "y.tar", replace(manifest, tools={"x": "y" * LARGEST_MANIFEST})))
