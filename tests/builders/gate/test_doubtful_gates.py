"""Gates whose reference is doubtful, or whose masks agree too little: verdict, words, packs and what reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run_command
from packs import CLASSES, MakeJetsonBundle, tiny_pack, write_images
from PIL import Image
from tiny_graphs import MakeBundle

import twins_trt
from twins_trt.builders.gate import GateResult, Thresholds, open_pack
from twins_trt.builders.gate.options import MIN_AGREEMENT, limit_words
from twins_trt.builders.gate.shipping import advise, gate_command
from twins_trt.profiling.results import Ratio
from twins_trt.report.inputs import read_inputs
from twins_trt.report.page import build_page
from twins_trt.runtime import Bundle, open_bundle
from twins_trt.runtime.bundle import amend_bundle
from twins_trt.runtime.judged import grounds_of, judge_again
from twins_trt.verbs.gate import GateRequest

RECORDED = 62.0  # about what the tiny graphs reach on the images of `write_images`


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_images(tmp_path_factory.mktemp("honest"), size=(24, 32))


@pytest.fixture(scope="module")
def shuffled(honest: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same images with the labels of their neighbours."""
    source, folder = Path(honest.removeprefix("folder:")), tmp_path_factory.mktemp("shuffled")
    (folder / "labels").mkdir()
    (folder / "images").symlink_to(source / "images")
    (folder / "classes.txt").symlink_to(source / "classes.txt")
    labels = sorted((source / "labels").iterdir())
    for label, other in zip(labels, [*labels[1:], labels[0]], strict=True):
        (folder / "labels" / label.name).symlink_to(other)
    return f"folder:{folder}"


def judged(bundle: Bundle, data: str, folder: Path, *, name: str = "x.pack", **fields: Any) -> GateResult:
    path = folder / name
    return twins_trt.gate(bundle.path, pack=path if path.exists() else tiny_pack(path, data, bundle), **fields)


@pytest.mark.parametrize("recorded", [RECORDED, None])
def test_a_doubtful_reference_fails_however_well_the_engine_follows_it(
    make_bundle: MakeBundle, honest: str, shuffled: str, tmp_path: Path, recorded: float | None
) -> None:
    bundle = make_bundle(miou=recorded)
    fine = judged(bundle, honest, tmp_path, name="honest.pack")
    assert fine.passed and fine.reference_check is not None and fine.reference_check.recorded == recorded
    found = judged(bundle, shuffled, tmp_path)
    assert found.agreement == 1 and found.drop.high == 0 and not found.passed
    (reason,) = found.reasons
    assert reason.startswith("reference doubtful: its ")
    assert open_bundle(bundle.path).manifest.gate == "failed"
    kept = open_bundle(bundle.path).read_json("gate.json")
    assert kept["reference_check"]["grounds"] == list(grounds_of(kept)) and grounds_of(kept)
    assert f"reference     doubtful: {grounds_of(kept)[0]}" in found.table()
    assert "likely cause  the labels are of other images, or of another split" in found.table()
    assert found.refused_reference is not None and found.accepted_reference is None


def test_the_command_ends_with_3_and_takes_an_accepted_reference(
    make_bundle: MakeBundle, shuffled: str, tmp_path: Path
) -> None:
    bundle = make_bundle(miou=RECORDED)
    pack = tiny_pack(tmp_path / "x.pack", shuffled, bundle)
    ran = run_command("gate", bundle.path, "--pack", pack)
    assert ran.code == 3 and "reason        reference doubtful: its mIoU is" in ran.out
    assert "because reference doubtful: its mIoU is" in run_command("inspect", bundle.path).out
    assert "Likely cause: the labels are of other images" in str(build_page(read_inputs(bundle.path)))
    accepted = run_command("gate", bundle.path, "--pack", pack, "--accept-reference")
    assert accepted.code == 0 and ", accepted\n" in accepted.out and "reason " not in accepted.out
    assert "a doubtful reference, accepted" in run_command("inspect", bundle.path).out
    assert "The reference is doubtful, and was accepted" in str(build_page(read_inputs(bundle.path)))
    again = twins_trt.gate(bundle.path, pack=pack, accept_reference=True)
    assert again.passed and again.accepted_reference is not None and again.refused_reference is None
    judged_now = open_bundle(bundle.path)
    assert limit_words(judged_now) == ("--accept-reference",)
    assert judge_again(judged_now).endswith(" --accept-reference")
    assert gate_command(judged_now).endswith(" --pack FILE --accept-reference")


def test_the_advice_what_to_ship_tells_a_doubtful_reference_from_an_engine_that_failed(
    make_bundle: MakeBundle, honest: str, shuffled: str, tmp_path: Path
) -> None:
    ratio = Ratio("int8", "fp16", "call", 2.0, 1.9, 2.1, 20)
    bundle, other = make_bundle(miou=RECORDED, precision="int8"), make_bundle(precision="fp16")
    assert judged(other, honest, tmp_path, name="honest.pack").passed
    judged(bundle, shuffled, tmp_path)

    def advice() -> str:
        sides = [(name, open_bundle(each.path)) for name, each in (("int8", bundle), ("fp16", other))]
        return advise(sides[0], sides[1], passed=True, ratio=ratio)[1]

    assert "but it has not passed, for a doubtful reference, its accuracy gate" in advice()
    few = {"accept_reference": True, "more": GateRequest(min_images=99)}
    assert not judged(bundle, shuffled, tmp_path, **few).passed
    assert "but it has failed its accuracy gate" in advice()


