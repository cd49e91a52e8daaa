"""A bundle is whole or absent, and opens only if every file agrees with the manifest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_graphs import MakeBundle, tensors, tiny_manifest

from twins_trt import folders
from twins_trt.errors import BundleError
from twins_trt.runtime import Bundle, EngineFile, Manifest, open_bundle, write_bundle

ENGINE = "engines/rtx.engine"
CONTENT = {"graph.onnx": b"graph" * 1000, ENGINE: b"\x00engine", "audit.json": b'{"kernels": 3}'}


@pytest.fixture
def manifest() -> Manifest:
    engine = EngineFile(ENGINE, "tensorrt_rtx", "1.7.1", ("sm_86",))
    return replace(tiny_manifest(*tensors(24, 32, 1, ("mask",), "uint8")), engines=(engine,))


@pytest.fixture
def bundle(tmp_path: Path, manifest: Manifest) -> Bundle:
    return write_bundle(tmp_path / "x.bundle", manifest, CONTENT)


def names(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir())


def test_what_was_written_is_what_opens(bundle: Bundle) -> None:
    opened = open_bundle(str(bundle.path))
    assert opened == bundle
    assert opened.files == ("audit.json", ENGINE, "graph.onnx")
    for entry in opened.manifest.files:
        assert (opened.path / entry.path).read_bytes() == CONTENT[entry.path]
        assert entry.sha256 == hashlib.sha256(CONTENT[entry.path]).hexdigest()
        assert entry.size == len(CONTENT[entry.path])
    assert opened.manifest.created.endswith("+00:00")
    assert opened.graph == bundle.path / "graph.onnx"
    assert opened.read_json("audit.json") == {"kernels": 3}
    assert opened.read_json("gate.json") is None


def test_files_are_copied_from_disk_as_well(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "big.onnx").write_bytes(os.urandom(3 << 20))
    write_bundle(tmp_path / "x.bundle", manifest, {"graph.onnx": tmp_path / "big.onnx", ENGINE: b"e"})
    opened = open_bundle(tmp_path / "x.bundle")
    assert opened.graph.read_bytes() == (tmp_path / "big.onnx").read_bytes()


def test_nothing_but_the_bundle_is_left_beside_it(tmp_path: Path, bundle: Bundle) -> None:
    assert names(tmp_path) == ["x.bundle"]
    assert names(bundle.path) == ["audit.json", "engines", "graph.onnx", "manifest.json"]


def test_a_file_the_bundle_does_not_hold_is_named(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"holds no plan\.json; it holds audit\.json"):
        bundle.file("plan.json")


@pytest.mark.parametrize("when", [1, 2, 4])  # the first file, the second, the manifest
@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, when: int, kind: type[BaseException]
) -> None:
    calls = 0

    def interrupt(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == when:
            raise kind

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(kind):
        write_bundle(tmp_path / "x.bundle", manifest, CONTENT)
    assert calls == when
    assert names(tmp_path) == []


def test_a_full_disk_is_a_typed_error(tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(BundleError, match=r"cannot be written: .*No space left"):
        write_bundle(tmp_path / "x.bundle", manifest, CONTENT)
    assert names(tmp_path) == []


def test_an_existing_bundle_stays_unless_asked(bundle: Bundle, manifest: Manifest) -> None:
    before = (bundle.path / "manifest.json").read_bytes()
    with pytest.raises(BundleError, match="exists"):
        write_bundle(bundle.path, manifest, CONTENT)
    assert (bundle.path / "manifest.json").read_bytes() == before


def test_overwriting_replaces_the_whole_bundle(tmp_path: Path, bundle: Bundle, manifest: Manifest) -> None:
    write_bundle(bundle.path, replace(manifest, engines=()), {"graph.onnx": b"new"}, overwrite=True)
    assert open_bundle(bundle.path).files == ("graph.onnx",)
    assert names(tmp_path) == ["x.bundle"]
    assert names(bundle.path) == ["graph.onnx", "manifest.json"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_failed_overwrite_keeps_the_old_bundle(
    tmp_path: Path, bundle: Bundle, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    rename_new = folders.rename_new

    def fail_for_the_new(source: Path, target: Path) -> None:
        if source.name.endswith(".partial") and (can_exchange or not target.exists()):
            raise KeyboardInterrupt
        rename_new(source, target)

    monkeypatch.setattr(folders, "rename_new", fail_for_the_new)
    if not can_exchange:
        monkeypatch.setattr(folders, "exchange", lambda first, second: False)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(bundle.path, manifest, {"graph.onnx": b"new", ENGINE: b"new"}, overwrite=True)
    assert open_bundle(bundle.path) == bundle
    assert names(tmp_path) == ["x.bundle"]


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_overwriting_never_removes_what_is_no_bundle(
    tmp_path: Path, manifest: Manifest, kind: str, overwrite: bool
) -> None:
    """Nor does the error without `overwrite` advise it."""
    target = tmp_path / "precious"
    if kind == "file":
        target.write_bytes(b"keep")
    elif kind == "folder":
        target.mkdir()
        (target / "keep.txt").write_bytes(b"keep")
    else:
        target.symlink_to(write_bundle(tmp_path / "x.bundle", manifest, CONTENT).path)
    with pytest.raises(BundleError, match="is not a bundle, so it is not overwritten"):
        write_bundle(target, manifest, CONTENT, overwrite=overwrite)
    assert target.exists()


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", ".", "manifest.json", "a\\b", "c:x", "a//b"])
def test_files_cannot_be_written_outside(tmp_path: Path, manifest: Manifest, name: str) -> None:
    with pytest.raises(BundleError, match="not a plain path below the bundle"):
        write_bundle(tmp_path / "x.bundle", manifest, {**CONTENT, name: b"x"})
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, r"needs graph\.onnx"),
        ({ENGINE: b"e"}, r"graph is graph\.onnx, which files does not list"),
        ({"graph.onnx": b"g"}, rf"engines\[0\]\.file is {ENGINE}, which files does not list"),
        ({"graph.onnx": Path("no/such/file"), ENGINE: b"e"}, "cannot be written: .*no/such/file"),
    ],
)
def test_a_bundle_that_lacks_a_file_is_not_written(
    tmp_path: Path, manifest: Manifest, files: dict[str, bytes | Path], said: str
) -> None:
    with pytest.raises(BundleError, match=said):
        write_bundle(tmp_path / "x.bundle", manifest, files)
    assert names(tmp_path) == []


def edit_manifest(change: Callable[[str], str]) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        text = (root / "manifest.json").read_text(encoding="utf-8")
        changed = change(text)
        assert changed != text
        (root / "manifest.json").write_text(changed, encoding="utf-8")

    return edit


def replace_by_link(root: Path) -> None:
    (root / ENGINE).rename(root.parent / "elsewhere")
    (root / ENGINE).symlink_to(root.parent / "elsewhere")


def replace_folder_by_link(root: Path) -> None:
    (root / "engines").rename(root.parent / "elsewhere")
    (root / "engines").symlink_to(root.parent / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda root: (root / ENGINE).unlink(), rf"files\[1\]\.path is {ENGINE}, which is missing"),
        (
            lambda root: (root / ENGINE).write_bytes(b"\x00Engine"),
            rf"sha256 of {ENGINE} is [0-9a-f]{{64}}, the file has",
        ),
        (lambda root: (root / ENGINE).write_bytes(b"short"), rf"size of {ENGINE} is 7, the file has 5 bytes"),
        (lambda root: (root / "notes.txt").write_bytes(b""), r"holds notes\.txt, which manifest\.json does not list"),
        (lambda root: (root / "engines" / "x").write_bytes(b""), r"holds engines/x, which"),
        (replace_by_link, rf"{ENGINE}, which is a link"),
        (replace_folder_by_link, rf"{ENGINE}, which is a link"),
        (edit_manifest(lambda text: text[: len(text) // 2]), r"manifest\.json cannot be read"),
        (edit_manifest(lambda text: ""), r"manifest\.json cannot be read"),
        (edit_manifest(lambda text: "[" * 100_000), r"manifest\.json cannot be read"),
        (edit_manifest(lambda text: text.replace(f'"{ENGINE}"', '"../x.engine"')), r"path is '\.\./x\.engine'"),
        (edit_manifest(lambda text: text.replace('version": 1', 'version": 2')), r"format_version is 2, .* reads 1"),
        (
            edit_manifest(lambda text: text.replace('"opset": 17', '"opset": "17"')),
            r"opset is '17', not a whole number",
        ),
        (edit_manifest(lambda text: json.dumps({**json.loads(text), "files": []})), r"files is empty"),
        (lambda root: (root / "manifest.json").write_bytes(b"\xff\xfe"), r"manifest\.json cannot be read"),
        (lambda root: (root / "manifest.json").unlink(), r"is not a bundle: it has no manifest\.json"),
    ],
)
def test_a_damaged_bundle_says_what_does_not_fit(bundle: Bundle, damage: Callable[[Path], None], said: str) -> None:
    damage(bundle.path)
    with pytest.raises(BundleError, match=said) as caught:
        open_bundle(bundle.path)
    assert "twins-trt build" in (caught.value.fix or "")


def test_without_verifying_content_is_trusted_but_presence_is_not(bundle: Bundle) -> None:
    (bundle.path / ENGINE).write_bytes(b"\x00Engine")
    assert open_bundle(bundle.path, verify=False) == bundle
    (bundle.path / ENGINE).unlink()
    with pytest.raises(BundleError, match="missing"):
        open_bundle(bundle.path, verify=False)


def test_what_is_no_bundle_at_all(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    (tmp_path / "empty").mkdir()
    for path, said in (
        ("model.onnx", "is an ONNX file, not a bundle"),
        ("empty", "is not a bundle: it has no"),
        ("absent.bundle", "does not exist"),
    ):
        with pytest.raises(BundleError, match=said) as caught:
            open_bundle(tmp_path / path)
        assert "twins-trt build MODEL" in (caught.value.fix or "")


def test_a_companion_file_that_is_not_json_is_named(tmp_path: Path, manifest: Manifest) -> None:
    bundle = write_bundle(tmp_path / "x.bundle", manifest, {**CONTENT, "gate.json": b"{"})
    with pytest.raises(BundleError, match=r"gate\.json cannot be read"):
        bundle.read_json("gate.json")


def test_a_real_bundle_can_be_moved(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    moved = bundle.path.rename(tmp_path / "moved")
    assert open_bundle(moved).manifest == bundle.manifest
