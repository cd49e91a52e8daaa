"""An engine from a bundle's own graph, on the simulated TensorRT of every version."""

from __future__ import annotations

import json
import re
import sys
from importlib.machinery import ModuleSpec

import pytest
from compiling import ADA, ORIN, VERSIONS, Install, ToCompile
from fake_builder import building_module
from fake_gpu import FakeGpu
from fake_tensorrt import calls

from twins_trt import compile_engine
from twins_trt.errors import BuildError, BundleError, MissingDependencyError, UnfusedAttentionError, UsageError
from twins_trt.runtime import open_bundle

LAYERS = (
    "Layers:\nName: copy, LayerType: kgen, Inputs: [ { Name: image, Dimensions: [1,24,32,3], Datatype: UInt8 }], "
    "Outputs: [ { Name: mask, Dimensions: [1,24,32], Datatype: UInt8 }], TacticName: copy\nI/O Tensors:\n"
)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_gives_the_bundle_an_engine_that_names_how_it_was_made(
    version: str, install: Install, to_compile: ToCompile
) -> None:
    module, bundle = install(version), to_compile()
    report = compile_engine(bundle.path)
    amended = open_bundle(bundle.path)
    (engine,) = amended.engines
    assert (report.compiled, report.engine) == (True, engine)
    assert engine.file == f"engines/tensorrt-{version}-sm_87.engine"
    assert (engine.flavour, engine.version, engine.targets) == ("tensorrt", version, ("sm_87",))
    assert [amended.read(engine)] == module.built
    assert engine.compiled is not None
    assert (engine.compiled.device, engine.compiled.cuda) == ("Orin", "13.0")
    assert engine.compiled.shared_memory and engine.compiled.seconds >= 0
    assert amended.manifest.awaits == () and amended.manifest.tools["tensorrt"] == version
    (entry,) = amended.read_json("audit.json")["engines"]
    assert (entry["file"], entry["version"]) == (engine.file, version)
    assert entry["audit"]["kernels"] == report.audit.kernels > 0


@pytest.mark.parametrize("version", VERSIONS)
def test_a_second_call_compiles_nothing(version: str, install: Install, to_compile: ToCompile) -> None:
    module, bundle = install(version), to_compile()
    compile_engine(bundle.path)
    manifest = (bundle.path / "manifest.json").read_bytes()
    report = compile_engine(bundle.path)
    assert (report.compiled, report.audit, report.misfits) == (False, None, {})
    assert len(module.built) == 1
    assert (bundle.path / "manifest.json").read_bytes() == manifest
    assert sorted(path.name for path in bundle.path.parent.glob("*.bundle*")) == [bundle.path.name]
    assert compile_engine(bundle.path, again=True).compiled
    assert len(module.built) == 2


@pytest.mark.parametrize("version", VERSIONS)
def test_the_profile_is_the_manifests(version: str, install: Install, to_compile: ToCompile) -> None:
    module, bundle = install(version), to_compile((8, 32, 64), (8, 32, 64))
    compile_engine(bundle.path)
    image = bundle.interface.image
    assert calls(module, "set_shape") == [("image", image.min, image.opt, image.max)]


def test_an_attention_that_is_not_fused_refuses_the_engine_and_compiles_once(
    install: Install, to_compile: ToCompile, caplog: pytest.LogCaptureFixture
) -> None:
    module, bundle = install(), to_compile(attentions=2, precision="fp16")
    before = (bundle.path / "manifest.json").read_bytes()
    with pytest.raises(UnfusedAttentionError, match="2 of 2 attentions are not fused"):
        compile_engine(bundle.path)
    assert (bundle.path / "manifest.json").read_bytes() == before
    assert "attentions fused  0 of 2" in caplog.text
    report = compile_engine(bundle.path, allow_unfused=True)
    assert report.resumed and report.audit.expected_attentions == 2
    assert len(module.built) == 1


def test_float32_attention_cannot_be_fused_and_is_taken(install: Install, to_compile: ToCompile) -> None:
    install()
    assert compile_engine(to_compile(attentions=2, precision="fp32").path).compiled


def test_places_that_do_not_run_in_int8_are_told(
    install: Install, to_compile: ToCompile, caplog: pytest.LogCaptureFixture
) -> None:
    install()
    places = {"nodes": ["stages.0.blocks.0.ffn/fc2"], "attentions": ["stages.0.blocks.0.attn"]}
    bundle = to_compile(precision="int8", int8=places)
    report = compile_engine(bundle.path)
    assert report.not_int8 == ("stages.0.blocks.0.ffn/fc2", "stages.0.blocks.0.attn")
    assert "2 places should run in INT8 and do not" in caplog.text
    audit = open_bundle(bundle.path).read_json("audit.json")
    assert audit["engines"][0]["not_int8"] == list(report.not_int8)
    assert audit["int8"] == places  # stays for the next compilation


