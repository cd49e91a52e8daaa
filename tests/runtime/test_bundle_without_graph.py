"""A device that got an engine and not its graph: everything but compiling works, and says which graph it is of."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import versions
from machine import ADA, ORIN, Machine
from PIL import Image
from small_packs import write_pack
from tiny_graphs import UInt8Array, nearest_class

from twins_trt.cli import main
from twins_trt.errors import BundleError, EngineError
from twins_trt.handoff import HandoffOptions, resolve_handoff, write_handoff
from twins_trt.runtime import Bundle, FileEntry, Manifest, Segmenter, open_bundle
from twins_trt.runtime.engines import why_not

COMMAND = "twins-trt export-to device alone.bundle --engine graph --out alone.tar"

Draw = Callable[[int, int], UInt8Array]


@pytest.fixture
def alone(machine: Machine, tmp_path: Path) -> Bundle:
    """alone.bundle: the engine of a machine with TensorRT 10.3 and an Orin."""
    machine.install("10.3.0", device=ORIN)
    return without_graph(machine.bundle(), tmp_path / "alone.bundle")


def without_graph(whole: Bundle, out: Path) -> Bundle:
    handoff = resolve_handoff(whole, "device", options=HandoffOptions(engine=whole.engines[0].targets[0]))
    return open_bundle(write_handoff(handoff, out))


@pytest.mark.parametrize("version", versions())
def test_the_engine_runs_with_every_version(machine: Machine, picture: Draw, tmp_path: Path, version: str) -> None:
    machine.install(version, device=ORIN)
    whole = machine.bundle()
    bundle = without_graph(whole, tmp_path / "alone.bundle")
    assert bundle.files == (whole.engines[0].file,)
    assert bundle.manifest.graph_sha256 == whole.manifest.graph_sha256
    image = picture(24, 32)
    with Segmenter(bundle) as segmenter:
        assert segmenter.engine.name == machine.module.__name__
        assert np.array_equal(segmenter(image).mask, nearest_class(image))


def test_predict_profile_and_inspect(
    alone: Bundle, picture: Draw, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = picture(24, 32)
    Image.fromarray(image).save(tmp_path / "im.png")
    path = str(alone.path)
    assert main(["predict", path, str(tmp_path / "im.png"), "--out", str(tmp_path / "masks")]) == 0
    (mask,) = (tmp_path / "masks").rglob("*_mask.png")
    assert np.array_equal(np.asarray(Image.open(mask)), nearest_class(image))
    assert main(["profile", path, "--save", "--rounds", "2", "--calls", "2", "--warm-up", "1"]) == 0
    profiled = open_bundle(path)
    (measured,) = profiled.read_json("profile.json")["measurements"]
    assert measured["subject"]["graph_sha256"] == alone.manifest.graph_sha256
    assert measured["subject"]["simulated"] is False
    page = tmp_path / "page.md"
    assert main(["report", path, "--markdown", "--out", str(page)]) == 0
    assert "The graph did not travel with the bundle, so its operations were not counted." in page.read_text()
    capsys.readouterr()
    assert main(["inspect", path, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["runs_here"]["tensorrt"] == {"ready": True, "why_not": None}
    assert said["manifest"]["left_behind"][0]["path"] == "graph.onnx"
    for kind in ("onnxruntime", "openvino"):
        assert said["runs_here"][kind]["ready"] is False
        assert "holds no graph.onnx: it did not travel" in said["runs_here"][kind]["why_not"]


def test_the_gate_says_of_which_graph_the_engine_is(alone: Bundle, tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "road.pack", alone, images=30)
    assert main(["gate", str(alone.path), "--pack", str(pack)]) == 0
    judged = open_bundle(alone.path)
    found = judged.read_json("gate.json")
    assert found["graph_sha256"] == alone.manifest.graph_sha256 == judged.manifest.graph_sha256
    assert (found["simulated"], found["engine"], judged.manifest.gate) == (False, "tensorrt", "passed")


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
def test_what_runs_the_graph_names_the_command_that_brings_it(alone: Bundle, kind: str) -> None:
    with pytest.raises(BundleError, match=r"holds no graph\.onnx: it did not travel") as error:
        Segmenter(alone, kind)
    assert error.value.fix == f"where the whole bundle is: {COMMAND}"
    assert why_not(alone, kind) == error.value.cause


def test_on_another_machine_nothing_runs_it_and_the_command_is_named(machine: Machine, alone: Bundle) -> None:
    for version, device in (("10.13.3.9", ORIN), ("10.3.0", ADA)):
        machine.install(version, device=device)
        with pytest.raises((BundleError, EngineError)) as error:
            Segmenter(alone, "tensorrt")
        assert (
            error.value.fix is not None and "twins-trt export-to device alone.bundle --engine graph" in error.value.fix
        )


def test_compile_is_done_where_the_engine_fits_and_else_names_the_command(
    machine: Machine, alone: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    before = alone.manifest
    assert main(["compile", str(alone.path)]) == 0
    assert open_bundle(alone.path).manifest == before
    machine.install("10.13.3.9", device=ORIN)
    capsys.readouterr()
    assert main(["compile", str(alone.path)]) == 1
    said = capsys.readouterr().err
    assert "holds no graph.onnx: it did not travel" in said
    assert COMMAND in said
    assert open_bundle(alone.path).manifest == before


# The manifest


def entry(name: str) -> FileEntry:
    return FileEntry(name, "ab" * 32, 5)


def test_what_was_left_behind_is_held_against_the_rest(alone: Bundle) -> None:
    manifest = alone.manifest
    left, engine = manifest.left_behind, manifest.engines[0].file
    faults: list[tuple[dict[str, Any], str]] = [
        ({"left_behind": (entry("plan.json"),)}, r"graph is graph\.onnx, which files does not list"),
        ({"engines": ()}, r"graph is graph\.onnx, which files does not list"),
        ({"left_behind": (*left, entry(engine))}, r"left_behind names engines/tensorrt\.engine, which files lists"),
        ({"left_behind": (*left, entry("../x"))}, r"left_behind\[1\]\.path is '\.\./x', which is not a plain path"),
        ({"left_behind": (*left, FileEntry("x", "ab", 5))}, r"left_behind\[1\] has the sha256 'ab'"),
    ]
    for fields, said in faults:
        with pytest.raises(BundleError, match=said):
            replace(manifest, **fields)


def test_it_comes_back_from_json_equal_and_is_left_out_where_nothing_was(alone: Bundle, machine: Machine) -> None:
    text = alone.manifest.dumps()
    assert Manifest.from_json(json.loads(text)) == alone.manifest
    assert "left_behind" in text and "left_behind" not in machine.bundle().manifest.dumps()
