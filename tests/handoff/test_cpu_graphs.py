"""Graphs that were written for CPUs go to no program that runs them on a GPU."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from fake_driver import install_driver
from stand_ins import ORIN
from tiny_graphs import MakeBundle

from twins_trt.builders.compile.for_gpu import is_for_cpus
from twins_trt.builders.engine import read_header
from twins_trt.device import Device
from twins_trt.errors import BundleError
from twins_trt.handoff import HandoffOptions, resolve_handoff
from twins_trt.runtime import Bundle, write_bundle
from twins_trt.runtime.advice import gpu_build_command
from twins_trt.runtime.manifest import AwaitedEngine

REBUILD = "twins-trt build M --out 'my x.bundle' --precision fp32 --opset 18 --target cpu"


def written_for(bundle: Bundle, forms: str, **changes: object) -> Bundle:
    """The bundle with the note in its graph that `build` writes there."""
    model = onnx.load_from_string(bundle.graph.read_bytes())
    entry = model.metadata_props.add()
    entry.key, entry.value = "twins_trt.info", json.dumps({"options": {"forms": forms}})
    files: dict[str, bytes | Path] = {name: bundle.file(name).read_bytes() for name in bundle.files}
    files["graph.onnx"] = model.SerializeToString()
    manifest = replace(bundle.manifest, rebuild=REBUILD, **changes)  # type: ignore[arg-type]
    return write_bundle(bundle.path, manifest, files, overwrite=True)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    install_driver(monkeypatch, None)


@pytest.mark.parametrize("engines", [(), (ORIN,)])
@pytest.mark.parametrize(
    ("target", "graph"),
    [
        ("deepstream", {"batch": (1, 4, 16)}),
        ("deepstream", {"dtype": "float32", "outputs": ("logits",)}),
        ("isaac-ros", {"dtype": "float32"}),
    ],
)
def test_programs_on_a_gpu_refuse_it(
    make_bundle: MakeBundle, target: str, graph: dict[str, object], engines: tuple[object, ...]
) -> None:
    for_gpu, for_cpu = (written_for(make_bundle(24, 32, engines=engines, **graph), forms) for forms in ("gpu", "cpu"))
    assert resolve_handoff(for_gpu, target).files
    with pytest.raises(BundleError, match=r"is written for CPUs, and .* runs it on a GPU") as raised:
        resolve_handoff(for_cpu, target)
    assert raised.value.fix == "twins-trt build M --out 'my x-gpu.bundle' --target jetson-orin"


def test_forms_for_cpus_come_before_what_else_does_not_fit(make_bundle: MakeBundle) -> None:
    """A command that mended the input alone would give the next graph for CPUs."""
    with pytest.raises(BundleError, match="is written for CPUs, and Isaac ROS"):
        resolve_handoff(written_for(make_bundle(24, 32, dtype="uint8"), "cpu"), "isaac-ros")
    with pytest.raises(BundleError, match="is written for CPUs, and DeepStream"):
        resolve_handoff(written_for(make_bundle(24, 32, batch=1), "cpu"), "deepstream")


def test_triton_refuses_it_for_tensorrt_and_keeps_it_on_the_cpu(make_bundle: MakeBundle) -> None:
    bundle = written_for(make_bundle(24, 32, engines=(ORIN,)), "cpu")
    with pytest.raises(BundleError, match="TensorRT in Triton runs it on a GPU"):
        resolve_handoff(bundle, "triton-server")
    served = resolve_handoff(bundle, "triton-server", options=HandoffOptions(engine="onnxruntime"))
    config = served.files[f"{bundle.manifest.model}/config.pbtxt"]
    assert isinstance(config, bytes) and "KIND_CPU" in config.decode() and "KIND_AUTO" not in config.decode()


def test_a_device_gets_none(make_bundle: MakeBundle) -> None:
    with pytest.raises(BundleError, match="is written for CPUs, and a device runs it on a GPU"):
        resolve_handoff(written_for(make_bundle(), "cpu"), "device")


def test_the_command_names_the_gpu_of_this_machine(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    install_driver(monkeypatch, Device("NVIDIA RTX 4000 Ada", "sm_89"))
    with pytest.raises(BundleError) as raised:
        resolve_handoff(written_for(make_bundle(dtype="float32"), "cpu"), "isaac-ros")
    assert raised.value.fix is not None and raised.value.fix.endswith(" --target sm_89")


def test_a_graph_of_another_exporter_has_no_such_forms(make_bundle: MakeBundle) -> None:
    header = read_header(make_bundle().graph)
    assert not is_for_cpus(header)
    for text in ("", "[]", '"cpu"', '{"options": "cpu"}', '{"options": {"forms": "gpu"}}'):
        assert not is_for_cpus(replace(header, metadata={"twins_trt.info": text}))
    assert is_for_cpus(replace(header, metadata={"twins_trt.info": '{"options": {"forms": "cpu"}}'}))


def test_an_int8_build_keeps_its_precision() -> None:
    command = gpu_build_command("twins-trt build M --precision int8 --calib-data camvid:a --target cpu", "sm_87")
    assert shlex.split(command)[3:] == ["--precision", "int8", "--calib-data", "camvid:a", "--target", "sm_87"]


def test_triton_says_how_a_bundle_gets_the_engine_that_it_awaits(make_bundle: MakeBundle) -> None:
    awaiting = make_bundle(24, 32, awaits=(AwaitedEngine("sm_87", "jetson-orin", "10.3"),))
    assert any(
        "twins-trt compile" in note and "jetson-orin" in note
        for note in resolve_handoff(awaiting, "triton-server").notes
    )
    assert not any("twins-trt compile" in note for note in resolve_handoff(make_bundle(), "triton-server").notes)
