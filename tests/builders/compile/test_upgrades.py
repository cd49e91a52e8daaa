"""Engines that no longer fit after an upgrade, and engines of other machines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from commands import run_command
from compiling import ORIN, Install, ToCompile

from twins_trt.builders.compile import CompileReport, compile_bundle
from twins_trt.device import Device
from twins_trt.runtime import Bundle, EngineFile, open_bundle, write_bundle
from twins_trt.runtime.bundle import amend_bundle
from twins_trt.verbs.compile import CompileRequest

DRIVER = "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  {}  Release Build  (buildbrain)\n"


def machine(root: Path, driver: str, board: str = "") -> Path:
    """A file system with that kernel driver and board, and an Orin Nano's memory."""
    version = root / "proc" / "driver" / "nvidia" / "version"
    version.parent.mkdir(parents=True, exist_ok=True)
    version.write_text(DRIVER.format(driver))
    (root / "proc" / "device-tree").mkdir(exist_ok=True)
    (root / "proc" / "device-tree" / "model").write_bytes(board.encode() + b"\0")
    (root / "proc" / "meminfo").write_text("MemTotal: 7990000 kB\nMemAvailable: 6000000 kB\nSwapFree: 3990000 kB\n")
    return root


def compile_on(bundle: Bundle, root: Path, **options: bool) -> CompileReport:
    return compile_bundle(CompileRequest(bundle=str(bundle.path), **options), root=root)


def files(bundle: Bundle) -> list[str]:
    return sorted(engine.file for engine in open_bundle(bundle.path).engines)


def test_a_new_tensorrt_gets_an_engine_beside_the_old_one_which_is_named_and_pruned(
    install: Install, to_compile: ToCompile, tmp_path: Path
) -> None:
    root, bundle = machine(tmp_path, "540.4.0"), to_compile()
    old, new = "engines/tensorrt-10.3.0-sm_87.engine", "engines/tensorrt-10.16.1.11-sm_87.engine"
    install("10.3.0")
    first = compile_on(bundle, root)
    made = first.engine.compiled
    assert made is not None and made.driver == "540.4.0"
    assert f"on Orin, driver 540.4.0, CUDA 13.0, in {made.seconds:.1f} s, " in made.how
    assert f"{old} {made.how}" in run_command("inspect", bundle.path).out
    install("10.16.1.11")
    report = compile_on(bundle, root)
    assert report.compiled and report.engine.file == new
    assert report.misfits == {old: f"{old} was built with TensorRT 10.3.0, installed is 10.16.1.11"}
    assert report.pruned == () and files(bundle) == [new, old]
    assert not compile_on(bundle, root).compiled
    install("10.3.0")
    assert not compile_on(bundle, root).compiled  # the old one still fits the old TensorRT
    install("10.16.1.11")
    pruned = compile_on(bundle, root, prune=True)
    assert (pruned.compiled, pruned.pruned) == (False, (old,))
    assert files(bundle) == [new]
    now = open_bundle(bundle.path)
    assert not (bundle.path / old).exists() and old not in now.files
    assert [entry["file"] for entry in now.read_json("audit.json")["engines"]] == [new]


def test_pruning_and_compiling_are_one_step(install: Install, to_compile: ToCompile, tmp_path: Path) -> None:
    root, bundle = machine(tmp_path, "540.4.0"), to_compile()
    install("10.3.0")
    compile_on(bundle, root)
    module = install("11.4.0.106")
    module.script.serialized = None  # the compiler fails
    before = (bundle.path / "manifest.json").read_bytes()
    assert run_command("compile", bundle.path, "--prune").code == 1
    assert (bundle.path / "manifest.json").read_bytes() == before
    install("11.4.0.106")
    assert compile_on(bundle, root, prune=True).pruned == ("engines/tensorrt-10.3.0-sm_87.engine",)
    assert files(bundle) == ["engines/tensorrt-11.4.0.106-sm_87.engine"]


