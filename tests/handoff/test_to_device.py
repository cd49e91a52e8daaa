"""What a device gets: the least that runs there, as a bundle that opens, and nothing that does not belong to it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kills import killed
from small_packs import write_pack
from stand_ins import ADA, ORIN, RTX
from tiny_graphs import CLASSES, PALETTE, PROTOTYPES, MakeBundle, UInt8Array, nearest_class

from twins_trt.cli import main
from twins_trt.errors import BundleError, PackError, UsageError
from twins_trt.files import sha256_of
from twins_trt.handoff import HandoffOptions, resolve_handoff, write_handoff
from twins_trt.handoff.folder import Handoff
from twins_trt.runtime import Bundle, Segmenter, Source, open_bundle, write_bundle
from twins_trt.runtime.archive import unpack_bundle
from twins_trt.runtime.manifest import AwaitedEngine, EngineFile

AWAITED = AwaitedEngine("sm_87", "jetson-orin", "10.3")
STAYS = ("calibration.json", "fallback.json", "plan.json", "profile.json", "weights.pth")
AUDITS = [{"file": engine.file, "audit": {}} for engine in (RTX, ORIN, ADA)]
NEAREST: dict[str, Any] = {"file": None, "targets": ["sm_86"], "stands_for": ["sm_87"], "audit": {}}
PLACES = {"nodes": ["fc2"], "attentions": []}

MakeRoad = Callable[..., Bundle]


@pytest.fixture
def road(make_bundle: MakeBundle, tmp_path: Path) -> MakeRoad:
    """`road(engines=..., awaits=...)`: road.bundle, with everything that a build may write."""

    def make(engines: tuple[EngineFile, ...] = (), awaits: tuple[AwaitedEngine, ...] = (AWAITED,)) -> Bundle:
        small = make_bundle()
        files: dict[str, bytes | Path] = {"graph.onnx": small.graph.read_bytes()}
        files |= {name: name.encode() for name in (*STAYS, *(engine.file for engine in engines))}
        files["gate.json"] = b'{"passed": true, "simulated": true}'
        audits = [each for each in AUDITS if each["file"] in files]
        files["audit.json"] = json.dumps({"engines": [*audits, NEAREST], "int8": PLACES}).encode()
        manifest = replace(small.manifest, engines=engines, awaits=awaits, files=(), gate="passed")
        return write_bundle(tmp_path / "road.bundle", manifest, files)

    return make


def to_device(bundle: Bundle, **options: Any) -> Handoff:
    return resolve_handoff(bundle, "device", options=HandoffOptions(**options))


def audited(bundle: Bundle) -> list[str | None]:
    return [entry["file"] for entry in bundle.read_json("audit.json")["engines"]]


def test_a_device_that_compiles_gets_the_graph_and_what_its_engine_is_held_against(
    road: MakeRoad, tmp_path: Path
) -> None:
    whole = road()
    bundle = open_bundle(write_handoff(to_device(whole), tmp_path / "road-device"))
    assert bundle.files == ("audit.json", "gate.json", "graph.onnx")
    assert bundle.read_json("audit.json") == {"engines": [NEAREST], "int8": PLACES}
    assert (bundle.interface.classes, bundle.interface.palette) == (CLASSES, PALETTE)
    assert (bundle.manifest.awaits, bundle.manifest.gate) == ((AWAITED,), "passed")
    assert tuple(entry.path for entry in bundle.manifest.left_behind) == STAYS
    assert {**bundle.manifest.to_json(), "files": 0, "left_behind": 0} == {
        **whole.manifest.to_json(),
        "files": 0,
        "left_behind": 0,
    }


@pytest.mark.parametrize(
    ("wanted", "awaits", "files", "audits"),
    [
        ("auto", (AWAITED,), ["graph.onnx"], [None]),
        ("auto", (), [RTX.file, ORIN.file, ADA.file, "graph.onnx"], [RTX.file, ORIN.file, ADA.file, None]),
        ("graph", (), ["graph.onnx"], [None]),
        ("sm_87", (AWAITED,), [ORIN.file], [ORIN.file]),
        ("sm_120", (), [RTX.file], [RTX.file]),
        ("engines/ada.engine", (), [ADA.file], [ADA.file]),
        ("ada.engine", (), [ADA.file], [ADA.file]),
    ],
)
def test_which_of_graph_and_engines_travel(
    road: MakeRoad,
    tmp_path: Path,
    wanted: str,
    awaits: tuple[AwaitedEngine, ...],
    files: list[str],
    audits: list[str | None],
) -> None:
    whole = road((RTX, ORIN, ADA), awaits)
    bundle = open_bundle(write_handoff(to_device(whole, engine=wanted), tmp_path / "out"))
    assert bundle.files == tuple(sorted(["audit.json", "gate.json", *files]))
    assert [engine.file for engine in bundle.engines] == [file for file in files if file != "graph.onnx"]
    assert bundle.manifest.graph_sha256 == whole.manifest.graph_sha256
    assert audited(bundle) == audits
    with_graph = "graph.onnx" in files
    assert bundle.manifest.awaits == (awaits if with_graph else ())
    assert ("int8" in bundle.read_json("audit.json")) == with_graph


def test_an_engine_for_an_architecture_and_later_ones(road: MakeRoad, tmp_path: Path) -> None:
    ampere = replace(ADA, file="engines/ampere.engine", targets=("sm_80",), hardware_compatibility="ampere_plus")
    whole = road((ampere, ORIN), ())
    assert [engine.file for engine in to_device(whole, engine="sm_89").manifest.engines] == [ampere.file]  # type: ignore[union-attr]


def test_an_engine_that_is_not_there_is_named_with_what_travels_instead(road: MakeRoad) -> None:
    with pytest.raises(
        BundleError, match=r"no engine sm_87; its engines: engines/rtx.engine \(sm_86, sm_120\)"
    ) as error:
        to_device(road((RTX,)), engine="sm_87")
    assert error.value.fix == 'hand over the graph, which the device compiles: engine="graph"'


def test_a_bundle_that_came_without_its_graph_travels_on(road: MakeRoad, tmp_path: Path) -> None:
    whole = road((ORIN,), ())
    first = open_bundle(write_handoff(to_device(whole, engine="sm_87"), tmp_path / "first"))
    second = open_bundle(write_handoff(to_device(first), tmp_path / "second.tar").with_name("first"))
    assert second.manifest == first.manifest
    assert unpack_bundle(tmp_path / "second.tar") == tmp_path / "second.bundle"
    assert open_bundle(tmp_path / "second.bundle").manifest == first.manifest
    assert "graph.onnx" in [entry.path for entry in first.manifest.left_behind]
    with pytest.raises(BundleError, match=r"first holds no graph\.onnx: it did not travel") as error:
        to_device(first, engine="graph")
    assert error.value.fix is not None
    assert "twins-trt export-to device first --engine graph --out first.tar" in error.value.fix


@pytest.mark.parametrize("name", ["road.tar", "road.tar.gz", "my road.tgz"])
def test_folder_and_tar_hold_the_same_bundle_which_gives_the_same_masks(
    road: MakeRoad, tmp_path: Path, rng: np.random.Generator, name: str
) -> None:
    whole = road()
    picture = PROTOTYPES[rng.integers(0, 5, (24, 32))].astype(np.uint8)
    place = tmp_path / "device"
    folder = write_handoff(to_device(whole), place / "folder")
    tar = write_handoff(to_device(whole), place / name)
    unpacked = unpack_bundle(tar)
    assert sorted(path.name for path in place.iterdir()) == sorted(["folder", name, unpacked.name])
    assert open_bundle(unpacked).manifest == open_bundle(folder).manifest
    for path in (whole.path, folder, unpacked):
        with Segmenter(path, "onnxruntime") as segmenter:
            mask: UInt8Array = segmenter(picture).mask
        assert np.array_equal(mask, nearest_class(picture))


@pytest.mark.parametrize("name", ["road.zip", "road.tar.xz", "road.tar.ZST"])
def test_a_folder_is_not_called_like_an_archive(road: MakeRoad, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="a bundle is not packed as") as error:
        write_handoff(to_device(road()), tmp_path / name)
    assert error.value.fix == "name a file that ends in .tar, .tar.gz or .tgz, or a folder"
    assert not (tmp_path / name).exists()


def test_a_graph_for_cpus_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    import onnx

    bundle = make_bundle(engines=(ORIN,))
    model = onnx.load(bundle.graph)
    onnx.helper.set_model_props(model, {"twins_trt.info": json.dumps({"options": {"forms": "cpu"}})})
    files: dict[str, bytes | Path] = {"graph.onnx": model.SerializeToString(), ORIN.file: b"engine"}
    bundle = write_bundle(tmp_path / "cpu.bundle", replace(bundle.manifest, files=()), files)
    with pytest.raises(BundleError, match="written for CPUs, and a device runs it on a GPU") as error:
        to_device(bundle)
    assert error.value.fix is not None and "--target" in error.value.fix


# The pack of the gate


def test_a_pack_goes_along_and_travels_on(road: MakeRoad, tmp_path: Path) -> None:
    whole = road()
    pack = write_pack(tmp_path / "my road.pack", whole)
    bundle = open_bundle(write_handoff(to_device(whole, pack=str(pack)), tmp_path / "device"))
    assert bundle.files == ("audit.json", "gate.json", "gate.pack", "graph.onnx")
    assert bundle.file("gate.pack").read_bytes() == pack.read_bytes()
    again = open_bundle(write_handoff(to_device(bundle), tmp_path / "again"))
    assert again.manifest == bundle.manifest


def test_a_pack_of_another_checkpoint_or_none_is_refused(road: MakeRoad, tmp_path: Path) -> None:
    whole = road()
    other = write_pack(tmp_path / "other.pack", whole, source=Source("tiny.pth", "cd" * 32))
    with pytest.raises(PackError, match=f"{'cd' * 32}"):
        to_device(whole, pack=str(other))
    (tmp_path / "text.pack").write_text("pack")
    for name in ("text.pack", "absent.pack"):
        with pytest.raises(PackError, match=name):
            to_device(whole, pack=str(tmp_path / name))


def test_other_programs_take_no_pack_and_a_device_no_options_of_theirs(road: MakeRoad) -> None:
    whole = road()
    for target in ("triton-server", "deepstream", "isaac-ros"):
        with pytest.raises(UsageError, match=f"{target} has no pack"):
            resolve_handoff(whole, target, options=HandoffOptions(pack="x"))
    for name, value in {"name": "x", "max_batch": 4, "instances": 2, "queue_delay": 9}.items():
        with pytest.raises(UsageError, match=f"a device has no {name.replace('_', ' ')}"):
            to_device(whole, **{name: value})


# The place


@pytest.mark.parametrize("name", ["road.bundle", "road.bundle/below", "road.bundle/below.tar"])
def test_the_bundle_itself_is_no_place(road: MakeRoad, tmp_path: Path, name: str) -> None:
    whole = road()
    with pytest.raises(BundleError, match="is the bundle that is handed over, or lies in it"):
        write_handoff(to_device(whole), tmp_path / name, overwrite=True)
    assert open_bundle(whole.path) == whole


@pytest.mark.parametrize("name", ["device", "device.tar"])
def test_only_a_bundle_is_overwritten_and_only_if_asked(road: MakeRoad, tmp_path: Path, name: str) -> None:
    handoff, out = to_device(road()), tmp_path / name
    write_handoff(handoff, out)
    with pytest.raises(BundleError, match="exists"):
        write_handoff(handoff, out)
    assert write_handoff(handoff, out, overwrite=True) == out
    precious = tmp_path / f"precious-{name}"
    precious.write_text("precious")
    with pytest.raises(BundleError, match="so it is not overwritten"):
        write_handoff(handoff, precious, overwrite=True)
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("name", ["device", "device.tar"])
@pytest.mark.parametrize("how", ["replaced", "damaged"])
def test_a_bundle_that_changes_meanwhile_is_not_handed_over(
    road: MakeRoad, tmp_path: Path, name: str, how: str
) -> None:
    whole = road()
    handoff = to_device(whole)
    if how == "replaced":
        write_bundle(whole.path, replace(whole.manifest, files=()), {"graph.onnx": b"another"}, overwrite=True)
    else:
        (whole.path / "gate.json").write_bytes(b"{}")
    with pytest.raises(BundleError, match=r"was replaced since|has changed"):
        write_handoff(handoff, tmp_path / name)
    assert not (tmp_path / name).exists() and not list(tmp_path.glob(".*"))


HAND_OVER = """
import sys
from twins_trt.handoff import resolve_handoff, write_handoff
from twins_trt.runtime import open_bundle
write_handoff(resolve_handoff(open_bundle(sys.argv[1]), "device"), sys.argv[2], overwrite=True)
"""


@pytest.mark.parametrize("name", ["device", "device.tar"])
def test_a_kill_leaves_the_old_hand_off_or_the_new(road: MakeRoad, tmp_path: Path, name: str) -> None:
    whole, out = road(), tmp_path / name
    write_handoff(to_device(whole), out)
    bundle = write_bundle(
        whole.path, replace(whole.manifest, files=()), {"graph.onnx": whole.graph.read_bytes()}, overwrite=True
    )
    after, when, seen = to_device(bundle).manifest, 1, set()
    while killed(HAND_OVER, when, bundle.path, out):
        there = unpack_bundle(out, into=tmp_path / f"{when}.bundle") if out.is_file() else out
        seen.add(open_bundle(there).manifest == after)
        when += 1
    assert when > 1 and False in seen
    assert open_bundle(unpack_bundle(out) if out.is_file() else out).manifest == after


# The command


def test_the_command_says_what_travels_and_what_to_type_there(
    road: MakeRoad, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = road()
    pack, out = write_pack(tmp_path / "road.pack", whole), tmp_path / "my road.tar"
    words = ["export-to", "device", str(whole.path), "--out", str(out), "--pack", str(pack)]
    assert main([*words, "--dry-run", "--json"]) == 0 and not out.exists()
    planned = json.loads(capsys.readouterr().out)
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {"dry_run": True, **{key: said[key] for key in said if key not in ("sha256", "size")}} == planned
    assert said["files"] == ["audit.json", "gate.json", "gate.pack", "graph.onnx"]
    assert (said["sha256"], said["size"]) == (sha256_of(out), out.stat().st_size)
    bundle = open_bundle(unpack_bundle(out))
    assert said["contents"] == bundle.manifest.to_json()["files"]
    assert said["next"]["device"][0] == "twins-trt compile 'my road.tar'"
    assert said["next"]["predict"] == "twins-trt predict 'my road.bundle' PICTURES --out masks"
    assert main(words) == 1  # it is there
    assert main([*words, "--overwrite"]) == 0
    text = capsys.readouterr().out
    for part in (f"sha256 of my road.tar: {said['sha256']}", "\n  graph.onnx  0.4 kB\n", *said["next"]["device"]):
        assert part in text
    assert "gate pack" not in text  # there is one


def test_without_a_pack_or_a_graph_the_command_says_so(
    road: MakeRoad, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = road((ORIN,), ())
    assert main(["export-to", "device", str(whole.path), "--out", str(tmp_path / "d"), "--engine", "sm_87"]) == 0
    text = capsys.readouterr().out
    assert "without a gate pack, the device cannot judge its engine (--pack FILE sends one)" in text
    assert "without the graph, the device can compile no other engine" in text
    assert "engines/orin.engine runs on sm_87, with tensorrt 10.3.0 alone" in text
    assert "twins-trt compile" not in text and "twins-trt predict d PICTURES" in text
    assert main(["export-to", "device", str(whole.path), "--out", str(tmp_path / "e"), "--instances", "2"]) == 2
    assert "leave --instances out" in capsys.readouterr().err


def test_the_whole_hand_off_needs_numpy_alone(road: MakeRoad, tmp_path: Path) -> None:
    heavy = ["torch", "onnx", "onnxruntime", "cv2", "tensorrt", "tensorrt_rtx", "cuda", "scipy"]
    whole = road()
    pack = write_pack(tmp_path / "road.pack", whole)
    words = ["export-to", "device", str(whole.path), "--pack", str(pack), "--out", str(tmp_path / "road.tar")]
    code = f"import sys; sys.modules.update(dict.fromkeys({heavy!r})); from twins_trt.cli import main; "
    subprocess.run([sys.executable, "-c", f"{code}sys.exit(main({words!r}))"], check=True, timeout=60)
    assert (tmp_path / "road.tar").is_file()
