"""A compiler is described by its names, and every version gets its own calls."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_tensorrt
import pytest

from twins_trt.builders.engine import Compiler, group_targets, open_compiler
from twins_trt.builders.engine.options import EngineOptions
from twins_trt.device import Device
from twins_trt.errors import BuildError, MissingDependencyError, UsageError
from twins_trt.verbs.build import FLAGS
from twins_trt.verbs.command_line import on_command_line

RTX = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
LEVELS = ("ampere_plus", "same_compute_capability")
# version: targets, typing, explicit batch, hardware compatibility, timing cache, progress, Attention, opset
COMPILERS = {
    "8.6.1": ((), "none", True, ("ampere_plus",), True, False, False, 17),
    "10.3.0": ((), "flag", False, ("ampere_plus",), True, True, False, 20),
    "10.13.3.9": ((), "flag", False, LEVELS, True, True, False, 24),
    "10.16.1.11": ((), "flag", False, LEVELS, True, True, True, 24),
    "11.4.0.106": ((), "always", False, LEVELS, True, True, True, 25),
    "rtx-1.7.1.116": (RTX, "always", False, (), False, True, True, None),
}


def compiler_of(version: str) -> Compiler:
    module = fake_tensorrt.fake_module(version)
    return Compiler.of(module, module.__name__)


def test_a_description_of_every_version_is_there() -> None:
    assert set(fake_tensorrt.versions()) == set(COMPILERS)


@pytest.mark.parametrize("version", COMPILERS)
def test_a_compiler_is_described_by_its_names(version: str) -> None:
    compiler = compiler_of(version)
    found = (compiler.targets, compiler.typing, compiler.explicit_batch, tuple(sorted(compiler.hardware_compatibility)))
    assert found == COMPILERS[version][:4]
    assert (compiler.timing_cache, compiler.progress, compiler.attention, compiler.opset) == COMPILERS[version][4:]
    assert compiler.workspace and compiler.optimization_level
    assert compiler.inspector == ("log" if compiler.targets else "engine")


@pytest.mark.parametrize(
    ("version", "flags"),
    [("8.6.1", 0b1), ("10.3.0", 0b10), ("10.16.1.11", 0b10), ("11.4.0.106", 0b1), ("rtx-1.7.1.116", 0b1)],
)
def test_networks_are_created_with_that_versions_bits(version: str, flags: int) -> None:
    compiler = compiler_of(version)
    module: Any = compiler.module
    compiler.new_network(module.Builder(type("Logger", (module.ILogger,), {})()))
    assert ("Builder", "create_network", (flags,)) in module.calls


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0"])
def test_a_hardware_compatibility_it_lacks_is_refused(version: str) -> None:
    compiler = compiler_of(version)
    options = EngineOptions(flavour="tensorrt", hardware_compatibility="same_compute_capability")
    with pytest.raises(BuildError, match="has no hardware compatibility 'same_compute_capability'") as caught:
        compiler.configure(fake_tensorrt.made(compiler.module, "IBuilderConfig"), options, ("sm_87",))
    assert caught.value.fix == "choose from none, ampere_plus"


def test_rtx_takes_targets_and_no_hardware_compatibility() -> None:
    compiler = compiler_of("rtx-1.7.1.116")
    module: Any = compiler.module
    config = fake_tensorrt.made(module, "IBuilderConfig")
    compiler.configure(config, EngineOptions(), ("sm_86", "sm_120"))
    assert config.num_compute_capabilities == 2
    capability = module.ComputeCapability
    assert fake_tensorrt.calls(module, "set_compute_capability") == [(capability.SM86, 0), (capability.SM120, 1)]
    with pytest.raises(BuildError) as caught:
        compiler.configure(config, EngineOptions(hardware_compatibility="ampere_plus"), ("sm_86",))
    assert caught.value.fix == "list the GPUs in targets instead"


def test_targets_of_an_ahead_of_time_build() -> None:
    compiler = compiler_of("rtx-1.7.1.116")
    chosen = EngineOptions(targets=("120", "SM86", "sm_86"))
    assert compiler.settle_targets(chosen, None) == ("sm_120", "sm_86")
    assert compiler.settle_targets(EngineOptions(), Device("RTX 4090", "sm_89")) == ("sm_89",)
    with pytest.raises(UsageError, match="has no target sm_87"):
        compiler.settle_targets(EngineOptions(targets=("sm_86", "sm_87")), None)
    with pytest.raises(UsageError, match="there is no GPU here"):
        compiler.settle_targets(EngineOptions(), None)
    with pytest.raises(UsageError, match=r"does not list this GPU \(sm_90\)"):
        compiler.settle_targets(EngineOptions(), Device("H200", "sm_90"))


def test_targets_of_a_build_on_the_device() -> None:
    compiler, orin = compiler_of("10.3.0"), Device("Orin", "sm_87")
    for targets in ((), ("sm_87",)):
        assert compiler.settle_targets(EngineOptions(flavour="tensorrt", targets=targets), orin) == ("sm_87",)
    other = EngineOptions(flavour="tensorrt", targets=("sm_89",))
    with pytest.raises(UsageError, match=r"Orin \(sm_87\), not for sm_89") as refused:
        compiler.settle_targets(other, orin)
    assert refused.value.fix == 'leave targets out, build on the other device, or choose flavour="tensorrt_rtx"'
    with on_command_line(FLAGS), pytest.raises(UsageError) as refused:
        compiler.settle_targets(other, orin)
    assert refused.value.fix == "leave --target out, build on the other device, or choose --flavour tensorrt_rtx"
    with pytest.raises(MissingDependencyError, match="no CUDA device or driver"):
        compiler.settle_targets(EngineOptions(flavour="tensorrt"), None)


def test_turing_gets_an_engine_of_its_own() -> None:
    assert group_targets(("sm_86", "sm_75", "sm_120")) == (("sm_86", "sm_120"), ("sm_75",))
    assert group_targets(("sm_75",)) == (("sm_75",),)
    assert group_targets(()) == ()


def test_an_old_tensorrt_is_refused() -> None:
    module = fake_tensorrt.fake_module("8.6.1")
    module.__version__ = "8.5.2"
    with pytest.raises(BuildError, match=r"TensorRT 8\.5\.2 is too old"):
        Compiler.of(module, "tensorrt")


def test_absent_flavours_name_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for flavour, fix in (("tensorrt", "[tensorrt]"), ("tensorrt_rtx", "[rtx]")):
        monkeypatch.setitem(sys.modules, flavour, None)
        monkeypatch.setattr("platform.machine", lambda: "x86_64")
        with pytest.raises(MissingDependencyError) as caught:
            open_compiler(flavour)
        assert fix in str(caught.value.fix) and caught.value.exit_code == 4
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(MissingDependencyError, match="JetPack") as caught:
        open_compiler("tensorrt")
    assert "--system-site-packages" in str(caught.value.fix)


def test_a_module_without_its_libraries_or_of_another_kind_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open shared object file')\n")
    for machine, fix in (
        ("x86_64", "reinstall it: pip install --force-reinstall tensorrt"),
        # pip's is not built for a Jetson's GPU, and would hide JetPack's
        ("aarch64", "reinstall it: sudo apt install --reinstall python3-libnvinfer, or in a container: docker run "),
    ):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        with pytest.raises(MissingDependencyError, match=r"cannot be loaded \(libnvinfer\.so\.10") as caught:
            open_compiler("tensorrt")
        assert str(caught.value.fix).startswith(fix)
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    with pytest.raises(MissingDependencyError, match="has no Builder"):
        open_compiler("tensorrt")
    fake_tensorrt.install(monkeypatch, "rtx-1.7.1.116", name="tensorrt")
    with pytest.raises(MissingDependencyError, match="the module tensorrt is the library tensorrt_rtx"):
        open_compiler("tensorrt")
    fake_tensorrt.install(monkeypatch, "10.3.0", name="tensorrt_rtx")
    with pytest.raises(MissingDependencyError, match="the module tensorrt_rtx is the library tensorrt"):
        open_compiler("tensorrt_rtx")


@pytest.mark.shared
@pytest.mark.parametrize(
    ("version", "theirs"),
    [
        ("10.3.0", "10.3.0"),
        ("10.13.3.9", "10.13.3"),
        ("10.16.1.11", "10.16.1"),
        ("11.4.0.106", "11.4.0"),
        ("rtx-1.7.1.116", "rtx-1.7.1"),
    ],
)
def test_names_agree_with_the_recorded_api(version: str, theirs: str, shared: Path) -> None:
    recorded = json.loads((shared / "data" / "tensorrt_api.json").read_text())[theirs]
    ours = fake_tensorrt.describe(version)
    for name, values in ours["enums"].items():
        if name != "ILogger.Severity":
            assert values == recorded["enums"][name], name
    for name, members in ours["classes"].items():
        theirs_members = recorded["classes"][name]
        assert set(members) <= set(theirs_members), name
        for member, signature in members.items():
            if signature not in ("", "...") and theirs_members[member]:
                assert signature == theirs_members[member]
    missing = [name for name in fake_tensorrt.describe("rtx-1.7.1.116")["classes"] if name not in ours["classes"]]
    assert not [name for name in missing if name in recorded["classes"]]


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_names_agree_with_the_installed_rtx() -> None:
    import tensorrt_bindings

    module = open_compiler("tensorrt_rtx").module
    ours = fake_tensorrt.describe("rtx-1.7.1.116")
    if module.__version__ != "1.7.1.116":
        pytest.skip(f"recorded are the names of 1.7.1.116; installed is {module.__version__}")
    found = tensorrt_bindings.describe(module)
    assert found["classes"] == ours["classes"] and found["enums"] == ours["enums"]
