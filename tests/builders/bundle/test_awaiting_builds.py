"""Builds for devices that this machine cannot compile for: the graph ships, and the nearest architecture is audited."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx_graphsurgeon")

from fake_driver import install_driver
from fake_tensorrt import COMPILERS, Script, calls, install, install_compilers
from int8_builds import int8

from twins_trt.builders.bundle.resolve import resolve
from twins_trt.builders.bundle.run import build_bundle
from twins_trt.builders.bundle.ship import NOT_THERE
from twins_trt.builders.engine import read_header
from twins_trt.cli.parsing import Parser
from twins_trt.device import Device
from twins_trt.errors import MissingDependencyError, UnfusedAttentionError, UsageError
from twins_trt.runtime import open_bundle
from twins_trt.runtime.manifest import AwaitedEngine
from twins_trt.verbs.build import FLAGS, BuildRequest
from twins_trt.verbs.compile import CompileRequest

MODEL = "twins_svt-s_fpn"
ORIN = AwaitedEngine("sm_87", "jetson-orin", "10.3")


def request(out: Path | str = "x.bundle", **fields: Any) -> BuildRequest:
    given = {"size": (64, 96), "seeded": True, "num_classes": 4, "targets": ("jetson-orin",), **fields}
    return BuildRequest(MODEL, str(out), **given)


def again(rebuild: str) -> BuildRequest:
    """The request of a rebuild command."""
    parser = Parser()
    FLAGS.add_to(parser)
    return FLAGS.read(parser.parse_args(shlex.split(rebuild)[2:]))


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    install_driver(monkeypatch, None)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    install_compilers(monkeypatch, ())


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`rtx(fused=18, **script)` installs a simulated TensorRT-RTX alone, and returns its module."""

    def put(*, fused: int = 18, **script: Any) -> Any:
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        layers = "\n".join(
            f"Name: _gemm_mha_v2_{i}, LayerType: gemm, Inputs: [], Constants: [], Outputs: [], TacticName: t, "
            "StreamId: 0, Metadata: "
            for i in range(fused)
        )
        log = f"Layers:\n{layers}\n\nI/O Tensors:\n"
        return install(monkeypatch, COMPILERS["tensorrt_rtx"], Script(layer_log=log, **script))

    return put


def test_a_jetsons_bundle_holds_the_graph_and_the_audit_of_the_nearest(tmp_path: Path, rtx: Callable[..., Any]) -> None:
    module = rtx()
    report = build_bundle(request(tmp_path / "x.bundle"))
    bundle = open_bundle(tmp_path / "x.bundle")
    assert bundle.files == ("audit.json", "graph.onnx")
    assert (bundle.manifest.engines, bundle.manifest.awaits) == ((), (ORIN,))
    assert bundle.manifest.precision == "fp16"
    assert '"forms": "gpu"' in read_header(bundle.graph).metadata["twins_trt.info"]
    assert calls(module, "set_compute_capability") == [(module.ComputeCapability.SM86, 0)]
    (entry,) = bundle.read_json("audit.json")["engines"]
    assert (entry["file"], entry["targets"], entry["stands_for"]) == (None, ["sm_86"], ["sm_87"])
    assert (entry["flavour"], entry["version"], entry["audit"]["attentions"]) == ("tensorrt_rtx", "1.7.1.116", 18)
    assert report.audits == {} and [each.target for each in report.nearest] == ["sm_86"]
    assert list(report.seconds) == ["weights", "graph", "audit sm_86", "bundle"]
    assert json.loads(json.dumps(report.to_json()))["nearest"][0]["stands_for"] == ["sm_87"]


def test_it_ends_with_the_commands_for_the_device(tmp_path: Path, rtx: Callable[..., Any]) -> None:
    rtx()
    report = build_bundle(request(tmp_path / "my road.bundle"))
    (export,) = report.next.here
    words = ["export-to", "device", f"{tmp_path}/my road.bundle", "--out", f"{tmp_path}/my road.tar"]
    assert shlex.split(export) == ["twins-trt", *words]
    assert report.next.device == ("twins-trt compile 'my road.tar'", "twins-trt profile 'my road.bundle' --save")
    assert report.to_json()["next"]["device"] == list(report.next.device)


def test_no_compiler_is_needed_and_then_nothing_is_audited(tmp_path: Path, no_compiler: None) -> None:
    report = build_bundle(request(tmp_path / "x.bundle", targets=("jetson-thor",), jetpack="7.2"))
    assert report.bundle.manifest.awaits == (AwaitedEngine("sm_110", "jetson-thor", "10.16"),)
    assert report.not_audited == {"sm_110": NOT_THERE} and report.nearest == ()
    assert report.bundle.read_json("audit.json") == {"engines": [], "not_audited": {"sm_110": NOT_THERE}}
    with pytest.raises(MissingDependencyError):  # while a target of TensorRT-RTX needs it
        resolve(request(targets=("sm_86",)))