def test_a_new_driver_makes_the_engine_anew_in_its_place(
    install: Install, to_compile: ToCompile, tmp_path: Path
) -> None:
    bundle = to_compile()
    module = install("10.3.0")
    first = compile_on(bundle, machine(tmp_path, "540.4.0"))
    report = compile_on(bundle, machine(tmp_path, "540.5.0"))
    why = f"{first.engine.file} was compiled under driver 540.4.0 and CUDA 13.0, here is driver 540.5.0 and CUDA 13.0"
    assert report.misfits == {first.engine.file: why}
    assert report.compiled and len(module.built) == 2
    assert report.engine.compiled is not None and report.engine.compiled.driver == "540.5.0"
    assert files(bundle) == [first.engine.file]
    assert not compile_on(bundle, machine(tmp_path, "540.5.0")).compiled


def test_engines_for_other_machines_are_left_alone(install: Install, to_compile: ToCompile, tmp_path: Path) -> None:
    root, made = machine(tmp_path, "540.4.0"), to_compile()
    others = (
        EngineFile("engines/thor.engine", "tensorrt", "10.13.3", ("sm_110",)),
        EngineFile("engines/rtx.engine", "tensorrt_rtx", "1.6.0", ("sm_86", "sm_89")),
    )
    content: dict[str, bytes | Path] = {engine.file: b"engine" for engine in others}
    content["graph.onnx"] = made.graph.read_bytes()
    bundle = write_bundle(made.path, replace(made.manifest, engines=others, files=()), content, overwrite=True)
    install("10.3.0")
    report = compile_on(bundle, root, prune=True)
    assert (report.misfits, report.pruned) == ({}, ())
    assert len(files(bundle)) == 3
    assert open_bundle(bundle.path).read(others[0]) == b"engine"


def test_two_models_of_one_target_keep_an_engine_each(install: Install, to_compile: ToCompile, tmp_path: Path) -> None:
    root, bundle = machine(tmp_path, "570.1"), to_compile()
    cards = (Device("NVIDIA RTX 4090", "sm_89"), Device("NVIDIA RTX 4000 Ada", "sm_89"))
    for card in cards:
        install("10.13.3.9", card)
        report = compile_on(bundle, root, prune=True)
        assert report.compiled and report.misfits == {}
    assert files(bundle) == [
        "engines/tensorrt-10.13.3.9-sm_89-nvidia-rtx-4000-ada.engine",
        "engines/tensorrt-10.13.3.9-sm_89.engine",
    ]
    for card in cards:
        install("10.13.3.9", card)
        report = compile_on(bundle, root)
        assert not report.compiled
        assert report.engine.compiled is not None and report.engine.compiled.device == card.name


def test_two_boards_whose_gpus_have_one_name_keep_an_engine_each(
    install: Install, to_compile: ToCompile, tmp_path: Path
) -> None:
    bundle = to_compile()
    module = install("10.3.0")
    boards = ("NVIDIA Jetson AGX Orin Developer Kit", "NVIDIA Jetson Orin Nano Developer Kit")
    for board in boards:
        report = compile_on(bundle, machine(tmp_path, "540.4.0", board), prune=True)
        assert report.compiled and report.misfits == {}
        assert report.engine.compiled is not None and report.engine.compiled.board == board
    assert files(bundle) == [
        "engines/tensorrt-10.3.0-sm_87-nvidia-jetson-orin-nano-developer-kit.engine",
        "engines/tensorrt-10.3.0-sm_87.engine",
    ]
    for board, engine in zip(boards, reversed(files(bundle)), strict=True):
        assert compile_on(bundle, machine(tmp_path, "540.4.0", board)).engine.file == engine
    assert len(module.built) == 2


def test_a_driver_that_cannot_be_read_is_no_new_driver(install: Install, to_compile: ToCompile, tmp_path: Path) -> None:
    """In a container it may be hidden."""
    bundle = to_compile()
    install("10.3.0")
    compile_on(bundle, machine(tmp_path / "host", "540.4.0"))
    assert not compile_on(bundle, tmp_path / "container").compiled


