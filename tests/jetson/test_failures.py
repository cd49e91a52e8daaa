"""What goes wrong on a device: the command fails, says why, and names what helps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx_graphsurgeon")
pytest.importorskip("onnxruntime")

from desktop import Built, Subject, build
from environment import JETPACKS
from simulation import ROUNDS, MakeJetson, SimulatedJetson

pytestmark = pytest.mark.slow
ORIN = JETPACKS["10.3.0"]
UPGRADED = replace(ORIN, release="7.2", python="3.12", cuda="13.0")


@pytest.fixture
def built(of_the_run: Path, demo: Subject) -> Built:
    return build(of_the_run / f"{demo.name}-{ORIN.release}", demo, ORIN)


@pytest.fixture
def orin(jetson: MakeJetson, built: Built, tmp_path: Path) -> Iterator[SimulatedJetson]:
    """An Orin with JetPack 6.1, and the INT8 bundle compiled there."""
    device = jetson("10.3.0", folder=tmp_path / "orin")
    for name in ("road.tar", "other.tar"):
        device.copy(built.folder / name)
    done = device.twins("compile", "road.tar")
    assert done.code == 0, done.err
    yield device


def test_int8_that_passed_in_simulation_fails_on_a_device_that_computes_otherwise(orin: SimulatedJetson) -> None:
    done = orin.twins("gate", "road.bundle", "--json", SIMULATED_FAULT="1")
    assert done.code == 3, done.err
    found = done.json
    assert (found["passed"], found["simulated"], found["simulation"]["passed"]) == (False, False, True)
    assert found["drop"]["mean"] > 5 > 0.5 > found["simulation"]["drop"]["mean"]
    said = orin.twins("inspect", "road.bundle").out
    assert (
        "FAILED" in said.upper() and f"{found['drop']['mean']:+.3f}" in said and "in simulation it had passed" in said
    )


def test_int8_that_is_not_faster_does_not_ship(orin: SimulatedJetson) -> None:
    assert orin.twins("compile", "other.tar").code == 0
    words = ("gate", "road.bundle", "--against", "other.bundle", *ROUNDS)
    done = orin.twins(*words, SIMULATED_MS=json.dumps({"int8": 50}))
    assert done.code == 3, done.err
    assert "ship other.bundle" in done.out


def test_attentions_that_are_not_fused_are_refused_until_they_are_allowed(jetson: MakeJetson, built: Built) -> None:
    device = jetson("10.3.0")
    device.copy(built.folder / "other.tar")
    done = device.twins("compile", "other.tar", SIMULATED_UNFUSED="2")
    assert done.code == 1 and "2 of 8 attentions are not fused" in done.err and "--allow-unfused" in done.err
    manifest = json.loads((device.folder / "other.bundle" / "manifest.json").read_text())
    assert manifest["engines"] == [] and len(manifest["awaits"]) == 1
    allowed = device.twins("compile", "other.bundle", "--allow-unfused", "--json", SIMULATED_UNFUSED="2")
    assert (allowed.code, allowed.json["audit"]["attentions"]) == (0, 6), allowed.err


def test_a_workspace_that_the_memory_cannot_give_is_refused_before_the_build(jetson: MakeJetson, built: Built) -> None:
    device = jetson("10.3.0")
    device.copy(built.folder / "other.tar")
    done = device.twins("compile", "other.tar", "--workspace", "99999999")
    assert done.code != 0 and "MiB" in done.err and "--workspace" in done.err
    assert not list((device.folder / "other.bundle").glob("engines/*"))


def test_an_upgrade_leaves_an_engine_that_says_how_it_is_replaced(
    orin: SimulatedJetson, jetson: MakeJetson, demo: Subject
) -> None:
    orin.copy(demo.photos[0], "photos")
    assert orin.twins("predict", "road.bundle", "photos", "--out", "before").code == 0
    assert orin.twins("gate", "road.bundle").code == 0
    assert "counts no more" not in orin.twins("inspect", "road.bundle").out
    after = jetson("10.16.1.11", jetpack=UPGRADED, folder=orin.folder)
    refused = after.twins("predict", "road.bundle", "photos", "--out", "masks")
    assert refused.code != 0 and "10.3.0" in refused.err and "twins-trt compile road.bundle" in refused.err
    done = after.twins("compile", "road.bundle", "--prune", "--json")
    assert (done.code, done.json["compiled"]) == (0, True), done.err
    assert done.json["pruned"] == ["engines/tensorrt-10.3.0-sm_87.engine"]
    manifest = json.loads((after.folder / "road.bundle" / "manifest.json").read_text())
    assert [engine["version"] for engine in manifest["engines"]] == ["10.16.1.11"]
    assert after.twins("predict", "road.bundle", "photos", "--out", "masks").code == 0
    assert "counts no more" in after.twins("inspect", "road.bundle").out  # the verdict is of the engine before
    assert after.twins("gate", "road.bundle").code == 0
    assert "counts no more" not in after.twins("inspect", "road.bundle").out
