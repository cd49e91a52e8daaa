from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from commands import MODEL, SMALL, CommandResult, Twins, run_command
from fake_driver import install_driver
from fake_tensorrt import install_compilers

from twins_trt.builders.bundle.resolve import resolve
from twins_trt.builders.export import DynamicDim
from twins_trt.cli.parsing import Parser
from twins_trt.device import Device
from twins_trt.models.checkpoint import sha256_of
from twins_trt.models.weights import find_weights
from twins_trt.models.zoo import DEMO
from twins_trt.runtime import open_bundle
from twins_trt.verbs.build import FLAGS, BuildRequest


def parse(words: list[str]) -> BuildRequest:
    parser = Parser()
    FLAGS.add_to(parser)
    return FLAGS.read(parser.parse_args(words))


def test_a_bundle_holds_graph_engine_and_audit(bundle: Path, checkpoint: Path) -> None:
    opened = open_bundle(bundle)
    manifest = opened.manifest
    engine = "engines/tensorrt_rtx-sm_89-sm_120.engine"
    assert set(opened.files) == {"graph.onnx", engine, "audit.json"}
    assert (manifest.model, manifest.interface.num_classes, manifest.precision, manifest.gate) == (
        MODEL,
        4,
        "fp16",
        "ungated",
    )
    assert manifest.interface.classes == ("sky", "road", "tree", "car")
    assert manifest.source.checkpoint == "four.pth" and manifest.source.sha256 == sha256_of(checkpoint)
    assert not manifest.source.seeded
    assert str(manifest.interface.image) == "image uint8 [1, 64, 96, 3]" and manifest.interface.size == (64, 96)
    assert (manifest.engines[0].file, manifest.engines[0].targets) == (engine, ("sm_89", "sm_120"))
    assert manifest.tools["tensorrt_rtx"] == manifest.engines[0].version
    audit = opened.read_json("audit.json")["engines"][0]
    assert audit["file"] == engine
    assert audit["audit"]["attentions"] == audit["audit"]["expected_attentions"] == 18


def test_json_is_the_whole_report(built: CommandResult) -> None:
    report = built.json
    assert report["manifest"] == json.loads((Path(report["bundle"]) / "manifest.json").read_text())
    assert report["audits"]["engines/tensorrt_rtx-sm_89-sm_120.engine"]["attentions"] == 18
    assert list(report["seconds"]) == ["weights", "graph", "engine tensorrt_rtx sm_89+sm_120", "bundle"]
    assert report["peak_host_mib"] > 0
    steps = dict.fromkeys(line.split()[0] for line in built.err.splitlines())  # a slow step repeats its line
    assert list(steps) == ["warning:", "[1/4]", "[2/4]", "[3/4]", "[4/4]"]


def test_the_text_says_what_is_in_it_and_what_the_audit_found(twins: Twins, tmp_path: Path) -> None:
    ran = twins("build", MODEL, "--seeded", *SMALL, "--target", "cpu", "--out", tmp_path / "x.bundle")
    assert ran.code == 0, ran.err
    assert ran.out.startswith(f"{tmp_path / 'x.bundle'}: {MODEL}, 4 classes, fp32, random weights\n")
    assert "graph.onnx" in ran.out and "built in" in ran.out and "audit" not in ran.out


def test_a_bundle_for_the_cpu_holds_the_graph_only(cpu_bundle: Path) -> None:
    opened = open_bundle(cpu_bundle)
    assert opened.files == ("graph.onnx",)
    manifest = opened.manifest
    assert manifest.engines == () and manifest.precision == "fp32"
    assert str(manifest.interface.image) == "image uint8 [1, H=64-128, W=64-160, 3]"
    assert [spec.name for spec in manifest.interface.outputs] == ["mask", "logits"]


