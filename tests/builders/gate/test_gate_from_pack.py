"""A gate from a pack finds what the gate with data and model finds, on every TensorRT and with NumPy alone."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import run_command
from fake_engines import Faults
from fake_tensorrt import versions
from packs import SIZE, MakeJetsonBundle, nearest_images, small, tiny_pack, write_images
from tiny_graphs import FOR_CPUS, MakeBundle

import twins_trt
from twins_trt.builders.bundle.run import build_bundle
from twins_trt.builders.gate import GateResult, PackKey, check_fits, gate_bundle, open_pack, packing
from twins_trt.data.preprocessing import Preprocessing
from twins_trt.errors import BundleError, EngineError, PackError, UsageError
from twins_trt.models.source import Source
from twins_trt.runtime import open_bundle
from twins_trt.runtime.bundle import amend_bundle
from twins_trt.verbs.gate import GateRequest

UNLIKE = ("created", "seconds", "pack")
"""What may differ between a gate with data and one with a pack."""


def numbers(result: GateResult | dict[str, Any]) -> dict[str, Any]:
    values = result if isinstance(result, dict) else result.to_json()
    return {name: value for name, value in values.items() if name not in UNLIKE}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_images(tmp_path_factory.mktemp("data"), images=8)


@pytest.fixture(scope="module")
def built(data: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """A bundle of the demo's model, the pack that its gate wrote, and what that gate found."""
    folder = tmp_path_factory.mktemp("built")
    build_bundle(small(folder / "x.bundle"))
    asked = ("--data", data, "--seeded", "--min-images", "8", "--pack", folder / "x.pack", "--json")
    ran = run_command("gate", folder / "x.bundle", *asked)
    assert ran.code == 0, ran.err
    return folder / "x.bundle", folder / "x.pack", ran.json


