"""The build as a library call. TensorRT-RTX is simulated where its work is not what is tested."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx_graphsurgeon")

from fake_driver import install_driver
from fake_tensorrt import COMPILERS, Script, calls, install, install_compilers

from twins_trt.builders.bundle.job import BuildJob
from twins_trt.builders.bundle.run import BuildReport, resolve_build
from twins_trt.builders.bundle.run import build_bundle as build
from twins_trt.builders.bundle.targets import choose_targets, engine_jobs
from twins_trt.builders.engine import read_header
from twins_trt.builders.export import DynamicDim, ExportOptions
from twins_trt.errors import (
    BuildError,
    BundleError,
    MissingDependencyError,
    UnfusedAttentionError,
    UsageError,
)
from twins_trt.models.checkpoint import read_checkpoint
from twins_trt.progress import Progress
from twins_trt.runtime import open_bundle
from twins_trt.verbs.build import BuildRequest

MODEL = "twins_svt-s_fpn"
RTX = {"targets": ("sm_89",), "flavour": ("tensorrt_rtx",)}


def small(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "size": (64, 96), **RTX, "seeded": True, "num_classes": 4, **fields}


def build_bundle(
    fields: dict[str, Any], out: Path, *, overwrite: bool = False, progress: Progress | None = None
) -> BuildReport:
    return build(BuildRequest(**fields, out=str(out), overwrite=overwrite), progress=progress)


def job_of(fields: dict[str, Any], out: Path) -> BuildJob:
    return resolve_build(BuildRequest(**fields, out=str(out)))


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of temporary files. No test may leave any there."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`compiler(fused=18, unfused=0, **script)` installs a simulated TensorRT-RTX, and returns its module."""

    def put(*, fused: int = 18, unfused: int = 0, **script: Any) -> Any:
        names = [f"_gemm_mha_v2_{i}" for i in range(fused)] + [f"__myl_MaxrSubExp_{i}" for i in range(unfused)]
        layers = "\n".join(
            f"Name: {name}, LayerType: {'gemm' if 'gemm' in name else 'kgen'}, Inputs: [], Constants: [], Outputs: [], "
            "TacticName: t, StreamId: 0, Metadata: "
            for name in names
        )
        log = f"Layers:\n{layers}\n\nI/O Tensors:\n"
        return install(monkeypatch, COMPILERS["tensorrt_rtx"], Script(layer_log=log, **script))

    return put


