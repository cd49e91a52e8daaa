"""Whole builds, with the names of every TensorRT version."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import fake_tensorrt
import pytest
from engine_graphs import BLOCK, attention, single
from fake_driver import install_driver
from fake_tensorrt import Script, calls
from onnx import helper

from twins_trt.builders.engine import EngineOptions, build_engine
from twins_trt.builders.engine.in_thread import build_in_thread
from twins_trt.compiler_cache import CacheKey, CompilerCache
from twins_trt.device import Device
from twins_trt.errors import BuildError, MissingDependencyError, UsageError
from twins_trt.verbs.build import FLAGS
from twins_trt.verbs.command_line import on_command_line

ON_DEVICE = ("8.6.1", "10.3.0", "10.13.3.9", "10.16.1.11", "11.4.0.106")
ORIN = Device("Orin", "sm_87", integrated=True)
LAYERS = (
    {
        "Name": "_gemm_mha_v2_myl0_0",
        "LayerType": "kgen",
        "Inputs": [{"Name": "q", "Dimensions": [1, 2, 64, 32], "Format/Datatype": "Half"}],
        "Outputs": [{"Name": "out", "Dimensions": [1, 2, 64, 32], "Datatype": "Half", "Format": "Row major"}],
        "TacticName": "_gemm_mha_v2_0x1",
        "Metadata": f"[ONNX Layer: {BLOCK}/scores]\x1e[ONNX Layer: {BLOCK}/softmax]",
    },
)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return attention(tmp_path / "graph.onnx")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """install(version, script) puts a simulated TensorRT where the builder looks for one, and an Orin beside it."""

    def put(version: str, script: Script | None = None, device: Device | None = ORIN) -> Any:
        module = fake_tensorrt.install(monkeypatch, version, script or Script(layers=LAYERS))
        install_driver(monkeypatch, device)
        return module

    return put


@pytest.mark.parametrize("version", ON_DEVICE)
def test_every_version_builds_for_the_device_it_is_on(version: str, graph: Path, install: Any) -> None:
    module = install(version)
    options = EngineOptions(flavour="tensorrt", workspace_mib=512, optimization_level=2)
    built = build_engine(graph, options)
    assert built.serialized == b"engine"
    assert (built.flavour, built.version, built.targets) == ("tensorrt", version, ("sm_87",))
    (layer,) = built.layers
    assert layer.nodes == (f"{BLOCK}/scores", f"{BLOCK}/softmax")
    assert layer.inputs[0].dtype == layer.outputs[0].dtype == "float16"
    assert calls(module, "set_memory_pool_limit") == [(module.MemoryPoolType.WORKSPACE, 512 << 20)]
    assert calls(module, "builder_optimization_level") == [(2,)]
    assert calls(module, "profiling_verbosity") == [(module.ProfilingVerbosity.DETAILED,)]
    assert calls(module, "parse_from_file") == [(str(graph),)]


@pytest.mark.parametrize("version", ON_DEVICE)
def test_precision_flags_are_set_where_there_is_no_strong_typing_and_nowhere_else(
    version: str, graph: Path, install: Any
) -> None:
    network = (("MATRIX_MULTIPLY", "HALF"), ("NORMALIZATION", "FLOAT"), ("CONSTANT", "HALF"), ("SHUFFLE", "INT32"))
    module = install(version, Script(layers=LAYERS, network=network))
    build_engine(graph, EngineOptions(flavour="tensorrt"))
    flags = [flag for (flag,) in calls(module, "set_flag")]
    if version != "8.6.1":
        assert flags == []
        return
    assert flags == [module.BuilderFlag.FP16, module.BuilderFlag.OBEY_PRECISION_CONSTRAINTS]
    assert calls(module, "precision") == [(module.DataType.HALF,), (module.DataType.FLOAT,)]
    assert calls(module, "set_output_type") == [(0, module.DataType.HALF), (0, module.DataType.FLOAT)]


def test_a_quantized_graph_allows_int8_where_that_is_a_flag(tmp_path: Path, install: Any) -> None:
    extra = (helper.make_node("QuantizeLinear", ["out", "scale"], ["quantized"], name="unused"),)
    graph = attention(tmp_path / "graph.onnx", extra=extra)
    module = install("8.6.1")
    build_engine(graph, EngineOptions(flavour="tensorrt"))
    flags = [flag for (flag,) in calls(module, "set_flag")]
    assert module.BuilderFlag.INT8 in flags and module.BuilderFlag.FP16 in flags


@pytest.mark.parametrize("version", ON_DEVICE)
def test_profiles_reach_the_configuration(version: str, tmp_path: Path, install: Any) -> None:
    module = install(version)
    shapes = ((1, 2, 64, 32), (4, 2, 64, 32), (8, 2, 64, 32))
    options = EngineOptions(flavour="tensorrt", profile={name: shapes for name in "qkv"})
    build_engine(attention(tmp_path / "graph.onnx", batch="n"), options)
    assert calls(module, "set_shape") == [(name, *shapes) for name in "qkv"]
    assert len(calls(module, "add_optimization_profile")) == 1


def test_profiles_that_do_not_fit_are_refused_before_building(tmp_path: Path, install: Any) -> None:
    module = install("10.3.0")
    dynamic = attention(tmp_path / "dynamic.onnx", batch="n")
    fixed = attention(tmp_path / "fixed.onnx")
    shape = (1, 2, 64, 32)
    for graph, profile, words in (
        (dynamic, None, r"input 'q' is dynamic \(nx2x64x32\) and has no profile"),
        (dynamic, {"q": (shape,) * 3}, "input 'k' is dynamic"),
        (dynamic, {"image": (shape,) * 3}, "names 'image', which is no input"),
        (dynamic, {name: (shape[1:],) * 3 for name in "qkv"}, "another rank"),
        (fixed, {"q": ((2, 2, 64, 32),) * 3}, "2x2x64x32, but the input is fixed to 1x2x64x32"),
    ):
        with pytest.raises(UsageError, match=words):
            build_engine(graph, EngineOptions(flavour="tensorrt", profile=profile))
    assert calls(module, "build_serialized_network") == []


@pytest.mark.parametrize("version", ON_DEVICE)
def test_a_parse_error_names_the_node(version: str, graph: Path, install: Any) -> None:
    install(version, Script(parse_errors=(("no importer for Bogus", f"{BLOCK}/bogus", "Bogus"),)))
    with pytest.raises(BuildError, match="no importer for Bogus") as caught:
        build_engine(graph, EngineOptions(flavour="tensorrt"))
    # 8.6 numbers its nodes; names came with 10.
    where = "node number 7" if version == "8.6.1" else f"node {BLOCK}/bogus (Bogus)"
    assert where in caught.value.cause and f"TensorRT {version}" in caught.value.cause


@pytest.mark.parametrize(
    ("version", "opset", "most", "fix"),
    [("8.6.1", 20, 17, "17"), ("10.3.0", 21, 20, "20"), ("10.13.3.9", 25, 24, "20"), ("10.3.0", 20, None, None)],
)
def test_an_opset_beyond_the_version_is_named_when_parsing_fails(
    version: str, opset: int, most: int | None, fix: str | None, tmp_path: Path, install: Any
) -> None:
    install(version, Script(parse_errors=(("no importer", "block/gelu", "Gelu"),)))
    with pytest.raises(BuildError, match="no importer") as caught:
        build_engine(attention(tmp_path / "graph.onnx", opset=opset), EngineOptions(flavour="tensorrt"))
    words = (
        f"up to opset {most}, and graph.onnx has opset {opset}" if most else "cannot read graph.onnx: node block/gelu"
    )
    assert words in caught.value.cause
    # Exports stop at 20, the last opset without the Attention operator in sight.
    assert caught.value.fix == (f"export again with opset={fix}" if fix else "export the graph again at opset 17")


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "10.13.3.9"])
def test_the_attention_operator_is_refused_at_once_where_it_is_unknown(
    version: str, tmp_path: Path, install: Any
) -> None:
    module = install(version)
    with pytest.raises(BuildError, match="does not know the Attention operator") as caught:
        build_engine(single(tmp_path / "graph.onnx", "Attention", opset=23), EngineOptions(flavour="tensorrt"))
    assert "opset 17 to 20" in str(caught.value.fix)
    assert calls(module, "create_network") == []


@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
def test_the_attention_operator_is_tried_where_it_is_known(version: str, tmp_path: Path, install: Any) -> None:
    install(version)
    built = build_engine(single(tmp_path / "graph.onnx", "Attention", opset=23), EngineOptions(flavour="tensorrt"))
    assert built.serialized == b"engine"


@pytest.mark.parametrize(
    ("message", "cause", "fix"),
    [
        (
            "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check] Cannot compile operation "
            "'/qkv/MatMul' for Turing (SM75): FP32 GEMM is not supported. In compileGraph at /_src/a.cpp:2012)",
            "sm_75 has no FP32 matrix product, and the graph asks for one at /qkv/MatMul",
            'export with precision="fp16", or leave sm_75 out of targets',
        ),
        (
            "Attention operation was not supported by a dedicated kernel. (See ...)",
            "Attention operator has no kernel",
            "opset 17 to 20",
        ),
        (
            "ElementWiseOperation SUM must have same input types. But they are of types Half and Float.",
            "mixes data types",
            "precision pass",
        ),
        ("Error Code 2: OutOfMemory (Requested size was 8 GiB)", "not enough memory", "lower workspace, close"),
        ("Could not find any implementation for node {ForeignNode[a...b]}.", "no kernel fits", "raise workspace, or"),
        (
            "CUDA driver version is insufficient for CUDA runtime version",
            "the CUDA driver does not serve",
            "nvidia-smi",
        ),
        ("IBuilder::buildSerializedNetwork: Error Code 9: Mystery (In frob at /_src/x.cpp:1)", "Mystery", None),
    ],
)
def test_a_failed_build_says_why_and_what_mends_it(
    message: str, cause: str, fix: str | None, graph: Path, install: Any
) -> None:
    install("10.3.0", Script(serialized=None, messages=(("INFO", "hello"), ("ERROR", message))))
    with pytest.raises(BuildError) as caught:
        build_engine(graph, EngineOptions(flavour="tensorrt"))
    assert cause in caught.value.cause and caught.value.cause.startswith("TensorRT 10.3.0 cannot build graph.onnx")
    assert "_src" not in caught.value.cause
    assert (fix or "") in str(caught.value.fix)


@pytest.mark.parametrize("build_", [build_engine, lambda *given: build_in_thread(*given, lambda *_: None)])
def test_an_error_of_the_compilers_thread_speaks_as_its_caller(build_: Any, graph: Path, install: Any) -> None:
    message = "Could not find any implementation for node {ForeignNode[a...b]}."
    install("10.3.0", Script(serialized=None, messages=(("ERROR", message),)))
    for speaker, fix in (
        (nullcontext(), "raise workspace, or free memory"),
        (on_command_line(FLAGS), "raise --workspace, or free memory"),
    ):
        with speaker, pytest.raises(BuildError) as caught:
            build_(graph, EngineOptions(flavour="tensorrt"))
        assert caught.value.fix == fix
    install("10.3.0", Script(parse_errors=(("no importer", "block/gelu", "Gelu"),)))
    newer = attention(graph.with_name("newer.onnx"), opset=21)
    with on_command_line(FLAGS), pytest.raises(BuildError) as caught:
        build_(newer, EngineOptions(flavour="tensorrt"))
    assert caught.value.fix == "export again with --opset 20"


def test_errors_of_a_build_that_succeeds_are_passed_on(
    graph: Path, install: Any, caplog: pytest.LogCaptureFixture
) -> None:
    parsing = (("ERROR", "one importer gave up, the next did not"),)
    building = (("ERROR", "tactic 17 failed"), ("WARNING", "slow"))
    install("10.3.0", Script(layers=LAYERS, parse_messages=parsing, messages=building))
    with caplog.at_level(logging.WARNING, "twins_trt"):
        assert build_engine(graph, EngineOptions(flavour="tensorrt")).serialized == b"engine"
    assert [record.message for record in caplog.records] == [
        "compiler: slow",
        "the compiler recovered from: tactic 17 failed",
    ]


def test_a_library_that_does_not_start_and_an_engine_that_does_not_load(graph: Path, install: Any) -> None:
    install("10.3.0", Script(device=False))
    with pytest.raises(MissingDependencyError, match="does not start"):
        build_engine(graph, EngineOptions(flavour="tensorrt"))
    install("10.3.0", Script(loads=False))
    with pytest.raises(BuildError, match="cannot load the engine it has just built"):
        build_engine(graph, EngineOptions(flavour="tensorrt"))
    install("10.3.0", device=None)
    with pytest.raises(MissingDependencyError, match="there is no CUDA device"):
        build_engine(graph, EngineOptions(flavour="tensorrt"))


def test_an_engine_that_keeps_names_only_cannot_be_audited(graph: Path, install: Any) -> None:
    install("10.3.0", Script(layers=("conv1", "conv2")))
    with pytest.raises(BuildError, match="keeps layer names only"):
        build_engine(graph, EngineOptions(flavour="tensorrt"))


def test_rtx_needs_no_device_and_reads_its_layers_from_the_log(graph: Path, install: Any) -> None:
    log = (
        "Layers:\nName: head/fc_myl0_0, LayerType: gemm, Inputs: [ { Name: q, Dimensions: [64,32], Strides: [32,1], "
        "StrideOrder: [1,0], Datatype: Half, Format: (Linear) Row major linear format }], Constants: [], Outputs: "
        "[ { Name: out, Dimensions: [64,32], Strides: [32,1], StrideOrder: [1,0], Datatype: Float, Format: (Linear) "
        "Row major linear format }], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: head/fc]\n\nI/O Tensors:\n"
    )
    module = install("rtx-1.7.1.116", Script(layer_log=log), None)
    built = build_engine(graph, EngineOptions(targets=("sm_86", "sm_120"), timing_cache="nowhere/at/all"))
    assert built.targets == ("sm_86", "sm_120")
    assert [(layer.name, layer.outputs[0].dtype) for layer in built.layers] == [("head/fc_myl0_0", "float32")]
    assert calls(module, "create_timing_cache") == []
    install("rtx-1.7.1.116", Script(), None)
    with pytest.raises(BuildError, match="printed no layer list"):
        build_engine(graph, EngineOptions(targets=("sm_86",)))


def test_turing_among_other_targets_is_warned_of(graph: Path, install: Any, caplog: pytest.LogCaptureFixture) -> None:
    install("rtx-1.7.1.116", Script(serialized=None), None)
    with caplog.at_level(logging.WARNING, "twins_trt"), pytest.raises(BuildError):
        build_engine(graph, EngineOptions(targets=("sm_86", "sm_75")))
    assert "sm_75 in one engine with sm_86 costs the others kernels" in caplog.text


def test_progress_is_told_in_phases_and_the_callback_runs_in_this_thread(graph: Path, install: Any) -> None:
    phases = (("Building engine", None, 2), ("Timing tactics", "Building engine", 4))
    install("10.3.0", Script(layers=LAYERS, phases=phases, during=lambda: time.sleep(0.08)))
    told: list[tuple[str, float | None]] = []
    threads = set()

    def progress(step: str, phase: str, share: float | None) -> None:
        assert step == "engine"
        told.append((phase, share))
        threads.add(threading.current_thread())

    build_engine(graph, EngineOptions(flavour="tensorrt"), progress=progress)
    assert threads == {threading.current_thread()}
    assert told[0] == ("Reading the graph", None)
    shares = [share for _, share in told if share is not None]
    assert shares == sorted(shares) and 0 < shares[-1] <= 1
    assert "Timing tactics" in [phase for phase, _ in told]


@pytest.mark.parametrize(("version", "stops"), [("8.6.1", False), ("10.3.0", True), ("11.4.0.106", True)])
def test_an_interrupt_stops_the_build_where_it_can_be_stopped(
    version: str, stops: bool, graph: Path, install: Any, caplog: pytest.LogCaptureFixture
) -> None:
    script = Script(layers=LAYERS, phases=(("Building engine", None, 12),), during=lambda: time.sleep(0.05))
    install(version, script)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    with caplog.at_level(logging.WARNING, "twins_trt"), pytest.raises(KeyboardInterrupt):
        timer.start()
        build_engine(graph, EngineOptions(flavour="tensorrt"))
    timer.join()
    # An interrupted `Thread.join` takes the compiler's thread for ended (CPython 3.11), so it may still be ending.
    script.ended.wait(10)
    assert script.cancelled is stops
    assert ("stopping the build" if stops else "cannot stop a build") in caplog.text
    # Nothing of the cancelled build stands in the way of the next.
    script.cancelled = False
    assert build_engine(graph, EngineOptions(flavour="tensorrt")).serialized == b"engine"


def test_an_error_of_the_callback_cancels_the_build_and_comes_out(graph: Path, install: Any) -> None:
    script = Script(phases=(("Building engine", None, 50),), during=lambda: time.sleep(0.05))
    install("10.3.0", script)

    def progress(step: str, phase: str, share: float | None) -> None:
        if share is not None:
            raise RuntimeError("the terminal went away")

    with pytest.raises(RuntimeError, match="the terminal went away"):
        build_engine(graph, EngineOptions(flavour="tensorrt"), progress=progress)
    assert script.cancelled


def test_the_timing_cache_is_kept_merged_and_told_apart(
    graph: Path, install: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "timing.cache"
    options = EngineOptions(flavour="tensorrt", timing_cache=str(path))
    module = install("10.3.0")
    build_engine(graph, options)
    assert calls(module, "create_timing_cache") == [(b"",)]
    assert path.read_bytes().endswith(b"\n+measured")
    module = install("10.3.0")
    build_engine(graph, options)
    assert calls(module, "create_timing_cache")[0] == (b"+measured",)
    with caplog.at_level(logging.WARNING, "twins_trt"):
        module = install("10.13.3.9")
        build_engine(graph, options)
    assert calls(module, "create_timing_cache") == [(b"",)]
    assert "was made with version '10.3.0', and this is '10.13.3.9'" in caplog.text
    assert caplog.text.count("was made with") == 1
    module = install("10.13.3.9", Script(layers=LAYERS, refuses_cache=True))
    with caplog.at_level(logging.WARNING, "twins_trt"):
        build_engine(graph, options)
    assert "refuses timing cache" in caplog.text
    assert [given[1] for given in calls(module, "set_timing_cache")] == [False, False]


def test_what_another_build_added_to_the_timing_cache_meanwhile_is_kept(
    graph: Path, install: Any, tmp_path: Path
) -> None:
    path = tmp_path / "timing.cache"
    key = CacheKey("tensorrt", "10.3.0", "sm_87", "Orin")

    def other() -> None:
        CompilerCache(path, key, "timing cache").write(lambda _: b"theirs")

    install("10.3.0", Script(layers=LAYERS, phases=(("Building engine", None, 1),), during=other))
    build_engine(graph, EngineOptions(flavour="tensorrt", timing_cache=str(path)))
    assert CompilerCache(path, key, "timing cache").read() == b"theirs+measured"
