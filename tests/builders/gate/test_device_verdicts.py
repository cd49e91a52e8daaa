"""What a device finds of an engine stands beside what a simulation of its graph had found before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import run_command
from packs import MakeJetsonBundle, tiny_pack

import twins_trt
from twins_trt.builders.gate.options import limit_words
from twins_trt.report.blocks import Facts, Note
from twins_trt.report.inputs import read_inputs
from twins_trt.report.page import build_page
from twins_trt.runtime import Bundle, Segmenter, open_bundle
from twins_trt.runtime.bundle import amend_bundle
from twins_trt.verbs.gate import GateRequest


@pytest.fixture
def int8(
    jetson: Callable[..., None], jetson_bundle: MakeJetsonBundle, labelled: str, tmp_path: Path
) -> Callable[..., Bundle]:
    """int8(bias): an INT8 bundle that passed in simulation, on the Jetson; its pack is x.pack."""

    def make(bias: float) -> Bundle:
        jetson("10.3.0")
        bundle = jetson_bundle(bias=bias, precision="int8")
        pack = tiny_pack(tmp_path / "x.pack", labelled, bundle)
        twins_trt.gate(bundle, pack=pack, engine="onnxruntime")
        assert open_bundle(bundle.path).read_json("gate.json")["simulated"] is True
        return open_bundle(bundle.path)

    return make


def test_int8_that_passed_in_simulation_and_fails_on_the_device_says_both(
    int8: Callable[..., Bundle], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = int8(60_000.0)
    simulated = bundle.read_json("gate.json")
    assert bundle.manifest.gate == "passed"
    ran = run_command("gate", bundle.path, "--pack", tmp_path / "x.pack", "--json")
    assert ran.code == 3 and ran.json["simulated"] is False
    said = open_bundle(bundle.path)
    now = said.read_json("gate.json")
    assert said.manifest.gate == "failed" and now == ran.json
    kept = ("passed", "reasons", "engine", "measured_on", "dataset", "split", "images", "thresholds", "drop")
    kept += ("agreement", "created")
    assert now["simulation"] == {name: simulated[name] for name in kept}
    assert (now["simulation"]["passed"], now["passed"]) == (True, False)
    assert now["simulation"]["drop"]["mean"] == 0.0 and now["drop"]["mean"] > 0.5
    assert f"{bundle.path}: it passed in simulation with a drop of +0.000 points and fails on Orin (sm_87)" in ran.err
    with Segmenter(said):
        assert f"{bundle.path} failed its accuracy gate" in caplog.messages
    text = run_command("gate", bundle.path, "--pack", tmp_path / "x.pack").out
    assert "simulation    passed: onnxruntime on" in text
    assert "differs       it passed in simulation with a drop of +0.000 points and fails on Orin (sm_87)" in text


def test_inspect_and_report_say_both(int8: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = int8(60_000.0)
    text = run_command("inspect", bundle.path).out
    assert "passed in simulation: drop +0.000 points" in text and "in simulation it had" not in text
    found = twins_trt.gate(bundle, pack=tmp_path / "x.pack")
    assert found.simulation is not None
    text = run_command("inspect", bundle.path).out
    assert f"failed: drop {found.drop.mean:+.3f} points, 95% interval" in text
    assert f"{100 * found.agreement:.3f} % of the pixels equal, tensorrt on Orin (sm_87)" in text
    assert "in simulation it had passed: drop +0.000 points, 95% interval +0.000 to +0.000, 100.000 %" in text
    assert f"onnxruntime on {found.simulation.measured_on}, {found.simulation.created[:10]}" in text
    told = run_command("inspect", bundle.path, "--json").json["gate"]
    assert told == {**open_bundle(bundle.path).read_json("gate.json"), "outdated": None}
    page = build_page(read_inputs(bundle.path))
    assert (page.gate, page.mood) == ("gate failed, passed in simulation", "bad")
    (section,) = (each for each in page.sections if each.key == "gate")
    (note,) = (each for each in section.blocks if isinstance(each, Note) and each.text.startswith("In simulation"))
    assert note.mood == "warn" and "passed: drop +0.000 points" in note.text
    assert found.pack is not None and any(
        found.pack in value for each in section.blocks if isinstance(each, Facts) for _, value in each.rows
    )


def test_a_second_verdict_of_the_device_keeps_the_simulation(int8: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = int8(60_000.0)
    first = twins_trt.gate(bundle, pack=tmp_path / "x.pack")
    second = twins_trt.gate(bundle.path, pack=tmp_path / "x.pack", more=GateRequest(max_drop=100.0, min_agreement=0))
    assert not first.passed and second.passed and second.contradiction is None
    assert second.simulation == first.simulation is not None
    assert open_bundle(bundle.path).read_json("gate.json")["simulation"]["passed"] is True


def test_both_that_pass_are_both_there(int8: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = int8(0.0)
    ran = run_command("gate", bundle.path, "--pack", tmp_path / "x.pack")
    assert ran.code == 0 and "simulation    passed" in ran.out and "differs" not in ran.out
    assert open_bundle(bundle.path).read_json("gate.json")["simulation"]["passed"] is True


def test_what_failed_in_simulation_and_passes_on_the_device_says_so(
    int8: Callable[..., Bundle], tmp_path: Path
) -> None:
    bundle = int8(0.0)
    twins_trt.gate(bundle, pack=tmp_path / "x.pack", engine="onnxruntime", limit=3)  # too few images
    ran = run_command("gate", bundle.path, "--pack", tmp_path / "x.pack")
    assert ran.code == 0 and open_bundle(bundle.path).manifest.gate == "passed"
    assert "differs       it failed in simulation with a drop of +0.000 points and passes on Orin (sm_87)" in ran.out


def test_other_limits_are_not_taken_for_another_device(int8: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = int8(0.0)
    few = GateRequest(min_images=3, max_drop=1.0)
    twins_trt.gate(bundle, pack=tmp_path / "x.pack", engine="onnxruntime", limit=3, more=few)
    found = twins_trt.gate(bundle.path, pack=tmp_path / "x.pack", limit=3)
    assert not found.passed and found.contradiction is not None
    assert found.contradiction.endswith(
        "with +0.000; then 1 points at most, 98.5 % of pixels and 3 images at least were asked for, "
        "and now 0.5 points at most, 98.5 % of pixels and 30 images at least"
    )


def test_the_limits_of_a_bundles_verdict_as_words(int8: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = int8(0.0)
    assert limit_words(bundle) == ()
    twins_trt.gate(bundle, pack=tmp_path / "x.pack", max_drop=1.25, more=GateRequest(min_images=3, min_agreement=0.5))
    words = limit_words(open_bundle(bundle.path))
    assert words == ("--max-drop", "1.25", "--min-images", "3", "--min-agreement", "0.5")
    assert run_command("gate", bundle.path, "--pack", tmp_path / "x.pack", *words).code == 0
    for damaged in (b"[]", b'{"thresholds": {"max_drop": "x"}}', b"{}"):
        amend_bundle(open_bundle(bundle.path), {"gate.json": damaged})
        assert limit_words(open_bundle(bundle.path)) == ()


def test_a_simulation_does_not_replace_what_was_measured(
    int8: Callable[..., Bundle], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = int8(60_000.0)
    twins_trt.gate(bundle, pack=tmp_path / "x.pack")
    measured = open_bundle(bundle.path).read_json("gate.json")
    again = twins_trt.gate(bundle.path, pack=tmp_path / "x.pack", engine="onnxruntime")
    assert again.passed and again.simulated and again.simulation is None
    kept = open_bundle(bundle.path)
    assert kept.read_json("gate.json") == measured and kept.manifest.gate == "failed"
    assert any("keeps its verdict, which was measured on Orin (sm_87)" in text for text in caplog.messages)


@pytest.mark.parametrize(
    "change",
    [
        lambda gate: gate.update(graph_sha256="0" * 64),
        lambda gate: gate.pop("drop"),
        lambda gate: gate.update(passed="yes"),
        lambda gate: gate.update(simulated=None),
    ],
)
def test_a_simulation_of_another_graph_or_unreadable_is_not_kept(
    int8: Callable[..., Bundle], tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    bundle = int8(0.0)
    gate = bundle.read_json("gate.json")
    change(gate)
    amend_bundle(bundle, {"gate.json": json.dumps(gate).encode()})
    result = twins_trt.gate(bundle.path, pack=tmp_path / "x.pack")
    assert result.passed and result.simulation is None
