"""From `export-to device` to `compile`: a packed bundle arrives, is updated, and its engine is passed on to others."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from compiling import Install, ToCompile
from fake_tensorrt import calls
from small_packs import write_pack

from twins_trt.cli import main
from twins_trt.runtime import Bundle, open_bundle, write_bundle


def twins(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture
def desktop(tmp_path: Path, to_compile: ToCompile) -> Bundle:
    """road.bundle on the desktop, which awaits the engine of an Orin."""
    made = to_compile()
    return at(tmp_path / "desktop" / "road.bundle", made)


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """The device's disk."""
    (tmp_path / "device").mkdir()
    return tmp_path / "device"


def at(path: Path, bundle: Bundle, **fields: object) -> Bundle:
    manifest = replace(bundle.manifest, files=(), **fields)  # type: ignore[arg-type]
    return write_bundle(path, manifest, {name: bundle.file(name) for name in bundle.files}, overwrite=True)


def names(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir())


def test_it_arrives_is_compiled_once_and_gets_a_pack_later(desktop: Bundle, device: Path, install: Install) -> None:
    module = install("10.3.0")
    tar = device / "road.tar"
    assert twins("export-to", "device", desktop.path, "--out", tar) == 0
    assert twins("compile", tar, "--dry-run") == 0 and names(device) == ["road.tar"]
    for _ in range(2):
        assert twins("compile", tar) == 0
        assert len(calls(module, "build_serialized_network")) == 1
    compiled = open_bundle(device / "road.bundle")
    assert [engine.targets for engine in compiled.engines] == [("sm_87",)]
    assert (compiled.manifest.awaits, compiled.manifest.left_behind) == ((), ())
    assert compiled.manifest.graph_sha256 == desktop.manifest.graph_sha256
    pack = write_pack(desktop.path.with_name("road.pack"), desktop)
    assert twins("export-to", "device", desktop.path, "--pack", pack, "--out", tar, "--overwrite") == 0
    assert twins("compile", tar) == 0
    updated = open_bundle(compiled.path)
    assert len(calls(module, "build_serialized_network")) == 1 and updated.engines == compiled.engines
    assert updated.file("gate.pack").read_bytes() == pack.read_bytes()
    assert names(device) == ["road.bundle", "road.tar"]


def test_another_graph_replaces_it_only_if_asked(
    desktop: Bundle, device: Path, install: Install, to_compile: ToCompile, capsys: pytest.CaptureFixture[str]
) -> None:
    install("10.3.0")
    tar = device / "road.tar"
    assert twins("export-to", "device", desktop.path, "--out", tar) == twins("compile", tar) == 0
    before = open_bundle(device / "road.bundle")
    newer = at(desktop.path, to_compile(48, 32))
    assert twins("export-to", "device", newer.path, "--out", tar, "--overwrite") == 0
    capsys.readouterr()
    assert twins("compile", tar) == 1
    said = capsys.readouterr().err
    assert "is there already, with another graph" in said and "fix: replace it: --overwrite" in said
    assert open_bundle(before.path) == before
    assert twins("compile", tar, "--overwrite") == 0
    after = open_bundle(before.path)
    assert after.manifest.graph_sha256 == newer.manifest.graph_sha256 and len(after.engines) == 1
    assert names(device) == ["road.bundle", "road.tar"]


def test_a_file_that_was_cut_short_changes_nothing(
    desktop: Bundle, device: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("10.3.0")
    tar = device / "road.tar"
    assert twins("export-to", "device", desktop.path, "--out", tar) == 0
    tar.write_bytes(tar.read_bytes()[:3000])
    capsys.readouterr()
    assert twins("compile", tar) == 1
    assert "road.tar ends early" in capsys.readouterr().err
    assert names(device) == ["road.tar"]


def test_the_engine_of_one_device_serves_others_of_its_kind(
    desktop: Bundle, device: Path, install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install("10.3.0")
    assert twins("export-to", "device", desktop.path, "--out", device / "road.tar") == 0
    assert twins("compile", device / "road.tar") == 0
    first = open_bundle(device / "road.bundle")
    fleet, second = device / "fleet.tar", tmp_path / "second"
    assert twins("export-to", "device", first.path, "--engine", "sm_87", "--out", fleet) == 0
    second.mkdir()
    shutil.copy(fleet, second)

    module = install("10.3.0")
    assert twins("compile", second / "fleet.tar") == 0
    assert not calls(module, "build_serialized_network")
    alone = open_bundle(second / "fleet.bundle")
    assert alone.engines == first.engines and "graph.onnx" not in alone.files
    assert alone.manifest.graph_sha256 == desktop.manifest.graph_sha256

    module = install("10.13.3.9")  # after an upgrade of its JetPack
    capsys.readouterr()
    assert twins("compile", second / "fleet.tar") == 1
    command = "twins-trt export-to device fleet.bundle --engine graph --out fleet.tar"
    assert f"fix: where the whole bundle is: {command}" in capsys.readouterr().err
    assert open_bundle(alone.path) == alone
    assert twins("export-to", "device", desktop.path, "--engine", "graph", "--out", fleet, "--overwrite") == 0
    shutil.copy(fleet, second)
    assert twins("compile", second / "fleet.tar", "--prune") == 0
    assert len(calls(module, "build_serialized_network")) == 1
    after = open_bundle(alone.path)
    assert [engine.version for engine in after.engines] == ["10.13.3.9"]
    assert after.graph.read_bytes() == desktop.graph.read_bytes() and after.manifest.left_behind == ()