def test_a_dry_run_checks_and_writes_nothing(twins: Twins, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    out = tmp_path / "x.bundle"
    words = ("build", MODEL, "--seeded", *SMALL, "--target", "sm_75,sm_86,sm_89", "--out", out, "--dry-run")
    ran = twins(*words, "--json")
    assert ran.code == 0, ran.err
    engines = ["engines/tensorrt_rtx-sm_86-sm_89.engine", "engines/tensorrt_rtx-sm_75.engine"]
    assert ran.json["files"] == ["graph.onnx", *engines, "audit.json", "manifest.json"]
    assert BuildRequest.from_json(ran.json["request"]).targets == ("sm_86", "sm_89", "sm_75")
    assert all(file in twins(*words).out for file in engines)
    assert twins("build", MODEL, "--seeded", "--target", "sm_98", "--out", out, "--dry-run").code == 2
    assert not out.exists()


def test_a_build_for_a_jetson_ends_with_the_commands_for_it(twins: Twins, scenes: Path, tmp_path: Path) -> None:
    """Real TensorRT-RTX audits the nearest architecture; the text ends with lines that a shell takes as they are."""
    pytest.importorskip("tensorrt_rtx")
    out = tmp_path / "my road.bundle"
    words = ("build", "twins_svt-demo_fpn", "--seeded", *SMALL, "--target", "jetson-orin", "--out", out)
    dry = twins(*words, "--gate-data", f"folder:{scenes}", "--pack", "a.pack", "--dry-run").out
    assert "\npack: a.pack\nengine: on the device: jetson-orin (sm_87, TensorRT 10.3)\n" in dry
    assert dry.endswith("\naudited in place of sm_87: sm_86, the nearest architecture\n") and not out.exists()
    ran = twins(*words)
    assert ran.code == 0, ran.err
    assert "\naudit of sm_86, the nearest architecture, in place of sm_87; this engine does not ship\n" in ran.out
    assert "\nengine: on the device: jetson-orin (sm_87, TensorRT 10.3)\n" in ran.out
    here, _, there = ran.out.partition("\nnext, here:\n")[2].partition("then, on the device:\n")
    export, copy = map(shlex.split, here.splitlines())
    assert export[1:4] == ["export-to", "device", str(out)] and export[-1] == str(tmp_path / "my road.tar")
    assert copy == ["scp", str(tmp_path / "my road.tar"), "USER@DEVICE:"]
    assert [shlex.split(line)[1:3] for line in there.splitlines()] == [
        ["compile", "my road.tar"],
        ["profile", "my road.bundle"],
        ["predict", "my road.bundle"],
    ]
    manifest = open_bundle(out).manifest
    assert [each.target for each in manifest.awaits] == ["sm_87"] and manifest.engines == ()
    ran = twins(*words, "--target", "a10,jetson-orin", "--overwrite")
    said = "audit of engines/tensorrt_rtx-sm_86.engine, also in place of sm_87, whose nearest architecture it is for\n"
    assert ran.code == 0 and f"\n{said}" in ran.out
    assert twins(*export[1:]).code == 0 and (tmp_path / "my road.tar").is_file()  # it works when it is pasted


def test_an_existing_bundle_is_replaced_only_on_request(twins: Twins, tmp_path: Path) -> None:
    out = tmp_path / "x.bundle"
    words = ("build", MODEL, "--seeded", *SMALL, "--target", "cpu", "--out", out)
    assert twins(*words).code == 0
    first = (out / "manifest.json").read_text()
    refused = twins(*words)
    assert refused.code == 1 and "--overwrite" in refused.err
    assert (out / "manifest.json").read_text() == first
    assert twins(*words, "--overwrite", "--num-classes", "5").code == 0
    assert open_bundle(out).manifest.interface.num_classes == 5
    assert [path.name for path in tmp_path.iterdir()] == ["x.bundle"]


@pytest.mark.parametrize(
    "request_",
    [
        BuildRequest(MODEL, targets=("sm_86", "sm_75"), flavour=("tensorrt_rtx",), seeded=True),
        BuildRequest(DEMO.name, targets=("cpu",), checkpoint="my weights/it's.pth", num_classes=8, padding="masked"),
        BuildRequest(
            "twins_pcpvt-l_upernet",
            size=(360, 480),
            batch=4,
            precision="fp16",
            opset=18,
            input="float32",
            outputs=("mask", "logits"),
            upernet_levels=2,
            flavour=("tensorrt",),
            workspace=512,
            optimization_level=5,
            timing_cache="a b.cache",
            hardware_compatibility="ampere_plus",
            seeded=True,
            allow_unfused=True,
        ),
        BuildRequest(
            MODEL,
            size=(DynamicDim(256, 512, 1024), DynamicDim(256, 512, 2048)),
            batch=DynamicDim(1, 4, 16),
            precision="fp32",
            targets=("cpu",),
            seeded=True,
            test_scale=(2048, 512),
        ),
        BuildRequest(MODEL, targets=("89",), flavour=("tensorrt_rtx", "tensorrt"), seeded=True),
        BuildRequest(
            MODEL,
            precision="int8",
            targets=("86",),
            flavour=("tensorrt_rtx",),
            seeded=True,
            level="int8-attention",
            calibrate_on="camvid:my data",
            calib_split="trainval",
            calib_images=100,
            smooth=0.25,
            gate_on="folder:x",
            gate_split="test",
            gate_limit=50,
            max_drop=0.75,
            min_images=40,
            min_agreement=0.98,
            accept_reference=True,
            fallback=False,
            max_evaluations=5,
            threads=2,
        ),
        BuildRequest(
            MODEL,
            precision="int8",
            targets=("cpu",),
            seeded=True,
            plan="plan.json",
            calibrate_on="folder:x",
            observers=("entropy",),
            percentile=99.9,
            bins=2048,
            minimum=4,
            fit="letterbox",
            smooth="search",
            bias_correction=True,
            no_gate=True,
        ),
        BuildRequest(
            MODEL,
            precision="int8",
            targets=("cpu",),
            seeded=True,
            plan="plan.json",
            calibrate_on="folder:x",
            calibration="ranges.json",
            observers=("entropy",),
            bias_correction=True,
            no_gate=True,
        ),
    ],
)
def test_the_rebuild_command_builds_the_same_again(
    request_: BuildRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_compilers(monkeypatch)
    install_driver(monkeypatch, Device("Orin", "sm_87"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my weights").mkdir()
    shutil.copy(find_weights(DEMO.name), tmp_path / "my weights" / "it's.pth")
    job = resolve(replace(request_, out="some where/x.bundle"))
    program, command, *words = shlex.split(job.rebuild)
    assert (program, command) == ("twins-trt", "build")
    again = resolve(parse(words))
    assert again.request.out == "some where/x.bundle"
    assert again == job


def test_the_manifests_own_command_builds_the_same_files(cpu_bundle: Path, tmp_path: Path) -> None:
    manifest = open_bundle(cpu_bundle).manifest
    _, *words = shlex.split(manifest.rebuild)
    words[words.index("--out") + 1] = str(tmp_path / "again.bundle")
    assert run_command(*words).code == 0
    assert open_bundle(tmp_path / "again.bundle").manifest.files == manifest.files


def int8_words(scenes: Path, out: Path) -> tuple[object, ...]:
    """INT8 of the small model for the CPU, on the three pictures of `scenes`."""
    model = ("build", "twins_svt-demo_fpn", "--seeded", *SMALL, "--precision", "int8", "--target", "cpu")
    return (*model, "--calib-data", f"folder:{scenes}", "--calib-split", "val", "--minimum", "3", "--out", out)


def test_int8_without_a_gate_must_be_asked_for_and_is_said_everywhere(
    twins: Twins, scenes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.bundle"
    refused = twins(*int8_words(scenes, out))
    assert refused.code == 2 and "--gate-data" in refused.err and not out.exists()
    built = twins(*int8_words(scenes, out), "--no-gate")
    assert built.code == 0 and ", int8, random weights, UNGATED\n" in built.out
    assert "ungated: nobody has measured what INT8 costs in mIoU" in twins("inspect", out).out
    image = scenes / "val" / "images" / "0.png"
    assert "is INT8 and ungated" in twins("predict", out, image, "--out", tmp_path / "masks").err


def test_int8_that_fails_its_gate_ends_with_3(twins: Twins, scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.bundle"
    ran = twins(*int8_words(scenes, out), "--gate-data", f"folder:{scenes}", "--json")
    assert ran.code == 3 and not out.exists()
    assert "3 images are too few to judge by" in ran.json["error"]
    assert f"--plan {out}.work/plan.json" in ran.json["fix"]
    dry = twins(*int8_words(scenes, out), "--gate-data", f"folder:{scenes}", "--dry-run", "--json").json
    assert dry["files"] == ["graph.onnx", "plan.json", "calibration.json", "gate.json", "manifest.json"]
    assert dry["steps"] == ["weights", "graph", "calibration", "plan", "gate", "bundle"]
