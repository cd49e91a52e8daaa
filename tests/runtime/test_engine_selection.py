"""Which engine of a bundle runs on a machine, and the error if none does."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_engines import Faults
from fake_tensorrt import calls, fake_module
from machine import ADA, ORIN, Machine
from tiny_graphs import MakeBundle

from twins_trt.device import Device
from twins_trt.errors import BundleError, EngineError, MissingDependencyError, UsageError
from twins_trt.runtime import EngineFile, Segmenter, Source, open_bundle, open_engine, write_bundle
from twins_trt.runtime.engines import KINDS, why_not
from twins_trt.runtime.manifest import Compiled
from twins_trt.runtime.tensorrt.selection import choose

REBUILD = "twins-trt build twins_svt-s_fpn --checkpoint tiny.pth --num-classes 5 --out tiny.bundle"


def test_engines_of_the_gpu_come_before_the_cpu() -> None:
    assert list(KINDS)[:2] == ["tensorrt", "tensorrt_rtx"]
    assert list(KINDS).index("tensorrt_rtx") < list(KINDS).index("onnxruntime")


def test_an_engine_for_another_gpu_names_both_and_the_mend(machine: Machine) -> None:
    bundle = machine.bundle(target="sm_86")
    with pytest.raises(BundleError) as caught:
        machine.engine(bundle)
    assert f"has engines/tensorrt.engine for sm_86; this GPU is {ADA.name} (sm_89)" in caught.value.cause
    assert caught.value.fix == f"twins-trt compile {bundle.path}"


@pytest.mark.parametrize("built", ["10.3.0", "10.13.2.6", "10.13.3.1", "11.4.0.106"])
def test_an_engine_of_another_version_names_both_and_the_mend(machine: Machine, built: str) -> None:
    bundle = machine.bundle(version=built)
    with pytest.raises(BundleError) as caught:
        machine.engine(bundle)
    assert f"was built with TensorRT {built}, installed is 10.13.3.9" in caught.value.cause
    assert caught.value.fix == f"twins-trt compile {bundle.path}"


def test_an_unknown_build_number_is_left_to_tensorrt_and_what_it_says_is_passed_on(machine: Machine) -> None:
    """JetPack's Python package leaves the build number out, so the numbers alone prove nothing."""
    bundle = machine.bundle(version="10.13.3")
    with pytest.raises(EngineError) as caught:
        machine.engine(bundle)
    assert "expecting library version 10.13.3.9 got 10.13.3" in caught.value.cause
    # For `compile`, too, it seems to fit.
    assert caught.value.fix == f"twins-trt compile {bundle.path} --again"


def test_a_path_with_a_blank_is_quoted_in_the_command(machine: Machine) -> None:
    bundle = machine.bundle(target="sm_86")
    place = bundle.path.rename(bundle.path.with_name("my road.bundle"))
    with pytest.raises(BundleError) as caught:
        machine.engine(open_bundle(place))
    assert caught.value.fix == f"twins-trt compile '{place}'"