def test_the_commands_find_the_same(built: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    bundle, pack, with_data = built
    ran = run_command("gate", bundle, "--pack", pack, "--pictures", tmp_path / "worst", "--min-images", "8", "--json")
    assert ran.code == 0, ran.err
    assert numbers(ran.json) == numbers(with_data)
    assert (ran.json["pack"], with_data["pack"]) == (open_pack(pack).sha256, None)
    assert set(ran.json["seconds"]) == {"engine"} and set(with_data["seconds"]) == {"engine", "reference"}
    assert open_bundle(bundle).read_json("gate.json") == ran.json
    assert {path.stem for path in (tmp_path / "worst").iterdir()} == {each["name"] for each in ran.json["worst"]}
    text = run_command("gate", bundle, "--pack", pack).out
    assert f"data          {with_data['dataset']} (val), 8 images, from a pack\n" in text and str(pack) not in text
    few = run_command("gate", bundle, "--pack", pack, "--limit", "5", "--json")
    assert few.code == 3 and few.json["images"] == 5
    assert few.json["reasons"] == ["5 images are too few to judge by, at least 30 are asked for"]
    strict = run_command("gate", bundle, "--pack", pack, "--limit", "5", "--min-images", "1", "--max-drop", "9")
    assert strict.code == 0
    none = run_command("gate", bundle, "--pack", pack, "--limit", "0", "--json")
    assert none.code == 2 and "--limit is 0" in none.json["error"]
    dry = run_command("gate", bundle, "--pack", pack, "--dry-run", "--limit", "4", "--json")
    assert (dry.code, dry.json["images"]) == (0, 4)


def test_images_are_packed_at_the_size_of_the_graph(built: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    larger = write_images(tmp_path / "larger", images=3, size=(96, 160))
    ran = run_command("gate", built[0], "--data", larger, "--seeded", "--pack", tmp_path / "x.pack", "--json")
    pack = open_pack(tmp_path / "x.pack")
    assert {each.image.shape for each in pack} == {(*SIZE, 3)} and {each.label.shape for each in pack} == {SIZE}
    assert numbers(run_command("gate", built[0], "--pack", tmp_path / "x.pack", "--json").json) == numbers(ran.json)


def test_python_takes_a_pack_and_another_bundle_of_the_checkpoint_shares_it(
    built: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    build_bundle(small(tmp_path / "fp16.bundle", precision="fp16"))
    result = twins_trt.gate(tmp_path / "fp16.bundle", pack=built[1], record=False, more=GateRequest(min_images=8))
    assert result.passed and result.precision == "fp16" and result.pack == open_pack(built[1]).sha256
    assert open_bundle(tmp_path / "fp16.bundle").manifest.gate == "ungated"
    again = twins_trt.gate(tmp_path / "fp16.bundle", more=GateRequest(pack=str(built[1]), min_images=1), limit=2)
    assert again.passed and open_bundle(tmp_path / "fp16.bundle").manifest.gate == "passed"


def test_a_pack_that_is_not_the_bundles_is_refused_by_name(
    built: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    build_bundle(small(tmp_path / "y.bundle", padding="masked"))
    ran = run_command("gate", tmp_path / "y.bundle", "--pack", built[1], "--json")
    assert ran.code == 1 and "padding is parity, that of" in ran.json["error"] and "is masked" in ran.json["error"]
    assert f"twins-trt gate {tmp_path / 'y.bundle'} --data KIND:PATH" in ran.json["fix"]
    assert open_bundle(tmp_path / "y.bundle").manifest.gate == "ungated"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"source": Source("y.pth", "cd" * 32)},
            f"checkpoint is the one with sha256 {'ab' * 32}, that of .*{'cd' * 32}",
        ),
        ({"padding": "masked"}, "padding is parity, that of .* is masked"),
        ({"model": "twins_svt-b_fpn"}, "model is twins_svt-s_fpn, that of .* is twins_svt-b_fpn"),
        ({"classes": ("a", "b", "c", "d", "e")}, "class 0 is 'night', that of .* is 'a'"),
        ({"preprocessing": Preprocessing(mean=(1, 2, 3))}, r"preprocessing.mean is \[123.675, .*, that of .* is \[1, "),
        ({"height": 28}, "size is 24x32, that of .* is 28x32"),
        ({"height": (8, 24, 64), "width": (8, 32, 64)}, "size is 24x32, that of .* is dynamic"),
    ],
)
def test_each_field_of_another_bundle_is_named(
    make_bundle: MakeBundle, labelled: str, tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    pack = open_pack(tiny_pack(tmp_path / "x.pack", labelled, make_bundle(), limit=2))
    check_fits(pack, make_bundle(precision="int8"))
    with pytest.raises(PackError, match=words):
        check_fits(pack, make_bundle(**fields))


@pytest.mark.parametrize("version", [each for each in versions() if not each.startswith("rtx")])
def test_a_device_finds_what_data_and_model_find(
    jetson: Callable[..., None], jetson_bundle: MakeJetsonBundle, labelled: str, tmp_path: Path, version: str
) -> None:
    jetson(version)
    bundle = jetson_bundle(version, bias=2000.0)
    expected = gate_bundle(bundle, nearest_images(labelled, bundle.interface))
    pack = tiny_pack(tmp_path / "x.pack", labelled, bundle)
    found = twins_trt.gate(bundle, pack=pack)
    assert numbers(found) == numbers(expected)
    assert (found.engine, found.simulated, found.measured_on) == ("tensorrt", False, "Orin (sm_87)")
    assert found.drop.mean != 0 and found.agreement < 1
    cpu = twins_trt.gate(bundle, pack=pack, engine="onnxruntime", record=False)
    assert (cpu.simulated, cpu.agreement, cpu.drop.mean) == (True, 1.0, 0.0)


def test_a_graph_of_dynamic_size_takes_images_at_their_own(
    jetson: Callable[..., None], jetson_bundle: MakeJetsonBundle, tmp_path: Path
) -> None:
    data = write_images(tmp_path / "data", images=2, size=(40, 48))
    extra = write_images(tmp_path / "extra", images=3, size=(24, 32))
    for kind in ("images", "labels"):
        (tmp_path / "extra" / kind / "02.png").rename(tmp_path / "data" / kind / "02.png")
    assert extra != data
    jetson("10.3.0")
    bundle = jetson_bundle(height=(8, 24, 64), width=(8, 32, 64), batch=(1, 2, 4), bias=2000.0)
    expected = gate_bundle(bundle, nearest_images(data, bundle.interface))
    pack = tiny_pack(tmp_path / "x.pack", data, bundle)
    assert [each.label.shape for each in open_pack(pack)] == [(40, 48), (40, 48), (24, 32)]
    found = twins_trt.gate(bundle, pack=pack, record=False)
    assert numbers(found) == numbers(expected) and found.batch_agrees is True


def test_a_bundle_that_awaits_its_device_is_simulated_on_a_cpu(
    make_bundle: MakeBundle, labelled: str, tmp_path: Path
) -> None:
    from twins_trt.runtime.manifest import AwaitedEngine

    bundle = make_bundle(awaits=(AwaitedEngine("sm_87"),))
    pack = tiny_pack(tmp_path / "x.pack", labelled, bundle, limit=2)
    assert twins_trt.gate(bundle, pack=pack, record=False).simulated is True
    stayed_behind = make_bundle()  # its graph is for GPUs, and was handed over without its engines
    assert twins_trt.gate(stayed_behind, pack=pack, record=False).simulated is True
    assert twins_trt.gate(make_bundle(rebuild=FOR_CPUS), pack=pack, record=False).simulated is False


def test_the_bundles_own_pack_is_taken_where_none_is_named(
    make_bundle: MakeBundle, labelled: str, tmp_path: Path
) -> None:
    bundle = make_bundle()
    with pytest.raises(UsageError, match=r"it holds no gate\.pack") as raised:
        twins_trt.gate(bundle)
    assert 'data="KIND:PATH"' in str(raised.value.fix) and 'pack="FILE"' in str(raised.value.fix)
    pack = tiny_pack(tmp_path / "x.pack", labelled, bundle)
    amend_bundle(bundle, {"gate.pack": pack})
    result = twins_trt.gate(bundle.path)
    assert result.passed and result.pack == open_pack(pack).sha256
    kept = open_bundle(bundle.path)
    assert kept.manifest.gate == "passed" and kept.file("gate.pack").read_bytes() == pack.read_bytes()
    fewer = tiny_pack(tmp_path / "y.pack", labelled, bundle, limit=2)
    assert twins_trt.gate(bundle.path, pack=fewer, record=False).images == 2


@pytest.mark.parametrize(
    ("words", "named"),
    [(["--checkpoint", "F.pth"], "--checkpoint"), (["--seeded"], "--seeded"), (["--split", "val"], "--split")],
)
def test_what_a_pack_makes_idle_is_refused(
    built: tuple[Path, Path, dict[str, Any]], words: list[str], named: str
) -> None:
    ran = run_command("gate", built[0], "--pack", built[1], "--json", *words)
    assert ran.code == 2 and f"{named} is of --data, and" in ran.json["error"]
    assert "--data KIND:PATH" in ran.json["fix"]


def test_a_pack_is_not_written_into_its_bundle_nor_over_another_file(
    built: tuple[Path, Path, dict[str, Any]], data: str, tmp_path: Path
) -> None:
    bundle, pack, _ = built
    asked = ("gate", bundle, "--data", data, "--seeded", "--json", "--pack")
    inside = run_command(*asked, bundle / "gate.pack")
    assert inside.code == 1 and "holds only what its manifest lists" in inside.json["error"]
    (tmp_path / "notes.txt").write_text("mine")
    other = run_command(*asked, tmp_path / "notes.txt")
    assert other.code == 1 and "is no sound pack" in other.json["error"]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    before = pack.read_bytes()
    fewer = run_command(*asked, pack, "--limit", "5")
    assert fewer.code == 1 and "its images are others" in fewer.json["error"]
    assert run_command(*asked, pack, "--min-images", "8").code == 0 and pack.read_bytes() == before


def test_a_failed_verdict_leaves_its_pack(built: tuple[Path, Path, dict[str, Any]], data: str, tmp_path: Path) -> None:
    ran = run_command("gate", built[0], "--data", data, "--seeded", "--limit", "2", "--pack", tmp_path / "x.pack")
    assert ran.code == 3 and len(open_pack(tmp_path / "x.pack")) == 2
    assert ran.out.endswith(f"pack          {tmp_path / 'x.pack'}\n")
    assert open_pack(tmp_path / "x.pack").head.limit == 2


def test_a_disk_that_fills_at_the_end_of_a_pack_costs_no_verdict(
    built: tuple[Path, Path, dict[str, Any]], data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = zipfile.ZipFile.writestr

    def refuse_head(self: Any, info: Any, *given: Any) -> None:
        if info.filename == "pack.json":
            raise OSError(28, "No space left on device")
        real(self, info, *given)

    bundle = shutil.copytree(built[0], tmp_path / "x.bundle")
    monkeypatch.setattr(zipfile.ZipFile, "writestr", refuse_head)
    ran = run_command(
        "gate", bundle, "--data", data, "--seeded", "--limit", "3", "--pack", tmp_path / "x.pack", "--json"
    )
    assert ran.code == 1 and "x.pack cannot be written" in ran.json["error"]
    assert open_bundle(bundle).read_json("gate.json")["images"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["x.bundle"]


@pytest.mark.parametrize("record", [True, False])
def test_a_verdict_on_a_bundle_that_is_gone_meanwhile_is_shown(
    make_bundle: MakeBundle, labelled: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, record: bool
) -> None:
    bundle = make_bundle()
    pack = tiny_pack(tmp_path / "x.pack", labelled, bundle, limit=2)

    def lose_it(step: str, detail: str, share: float | None) -> None:
        if detail.startswith("2 of 2"):
            bundle.path.rename(tmp_path / "elsewhere.bundle")

    with pytest.raises(BundleError):
        twins_trt.gate(bundle, pack=pack, record=record, progress=lose_it)
    assert "verdict that could not be written:" in caplog.text and "2 images are too few to judge by" in caplog.text


def test_inspect_says_why_a_bundle_failed(make_bundle: MakeBundle, labelled: str, tmp_path: Path) -> None:
    bundle = make_bundle()
    assert not twins_trt.gate(bundle, pack=tiny_pack(tmp_path / "x.pack", labelled, bundle), limit=2).passed
    shown = run_command("inspect", bundle.path).out
    assert "because 2 images are too few to judge by, at least 30 are asked for" in shown


def test_an_engine_that_fails_leaves_none(
    jetson: Callable[..., None], jetson_bundle: MakeJetsonBundle, labelled: str, tmp_path: Path
) -> None:
    jetson("10.3.0", faults=Faults(raises=frozenset({"execute_async_v3"}), enqueues=5))
    bundle = jetson_bundle()
    images = nearest_images(labelled, bundle.interface)
    with (
        pytest.raises(EngineError),
        packing(tmp_path / "x.pack", images, PackKey.of_bundle(bundle), limit=None) as written,
    ):
        gate_bundle(bundle, written)
    assert list(tmp_path.glob("*.pack*")) == list(tmp_path.glob(".*.pack*")) == []