def test_an_engine_that_is_compiled_anyway_serves_as_the_nearest(tmp_path: Path, rtx: Callable[..., Any]) -> None:
    module = rtx()
    report = build_bundle(request(tmp_path / "x.bundle", targets=("rtx-4090", "a10", "jetson-orin")))
    (engine,) = report.bundle.manifest.engines
    assert engine.targets == ("sm_89", "sm_86") and report.bundle.manifest.awaits == (ORIN,)
    assert len(calls(module, "build_serialized_network")) == 1 and report.nearest == ()
    (entry,) = report.bundle.read_json("audit.json")["engines"]
    assert (entry["file"], entry["stands_for"]) == (engine.file, ["sm_87"])
    assert report.stands_for == {engine.file: ("sm_87",)}
    assert json.loads(json.dumps(report.to_json()))["stands_for"] == {engine.file: ["sm_87"]}


def test_two_devices_of_one_generation_share_an_audit(rtx: Callable[..., Any]) -> None:
    rtx()
    job = resolve(request(targets=("jetson-orin", "jetson-orin-nano", "jetson-thor", "h200")))
    assert [(each.target, each.stands_for) for each in job.nearest] == [
        ("sm_86", ("sm_87",)),
        ("sm_120", ("sm_110",)),
        ("sm_89", ("sm_90",)),
    ]
    assert [each.device for each in job.awaits] == ["jetson-orin", "jetson-orin-nano", "jetson-thor", "h200"]


def test_an_unfused_attention_of_the_nearest_fails_the_build(tmp_path: Path, rtx: Callable[..., Any]) -> None:
    rtx(fused=17)
    with pytest.raises(UnfusedAttentionError, match="1 of 18"):
        build_bundle(request(tmp_path / "x.bundle"))
    assert list(tmp_path.iterdir()) == []
    report = build_bundle(request(tmp_path / "x.bundle", allow_unfused=True))
    assert report.nearest[0].audit.attentions == 17


@pytest.mark.parametrize(("script", "why"), [({"serialized": None}, "cannot build"), ({"device": False}, "not start")])
def test_a_compiler_that_is_not_the_devices_condemns_nothing(
    tmp_path: Path,
    rtx: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    script: dict[str, Any],
    why: str,
) -> None:
    rtx(**script)
    with caplog.at_level(logging.WARNING):
        report = build_bundle(request(tmp_path / "x.bundle"))
    assert "nothing is audited in place of sm_87: TensorRT-RTX 1.7.1.116" in caplog.text
    assert report.nearest == () and why in report.not_audited["sm_87"]


def test_on_the_device_itself_the_engine_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    install_compilers(monkeypatch, ("tensorrt",))
    install_driver(monkeypatch, Device("Orin", "sm_87"))
    job = resolve(request(targets=("jetson-orin", "sm_110")))
    assert [(each.file, each.options.targets) for each in job.engines] == [
        ("engines/tensorrt-sm_87.engine", ("sm_87",)),
    ]
    assert job.awaits == (AwaitedEngine("sm_110", "", "10.13"),)


def test_a_gpu_that_tensorrt_rtx_lacks_is_compiled_for_by_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    install_compilers(monkeypatch)
    install_driver(monkeypatch, Device("NVIDIA H100", "sm_90"))
    job = resolve(request(targets=("h100", "rtx-4090")))
    assert [each.file for each in job.engines] == [
        "engines/tensorrt_rtx-sm_89.engine",
        "engines/tensorrt-sm_90.engine",
    ]
    assert job.awaits == () == job.nearest


def test_tensorrt_without_its_gpu_awaits_the_device(rtx: Callable[..., Any]) -> None:
    rtx()
    job = resolve(request(targets=("sm_89",), flavour=("tensorrt",)))
    assert job.engines == () and job.awaits == (AwaitedEngine("sm_89"),)
    assert [(each.target, each.stands_for) for each in job.nearest] == [("sm_89", ("sm_89",))]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "--target jetson-orin --flavour tensorrt"),
        ({"jetpack": "6.0"}, "--target jetson-orin --jetpack 6.0 --flavour tensorrt"),
        ({"targets": ("SM110", "87")}, "--target sm_110,sm_87 --flavour tensorrt"),
        ({"targets": ("l4", "jetson-orin")}, "--target sm_89,jetson-orin --flavour tensorrt_rtx,tensorrt"),
    ],
)
def test_the_rebuild_command_asks_for_the_same(rtx: Callable[..., Any], fields: dict[str, Any], said: str) -> None:
    rtx()
    job = resolve(request(**fields))
    assert said in job.rebuild
    assert resolve(again(job.rebuild)) == job


