"""A verdict that a device measured is of one engine: with another engine it counts no more, and says so."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import run_command
from packs import MakeJetsonBundle, tiny_pack

import twins_trt
from twins_trt.builders.gate.shipping import advise
from twins_trt.profiling.results import Ratio
from twins_trt.report.blocks import Code, Note
from twins_trt.report.inputs import read_inputs
from twins_trt.report.page import build_page
from twins_trt.runtime import Bundle, EngineFile, Segmenter, open_bundle
from twins_trt.runtime.bundle import amend_bundle
from twins_trt.runtime.judged import gate_outdated, judge_again
from twins_trt.runtime.manifest import PACK

ENGINE, NEWER = "engines/tensorrt.engine", "engines/tensorrt-10.16.1.11-sm_87.engine"
OF_ANOTHER = f"it is of {ENGINE}, and {NEWER} runs here"


@pytest.fixture
def judged(jetson: Callable[..., None], jetson_bundle: MakeJetsonBundle, labelled: str, tmp_path: Path) -> Any:
    """judged(bias): an INT8 bundle that this Jetson has judged on x.pack, with TensorRT 10.3."""

    def make(bias: float = 0.0, **request: Any) -> Bundle:
        jetson("10.3.0")
        bundle = jetson_bundle(bias=bias, precision="int8")
        pack = tiny_pack(tmp_path / "x.pack", labelled, bundle)
        twins_trt.gate(bundle, pack=pack, **request)
        return open_bundle(bundle.path)

    return make


def upgraded(bundle: Bundle, jetson: Callable[..., None], *, prune: bool = False) -> Bundle:
    """The bundle with an engine for a newer TensorRT, which is installed now; the old one stays unless it is pruned."""
    jetson("10.16.1.11")
    serialized = bundle.file(ENGINE).read_bytes().replace(b"10.3.0", b"10.16.1.11")
    newer = EngineFile(NEWER, "tensorrt", "10.16.1.11", ("sm_87",))
    engines = (newer,) if prune else (*bundle.engines, newer)
    return amend_bundle(
        bundle,
        {NEWER: serialized},
        change=lambda manifest: replace(manifest, engines=engines, files=()),
        remove={ENGINE} if prune else (),
    )


def test_a_device_names_the_engine_that_it_judged_and_a_cpu_none(judged: Callable[..., Bundle]) -> None:
    bundle = judged()
    (entry,) = (each for each in bundle.manifest.files if each.path == ENGINE)
    found = bundle.read_json("gate.json")
    assert (found["file"], found["file_sha256"], found["simulated"]) == (ENGINE, entry.sha256, False)
    assert gate_outdated(bundle) is None


def test_a_simulation_is_of_the_graph_and_stays(judged: Callable[..., Bundle], jetson: Callable[..., None]) -> None:
    bundle = judged(engine="onnxruntime")
    found = bundle.read_json("gate.json")
    assert (found["file"], found["file_sha256"], found["simulated"]) == (None, None, True)
    assert gate_outdated(upgraded(bundle, jetson, prune=True)) is None


@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize("bias", [0.0, 60_000.0])
def test_after_an_upgrade_it_counts_no_more_and_the_status_stays(
    judged: Callable[..., Bundle], jetson: Callable[..., None], bias: float, prune: bool
) -> None:
    status = "failed" if bias else "passed"
    bundle = upgraded(judged(bias), jetson, prune=prune)
    why = f"{ENGINE} is no longer in the bundle" if prune else OF_ANOTHER
    assert bundle.manifest.gate == status and gate_outdated(bundle) == why
    text = run_command("inspect", bundle.path).out
    assert f"counts no more ({why}), was {status}: drop " in text
    assert f"judge it again, on the device: {judge_again(bundle)}" in text
    assert run_command("inspect", bundle.path, "--json").json["gate"]["outdated"] == why
    page = build_page(read_inputs(bundle.path))
    assert (page.gate, page.mood) == (f"gate {status}, counts no more", "bad" if bias else "warn")
    (section,) = (each for each in page.sections if each.key == "gate")
    first, command = section.blocks[:2]
    assert isinstance(first, Note) and first.text.startswith(f"This verdict counts no more: {why}.")
    assert isinstance(command, Code) and command.text == judge_again(bundle)


def test_where_the_old_engine_runs_it_still_counts(judged: Callable[..., Bundle], jetson: Callable[..., None]) -> None:
    bundle = upgraded(judged(), jetson)
    jetson("10.3.0")
    assert gate_outdated(bundle) is None
    page = build_page(read_inputs(bundle.path))
    assert (page.gate, page.mood) == ("gate passed", "good")
    assert "counts no more" not in run_command("inspect", bundle.path).out


def test_judging_again_makes_it_count(
    judged: Callable[..., Bundle], jetson: Callable[..., None], tmp_path: Path
) -> None:
    bundle = upgraded(judged(max_drop=1.25), jetson)
    again = judge_again(bundle)
    assert again == f"twins-trt gate {bundle.path} --pack FILE --max-drop 1.25 --min-images 30 --min-agreement 0.985"
    words = again.replace("FILE", str(tmp_path / "x.pack")).split()[1:]
    assert run_command(*words).code == 0
    now = open_bundle(bundle.path)
    assert gate_outdated(now) is None and now.read_json("gate.json")["file"] == NEWER
    assert now.read_json("gate.json")["thresholds"]["max_drop"] == 1.25
    packed = amend_bundle(now, {PACK: tmp_path / "x.pack"})
    assert f" --pack {packed.path}/{PACK} " in judge_again(packed)


def test_an_engine_compiled_again_in_place_is_another(judged: Callable[..., Bundle]) -> None:
    bundle = judged()
    again = amend_bundle(bundle, {ENGINE: bundle.file(ENGINE).read_bytes() + b"\0"})
    assert gate_outdated(again) == f"{ENGINE} was replaced since"


def test_int8_that_passed_with_another_engine_warns_when_it_runs(
    judged: Callable[..., Bundle], jetson: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    bundle = judged()
    caplog.set_level(logging.WARNING, "twins_trt")
    with Segmenter(bundle):
        assert not any("counts no more" in text for text in caplog.messages)
    newer = upgraded(bundle, jetson)
    with Segmenter(newer):
        expected = f"{bundle.path} is INT8 and its verdict counts no more: {OF_ANOTHER}; judge it: {judge_again(newer)}"
        assert expected in caplog.messages
    caplog.clear()
    pruned = upgraded(newer, jetson, prune=True)
    with Segmenter(pruned, "onnxruntime"):  # runs the graph, of which the verdict is not
        assert not any("counts no more" in text for text in caplog.messages)


def test_what_failed_still_says_so_with_another_engine(
    judged: Callable[..., Bundle], jetson: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    newer = upgraded(judged(60_000.0), jetson, prune=True)
    with Segmenter(newer):
        assert f"{newer.path} failed its accuracy gate" in caplog.messages


def test_a_file_of_an_earlier_version_is_read(judged: Callable[..., Bundle], jetson: Callable[..., None]) -> None:
    bundle = judged()
    earlier = bundle.read_json("gate.json")
    del earlier["file"], earlier["file_sha256"]
    bundle = upgraded(amend_bundle(bundle, {"gate.json": json.dumps(earlier).encode()}), jetson, prune=True)
    assert gate_outdated(bundle) is None
    assert "passed: drop " in run_command("inspect", bundle.path).out
    assert build_page(read_inputs(bundle.path)).gate == "gate passed"


def test_files_that_cannot_be_read_are_no_verdict(judged: Callable[..., Bundle]) -> None:
    bundle = judged()
    for damaged in (b"[]", b"{", b'{"file": 3, "thresholds": 1}'):
        damage = amend_bundle(open_bundle(bundle.path), {"gate.json": damaged})
        assert gate_outdated(damage) is None
        assert judge_again(damage) == f"twins-trt gate {bundle.path} --pack FILE"


def test_another_graph_is_not_what_was_judged(judged: Callable[..., Bundle]) -> None:
    bundle = judged()
    found = bundle.read_json("gate.json") | {"graph_sha256": "0" * 64}
    other = amend_bundle(bundle, {"gate.json": json.dumps(found).encode()})
    assert gate_outdated(other) == "the graph was replaced since"


def test_the_advice_what_to_ship_says_that_a_verdict_counts_no_more(
    judged: Callable[..., Bundle], jetson: Callable[..., None]
) -> None:
    bundle = judged()
    ratio = Ratio("int8", "fp16", "call", 1.5, 1.4, 1.6, 5)
    assert "no more" not in advise(("int8", bundle), ("fp16", bundle), passed=True, ratio=ratio)[1]
    newer = upgraded(bundle, jetson)
    _, advice = advise(("int8", newer), ("fp16", newer), passed=True, ratio=ratio)
    assert f"its accuracy verdict counts no more ({OF_ANOTHER}), judge it here: {judge_again(newer)}" in advice