def test_the_flavour_is_named_only_where_the_command_would_choose_another(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = machine.bundle()  # with an engine of TensorRT that fits
    machine.install("rtx-1.7.1")
    with pytest.raises(BundleError) as caught:
        machine.engine(bundle)
    assert caught.value.fix == f"twins-trt compile {bundle.path} --flavour tensorrt_rtx"
    other = machine.bundle(target="sm_86")
    with pytest.raises(BundleError) as caught:
        machine.engine(other)
    assert caught.value.fix == f"twins-trt compile {other.path}"
    monkeypatch.setitem(sys.modules, "tensorrt", fake_module("10.13.3.9"))  # `auto` takes it
    with pytest.raises(BundleError) as caught:
        machine.engine(other)
    assert caught.value.fix == f"twins-trt compile {other.path} --flavour tensorrt_rtx"


def test_a_graph_for_cpus_has_to_be_built_again(machine: Machine) -> None:
    bundle = machine.bundle(target="sm_86", rebuild=f"{REBUILD} --target cpu")
    with pytest.raises(BundleError) as caught:
        machine.engine(bundle)
    assert caught.value.fix == f"{REBUILD.replace('tiny.bundle', 'tiny-gpu.bundle')} --target sm_89"


def test_a_graph_that_did_not_travel_has_to_be_sent(machine: Machine) -> None:
    bundle = machine.bundle(target="sm_86")
    left = tuple(entry for entry in bundle.manifest.files if entry.path == "graph.onnx")
    manifest = replace(bundle.manifest, files=(), left_behind=left)
    engine = bundle.engines[0].file
    sent = write_bundle(bundle.path.with_name("sent.bundle"), manifest, {engine: bundle.path / engine})
    with pytest.raises(BundleError) as caught:
        machine.engine(sent)
    assert caught.value.fix is not None and "export-to device sent.bundle --engine graph" in caught.value.fix


def test_of_two_engines_the_one_that_was_compiled_on_this_gpu_runs(machine: Machine) -> None:
    first, second = Compiled("RTX 4090", "", "", 1.0), Compiled(ADA.name, "", "", 1.0)
    files = [
        EngineFile(f"engines/{index}.engine", "tensorrt", "10.13.3.9", ("sm_89",), compiled=compiled)
        for index, compiled in enumerate((first, second))
    ]
    source: Any = SimpleNamespace(path=Path("x.bundle"), engines=tuple(files))
    assert choose(source, "tensorrt", machine.module, ADA) == files[1]
    source.engines = tuple(files[:1])
    assert choose(source, "tensorrt", machine.module, ADA) == files[0]


def test_a_bundle_without_such_an_engine_says_what_it_has(machine: Machine) -> None:
    bundle = machine.bundle()
    machine.install("rtx-1.7.1")
    with pytest.raises(BundleError, match="has no TensorRT-RTX engine; it has TensorRT for sm_89"):
        machine.engine(bundle)


def test_a_file_that_is_no_engine_is_refused(machine: Machine) -> None:
    machine.install(faults=Faults(loads=False))
    with pytest.raises(EngineError, match=r"TensorRT 10\.13\.3\.9 refuses .*: Serialization assertion failed"):
        machine.engine()


def test_rtx_is_asked_before_it_fails(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    machine.install("rtx-1.7.1", faults=Faults(validity=("INVALID", 2 + 4)))
    with pytest.raises(EngineError, match="on this GPU: unsupported cc, old cuda driver") as caught:
        machine.engine()
    assert caught.value.fix is not None and caught.value.fix.startswith("twins-trt compile ")
    assert calls(machine.module, "deserialize_cuda_engine") == []
    machine.install("rtx-1.7.1", faults=Faults(validity=("SUBOPTIMAL", 0)))
    with caplog.at_level(logging.WARNING, "twins_trt"):
        machine.engine()
    assert "slower than it could: no reason given" in caplog.text


def test_engines_that_other_gpus_may_run(machine: Machine) -> None:
    machine.engine(machine.bundle(target="sm_86", hardware_compatibility="ampere_plus"))
    file = EngineFile("x", "tensorrt", "10.13.3", ("sm_86",), "ampere_plus")
    assert [target for target in ("sm_75", "sm_80", "sm_86", "sm_87", "sm_120") if file.runs_on(target)] == [
        "sm_80",
        "sm_86",
        "sm_120",
    ]
    same = EngineFile("x", "tensorrt", "10.13.3", ("sm_86",), "same_compute_capability")
    assert same.runs_on("sm_86") and not same.runs_on("sm_89")


def test_manifest_and_engine_must_agree(machine: Machine) -> None:
    import json

    bundle = machine.bundle((8, 32, 64), (8, 32, 64))
    path = bundle.path / "manifest.json"
    values = json.loads(path.read_text())
    values["inputs"][0]["max"] = [1, 128, 64, 3]
    path.write_text(json.dumps(values))
    with pytest.raises(BundleError, match=r"inputs\[0\] is image uint8 \[1, H=8-128.*tensorrt\.engine has image"):
        machine.engine(type(bundle)(bundle.path, type(bundle.manifest).from_json(values)))


@pytest.mark.parametrize(
    ("install", "reason"),
    [
        ({"device": None}, "there is no CUDA device or driver here"),
        ({"package": None}, "neither cuda-bindings nor pycuda is installed"),
        ({"device": Device("Old", "sm_75")}, "this GPU is Old (sm_75)"),
    ],
)
def test_auto_falls_back_to_the_cpu(
    machine: Machine, install: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    machine.install()
    bundle = machine.bundle()
    machine.install(**install)
    with caplog.at_level(logging.WARNING, "twins_trt"), Segmenter(bundle) as segmenter:
        assert segmenter.engine.name == "onnxruntime"
    # Slow where there is a GPU is worth a word; where there is none, it is what was to be expected.
    assert (reason in caplog.text) == (install.get("device", ADA) is not None)
    with pytest.raises((BundleError, EngineError, MissingDependencyError)):
        machine.engine(bundle)


def test_auto_takes_the_engine_that_fits(machine: Machine) -> None:
    assert open_and_close(machine) == "tensorrt"
    machine.install("rtx-1.7.1")
    assert open_and_close(machine) == "tensorrt_rtx"


def test_auto_does_not_take_torch(machine: Machine) -> None:
    bundle = machine.bundle(source=Source(seeded=True))
    machine.install(package=None)
    assert why_not(bundle, "torch") is None
    with Segmenter(bundle) as segmenter:
        assert segmenter.engine.name == "onnxruntime"


def open_and_close(machine: Machine) -> str:
    with Segmenter(machine.bundle()) as segmenter:
        return segmenter.engine.name


def test_what_is_not_installed_is_named_with_the_command(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = machine.bundle()
    with pytest.raises(UsageError, match="no device memory 'cupy'"):
        machine.engine(bundle, memory="cupy")
    with pytest.raises(MissingDependencyError, match="needs pycuda, which is not installed"):
        machine.engine(bundle, memory="pycuda")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match="running TensorRT engines needs tensorrt"):
        machine.engine(bundle)
    assert KINDS.keys() >= {"tensorrt", "tensorrt_rtx", "onnxruntime"}
    with pytest.raises(EngineError, match="there is no CUDA device"):
        machine.install(device=None)
        open_engine(bundle, "tensorrt")


def test_a_runtime_that_does_not_start_is_an_error(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, logger: Any) -> None:
        logger.log(machine.module.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(machine.module.Runtime, "__init__", refuse)
    with pytest.raises(EngineError, match="does not start: CUDA initialization failure with error: 35") as caught:
        machine.engine()
    assert caught.value.fix is not None and "nvidia-smi" in caught.value.fix


def test_orin_takes_its_own_engine(machine: Machine) -> None:
    machine.install("10.3.0", device=ORIN)
    assert machine.engine().name == "tensorrt"
    assert machine.gpu.held()["device"] == 0  # everything lies in memory that both share


def test_a_device_without_any_engine_names_the_command(
    machine: Machine, make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a Jetson: no ONNX Runtime, and a bundle that awaits its engine."""
    machine.install("10.3.0", device=ORIN)
    bundle = make_bundle()
    for cpu in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, cpu, None)
    with pytest.raises(MissingDependencyError, match=r"no engine can run .* the bundle has no such engine") as caught:
        Segmenter(bundle)
    assert caught.value.fix == f"twins-trt compile {bundle.path}"
    machine.install("10.3.0", device=ORIN, package=None)
    with pytest.raises(MissingDependencyError) as caught:
        Segmenter(bundle)
    assert caught.value.fix == 'pip install "twins-trt[cuda]"'
    machine.install(device=None)
    with pytest.raises(MissingDependencyError) as caught:
        Segmenter(bundle)
    assert caught.value.fix == 'pip install "twins-trt[cpu]"'


def test_a_bundle_that_awaits_its_engine_says_so_before_it_runs_on_the_cpu(
    machine: Machine, make_bundle: MakeBundle, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = make_bundle()
    with caplog.at_level(logging.WARNING, "twins_trt"), Segmenter(bundle) as segmenter:
        assert segmenter.engine.name == "onnxruntime"
    assert caplog.text.rstrip().endswith(f"for an engine of this GPU: twins-trt compile {bundle.path}")
    caplog.clear()
    with caplog.at_level(logging.WARNING, "twins_trt"), Segmenter(make_bundle(rebuild=f"{REBUILD} --target cpu")):
        assert caplog.text == ""  # it was built for the CPU
