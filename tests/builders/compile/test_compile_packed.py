"""A packed bundle is unpacked and compiled by one command."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import run_command
from compiling import Install, ToCompile

from twins_trt import compile_engine
from twins_trt.errors import BundleError
from twins_trt.runtime import Bundle, open_bundle
from twins_trt.runtime.archive import pack_bundle


def packed(bundle: Bundle, path: Path) -> Path:
    pack_bundle(path, bundle.manifest, {name: bundle.path / name for name in bundle.files})
    return path


def test_a_tar_becomes_a_bundle_with_an_engine_beside_it(
    install: Install, to_compile: ToCompile, tmp_path: Path
) -> None:
    module, tar = install("10.3.0"), packed(to_compile(), tmp_path / "road.tar")
    place = tmp_path / "road.bundle"
    first = run_command("compile", tar, "--json")
    assert first.code == 0 and first.json["bundle"] == str(place)
    assert [engine.file for engine in open_bundle(place).engines] == ["engines/tensorrt-10.3.0-sm_87.engine"]
    again = run_command("compile", tar)
    assert again.out == f"{place}: engines/tensorrt-10.3.0-sm_87.engine fits Orin (sm_87): nothing to compile\n"
    assert len(module.built) == 1


def test_a_dry_run_of_a_tar_leaves_it_packed(install: Install, to_compile: ToCompile, tmp_path: Path) -> None:
    module, tar = install("10.3.0"), packed(to_compile(), tmp_path / "road.tar")
    planned = run_command("compile", tar, "--dry-run", "--json")
    assert planned.code == 0
    assert (planned.json["bundle"], planned.json["fitting"]) == (str(tmp_path / "road.bundle"), None)
    assert not (tmp_path / "road.bundle").exists() and module.built == []
    compile_engine(tar)
    assert run_command("compile", tar, "--dry-run", "--json").json["fitting"] is not None


def test_a_bundle_of_another_graph_is_replaced_only_with_overwrite(
    install: Install, to_compile: ToCompile, tmp_path: Path
) -> None:
    install("10.3.0")
    place = tmp_path / "road.bundle"
    compile_engine(packed(to_compile(), tmp_path / "road.tar"))
    before = open_bundle(place).manifest.graph_sha256
    (tmp_path / "road.tar").unlink()
    other = packed(to_compile(32, 32), tmp_path / "road.tar")
    with pytest.raises(BundleError, match="is there already, with another graph") as caught:
        compile_engine(other)
    assert caught.value.fix is not None and caught.value.fix.endswith("overwrite=True")
    assert open_bundle(place).manifest.graph_sha256 == before
    assert compile_engine(other, overwrite=True).compiled
    assert open_bundle(place).manifest.graph_sha256 != before


def test_overwrite_without_a_tar_would_do_nothing(install: Install, to_compile: ToCompile) -> None:
    install("10.3.0")
    refused = run_command("compile", to_compile().path, "--overwrite")
    assert refused.code == 2 and "--overwrite applies only to a packed bundle" in refused.err


def test_a_tar_that_is_cut_short_leaves_nothing(install: Install, to_compile: ToCompile, tmp_path: Path) -> None:
    module, tar = install("10.3.0"), packed(to_compile(), tmp_path / "road.tar")
    tar.write_bytes(tar.read_bytes()[:2000])
    refused = run_command("compile", tar)
    assert refused.code == 1 and "ends early" in refused.err
    assert not (tmp_path / "road.bundle").exists() and module.built == []