def test_a_pack_carries_what_was_recorded_and_labels_of_no_class(
    make_bundle: MakeBundle, honest: str, shuffled: str, tmp_path: Path
) -> None:
    """A bundle of an earlier version does not say what its checkpoint recorded; the pack does."""
    import packs

    plain = make_bundle()
    assert open_pack(tiny_pack(tmp_path / "silent.pack", honest, plain)).miou is None
    head = json.loads(packs.members(tmp_path / "silent.pack")["pack.json"])
    unsaid = {"miou", "threshold", "reduce_zero_label", "ignore_index", "outside", "highest"}
    assert not unsaid & {*head, *head["images"][0]} and set(head["source"]) == {"checkpoint", "sha256", "seeded"}
    images = packs.nearest_images(shuffled, plain.interface)
    images.miou = RECORDED
    with packs.packing(tmp_path / "x.pack", images, packs.PackKey.of_bundle(plain), limit=None) as written:
        for _ in written:
            pass
    found = twins_trt.gate(plain, pack=tmp_path / "x.pack", record=False)
    assert found.reference_check is not None and found.reference_check.recorded == RECORDED and not found.passed

    strange = write_images(tmp_path / "strange", size=(24, 32))
    (tmp_path / "strange" / "classes.txt").unlink()
    for path in (tmp_path / "strange" / "labels").iterdir():
        label = np.asarray(Image.open(path))
        Image.fromarray(np.where(label == 255, 255, label + 1).astype(np.uint8)).save(path)
    with_data = twins_trt.builders.gate.gate_bundle(plain, packs.nearest_images(strange, plain.interface))
    from_pack = judged(plain, strange, tmp_path, name="strange.pack", record=False)
    assert from_pack.reference_check == with_data.reference_check and from_pack.reasons == with_data.reasons
    check = from_pack.reference_check
    assert check is not None and check.highest == CLASSES and 0.1 < check.outside < 0.3
    assert "are of no class of the model: labels reach 5, and its classes are 0 to 4" in from_pack.reasons[0]
    assert check.causes[0].startswith("0 in the labels means no class")


def test_a_device_finds_the_same_doubt(
    jetson: Callable[..., None], jetson_bundle: MakeJetsonBundle, make_bundle: MakeBundle, shuffled: str, tmp_path: Path
) -> None:
    cpu = judged(make_bundle(miou=RECORDED), shuffled, tmp_path, record=False)
    jetson("10.3.0")
    device = judged(jetson_bundle("10.3.0", miou=RECORDED), shuffled, tmp_path, record=False)
    assert device.engine == "tensorrt" and not device.simulated
    assert device.reference_check == cpu.reference_check and device.reasons == cpu.reasons


@pytest.mark.parametrize(("precision", "floor"), [("fp32", 99.5), ("fp16", 99.5), ("int8", 98.5)])
def test_agreement_has_a_floor_by_default(
    jetson: Callable[..., None],
    jetson_bundle: MakeJetsonBundle,
    honest: str,
    tmp_path: Path,
    precision: str,
    floor: float,
) -> None:
    assert MIN_AGREEMENT[precision] == floor / 100
    jetson("10.3.0")
    bundle = jetson_bundle("10.3.0", bias=8_000.0, precision=precision)
    loose = GateRequest(max_drop=100.0)
    found = judged(bundle, honest, tmp_path, more=loose)
    assert found.agreement < 0.985 and found.reasons == (
        f"{100 * found.agreement:.3f} % of the pixels agree, {floor:g} % are asked for until more builds are measured",
    )
    assert f" %, at least {floor:g} % asked for, until more builds are measured\n" in found.table()
    assert limit_words(open_bundle(bundle.path)) == ("--max-drop", "100.0")
    off = judged(bundle, honest, tmp_path, more=replace(loose, min_agreement=0.0))
    assert off.passed and "asked for" not in off.table()
    assert limit_words(open_bundle(bundle.path)) == ("--max-drop", "100.0", "--min-agreement", "0.0")
    own = judged(bundle, honest, tmp_path, more=replace(loose, min_agreement=0.999))
    assert own.reasons == (f"{100 * own.agreement:.3f} % of the pixels agree, 99.9 % are asked for",)
    equal = judged(jetson_bundle("10.3.0", precision=precision), honest, tmp_path, name="y.pack")
    assert equal.passed and equal.agreement == 1


def test_a_verdict_of_an_earlier_version_is_read_and_asks_for_the_default(
    make_bundle: MakeBundle, honest: str, tmp_path: Path
) -> None:
    bundle = make_bundle()
    judged(bundle, honest, tmp_path, max_drop=2.0)
    old = open_bundle(bundle.path).read_json("gate.json")
    del old["reference_check"], old["thresholds"]["accept_reference"]
    old["thresholds"]["min_agreement"] = None
    amend_bundle(open_bundle(bundle.path), {"gate.json": json.dumps(old).encode()})
    opened = open_bundle(bundle.path)
    assert limit_words(opened) == ("--max-drop", "2.0") and "--min-agreement" not in judge_again(opened)
    assert grounds_of(old) == () and "passed in simulation: drop" in run_command("inspect", bundle.path).out
    assert "Passed." in str(build_page(read_inputs(bundle.path)))
    assert Thresholds.of("int8").min_agreement == 0.985 and Thresholds.of("int8", min_agreement=0.0).min_agreement == 0


def test_random_weights_are_judged_by_the_engine_alone(make_bundle: MakeBundle, shuffled: str, tmp_path: Path) -> None:
    from twins_trt.models.source import Source

    found = judged(make_bundle(source=Source(seeded=True)), shuffled, tmp_path, record=False)
    assert found.passed and found.seeded and "reference     of random weights" in found.table()
