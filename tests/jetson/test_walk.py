"""A checkpoint's way to a Jetson: built on the desktop, compiled, judged, compared, profiled and used on the device.

Once with the demo's checkpoint and drawn scenes, and once with the CamVid checkpoint, on TensorRT of each version.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx_graphsurgeon")
pytest.importorskip("onnxruntime")
pytest.importorskip("vermin")

from desktop import SIZE, Built, Subject, build, shrunk
from environment import JETPACKS
from PIL import Image
from python310 import newer_than_310
from simulation import ROUNDS, MakeJetson, SimulatedJetson

from twins_trt.runtime import RuntimeOptions, Segmenter

pytestmark = pytest.mark.slow
FEW = ("--min-images", "8", "--max-drop", "50")  # eight images cannot show more


@pytest.fixture(scope="session")
def trained(camvid: Path, camvid_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The CamVid checkpoint with eight images, at a small size."""
    photos = shrunk(camvid / "val" / "images", tmp_path_factory.mktemp("photos"))
    build = (*SIZE, "--gate-limit", "8")
    return Subject("camvid", camvid_checkpoint, f"camvid:{camvid}", photos, build, FEW)


@pytest.fixture(params=["demo", pytest.param("trained", marks=pytest.mark.shared)])
def subject(request: pytest.FixtureRequest) -> Subject:
    made: Subject = request.getfixturevalue(request.param)
    return made


@pytest.fixture(params=JETPACKS)
def device(request: pytest.FixtureRequest, jetson: MakeJetson) -> SimulatedJetson:
    return jetson(request.param)


@pytest.fixture
def built(of_the_run: Path, subject: Subject, device: SimulatedJetson) -> Built:
    """The bundles for the JetPack of the device, or for the oldest of the same GPU after JetPack 6.0."""
    jetpack = JETPACKS["10.13.3.9"] if device.jetpack.gpu == "Thor" else device.jetpack
    return build(of_the_run / f"{subject.name}-{jetpack.release}", subject, jetpack)


def test_the_whole_way(device: SimulatedJetson, subject: Subject, built: Built) -> None:
    disk = device.folder
    for name in ("road.tar", "other.tar", "road.pack"):
        device.copy(built.folder / name)
    photos = [device.copy(photo, "photos") for photo in subject.photos]

    for name in ("road", "other"):
        done = device.twins("compile", f"{name}.tar")
        assert done.code == 0, done.err
        compiled = json.loads((disk / f"{name}.bundle" / "manifest.json").read_text())
        (engine,) = compiled["engines"]
        assert (engine["flavour"], engine["version"]) == ("tensorrt", device.tensorrt)
        assert engine["targets"] == [device.jetpack.target] and "awaits" not in compiled
    audits = json.loads((disk / "road.bundle" / "audit.json").read_text())["engines"]
    (audit,) = (each["audit"] for each in audits if each["file"] is not None)
    if device.tensorrt.startswith("8."):  # does not list what it fuses
        assert audit["opaque"] and not audit["unfused_attentions"]
    else:
        assert audit["attentions"] == audit["expected_attentions"] > 0
    again = device.twins("compile", "road.bundle", "--json")
    assert (again.code, again.json["compiled"]) == (0, False)

    judged = device.twins("gate", "road.bundle", *subject.gate, "--json")
    assert judged.code == 0, judged.out + judged.err
    found = judged.json
    assert (found["passed"], found["simulated"], found["engine"]) == (True, False, "tensorrt")
    assert device.jetpack.gpu in found["measured_on"] and device.jetpack.target in found["measured_on"]
    on_desktop = json.loads((built.folder / "road.bundle" / "gate.json").read_text())
    assert on_desktop["simulated"] is True
    for field in ("drop", "agreement", "images", "scores", "reference", "worst"):
        assert found[field] == on_desktop[field], field
    assert json.loads((disk / "road.bundle" / "manifest.json").read_text())["gate"] == "passed"
    other = device.twins("gate", "other.bundle", "--pack", "road.pack", *subject.gate, "--json")
    assert (other.code, other.json["precision"]) == (0, built.other), other.err

    faster = device.twins("gate", "road.bundle", "--against", "other.bundle", *ROUNDS, "--json")
    assert faster.code == 0, faster.out + faster.err

    profiled = device.twins("profile", "road.bundle", "--save", "--rounds", "2", "--calls", "2", "--json")
    assert profiled.code == 0, profiled.err
    assert (disk / "road.bundle" / "profile.json").is_file()

    predicted = device.twins("predict", "road.bundle", "photos", "--out", "masks", "--json")
    assert predicted.code == 0, predicted.err
    with Segmenter(built.folder / "road.bundle", engine="onnxruntime", options=RuntimeOptions(threads=1)) as segmenter:
        for photo in photos:
            (mask,) = disk.glob(f"masks/{photo.stem}*mask*.png")
            assert np.array_equal(np.asarray(Image.open(mask)), segmenter(photo).mask)

    inspected = device.twins("inspect", "road.bundle", "--json")
    assert inspected.code == 0, inspected.err
    for command in ("compile", "gate", "profile", "predict"):
        ready = device.twins("doctor", "--for", command, "--json")
        assert (ready.code, ready.json["ready"]) == (0, True), command

    files = device.package_files()
    assert len(files) > 80 and not newer_than_310(files)