def test_jetpack_6_0_gets_the_opset_of_its_tensorrt(tmp_path: Path, no_compiler: None) -> None:
    report = build_bundle(request(tmp_path / "x.bundle", jetpack="6.0"))
    assert report.bundle.manifest.awaits == (AwaitedEngine("sm_87", "jetson-orin", "8.6"),)
    assert report.bundle.manifest.opset == read_header(report.bundle.graph).opset == 17


@pytest.mark.parametrize(
    ("fields", "cause", "fix"),
    [
        ({"jetpack": "6.0", "opset": 18}, "opset 18 is too high: TensorRT 8.6 of jetson-orin reads opset 17", "opset"),
        ({"jetpack": "6.0", "opset": 18, "targets": ("sm_110", "87")}, "has no JetPack 6.0", "7.0"),
        ({"precision": "int8", "jetpack": "6.0"}, "INT8 beside FP16 needs opset 19 .* 8.6 of jetson-orin", "fp16"),
        ({"precision": "int8", "opset": 18}, "needs opset 19 or later, not 18", "opset"),
        ({"targets": ("sm_98",)}, "there is no GPU of sm_98 on record", "sm_87"),
        ({"targets": ("jetson-orn",)}, "'jetson-orn' is not a GPU target", "did you mean jetson-orin"),
        ({"flavour": ("tensorrt_rtx",)}, "TensorRT-RTX 1.7.1.116 has no target sm_87", "leave flavour out"),
        ({"workspace": 64}, "workspace applies only to an engine that is compiled here", "twins-trt compile"),
        ({"timing_cache": "x"}, "timing_cache applies only to an engine that is compiled here", "twins-trt compile"),
        ({"timing_cache": "x", "targets": ("sm_86", "87")}, "timing_cache applies only", "twins-trt compile"),
        ({"targets": ("cpu",), "jetpack": "6.1"}, "jetpack applies only to a Jetson", "jetson-orin"),
        ({"targets": ("cpu", "jetson-orin")}, "cannot be combined with others", "cpu"),
    ],
)
def test_what_does_not_fit_a_device_is_refused_by_name(
    rtx: Callable[..., Any], fields: dict[str, Any], cause: str, fix: str
) -> None:
    rtx()
    with pytest.raises(UsageError, match=cause) as raised:
        resolve(request(**fields))
    assert raised.value.fix is not None and fix in raised.value.fix


def test_what_a_compilation_on_the_device_does_not_take_is_only_left_out(rtx: Callable[..., Any]) -> None:
    rtx()
    with pytest.raises(
        UsageError, match="hardware_compatibility applies only to an engine that is compiled here"
    ) as no:
        resolve(request(hardware_compatibility="ampere_plus"))
    assert no.value.fix == "leave it out"
    assert not hasattr(CompileRequest, "hardware_compatibility")


def test_what_limits_the_compiler_here_applies_beside_a_device(rtx: Callable[..., Any]) -> None:
    rtx()
    job = resolve(request(targets=("sm_86", "jetson-orin"), workspace=64, optimization_level=1))
    assert [(each.options.workspace_mib, each.options.optimization_level) for each in job.engines] == [(64, 1)]
    assert resolve(again(job.rebuild)) == job


def test_a_bundle_is_not_built_but_compiled(tmp_path: Path) -> None:
    (folder := tmp_path / "a folder").mkdir()
    (folder / "manifest.json").touch()
    for name in ("x.bundle", str(folder)):
        with pytest.raises(UsageError, match="is a bundle") as raised:
            resolve(BuildRequest(name))
        assert raised.value.fix is not None and raised.value.fix.endswith(f"twins-trt compile {shlex.quote(name)}")


def test_an_int8_build_is_audited_by_the_nearest_and_its_verdict_is_a_simulation(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("onnxruntime")
    report = build_bundle(int8(data, tmp_path / "x.bundle", targets=("jetson-orin",)))
    manifest = report.bundle.manifest
    assert (manifest.precision, manifest.opset, manifest.awaits, manifest.engines) == ("int8", 20, (ORIN,), ())
    (nearest,) = report.nearest
    assert (nearest.target, nearest.audit.attentions, nearest.not_int8) == ("sm_86", 8, ())
    content = report.bundle.read_json("audit.json")
    assert content["engines"][0]["not_int8"] == []
    assert len(content["int8"]["nodes"]) > 20 and content["int8"]["attentions"] == []  # what the device checks
    assert report.gate is not None and report.gate.simulated and report.gate.engine == "onnxruntime"
    assert report.bundle.read_json("gate.json")["simulated"] is True