def test_an_int8_bundle_that_names_no_places_is_not_checked_and_says_so(
    install: Install, to_compile: ToCompile, caplog: pytest.LogCaptureFixture
) -> None:
    install()
    assert compile_engine(to_compile(precision="int8").path).not_int8 == ()
    assert "does not say which places should run in INT8: not checked" in caplog.text


def test_a_graph_for_cpus_is_refused(install: Install, to_compile: ToCompile) -> None:
    module, bundle = install(), to_compile(forms="cpu")
    with pytest.raises(BundleError, match="is written for CPUs") as caught:
        compile_engine(bundle.path)
    assert caught.value.fix is not None and caught.value.fix.endswith("--target sm_87")
    assert module.built == []


def test_a_graph_of_a_later_opset_names_the_build_that_an_old_tensorrt_reads(
    install: Install, to_compile: ToCompile
) -> None:
    for precision, fix in (
        ("fp16", "where the checkpoint is: twins-trt build .* --opset 17$"),
        ("int8", "an FP16 bundle"),
    ):
        module = install("8.6.1")
        module.script.parse_errors = (("no importer for Gelu", "block/gelu", "Gelu"),)
        bundle = to_compile(precision=precision, opset=20)
        with pytest.raises(BuildError, match="no importer for Gelu") as caught:
            compile_engine(bundle.path)
        # The tiny graph itself has opset 17; the manifest says what a real one would have.
        assert caught.value.fix is not None and re.search(fix, caught.value.fix)
        assert open_bundle(bundle.path).engines == ()


def test_without_a_gpu_the_target_has_to_be_named(
    install: Install, to_compile: ToCompile, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(device=None)
    bundle = to_compile()
    why = "twins-trt doctor --for compile, which says why"
    rtx = ModuleSpec("tensorrt_rtx", None)
    for spec, fix in ((None, why), (rtx, f'{why}, or name a GPU to TensorRT-RTX: target="sm_86"')):
        monkeypatch.setattr("twins_trt.builders.compile.job.find_spec", lambda _, spec=spec: spec)
        with pytest.raises(MissingDependencyError, match="no CUDA device or driver here to compile for") as caught:
            compile_engine(bundle.path)
        assert caught.value.fix == fix
    with pytest.raises(UsageError, match="target is for TensorRT-RTX"):
        compile_engine(bundle.path, flavour="tensorrt", target="sm_86")
    with pytest.raises(UsageError, match="flavour cannot be 'trt'"):
        compile_engine(bundle.path, flavour="trt")


def test_rtx_compiles_for_a_gpu_that_is_not_there(install: Install, to_compile: ToCompile) -> None:
    """By the real compiler, which needs no GPU."""
    bundle = to_compile(precision="fp32")
    report = compile_engine(bundle.path, target="sm_86")
    version = report.engine.version
    assert report.engine.file == f"engines/tensorrt_rtx-{version}-sm_86.engine"
    assert report.engine.targets == ("sm_86",)
    assert report.engine.compiled is not None and report.engine.compiled.device == ""
    assert report.next == ()  # it does not run here
    assert len(open_bundle(bundle.path).read(report.engine)) > 1000
    assert not compile_engine(bundle.path, target="sm_86").compiled
    other = compile_engine(bundle.path, target="rtx-4090")
    assert other.engine.targets == ("sm_89",)
    with pytest.raises(UsageError, match="has no target sm_87") as caught:
        compile_engine(bundle.path, target="jetson-orin")
    assert caught.value.fix is not None and caught.value.fix.endswith("or compile on the device itself, without target")
    assert other.compiled and len(open_bundle(bundle.path).engines) == 2
    assert [entry["file"] for entry in open_bundle(bundle.path).read_json("audit.json")["engines"]] == [
        report.engine.file,
        other.engine.file,
    ]
    assert [each.target for each in open_bundle(bundle.path).manifest.awaits] == ["sm_87"]  # still to come


def test_auto_takes_what_is_installed_and_lists_this_gpu(
    install: Install, to_compile: ToCompile, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("rtx-1.7.1", ADA).script.layer_log = LAYERS
    bundle = to_compile()
    assert compile_engine(bundle.path).engine.flavour == "tensorrt_rtx"
    monkeypatch.setitem(sys.modules, "tensorrt", building_module("10.13.3.9", FakeGpu()))
    assert not compile_engine(bundle.path).compiled  # its engine of TensorRT-RTX fits
    assert compile_engine(bundle.path, flavour="tensorrt").engine.flavour == "tensorrt"
    assert compile_engine(to_compile().path).engine.flavour == "tensorrt"
    install("rtx-1.7.1", ORIN)
    with pytest.raises(MissingDependencyError, match=r"does not compile for this GPU \(Orin, sm_87\)"):
        compile_engine(to_compile().path)


def test_what_a_bundle_says_is_read_from_json(install: Install, to_compile: ToCompile) -> None:
    install()
    bundle = to_compile()
    assert json.loads(json.dumps(compile_engine(bundle.path).to_json()))["targets"] == ["sm_87"]
