"""A build writes a pack of the images that it was judged on, and refuses a place for it before the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import run_command
from pictures import CLASSES, SIZE

import twins_trt
from twins_trt.builders.bundle.run import build_bundle, resolve_build
from twins_trt.builders.gate import check_fits, open_pack, reference
from twins_trt.errors import GateError, PackError, UsageError
from twins_trt.runtime import open_bundle
from twins_trt.verbs.build import BuildRequest
from twins_trt.verbs.gate import GateRequest

MODEL = "twins_svt-demo_fpn"


def request(out: Path, data: Path, **fields: Any) -> BuildRequest:
    """A build for the CPU that is judged on the eight images."""
    more: dict[str, Any] = {"gate_on": f"folder:{data}", "min_images": 8, "pack": str(out.with_suffix(".pack"))}
    more |= {"size": SIZE, "num_classes": CLASSES, "targets": ("cpu",), **fields}
    return BuildRequest(MODEL, str(out), seeded=True, **more)


def test_the_pack_gives_the_builds_own_finding(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    compute = reference.ReferenceMasks._compute
    monkeypatch.setattr(
        reference.ReferenceMasks, "_compute", lambda self, image: computed.append(1) or compute(self, image)
    )
    report = build_bundle(request(tmp_path / "x.bundle", data))
    assert len(computed) == 8  # for the gate; the pack takes them from there
    pack = open_pack(tmp_path / "x.pack")
    check_fits(pack, report.bundle)
    assert len(pack) == 8 and pack.head.limit is None and pack.dataset == f"folder:{data}"
    assert report.gate is not None
    found = twins_trt.gate(tmp_path / "x.bundle", pack=pack.path, more=GateRequest(min_images=8))
    unlike = ("seconds", "created", "pack")
    built, judged = ({k: v for k, v in each.to_json().items() if k not in unlike} for each in (report.gate, found))
    assert built == judged
    assert "--pack" in report.bundle.rebuild


def test_builds_of_one_checkpoint_share_a_pack(data: Path, tmp_path: Path) -> None:
    build_bundle(request(tmp_path / "x.bundle", data))
    before = (tmp_path / "x.pack").stat().st_mtime_ns
    shared = str(tmp_path / "x.pack")
    build_bundle(request(tmp_path / "y.bundle", data, precision="fp16", max_drop=9.0, pack=shared))
    assert (tmp_path / "x.pack").stat().st_mtime_ns == before
    assert twins_trt.gate(tmp_path / "y.bundle", pack=shared, max_drop=9.0, more=GateRequest(min_images=8)).passed


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"padding": "masked"}, "exists, and its padding is parity, not masked"),
        ({"size": (32, 32)}, "exists, and its size is .*, not 32x32"),
    ],
)
def test_a_pack_of_another_key_is_refused_before_the_work(
    data: Path, tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    build_bundle(request(tmp_path / "x.bundle", data))
    other = request(tmp_path / "y.bundle", data, pack=str(tmp_path / "x.pack"), **fields)
    with pytest.raises(PackError, match=words):
        resolve_build(other)
    build_bundle(request(tmp_path / "y.bundle", data, pack=str(tmp_path / "x.pack"), overwrite=True, **fields))
    check_fits(open_pack(tmp_path / "x.pack"), open_bundle(tmp_path / "y.bundle"))


def test_a_pack_of_other_classes_is_refused_before_the_gate(data: Path, tmp_path: Path) -> None:
    build_bundle(request(tmp_path / "x.bundle", data))
    more = request(tmp_path / "y.bundle", data, pack=str(tmp_path / "x.pack"), num_classes=CLASSES + 1)
    with pytest.raises(PackError, match=f"its number of classes is {CLASSES}, not {CLASSES + 1}"):
        build_bundle(more)
    assert not (tmp_path / "y.bundle").exists()


def test_the_commands_to_type_next_take_the_pack_along(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("--seeded", "--num-classes", CLASSES, "--size", "64x96", "--target", "jetson-orin", "--out", "x.bundle")
    ran = run_command(
        "build",
        MODEL,
        *words,
        "--gate-data",
        f"folder:{data}",
        "--min-images",
        "8",
        "--max-drop",
        "9",
        "--pack",
        "x.pack",
    )
    assert ran.code == 0, ran.err
    assert "\npack          x.pack\n" in ran.out
    assert "  twins-trt export-to device x.bundle --pack x.pack --out x.tar\n" in ran.out
    gate = "  twins-trt gate x.bundle --pack x.bundle/gate.pack --max-drop 9.0 --min-images 8\n"
    assert gate in ran.out
    assert gate in run_command("export-to", "device", "x.bundle", "--pack", "x.pack", "--out", "x.tar").out


@pytest.mark.parametrize(
    ("pack", "words"),
    [("x.bundle/gate.pack", "holds only what its manifest lists"), ("no/x.pack", "there is no folder")],
)
def test_a_place_without_room_for_a_pack(data: Path, tmp_path: Path, pack: str, words: str) -> None:
    with pytest.raises(PackError, match=words):
        resolve_build(request(tmp_path / "x.bundle", data, pack=str(tmp_path / pack)))


def test_a_build_that_fails_its_gate_leaves_neither(data: Path, tmp_path: Path) -> None:
    with pytest.raises(GateError):
        build_bundle(request(tmp_path / "x.bundle", data, min_images=9))
    assert list(tmp_path.iterdir()) == []


def test_a_pack_needs_images(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pack needs images to judge on"):
        resolve_build(BuildRequest(MODEL, str(tmp_path / "x.bundle"), seeded=True, targets=("cpu",), pack="x.pack"))
    ran = run_command("build", MODEL, "--seeded", "--target", "cpu", "--out", tmp_path / "x.bundle", "--pack", "x.pack")
    assert ran.code == 2 and "--pack needs images to judge on" in ran.err and "--gate-data KIND:PATH" in ran.err