def test_an_engine_that_build_made_on_the_device_fits(install: Install, to_compile: ToCompile, tmp_path: Path) -> None:
    made = to_compile()
    engine = EngineFile("engines/tensorrt-sm_87.engine", "tensorrt", "10.3.0", ("sm_87",))
    content: dict[str, bytes | Path] = {engine.file: b"engine", "graph.onnx": made.graph.read_bytes()}
    bundle = write_bundle(made.path, replace(made.manifest, engines=(engine,), files=()), content, overwrite=True)
    install("10.3.0")
    assert not compile_on(bundle, machine(tmp_path, "540.4.0")).compiled
    install("10.13.3.9", ORIN)
    report = compile_on(bundle, machine(tmp_path, "540.4.0"), prune=True)
    assert report.pruned == (engine.file,)
    assert files(bundle) == ["engines/tensorrt-10.13.3.9-sm_87.engine"]


def test_the_command_says_what_no_longer_fits_and_how_it_is_removed(install: Install, to_compile: ToCompile) -> None:
    bundle = to_compile()
    install("10.3.0")
    first = run_command("compile", bundle.path)
    assert first.code == 0 and f"{bundle.path}: engines/tensorrt-10.3.0-sm_87.engine for Orin (sm_87)" in first.out
    assert "MiB of the host at most, which the GPU shares" in first.out
    again = run_command("compile", bundle.path)
    assert again.out == f"{bundle.path}: engines/tensorrt-10.3.0-sm_87.engine fits Orin (sm_87): nothing to compile\n"
    install("10.16.1.11")
    planned = run_command("compile", bundle.path, "--dry-run", "--prune")
    assert planned.code == 0 and "would be removed: engines/tensorrt-10.3.0-sm_87.engine" in planned.out
    assert len(open_bundle(bundle.path).engines) == 1
    upgraded = run_command("compile", bundle.path)
    assert "no longer fits: engines/tensorrt-10.3.0-sm_87.engine was built with TensorRT 10.3.0" in upgraded.out
    assert f"to remove what no longer fits: twins-trt compile {bundle.path} --prune\n" in upgraded.out
    assert upgraded.out.endswith(f"next:\n  twins-trt profile {bundle.path} --save\n")
    pruned = run_command("compile", bundle.path, "--prune", "--json")
    assert pruned.json["pruned"] == ["engines/tensorrt-10.3.0-sm_87.engine"] and not pruned.json["compiled"]
    assert pytest.approx(0, abs=60) == pruned.json["seconds"]


@pytest.mark.parametrize("status", ["passed", "failed"])
def test_it_says_that_the_verdict_is_of_the_old_engine_and_leaves_the_status(
    install: Install, to_compile: ToCompile, status: Literal["passed", "failed"]
) -> None:
    install("10.3.0")
    bundle = compile_bundle(CompileRequest(bundle=str(to_compile().path))).bundle
    old = bundle.engines[0].file
    (sha256,) = (entry.sha256 for entry in bundle.manifest.files if entry.path == old)
    judged = {"graph_sha256": bundle.manifest.graph_sha256, "file": old, "file_sha256": sha256, "thresholds": {}}
    amend_bundle(
        bundle, {"gate.json": json.dumps(judged).encode()}, change=lambda manifest: replace(manifest, gate=status)
    )
    assert run_command("compile", bundle.path, "--json").json["gate_outdated"] is None
    install("10.16.1.11")
    upgraded = run_command("compile", bundle.path)
    why = f"it is of {old}, and engines/tensorrt-10.16.1.11-sm_87.engine runs here"
    assert f"the gate's verdict, {status}, counts no more: {why}\n" in upgraded.out
    assert f"to judge the bundle again: twins-trt gate {bundle.path} --pack FILE\n" in upgraded.out
    pruned = run_command("compile", bundle.path, "--prune", "--json")
    assert pruned.json["gate_outdated"] == f"{old} is no longer in the bundle"
    assert open_bundle(bundle.path).manifest.gate == status