def test_a_real_build_from_a_library_call(place: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    steps: list[str] = []
    report = build_bundle(small(), place / "x.bundle", progress=lambda step, detail, share: steps.append(step))
    names = ["weights", "graph", "engine tensorrt_rtx sm_89", "bundle"]
    assert list(dict.fromkeys(steps)) == [f"[{i}/4] {name}" for i, name in enumerate(names, start=1)]
    assert list(report.seconds) == names and report.seconds["graph"] > 0
    audit = report.audits["engines/tensorrt_rtx-sm_89.engine"]
    assert (audit.attentions, audit.expected_attentions, audit.unfused_attentions) == (18, 18, ())
    opened = open_bundle(place / "x.bundle")
    assert opened.manifest == report.bundle.manifest
    assert opened.manifest.source.seeded
    assert opened.interface.classes == ("class 0", "class 1", "class 2", "class 3")
    assert json.loads(json.dumps(report.to_json()))["manifest"] == opened.manifest.to_json()


def test_weights_travel_where_asked_for(place: Path, compiler: Callable[..., Any]) -> None:
    import torch

    from twins_trt.runtime.engines.torch import load_model

    compiler()
    fields = small(with_weights=True)
    assert "weights.pth" in job_of(fields, place / "x.bundle").files
    bundle = build_bundle(fields, place / "x.bundle").bundle
    assert bundle.manifest.rebuild.endswith(" --with-weights")
    assert f" --out {place / 'x.bundle'} " in bundle.manifest.rebuild
    saved = read_checkpoint(bundle.file("weights.pth"))
    assert saved.meta.classes == bundle.interface.classes and saved.meta.palette == bundle.interface.palette
    loaded = load_model(bundle).state_dict()
    assert set(loaded) == set(saved.state_dict)
    assert all(torch.equal(loaded[key], value) for key, value in saved.state_dict.items())


def test_every_group_of_targets_gets_its_engine(place: Path, compiler: Callable[..., Any]) -> None:
    module = compiler()
    build_bundle(small(targets=("sm_86", "sm_75", "sm_120")), place / "x.bundle")
    targets = module.ComputeCapability
    compiled_for = [(targets.SM86, 0), (targets.SM120, 1), (targets.SM75, 0)]
    assert calls(module, "set_compute_capability") == compiled_for
    assert len(calls(module, "build_serialized_network")) == 2
    opened = open_bundle(place / "x.bundle")
    files = ("engines/tensorrt_rtx-sm_86-sm_120.engine", "engines/tensorrt_rtx-sm_75.engine")
    assert [(e.file, e.targets, e.version) for e in opened.manifest.engines] == [
        (files[0], ("sm_86", "sm_120"), "1.7.1.116"),
        (files[1], ("sm_75",), "1.7.1.116"),
    ]
    assert opened.file(files[0]).read_bytes() == b"engine"
    assert [entry["file"] for entry in opened.read_json("audit.json")["engines"]] == list(files)
    assert opened.manifest.tools["tensorrt_rtx"] == "1.7.1.116"


def test_an_unfused_attention_fails_the_build_and_shows_the_audit(
    place: Path, compiler: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    compiler(fused=17, unfused=1)
    with caplog.at_level(logging.WARNING), pytest.raises(UnfusedAttentionError, match="1 of 18") as raised:
        build_bundle(small(), place / "x.bundle")
    assert "allow_unfused=True" in str(raised.value.fix)
    assert "attentions fused  17 of 18" in caplog.text
    assert list(place.iterdir()) == []


def test_an_unfused_attention_can_be_allowed_and_fp32_has_none(
    place: Path, compiler: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    compiler(fused=0, unfused=18)
    build_bundle(small(allow_unfused=True), place / "allowed.bundle")
    assert "(allowed)" in caplog.text
    manifest = open_bundle(place / "allowed.bundle").manifest
    assert "--allow-unfused" in manifest.rebuild
    build_bundle(small(precision="fp32"), place / "fp32.bundle")
    audit = open_bundle(place / "fp32.bundle").read_json("audit.json")["engines"][0]["audit"]
    assert (audit["attentions"], len(audit["unfused_attentions"])) == (0, 18)


@pytest.mark.parametrize("failure", [BuildError("no kernel"), KeyboardInterrupt(), SystemExit(143)])
def test_a_failing_compiler_leaves_nothing(
    place: Path, compiler: Callable[..., Any], scratch: Path, failure: BaseException
) -> None:
    def fail() -> None:
        ((graph,),) = calls(module, "parse_from_file")
        assert Path(graph).is_file() and Path(graph).is_relative_to(scratch)
        raise failure

    module = compiler(during=fail)
    with pytest.raises(type(failure)) as raised:
        build_bundle(small(), place / "x.bundle")
    assert raised.value is failure
    assert list(place.iterdir()) == []


def test_a_progress_callback_may_stop_the_build(place: Path, compiler: Callable[..., Any]) -> None:
    compiler()

    def stop(step: str, detail: str, share: float | None) -> None:
        if step == "[4/4] bundle":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_bundle(small(), place / "x.bundle", progress=stop)
    assert list(place.iterdir()) == []


def test_an_interrupt_waits_for_the_compiler_to_stop(place: Path, compiler: Callable[..., Any]) -> None:
    """It is raised in the caller's thread while the compiler works. The compiler is told to stop, and ends first."""
    graph_was_there: list[bool] = []

    def work() -> None:
        time.sleep(0.2)
        ((graph,),) = calls(module, "parse_from_file")
        graph_was_there.append(Path(graph).is_file())

    def interrupt(step: str, detail: str, share: float | None) -> None:
        if detail == "compiling":
            raise KeyboardInterrupt

    module = compiler(during=work, phases=(("compiling", None, 1000),))
    with pytest.raises(KeyboardInterrupt):
        build_bundle(small(), place / "x.bundle", progress=interrupt)
    assert module.script.cancelled and len(graph_was_there) < 100 and all(graph_was_there)
    steps = len(graph_was_there)
    time.sleep(0.5)
    assert len(graph_was_there) == steps
    assert list(place.iterdir()) == []


def test_what_exists_is_refused_before_any_work(place: Path, compiler: Callable[..., Any]) -> None:
    compiler()
    steps: list[str] = []

    def note(step: str, detail: str, share: float | None) -> None:
        steps.append(step)

    (place / "bundle").mkdir()
    (place / "bundle" / "manifest.json").touch()
    (place / "folder").mkdir()
    (place / "file").touch()
    with pytest.raises(BundleError, match="bundle exists") as raised:
        build_bundle(small(), place / "bundle", progress=note)
    assert "overwrite=True" in str(raised.value.fix)
    for name in ("folder", "file"):
        with pytest.raises(BundleError, match="is not a bundle"):
            build_bundle(small(), place / name, overwrite=True, progress=note)
    with pytest.raises(BundleError, match="is no folder to write in"):
        build_bundle(small(), place / "file" / "x.bundle", progress=note)
    assert steps == []
    build_bundle(small(), place / "free.bundle", progress=note)
    assert steps[0] == "[1/4] weights"


def test_one_that_appears_meanwhile_is_not_replaced(place: Path, compiler: Callable[..., Any]) -> None:
    compiler()
    out = place / "x.bundle"

    def appear(step: str, detail: str, share: float | None) -> None:
        if step == "[4/4] bundle":
            out.mkdir()
            (out / "mine").touch()

    with pytest.raises(BundleError, match="exists"):
        build_bundle(small(), out, progress=appear)
    assert [path.name for path in out.iterdir()] == ["mine"] and [path.name for path in place.iterdir()] == ["x.bundle"]


def test_a_dynamic_graph_takes_its_profile_to_engine_and_manifest(place: Path, compiler: Callable[..., Any]) -> None:
    module = compiler()
    size = (DynamicDim(64, 64, 128), DynamicDim(64, 96, 160))
    fields = small(size=size, batch=DynamicDim(1, 2, 4), outputs=("logits",), test_scale=(160, 64))
    build_bundle(fields, place / "x.bundle")
    shapes = ((1, 64, 64, 3), (2, 64, 96, 3), (4, 128, 160, 3))
    assert calls(module, "set_shape") == [("image", *shapes)]
    manifest = open_bundle(place / "x.bundle").manifest
    assert (manifest.interface.image.min, manifest.interface.image.opt, manifest.interface.image.max) == shapes
    assert manifest.interface.preprocessing.test_scale == (160, 64)
    logits = manifest.interface.output("logits")
    assert logits is not None and logits.shape[1] == 4 and logits.dynamic


def test_float_input_puts_the_channels_first(place: Path, compiler: Callable[..., Any]) -> None:
    module = compiler()
    build_bundle(small(batch=DynamicDim(1, 2, 4), input="float32"), place / "x.bundle")
    assert calls(module, "set_shape") == [("image", (1, 3, 64, 96), (2, 3, 64, 96), (4, 3, 64, 96))]
    assert open_bundle(place / "x.bundle").manifest.interface.layout == "NCHW"


def test_a_graph_alone_is_written_for_the_cpu(place: Path) -> None:
    report = build_bundle(small(targets=("cpu",), flavour=None), place / "x.bundle")
    assert report.audits == {} and report.bundle.files == ("graph.onnx",)
    assert list(report.seconds) == ["weights", "graph", "bundle"]
    assert '"forms": "cpu"' in read_header(report.bundle.graph).metadata["twins_trt.info"]
    assert report.bundle.manifest.rebuild.endswith(" --target cpu")


def test_a_job_has_its_targets_and_refuses_what_cannot_be(
    place: Path, compiler: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler()
    out = place / "x.bundle"
    job = job_of(small(), out)
    assert job.files == ("graph.onnx", "engines/tensorrt_rtx-sm_89.engine", "audit.json", "manifest.json")
    assert job.weights is None and job.engines[0].compiler == "TensorRT-RTX 1.7.1.116"
    with pytest.raises(UsageError, match="no target sm_87"):
        job_of(small(targets=("87",)), out)
    with pytest.raises(UsageError, match="name each of them once"):
        engine_jobs(choose_targets(["sm_89"], flavours=["tensorrt_rtx"]).engines * 2, ExportOptions(64, 96))
    install_driver(monkeypatch, None)
    with pytest.raises(UsageError, match="there is no GPU here") as raised:
        job_of(small(targets=()), out)
    assert "a device of twins-trt targets, or cpu" in str(raised.value.fix)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError):
        job_of(small(targets=(), flavour=("tensorrt",)), out)


def test_engines_of_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu in (choose_targets(["cpu"]), choose_targets([" CPU "], flavours=["tensorrt_rtx"])):
        assert cpu.engines == () and not cpu.gpu
    with pytest.raises(UsageError, match="cannot be combined with others"):
        choose_targets(["cpu", "sm_86"])
    flavours = ["tensorrt_rtx", "tensorrt"]
    install_compilers(monkeypatch)
    both = choose_targets(["86"], flavours=flavours, hardware_compatibility="ampere_plus").engines
    assert [(e.flavour, e.targets, e.hardware_compatibility) for e in both] == [
        ("tensorrt_rtx", ("sm_86",), "none"),
        ("tensorrt", (), "ampere_plus"),
    ]
    engines = choose_targets(["86", "75"], flavours=["tensorrt_rtx"], workspace_mib=64, optimization_level=1).engines
    assert [(e.workspace_mib, e.optimization_level) for e in engines] == [(64, 1)] * 2
    with pytest.raises(UsageError, match="not a GPU target"):
        choose_targets(["86", "orin"])


@pytest.mark.parametrize(
    ("installed", "flavour"),
    [
        ({"tensorrt_rtx", "tensorrt"}, "tensorrt_rtx"),
        ({"tensorrt_rtx"}, "tensorrt_rtx"),
        ({"tensorrt"}, "tensorrt"),
        (set(), "tensorrt_rtx"),
    ],
)
def test_auto_takes_the_flavour_that_is_installed(
    monkeypatch: pytest.MonkeyPatch, installed: set[str], flavour: str
) -> None:
    install_compilers(monkeypatch, installed)
    assert choose_targets(["sm_86"]).flavours == (flavour,)


def test_requests_survive_json() -> None:
    size = (DynamicDim(64, 96, 128), DynamicDim(64, 96, 128))
    request = BuildRequest(MODEL, "x", checkpoint="x.pth", size=size, batch=2, opset=19, outputs=("mask", "logits"))
    for asked in (request, BuildRequest(**small(test_scale=(2048, 512), smooth=0.5, fallback=False))):
        assert BuildRequest.from_json(json.loads(json.dumps(asked.to_json()))) == asked
    with pytest.raises(UsageError, match="colour"):
        BuildRequest.from_json({"model": MODEL, "colour": "red"})
    with pytest.raises(UsageError, match="batch"):
        BuildRequest.from_json({"model": MODEL, "batch": "tall"})
