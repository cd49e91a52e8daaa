"""`twins-trt gate --against`: exit codes, text and JSON, alone and beside the verdict on accuracy."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Twins

from tests.builders.gate.packs import tiny_pack, write_images
from tests.builders.gate.speed_pairs import heavy_graph, renamed, with_graph
from tests.tiny_graphs import FOR_CPUS, MakeBundle
from twins_trt.profiling.speed import SPEED, SpeedVerdict, read_speed
from twins_trt.runtime import Bundle, open_bundle
from twins_trt.runtime.bundle import amend_bundle
from twins_trt.runtime.manifest import PACK

QUICK = ("--rounds", "8", "--calls", "5", "--warm-up", "0", "--threads", "1")


@pytest.fixture
def light_and_heavy(make_bundle: MakeBundle) -> tuple[Bundle, Bundle]:
    """Two bundles of the same masks, the second one many times as slow; both have passed their gates."""
    light = make_bundle(gate="passed", rebuild=FOR_CPUS)
    graph = heavy_graph(light.graph.read_bytes())
    heavy = with_graph(light, graph, "heavy.bundle")
    return light, heavy


def test_the_faster_bundle_passes_and_holds_the_verdict(twins: Twins, light_and_heavy: tuple[Bundle, Bundle]) -> None:
    light, heavy = light_and_heavy
    ran = twins("gate", light.path, "--against", heavy.path, *QUICK, "--json")
    assert ran.code == 0, ran.err
    assert set(ran.json) == {"speed"}
    found = SpeedVerdict.from_json(ran.json["speed"])
    assert found == read_speed(open_bundle(light.path))
    assert (found.passed, found.ship, found.min_speedup) == (True, light.path.name, 1.0)
    assert (found.options.rounds, found.options.calls, found.options.threads) == (8, 5, 1)
    inspected = twins("inspect", light.path)
    assert "speed      passed: " in inspected.out
    value = twins("inspect", light.path, "--json").json["speed"]
    assert (value["passed"], value["outdated"]) == (True, None)


def test_the_slower_bundle_fails_with_3_and_the_advice(twins: Twins, light_and_heavy: tuple[Bundle, Bundle]) -> None:
    light, heavy = light_and_heavy
    ran = twins("gate", heavy.path, "--against", light.path, *QUICK)
    assert ran.code == 3
    assert f"speed         FAILED: heavy.bundle against {light.path.name}" in ran.out
    assert f"advice        ship {light.path.name}: it is faster than heavy.bundle" in ran.out
    assert "note          nothing waited for steady clocks" in ran.out
    assert SPEED in open_bundle(heavy.path).files


def test_too_small_a_gain_fails_as_json_too(twins: Twins, light_and_heavy: tuple[Bundle, Bundle]) -> None:
    light, heavy = light_and_heavy
    ran = twins("gate", light.path, "--against", heavy.path, "--min-speedup", "1e6", *QUICK, "--json")
    assert ran.code == 3
    assert (ran.json["speed"]["passed"], ran.json["speed"]["min_speedup"]) == (False, 1e6)


@pytest.mark.parametrize(
    ("accurate", "faster", "code"), [(True, True, 0), (False, True, 3), (True, False, 3), (False, False, 3)]
)
def test_both_verdicts_count(
    twins: Twins, make_bundle: MakeBundle, tmp_path: Path, accurate: bool, faster: bool, code: int
) -> None:
    """Accuracy is judged on a pack of the tiny graph's own answers; with too few images it fails."""
    light = make_bundle()
    heavy = with_graph(light, heavy_graph(light.graph.read_bytes()), "heavy.bundle")
    pack = tiny_pack(tmp_path / "tiny.pack", write_images(tmp_path / "images", images=3, size=(24, 32)), light)
    ours, theirs = (light, heavy) if faster else (heavy, light)
    images = ("--min-images", "3" if accurate else "4")
    ran = twins("gate", ours.path, "--pack", pack, *images, "--against", theirs.path, *QUICK, "--json")
    assert ran.code == code, ran.err
    assert (ran.json["passed"], ran.json["speed"]["passed"]) == (accurate, faster)
    bundle = open_bundle(ours.path)
    assert {"gate.json", SPEED} <= set(bundle.files)
    # The advice goes by what the gate has just found.
    assert ran.json["speed"]["ours"]["gate"] == bundle.manifest.gate == ("passed" if accurate else "failed")
    text = twins("gate", ours.path, "--pack", pack, *images, "--against", theirs.path, *QUICK).out
    assert text.index("gate          ") < text.index("\n\nspeed         ")


def test_a_dry_run_times_nothing(twins: Twins, light_and_heavy: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    light, heavy = light_and_heavy
    ran = twins("gate", light.path, "--against", heavy.path, "--min-speedup", "1.1", "--rounds", "9", "--dry-run")
    assert ran.code == 0
    assert ran.out.startswith(f"{light.path.name} and heavy.bundle would be timed on onnxruntime, 9 rounds of 5 calls")
    pack = tiny_pack(tmp_path / "tiny.pack", write_images(tmp_path / "images", images=3, size=(24, 32)), light)
    words = ("gate", light.path, "--against", heavy.path, "--pack", pack, "--dry-run", "--json")
    said = twins(*words).json
    assert (said["dry_run"], said["images"], said["speed"]["against"]) == (True, 3, "heavy.bundle")
    assert said["speed"]["simulated"] is False and said["speed"]["engines"] == ["onnxruntime"] * 2
    assert open_bundle(light.path).files == ("graph.onnx",)


def test_a_pack_in_the_bundle_is_left_alone(
    twins: Twins, light_and_heavy: tuple[Bundle, Bundle], tmp_path: Path
) -> None:
    """Without --data and --pack only speed is judged, also where the bundle could be judged on a pack of its own."""
    light, heavy = light_and_heavy
    packed = renamed(light, "packed.bundle")
    pack = tiny_pack(tmp_path / "tiny.pack", write_images(tmp_path / "images", images=3, size=(24, 32)), packed)
    amend_bundle(packed, {PACK: pack})
    ran = twins("gate", packed.path, "--against", heavy.path, *QUICK, "--json")
    assert (ran.code, set(ran.json)) == (0, {"speed"})
    assert "gate.json" not in open_bundle(packed.path).files


@pytest.mark.parametrize(
    ("words", "says", "fix"),
    [
        (("--min-speedup", "2"), "--min-speedup is of the comparison", "--against OTHER.bundle"),
        (("--rounds", "20"), "--rounds is of the comparison", "--against OTHER.bundle"),
        (("--against", "x.bundle", "--rounds", "5"), "--rounds is 5, too few", "give at least 6"),
        (("--against", "x.bundle", "--max-drop", "1"), "--max-drop is of the verdict on accuracy", "--pack FILE"),
        (("--against", "x.bundle", "--checkpoint", "F"), "--checkpoint is of the verdict", "leave --checkpoint out"),
        (("--against", "none.bundle"), "none.bundle does not exist", "twins-trt build"),
        (("--against", "{bundle}"), "is named twice", "--against OTHER.bundle"),
    ],
)
def test_wrong_words_are_named(
    twins: Twins, make_bundle: MakeBundle, words: tuple[str, ...], says: str, fix: str
) -> None:
    bundle = make_bundle()
    ran = twins("gate", bundle.path, *(word.format(bundle=bundle.path) for word in words))
    assert ran.code in (1, 2)
    assert says in ran.err and fix in ran.err.partition("fix:")[2]
    assert open_bundle(bundle.path).files == ("graph.onnx",)


def test_a_damaged_verdict_does_not_hide_the_rest(twins: Twins, make_bundle: MakeBundle) -> None:
    bundle = amend_bundle(make_bundle(), {SPEED: b'{"format_version": 9}'})
    ran = twins("inspect", bundle.path)
    assert ran.code == 0
    assert "cannot be read: speed.json: format_version is 9" in ran.out and "onnxruntime: yes" in ran.out
